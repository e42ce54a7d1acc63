//! `weft uninstall`.
//!
//! The order matters. The operator goes first: one that saw agents vanish would taint their nodes. Then the agents;
//! pods go on without them. Then each node is cleaned up, while the objects that say what it had are still there, so
//! that the command can be repeated. Types, and with them pools and blocks, go when no node needs them.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use ipnet::Ipv4Net;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ContainerState, Node, Pod};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;
use weft_api::PodPool;
use weft_model::{UserError, codes};

use super::TargetArgs;
use super::cluster::{apply, delete, list, refused, wait};
use super::objects::{self, Changes, NAMESPACE, describe, kind};
use crate::args::parse_duration;
use crate::{OK, out, runtime};

/// The taint that the operator keeps on nodes whose agent does not serve.
const TAINT: &str = "weft.dev/agent-not-ready";

/// What reasons of the operator's node condition begin with.
const REASON: &str = "Weft";

/// The DaemonSet that cleans nodes up.
const CLEANUP: &str = "weft-cleanup";

/// Helm's mark on what a release made.
const RELEASE: &str = "meta.helm.sh/release-name";

/// Arguments of `weft uninstall`.
#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    /// Go on although pods lose their network, and leave out nodes that can't be cleaned up in time
    #[arg(long)]
    force: bool,
    /// How long nodes have to be cleaned up, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    wait_duration: Duration,
    #[command(flatten)]
    target: TargetArgs,
}

/// Carries `weft uninstall` out.
pub(crate) fn run(args: &UninstallArgs) -> Result<u8, UserError> {
    runtime()?.block_on(uninstall(args))?;
    Ok(OK)
}

async fn uninstall(args: &UninstallArgs) -> Result<(), UserError> {
    let client = args.target.client().await?;
    let until = Instant::now() + args.wait_duration;
    let agents = daemonset(&client, "weft-agent").await?;
    // What an earlier run left, if it could not finish.
    let cleaners = daemonset(&client, CLEANUP).await?;
    let had = agents.as_ref().or(cleaners.as_ref());
    let namespace = had.and_then(ResourceExt::namespace);
    let namespace = namespace.unwrap_or_else(|| NAMESPACE.to_owned());
    let release = had.and_then(|set| set.annotations().get(RELEASE).cloned());
    let cleanup = had.map(|set| cleanup(set, args.force, &namespace)).transpose()?;
    let all: Vec<DynamicObject> = objects::all(&Changes::default(), None)?
        .into_iter()
        .map(|object| in_namespace(object, &namespace))
        .collect();

    pods_are_gone(&client, args.force).await?;
    for (wanted, name) in [("Deployment", "weft-operator"), ("DaemonSet", "weft-agent")] {
        for object in &all {
            if kind(object) == wanted && object.name_any() == name {
                remove(&client, object, until).await?;
            }
        }
    }
    match &cleanup {
        Some(cleanup) => clean_nodes(&client, cleanup, args.force, until).await?,
        None => out::note(
            "note: no DaemonSet of Weft is there to tell its nodes; where one is not clean, run `weft node cleanup` on it",
        ),
    }
    release_nodes(&client).await?;

    // What an object needs goes after it. One of another's making under the name of the namespace stays.
    let until = until.max(Instant::now() + Duration::from_secs(60));
    for object in all.iter().rev() {
        match kind(object) {
            // Goes with its type.
            "PodPool" => {}
            "Namespace" if !ours(&client, object).await? => {
                out::line(format!(
                    "kept      {}: it is not of Weft's making",
                    describe(object)
                ));
            }
            _ => remove(&client, object, until).await?,
        }
    }
    out::line("Weft is gone; nodes are NotReady until another pod network is installed");
    if let Some(release) = release {
        out::note(format!(
            "  next: helm uninstall {release} --namespace {namespace}, which forgets the release"
        ));
    }
    Ok(())
}

async fn remove(client: &Client, object: &DynamicObject, until: Instant) -> Result<(), UserError> {
    if delete(client, object, until).await? {
        out::line(format!("deleted   {}", describe(object)));
    }
    Ok(())
}

