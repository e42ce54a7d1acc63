//! The Node object: what a kubelet registers and keeps true.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;

use super::Context;
use crate::controllers::events::{Severity, node_reference};
use crate::node::NodeHandle;
use crate::node_object;

/// How often the plugins are asked while they are ready; the kubelet asks its runtime as often.
const STATUS_PERIOD: Duration = Duration::from_secs(5);
/// How often they are asked while they are not.
const UNREADY_PERIOD: Duration = Duration::from_millis(300);
/// How often an unchanged status is written.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// How often the node's lease is renewed.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Whether the node's network plugins serve ADD, as last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NetworkReady {
    /// Not asked yet.
    Unknown,
    /// Ready.
    Yes,
    /// Not ready, with the reason.
    No(String),
}

/// Keeps the Node object and `network` true until dropped.
pub(super) async fn keep(context: Arc<Context>, network: watch::Sender<NetworkReady>) {
    tokio::join!(keep_status(&context, &network), keep_lease(&context));
}

async fn keep_status(context: &Context, network: &watch::Sender<NetworkReady>) {
    let mut written: Option<(tokio::time::Instant, Ipv4Addr)> = None;
    loop {
        let now = match context.store.cni().status().await {
            Ok(()) => NetworkReady::Yes,
            Err(error) => NetworkReady::No(error.to_string()),
        };
        let changed = network.send_if_modified(|before| {
            let changed = *before != now;
            before.clone_from(&now);
            changed
        });
        let address = context.node.address.get();
        let is_fresh = |(at, told): (tokio::time::Instant, _)| at.elapsed() < HEARTBEAT && told == address;
        if changed || !written.is_some_and(is_fresh) {
            match write(context, &now).await {
                Ok(()) => written = Some((tokio::time::Instant::now(), address)),
                Err(error) => {
                    tracing::warn!(node = %context.node.name, %error, "node status not written");
                    written = None;
                }
            }
        }
        let ready = now == NetworkReady::Yes && written.is_some();
        tokio::time::sleep(if ready { STATUS_PERIOD } else { UNREADY_PERIOD }).await;
    }
}

/// Writes the Node, creating it where it isn't there.
async fn write(context: &Context, network: &NetworkReady) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let handle = &context.node;
    let known = match nodes.get_opt(&handle.name).await? {
        Some(known) => known,
        None => {
            let node = node_object::registered(&handle.name, handle.address.get(), handle.max_pods);
            let created = nodes.create(&PostParams::default(), &node).await?;
            let message = format!("Node {} event: Registered Node {}", handle.name, handle.name);
            context
                .recorder
                .record(
                    &node_reference(&handle.name),
                    Severity::Normal,
                    "RegisteredNode",
                    &message,
                )
                .await;
            created
        }
    };
    let labels = node_object::labels(&handle.name);
    if !labels
        .iter()
        .all(|(key, value)| known.metadata.labels.as_ref().and_then(|l| l.get(key)) == Some(value))
    {
        let patch = json!({ "metadata": { "labels": labels } });
        nodes
            .patch(&handle.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
    }
    let before = known.status.unwrap_or_default();
    let was_ready = ready(&before);
    let status = status(handle, before, network, Timestamp::now());
    let is_ready = ready(&status);
    nodes
        .patch_status(
            &handle.name,
            &PatchParams::default(),
            &Patch::Merge(&json!({ "status": status })),
        )
        .await?;
    if was_ready != Some(is_ready == Some(true)) {
        let reason = if is_ready == Some(true) {
            "NodeReady"
        } else {
            "NodeNotReady"
        };
        let message = format!("Node {} status is now: {reason}", handle.name);
        context
            .recorder
            .record(&node_reference(&handle.name), Severity::Normal, reason, &message)
            .await;
    }
    Ok(())
}

fn ready(status: &NodeStatus) -> Option<bool> {
    let ready = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready")?;
    Some(ready.status == "True")
}

async fn keep_lease(context: &Context) {
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), LEASE_NAMESPACE);
    let name = &context.node.name;
    loop {
        let now = MicroTime(Timestamp::now());
        let patch = json!({ "spec": { "renewTime": now } });
        let outcome = match leases
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(LEASE_NAMESPACE.to_owned()),
                        owner_references: owner_of_lease(&context.node),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(name.clone()),
                        lease_duration_seconds: Some(LEASE_SECONDS),
                        renew_time: Some(now),
                        ..LeaseSpec::default()
                    }),
                };
                leases.create(&PostParams::default(), &lease).await
            }
            outcome => outcome,
        };
        if let Err(error) = outcome {
            tracing::debug!(node = %name, %error, "node lease not renewed");
        }
        tokio::time::sleep(LEASE_PERIOD).await;
    }
}

