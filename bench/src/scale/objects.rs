//! Nodes and Pods as a real cluster has them, size included, without kubelets.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::stream::{self, StreamExt, TryStreamExt};
use kube::Client;
use serde_json::{Value, json};

/// Requests under way at a time.
const PARALLEL: usize = 48;
/// A kubelet lists up to 50 images; the five of them that this stands for have this many bytes together.
const IMAGES: u32 = 50;

/// The name of the node with this number.
pub(crate) fn node_name(number: u32) -> String {
    format!("aks-nodepool1-{number:08}-vmss")
}

/// The underlay address of the node with this number: 250 to a /24 below 10.224.0.0/15.
pub(crate) fn node_address(number: u32) -> Ipv4Addr {
    let base = u32::from(Ipv4Addr::new(10, 224, 0, 0));
    Ipv4Addr::from(base + (number / 250) * 256 + 1 + number % 250)
}

/// A Node of about the size that a kubelet reports.
pub(super) fn node(number: u32) -> Value {
    let name = node_name(number);
    let address = node_address(number).to_string();
    let images: Vec<Value> = (0..IMAGES)
        .map(|image| {
            let repository = format!("registry.example.com/team-{}/service-{image}", image % 7);
            json!({
                "names": [format!("{repository}@sha256:{:064x}", u128::from(image) * 0x9e37_79b9), format!("{repository}:v1.{image}.0")],
                "sizeBytes": 10_000_000 + image,
            })
        })
        .collect();
    let conditions: Vec<Value> = [
        (
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
    .into_iter()
    .map(|(type_, status, reason, message)| {
        json!({
            "type": type_, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    })
    .collect();
    let resources = json!({
        "cpu": "8", "memory": "32863408Ki", "pods": "250", "ephemeral-storage": "129886128Ki",
        "hugepages-1Gi": "0", "hugepages-2Mi": "0",
    });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "Standard_D8s_v5",
                "topology.kubernetes.io/region": "westeurope",
                "topology.kubernetes.io/zone": format!("westeurope-{}", number % 3),
                "kubernetes.azure.com/agentpool": "nodepool1", "kubernetes.azure.com/mode": "system",
                "kubernetes.azure.com/node-image-version": "AKSUbuntu-2404gen2containerd-202601.01.0",
            },
            "annotations": {
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "csi.volume.kubernetes.io/nodeid": format!("{{\"disk.csi.azure.com\":\"{name}\",\"file.csi.azure.com\":\"{name}\"}}"),
            },
        },
        "spec": {"providerID": format!("azure:///subscriptions/0/resourceGroups/mc/providers/Microsoft.Compute/virtualMachineScaleSets/{name}")},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "capacity": resources, "allocatable": resources, "conditions": conditions, "images": images,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64", "bootID": format!("{number:032x}"), "machineID": format!("{number:032x}"),
                "systemUUID": format!("{number:032x}"), "kernelVersion": "6.8.0-1021-azure",
                "osImage": "Ubuntu 24.04.3 LTS", "operatingSystem": "linux", "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "", "containerRuntimeVersion": "containerd://2.1.5-1",
            },
        },
    })
}