/// One of Weft's DaemonSets, in whatever namespace.
async fn daemonset(client: &Client, name: &str) -> Result<Option<DaemonSet>, UserError> {
    let params = ListParams::default().labels("app.kubernetes.io/name=weft");
    let found: Vec<DaemonSet> = list(Api::all(client.clone()), "daemonsets", &params).await?;
    Ok(found.into_iter().find(|set| set.name_any() == name))
}

/// The same object where the release was installed into another namespace.
fn in_namespace(mut object: DynamicObject, namespace: &str) -> DynamicObject {
    let named = kind(&object) == "Namespace" && object.name_any() == NAMESPACE;
    if object.metadata.namespace.as_deref() == Some(NAMESPACE) {
        object.metadata.namespace = Some(namespace.to_owned());
    } else if named {
        object.metadata.name = Some(namespace.to_owned());
    }
    object
}

/// Whether the namespace was made by the chart or by `weft install`, as its label says.
async fn ours(client: &Client, namespace: &DynamicObject) -> Result<bool, UserError> {
    let found = super::cluster::api(client, namespace)
        .get_opt(&namespace.name_any())
        .await
        .map_err(|error| refused(&format!("get {}", describe(namespace)), &error))?;
    Ok(found.is_none_or(|found| {
        found
            .labels()
            .get("app.kubernetes.io/name")
            .is_some_and(|name| name == "weft")
    }))
}

/// Refuses while pods have addresses of Weft's pools.
async fn pods_are_gone(client: &Client, force: bool) -> Result<(), UserError> {
    let pools: Vec<PodPool> = list(Api::all(client.clone()), "podpools", &ListParams::default()).await?;
    let ranges: Vec<Ipv4Net> = pools
        .iter()
        .flat_map(|pool| &pool.spec.cidrs)
        .filter_map(|cidr| cidr.parse().ok())
        .collect();
    let pods = weft_inspect::pods(client).await?;
    let names = on_weft(&pods, &ranges);
    let Some(first) = names.first() else {
        return Ok(());
    };
    let told = format!("{} pod(s) have addresses of Weft, such as {first}", names.len());
    if force {
        out::note(format!("note: {told}; they lose their network"));
        return Ok(());
    }
    Err(UserError::new(
        codes::PODS_WOULD_BREAK,
        told,
        "kubectl drain every node with --ignore-daemonsets, or say --force",
    ))
}

/// Names of the pods that have an address in one of the ranges and have not ended.
fn on_weft(pods: &[Pod], ranges: &[Ipv4Net]) -> Vec<String> {
    let uses = |pod: &&Pod| {
        let status = pod.status.as_ref()?;
        if ["Succeeded", "Failed"].contains(&status.phase.as_deref()?) {
            return None;
        }
        let address: std::net::Ipv4Addr = status.pod_ip.as_deref()?.parse().ok()?;
        ranges.iter().find(|range| range.contains(&address))
    };
    pods.iter()
        .filter(|pod| uses(pod).is_some())
        .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
        .collect()
}