/// The Node, so that the lease goes with it.
fn owner_of_lease(node: &NodeHandle) -> Option<Vec<OwnerReference>> {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name.clone(),
        uid: node.uid.clone(),
        ..OwnerReference::default()
    };
    (!node.uid.is_empty()).then(|| vec![owner])
}

/// The node's status. Conditions of other writers in `before` stay as they are.
fn status(handle: &NodeHandle, before: NodeStatus, network: &NetworkReady, now: Timestamp) -> NodeStatus {
    let ready = match network {
        NetworkReady::Yes => (
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        NetworkReady::No(why) => (
            "Ready",
            false,
            "KubeletNotReady",
            format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: {why}"
            ),
        ),
        NetworkReady::Unknown => (
            "Ready",
            false,
            "KubeletNotReady",
            "[container runtime status check may not have completed yet]".to_owned(),
        ),
    };
    let own = [
        (
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available".to_owned(),
        ),
        (
            "DiskPressure",
            false,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure".to_owned(),
        ),
        (
            "PIDPressure",
            false,
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available".to_owned(),
        ),
        ready,
    ];
    let mut conditions = before.conditions.unwrap_or_default();
    for (kind, holds, reason, message) in own {
        let status = if holds { "True" } else { "False" };
        let known = conditions.iter().position(|condition| condition.type_ == kind);
        let since = known
            .map(|index| &conditions[index])
            .filter(|condition| condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone())
            .unwrap_or(Time(now));
        let condition = NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(since),
        };
        match known {
            Some(index) => conditions[index] = condition,
            None => conditions.push(condition),
        }
    }
    NodeStatus {
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints::default()),
        node_info: Some(system_info(handle)),
        ..node_object::status(&handle.name, handle.address.get(), handle.max_pods)
    }
}

fn system_info(handle: &NodeHandle) -> NodeSystemInfo {
    let read = |path: &str| {
        fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let version = format!("v1.36.0-weft-lab.{}", env!("CARGO_PKG_VERSION"));
    NodeSystemInfo {
        architecture: node_object::architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("weft://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: version,
        machine_id: handle.uid.replace('-', ""),
        operating_system: "linux".to_owned(),
        os_image: "Weft lab node".to_owned(),
        swap: None,
        system_uuid: handle.uid.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> NodeHandle {
        NodeHandle {
            name: "node-1".into(),
            uid: "0-1".into(),
            netns_name: "weft-t.node-1".into(),
            address: Ipv4Addr::new(10, 224, 0, 4).into(),
            dir: "/run/weft/lab/t/nodes/node-1".into(),
            max_pods: 250,
            stop: tokio_util::sync::CancellationToken::new(),
        }
    }

    fn condition(kind: &str, status: &str, since: i64) -> NodeCondition {
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            last_transition_time: Some(Time(Timestamp::from_second(since).unwrap())),
            ..NodeCondition::default()
        }
    }

    fn shape(status: &NodeStatus) -> Vec<(String, String, i64)> {
        status
            .conditions
            .iter()
            .flatten()
            .map(|c| {
                (
                    c.type_.clone(),
                    c.status.clone(),
                    c.last_transition_time.as_ref().unwrap().0.as_second(),
                )
            })
            .collect()
    }

    #[test]
    fn conditions_of_others_stay_and_only_a_change_moves_a_transition_time() {
        let before = NodeStatus {
            conditions: Some(vec![
                condition("NetworkUnavailable", "False", 5),
                condition("Ready", "True", 6),
                condition("DiskPressure", "False", 7),
            ]),
            ..NodeStatus::default()
        };
        let why = NetworkReady::No("agent is down".into());
        let status = status(&handle(), before, &why, Timestamp::from_second(100).unwrap());
        let expected = [
            ("NetworkUnavailable", "False", 5),
            ("Ready", "False", 100),
            ("DiskPressure", "False", 7),
            ("MemoryPressure", "False", 100),
            ("PIDPressure", "False", 100),
        ];
        assert_eq!(
            shape(&status),
            expected.map(|(kind, status, since)| (kind.to_owned(), status.to_owned(), since))
        );
        assert_eq!(
            status.conditions.unwrap()[1].message.as_deref(),
            Some(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: agent is down"
            )
        );
    }
}
