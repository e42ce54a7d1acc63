//! Running commands of the host in the namespaces of a lab.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use weft_kernel::NetNs;
use weft_kernel::process::{Enter, enter};
use weft_model::{UserError, codes};

use crate::daemon::api_error;
use crate::machine::{Machine, kernel_error};
use crate::state::ClusterDir;
use crate::vnet::VnetNames;

/// Where in a virtual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VnetPlace {
    /// The host that is no node.
    Host,
    /// The host beyond the router.
    Internet,
    /// The switch and router.
    Switch,
}

/// What the lab needs of a sandbox's record.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sandbox {
    pod_uid: String,
    netns: String,
}

/// Name of the namespace of a node.
///
/// # Errors
/// The cluster or the node does not exist.
pub fn node_netns(cluster: &str, node: &str) -> Result<String, UserError> {
    let dir = ClusterDir::new(cluster)?;
    let state = dir.load()?;
    Ok(Machine::new(&dir, state.node(node)?).netns_name)
}

/// The nodes of a cluster and the sockets of their agents, in the order in which the nodes joined.
///
/// # Errors
/// The cluster does not exist.
pub fn agent_sockets(cluster: &str) -> Result<Vec<(String, PathBuf)>, UserError> {
    let dir = ClusterDir::new(cluster)?;
    let state = dir.load()?;
    Ok(state
        .nodes
        .iter()
        .map(|node| (node.name.clone(), Machine::new(&dir, node).agent_socket()))
        .collect())
}

/// Name of a namespace of the cluster's virtual network.
///
/// # Errors
/// The cluster does not exist.
pub fn vnet_netns(cluster: &str, place: VnetPlace) -> Result<String, UserError> {
    let state = ClusterDir::new(cluster)?.load()?;
    let names = VnetNames::of(&state.config.vnet);
    Ok(match place {
        VnetPlace::Host => names.host,
        VnetPlace::Internet => names.internet,
        VnetPlace::Switch => names.switch,
    })
}

/// A client of the cluster's API.
///
/// # Errors
/// The cluster does not exist, or its daemon has gone.
pub fn client(cluster: &str) -> Result<Client, UserError> {
    let state = ClusterDir::new(cluster)?.load()?;
    let api = state.api_on_host.ok_or_else(|| {
        UserError::new(
            codes::API_UNREACHABLE,
            format!("the API of cluster {cluster} is not served yet"),
            format!("weft lab status {cluster}"),
        )
    })?;
    crate::daemon::client(api)
}

/// Name of the namespace of a pod. `wanted` is a pod's name or its beginning, or `deploy/NAME`, `sts/NAME` and the
/// like for one of a workload's pods; each may have `NAMESPACE/` before it.
///
/// # Errors
/// There is no such running pod.
pub async fn pod_netns(cluster: &str, wanted: &str, namespace: Option<&str>) -> Result<String, UserError> {
    let dir = ClusterDir::new(cluster)?;
    let client = client(cluster)?;
    let wanted = Wanted::parse(wanted, namespace);
    let pods: Api<Pod> = Api::namespaced(client, &wanted.namespace);
    let pods = pods
        .list(&ListParams::default())
        .await
        .map_err(|error| api_error("listing pods", &error))?
        .items;
    let pod = wanted
        .choose(&pods)
        .ok_or_else(|| wanted.missing(cluster, &pods))?;
    sandbox_netns(&dir, pod).ok_or_else(|| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.clone())
            .unwrap_or_default();
        UserError::new(
            codes::NO_SUCH_POD,
            format!(
                "pod {}/{} has no network namespace: it is {phase}",
                wanted.namespace,
                pod.name_any()
            ),
            format!(
                "KUBECONFIG={} kubectl -n {} describe pod {}",
                dir.kubeconfig().display(),
                wanted.namespace,
                pod.name_any()
            ),
        )
    })
}

/// A command that will run in a named namespace, with a `/sys` that fits it.
///
/// # Errors
/// The namespace does not exist.
pub fn command(netns: &str, argv: &[String]) -> Result<Command, UserError> {
    let failed =
        |error: weft_kernel::Error| kernel_error(&format!("namespace {netns}"), &error, "weft lab list");
    let Some((program, args)) = argv.split_first() else {
        return Err(UserError::new(
            codes::CONFLICTING_FLAGS,
            "no command is given",
            "add -- COMMAND",
        ));
    };
    let netns = NetNs::named(netns).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(args);
    enter(
        &mut command,
        &netns,
        Enter {
            private_sys: true,
            ..Enter::default()
        },
    )
    .map_err(failed)?;
    Ok(command)
}

