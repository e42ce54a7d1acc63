//! A pod on every node, of a DaemonSet, and who hears whom under which address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::check::live::wait_for;
use crate::check::scene::{PORT, expect_client, http_from};
use crate::kubectl::Kubectl;
use crate::state::{Cluster, Node};

/// Namespace of the pods.
pub(super) const NAMESPACE: &str = "weft-rehearsal";

/// A pod of the DaemonSet.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) node: Node,
    pub(super) address: Ipv4Addr,
}

/// The objects: a pod on every node for pods, and a Service before all of them.
pub(super) fn manifest(cache: &Cache) -> Result<Value> {
    let labels = json!({"app": "talk"});
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "talk", "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "agnhost",
                        "image": cache.image("AGNHOST")?,
                        "args": ["netexec", format!("--http-port={PORT}"), "--udp-port=8081"],
                        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
                    }],
                }},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "talk", "namespace": NAMESPACE},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": PORT}]},
        },
    ]}))
}

/// The pods, by node, once there is one on every node for pods that is Ready and does not end.
pub(super) fn ready(kubectl: &Kubectl, cluster: &Cluster) -> Result<BTreeMap<String, Pod>> {
    wait_for("a Ready pod on every node", || {
        let text = kubectl.read(&["--namespace", NAMESPACE, "get", "pods", "--output=json"])?;
        let list: Value = serde_json::from_str(&text).context("read the pods")?;
        let pods = list["items"].as_array().into_iter().flatten();
        let pods: BTreeMap<String, Pod> = pods
            .filter_map(|pod| read(pod, cluster))
            .map(|pod| (pod.node.name.clone(), pod))
            .collect();
        Ok((pods.len() == cluster.nodes.len()).then_some(pods))
    })
}

fn read(pod: &Value, cluster: &Cluster) -> Option<Pod> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let ready = conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if !ready || !pod["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    Some(Pod {
        name: pod["metadata"]["name"].as_str()?.to_owned(),
        node: cluster.node(pod["spec"]["nodeName"].as_str()?).ok()?.clone(),
        address: pod["status"]["podIP"].as_str()?.parse().ok()?,
    })
}

/// Every pod asks every other for its own address as seen there, the Service until all have answered, and every node
/// asks every pod. Returns how many asked whom.
pub(super) fn all_talk(kubectl: &Kubectl, cluster: &Cluster, pods: &BTreeMap<String, Pod>) -> Result<String> {
    // By its address: the clusters have no DNS.
    let service = kubectl.read(&[
        "--namespace",
        NAMESPACE,
        "get",
        "service",
        "talk",
        "--output=jsonpath={.spec.clusterIP}",
    ])?;
    let mut asked = 0;
    for from in pods.values() {
        for to in pods.values().filter(|to| to.name != from.name) {
            let seen = fetch(kubectl, from, &format!("{}:{PORT}/clientip", to.address))?;
            expect_client(&seen, from.address)
                .with_context(|| format!("pod on {} to pod on {}", from.node.name, to.node.name))?;
            asked += 1;
        }
        let url = format!("{service}/hostname");
        // A Ready pod is not an endpoint in every node's rules yet; only what comes after the first answer counts.
        let mut refused = None;
        wait_for("the Service to answer", || {
            Ok(fetch(kubectl, from, &url)
                .map_err(|error| refused = Some(error))
                .ok())
        })
        .map_err(|late| match refused.take() {
            Some(error) => error.context(late),
            None => late,
        })?;
        let mut missing: Vec<&str> = pods.values().map(|pod| pod.name.as_str()).collect();
        for _ in 0..100 {
            let answered = fetch(kubectl, from, &url)?;
            missing.retain(|name| *name != answered);
            if missing.is_empty() {
                break;
            }
        }
        if !missing.is_empty() {
            bail!(
                "the Service never led the pod on {} to {}",
                from.node.name,
                missing.join(", ")
            );
        }
    }
    for node in &cluster.nodes {
        let netns = weft_kernel::NetNs::named(&cluster.node_netns(&node.name))?;
        for pod in pods.values() {
            http_from(&netns, pod.address, PORT, "/hostname")
                .with_context(|| format!("{} to the pod on {}", node.name, pod.node.name))?;
        }
    }
    Ok(format!(
        "{asked} pairs of pods, {} Service clients, {} nodes",
        pods.len(),
        cluster.nodes.len()
    ))
}

fn fetch(kubectl: &Kubectl, from: &Pod, url: &str) -> Result<String> {
    kubectl
        .read(&[
            "--namespace",
            NAMESPACE,
            "exec",
            &from.name,
            "--",
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "5",
            &format!("http://{url}"),
        ])
        .with_context(|| format!("pod on {} to {url}", from.node.name))
}