/// A DaemonSet that runs `weft node cleanup` wherever `had` runs, with the image, rights and directories of that one:
/// the agents', or a cleanup's of before.
fn cleanup(had: &DaemonSet, force: bool, namespace: &str) -> Result<DynamicObject, UserError> {
    let had = serde_json::to_value(had).map_err(|error| {
        UserError::new(
            codes::INVALID_OBJECT,
            format!("the agents' DaemonSet: {error}"),
            "report it",
        )
    })?;
    let agent = &had["spec"]["template"]["spec"];
    let container = &agent["containers"][0];
    let path = |volume: &str| -> Value {
        let mut volumes = agent["volumes"].as_array().into_iter().flatten();
        let found = volumes.find(|candidate| candidate["name"] == volume);
        found.map_or(Value::Null, |found| found["hostPath"]["path"].clone())
    };
    let named = container["args"].as_array().into_iter().flatten();
    let conf_name = named
        .filter_map(Value::as_str)
        .find_map(|arg| arg.split_once("conf-name=").map(|(_, name)| name.to_owned()));
    let mut args = vec![
        "node".to_owned(),
        "cleanup".to_owned(),
        "--conf-dir=/host/cni/conf".to_owned(),
        "--bin-dir=/host/cni/bin".to_owned(),
        "--run-dir=/host/run/weft".to_owned(),
        "--state-dir=/host/lib/weft".to_owned(),
        "--proc-sys=/host/proc/sys".to_owned(),
    ];
    args.extend(conf_name.map(|name| format!("--conf-name={name}")));
    args.extend(force.then(|| "--force".to_owned()));
    let labels = json!({"app.kubernetes.io/name": "weft", "app.kubernetes.io/component": "cleanup"});
    let data = json!({
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": false,
                    "hostNetwork": true,
                    "dnsPolicy": "Default",
                    "priorityClassName": "system-node-critical",
                    "nodeSelector": agent["nodeSelector"],
                    "tolerations": [{"operator": "Exists"}],
                    "terminationGracePeriodSeconds": 1,
                    "imagePullSecrets": agent["imagePullSecrets"],
                    "securityContext": agent["securityContext"],
                    "containers": [{
                        "name": "cleanup",
                        "image": container["image"],
                        "imagePullPolicy": container["imagePullPolicy"],
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "args": args,
                        "securityContext": container["securityContext"],
                        // The directories above Weft's own, which could not be removed while they are mounted.
                        "volumeMounts": [
                            {"name": "run", "mountPath": "/host/run"},
                            {"name": "lib", "mountPath": "/host/lib"},
                            {"name": "bpf", "mountPath": "/sys/fs/bpf"},
                            {"name": "proc-sys", "mountPath": "/host/proc/sys"},
                            {"name": "cni-bin", "mountPath": "/host/cni/bin"},
                            {"name": "cni-conf", "mountPath": "/host/cni/conf"},
                        ],
                    }],
                    "volumes": [
                        {"name": "run", "hostPath": {"path": "/run", "type": "Directory"}},
                        {"name": "lib", "hostPath": {"path": "/var/lib", "type": "Directory"}},
                        {"name": "bpf", "hostPath": {"path": "/sys/fs/bpf", "type": "Directory"}},
                        {"name": "proc-sys", "hostPath": {"path": "/proc/sys", "type": "Directory"}},
                        {"name": "cni-bin", "hostPath": {"path": path("cni-bin"), "type": "Directory"}},
                        {"name": "cni-conf", "hostPath": {"path": path("cni-conf"), "type": "Directory"}},
                    ],
                },
            },
        },
    });
    let mut object = DynamicObject::new(CLEANUP, &ApiResource::erase::<DaemonSet>(&())).within(namespace);
    object.metadata.labels = serde_json::from_value(labels).ok();
    object.data = data;
    let pod = object
        .data
        .pointer_mut("/spec/template/spec")
        .and_then(Value::as_object_mut);
    if let Some(pod) = pod {
        // What the agents' pods do not have.
        pod.retain(|_, value| !value.is_null());
    }
    Ok(object)
}

/// Runs the cleanup on all nodes and takes it away again.
async fn clean_nodes(
    client: &Client,
    cleanup: &DynamicObject,
    force: bool,
    until: Instant,
) -> Result<(), UserError> {
    let namespace = cleanup.metadata.namespace.clone().unwrap_or_default();
    apply(client, cleanup).await?;
    out::line(format!("created   {}", describe(cleanup)));
    let (mut nodes, mut unclean) = (0, BTreeMap::new());
    let outcome = wait(until, async || {
        let state = Cleaned::look(client, &namespace).await?;
        (nodes, unclean) = (state.clean, state.unclean);
        Ok((state.clean < state.wanted || state.wanted < 0).then(|| {
            let (clean, wanted) = (state.clean, state.wanted.max(0));
            let first = unclean.iter().next();
            let first = first
                .map(|(node, why)| format!(": {node}: {why}"))
                .unwrap_or_default();
            format!("{clean} of {wanted} nodes are clean{first}")
        }))
    })
    .await;
    match outcome {
        Ok(()) => out::line(format!("cleaned   {nodes} node(s)")),
        Err(error) if error.code() != codes::ROLLOUT => return Err(error),
        Err(_) if force => {
            for (node, why) in &unclean {
                out::note(format!("note: node {node} is not clean: {why}"));
            }
        }
        Err(error) => {
            return Err(UserError::new(
                codes::NODES_NOT_CLEAN,
                error.message(),
                "repeat the command, or leave those nodes out with --force and run `weft node cleanup` on each",
            ));
        }
    }
    // Its pods end and are started again until it goes; a node is clean after the first time.
    let until = until.max(Instant::now() + Duration::from_secs(60));
    remove(client, cleanup, until).await
}