/// A pod as a user names it.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    namespace: String,
    /// The kind of the workload that owns it, in full.
    owner: Option<&'static str>,
    name: String,
}

// === impl Wanted ===

impl Wanted {
    fn parse(text: &str, namespace: Option<&str>) -> Self {
        let mut parts: Vec<&str> = text.split('/').collect();
        let name = parts.pop().unwrap_or_default().to_owned();
        let mut owner = None;
        let mut is_kind = |part: &&str| {
            owner = owner_kind(part);
            owner.is_some() || matches!(*part, "po" | "pod" | "pods")
        };
        parts.pop_if(|part| is_kind(part));
        let namespace = parts.pop().or(namespace).unwrap_or("default").to_owned();
        Self {
            namespace,
            owner,
            name,
        }
    }

    /// The pod meant, running ones before others.
    fn choose<'a>(&self, pods: &'a [Pod]) -> Option<&'a Pod> {
        let running =
            |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let first = |fits: &dyn Fn(&&Pod) -> bool| {
            pods.iter()
                .filter(|pod| fits(pod))
                .find(running)
                .or_else(|| pods.iter().find(|pod| fits(pod)))
        };
        match self.owner {
            Some(kind) => first(&|pod| {
                pod.owner_references()
                    .iter()
                    .any(|owner| self.owned_by(owner, kind))
            }),
            None => first(&|pod| pod.name_any() == self.name)
                .or_else(|| first(&|pod| pod.name_any().starts_with(&format!("{}-", self.name)))),
        }
    }

    /// A Deployment owns its pods through a ReplicaSet, which has its name and a hash.
    fn owned_by(&self, owner: &OwnerReference, kind: &str) -> bool {
        if kind == "Deployment" {
            return owner.kind == "ReplicaSet"
                && owner
                    .name
                    .rsplit_once('-')
                    .is_some_and(|(name, _)| name == self.name);
        }
        owner.kind == kind && owner.name == self.name
    }

    fn missing(&self, cluster: &str, pods: &[Pod]) -> UserError {
        let names: Vec<String> = pods.iter().take(5).map(ResourceExt::name_any).collect();
        let next = if names.is_empty() {
            format!("KUBECONFIG=$(weft lab kubeconfig {cluster}) kubectl get pods -A")
        } else {
            format!("choose one of {}", names.join(", "))
        };
        let owner = self.owner.map(|kind| format!("{kind} ")).unwrap_or_default();
        UserError::new(
            codes::NO_SUCH_POD,
            format!(
                "there is no pod of {owner}{:?} in namespace {:?}",
                self.name, self.namespace
            ),
            next,
        )
    }
}

fn owner_kind(text: &str) -> Option<&'static str> {
    Some(match text {
        "deploy" | "deployment" | "deployments" => "Deployment",
        "sts" | "statefulset" | "statefulsets" => "StatefulSet",
        "ds" | "daemonset" | "daemonsets" => "DaemonSet",
        "rs" | "replicaset" | "replicasets" => "ReplicaSet",
        "job" | "jobs" => "Job",
        _ => return None,
    })
}

/// The namespace of a pod's sandbox, as the kubelet of its node wrote it down.
fn sandbox_netns(dir: &ClusterDir, pod: &Pod) -> Option<String> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    let uid = pod.metadata.uid.as_deref()?;
    let records = fs::read_dir(dir.node(node).join("sandboxes")).ok()?;
    records
        .filter_map(|entry| fs::read(entry.ok()?.path()).ok())
        .filter_map(|record| serde_json::from_slice::<Sandbox>(&record).ok())
        .find(|sandbox| sandbox.pod_uid == uid)
        .map(|sandbox| sandbox.netns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_with_or_without_its_namespace_and_its_owner() {
        let wanted = |namespace: &str, owner, name: &str| Wanted {
            namespace: namespace.to_owned(),
            owner,
            name: name.to_owned(),
        };
        for (text, flag, expected) in [
            ("web", None, wanted("default", None, "web")),
            ("shop/web", None, wanted("shop", None, "web")),
            ("web", Some("shop"), wanted("shop", None, "web")),
            ("deploy/web", None, wanted("default", Some("Deployment"), "web")),
            ("shop/deploy/web", None, wanted("shop", Some("Deployment"), "web")),
            ("sts/db", Some("shop"), wanted("shop", Some("StatefulSet"), "db")),
            ("pod/web-1", None, wanted("default", None, "web-1")),
        ] {
            assert_eq!(Wanted::parse(text, flag), expected, "{text}");
        }
    }
}