/// A Pod on one of `nodes` nodes.
fn pod(number: u32, nodes: u32) -> Value {
    let app = format!("service-{:04}", number % 1000);
    let environment: Vec<Value> = (0..12)
        .map(|index| json!({"name": format!("SETTING_{index}"), "value": format!("https://{app}.example.com/{index}")}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{app}-7d9c5b8f6d-{number:06}"), "namespace": "default",
            "labels": {
                "app.kubernetes.io/name": app, "app.kubernetes.io/instance": app,
                "app.kubernetes.io/version": "1.4.2", "pod-template-hash": "7d9c5b8f6d",
            },
            "annotations": {"checksum/config": format!("{number:064x}"), "prometheus.io/scrape": "true"},
        },
        "spec": {
            "nodeName": node_name(number % nodes),
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": format!("registry.example.com/{app}:1.4.2"), "env": environment,
                "ports": [{"containerPort": 8080, "name": "http"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": app}}],
        },
    })
}

/// Makes the Nodes with these numbers.
pub(crate) async fn create_nodes(client: &Client, numbers: std::ops::Range<u32>) -> Result<()> {
    create_all(client, "/api/v1/nodes", numbers.map(node)).await
}

/// Makes the Pods with these numbers, spread over `nodes` nodes.
pub(super) async fn create_pods(client: &Client, numbers: std::ops::Range<u32>, nodes: u32) -> Result<()> {
    create_all(
        client,
        "/api/v1/namespaces/default/pods",
        numbers.map(|number| pod(number, nodes)),
    )
    .await
}

async fn create_all(client: &Client, path: &str, objects: impl Iterator<Item = Value>) -> Result<()> {
    stream::iter(objects)
        .map(|object| create(client, path, object))
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

/// Makes one object of any kind.
pub(super) async fn create(client: &Client, path: &str, object: Value) -> Result<()> {
    crate::interrupt::check()?;
    let body = serde_json::to_vec(&object)?;
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)?;
    client
        .request_text(request)
        .await
        .map(drop)
        .with_context(|| format!("create at {path}"))
}

/// Deletes one object.
pub(super) async fn delete(client: &Client, path: &str) -> Result<()> {
    let request = http::Request::delete(path).body(Vec::new())?;
    client
        .request_text(request)
        .await
        .map(drop)
        .with_context(|| format!("delete {path}"))
}

/// What a kubelet does every five minutes: says that all is as it was.
async fn heartbeat(client: &Client, number: u32, beat: usize) -> Result<()> {
    let time = format!(
        "2026-01-01T{:02}:{:02}:{:02}Z",
        beat / 3600 % 24,
        beat / 60 % 60,
        beat % 60
    );
    let patch = json!({"status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": time}]}});
    patch_status(client, number, &patch).await
}

/// Gives a Node another address.
pub(crate) async fn relocate(client: &Client, number: u32, address: Ipv4Addr) -> Result<()> {
    let patch = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    patch_status(client, number, &patch).await
}

async fn patch_status(client: &Client, number: u32, patch: &Value) -> Result<()> {
    let request = http::Request::patch(format!("/api/v1/nodes/{}/status", node_name(number)))
        .header(
            http::header::CONTENT_TYPE,
            "application/strategic-merge-patch+json",
        )
        .body(serde_json::to_vec(patch)?)?;
    client
        .request_text(request)
        .await
        .map(drop)
        .context("write a Node's status")
}

/// How a cluster lives: kubelets report, nodes are replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// Nodes that have a kubelet's report every five minutes: these first numbers.
    pub(super) nodes: u32,
    /// Nodes replaced in a minute; 0 for none.
    pub(super) replaced_per_minute: u32,
    /// The first node to go, and the first number of those that come.
    pub(super) replace: (u32, u32),
}

// === impl Life ===

impl Life {
    /// Lives for so long. Returns how many nodes were replaced.
    pub(super) async fn live(self, client: &Client, time: Duration) -> Result<u32> {
        let start = Instant::now();
        let pause = Duration::from_secs_f64(300.0 / f64::from(self.nodes.max(1)));
        let beats = async {
            for beat in 0_usize.. {
                let at = pause * u32::try_from(beat).unwrap_or(u32::MAX);
                if at >= time {
                    break;
                }
                tokio::time::sleep_until((start + at).into()).await;
                // One that was replaced does not report any more.
                let number = u32::try_from(beat).unwrap_or(0) % self.nodes;
                let _ = heartbeat(client, number, beat).await;
                crate::interrupt::check()?;
            }
            anyhow::Ok(())
        };
        let replaced = async {
            let mut replaced = 0;
            if self.replaced_per_minute == 0 {
                return anyhow::Ok(0);
            }
            let pause = Duration::from_secs(60) / self.replaced_per_minute;
            while pause * replaced < time {
                tokio::time::sleep_until((start + pause * replaced).into()).await;
                let gone = node_name(self.replace.0 + replaced);
                delete(client, &format!("/api/v1/nodes/{gone}")).await?;
                create(client, "/api/v1/nodes", node(self.replace.1 + replaced)).await?;
                replaced += 1;
            }
            Ok(replaced)
        };
        let ((), replaced) = tokio::try_join!(beats, replaced)?;
        tokio::time::sleep_until((start + time).into()).await;
        Ok(replaced)
    }
}