/// How far the cleanup is.
struct Cleaned {
    clean: i32,
    /// Nodes that are to be cleaned; negative before the DaemonSet has been looked at.
    wanted: i32,
    /// Nodes that are not clean, and why.
    unclean: BTreeMap<String, String>,
}

// === impl Cleaned ===

impl Cleaned {
    async fn look(client: &Client, namespace: &str) -> Result<Self, UserError> {
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
        let set = sets
            .get(CLEANUP)
            .await
            .map_err(|error| refused(&format!("get DaemonSet {CLEANUP}"), &error))?;
        let status = set.status.unwrap_or_default();
        let seen = status.observed_generation >= set.metadata.generation;
        let params = ListParams::default().labels("app.kubernetes.io/component=cleanup");
        let pods: Vec<Pod> = list(Api::namespaced(client.clone(), namespace), "pods", &params).await?;
        let mut cleaned = Self {
            clean: 0,
            wanted: if seen { status.desired_number_scheduled } else { -1 },
            unclean: BTreeMap::new(),
        };
        for pod in &pods {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            match outcome(pod) {
                Ok(()) => cleaned.clean += 1,
                Err(why) => {
                    cleaned
                        .unclean
                        .insert(node.unwrap_or_else(|| pod.name_any()), why);
                }
            }
        }
        Ok(cleaned)
    }
}

/// Whether a pod of the cleanup has ended well, now or before it was started again; else what it does.
fn outcome(pod: &Pod) -> Result<(), String> {
    let status = pod.status.as_ref();
    let mut containers = status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let Some(container) = containers.next() else {
        return Err("its pod has not started".into());
    };
    let ended = |state: Option<&ContainerState>| state.and_then(|state| state.terminated.clone());
    let ends: Vec<_> = [
        ended(container.state.as_ref()),
        ended(container.last_state.as_ref()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if ends.iter().any(|end| end.exit_code == 0) {
        return Ok(());
    }
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let why = ends
        .first()
        .and_then(|end| end.message.clone())
        .or_else(|| waiting.and_then(|waiting| waiting.reason.clone()));
    Err(why.unwrap_or_else(|| "it runs".into()).trim().to_owned())
}

/// Takes the operator's taint and condition off all nodes: nobody would keep them up to date.
async fn release_nodes(client: &Client) -> Result<(), UserError> {
    let api: Api<Node> = Api::all(client.clone());
    for node in list(api.clone(), "nodes", &ListParams::default()).await? {
        let name = node.name_any();
        let failed = |error: kube::Error| refused(&format!("patch node {name}"), &error);
        let params = PatchParams::default();
        let taints = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default();
        let kept: Vec<_> = taints.iter().filter(|taint| taint.key != TAINT).collect();
        if kept.len() < taints.len() {
            // A list without keys is written whole; the version keeps it from undoing what somebody else just wrote.
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": kept},
            });
            api.patch(&name, &params, &Patch::Merge(patch))
                .await
                .map_err(failed)?;
            out::line(format!("untainted Node {name}: {TAINT}"));
        }
        let conditions = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let mut ours = conditions.filter(|condition| {
            condition.type_ == "NetworkUnavailable"
                && condition
                    .reason
                    .as_deref()
                    .is_some_and(|reason| reason.starts_with(REASON))
        });
        if ours.next().is_some() {
            let patch =
                json!({"status": {"conditions": [{"$patch": "delete", "type": "NetworkUnavailable"}]}});
            api.patch_status(&name, &params, &Patch::Strategic(patch))
                .await
                .map_err(failed)?;
            out::line(format!(
                "changed   Node {name}: condition NetworkUnavailable removed"
            ));
        }
    }
    Ok(())
}
