//! A node's directory: what containerd, kubelet and kube-proxy are configured with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::init::{Plan, Service};
use crate::cache::Cache;
use crate::cluster::CONTROL_PLANE_ROLE;
use crate::pki::{Pki, Subject};
use crate::state::{CONTROL_PLANE, Cluster, Cni, Node, Proxy};
use crate::vnet;

/// Configuration and marks, as the node sees them.
const CONF: &str = "/var/lib/weft-node";

/// The taint that a node of a cluster with Weft has until its network works.
const TAINT: &str = "weft.dev/agent-not-ready";

/// Writes all files of a node. Its images and pods' data are left as they are.
pub(super) fn write(cluster: &Cluster, cache: &Cache, node: &Node, cgroups: &[PathBuf]) -> Result<()> {
    let data = cluster.node_data(&node.name);
    let conf = data.join("var/lib/weft-node");
    for dir in [
        "var/log",
        "var/tmp",
        "var/cache",
        "var/lib/weft-node",
        "opt/cni/bin",
        "etc-cni/net.d",
        "own",
    ] {
        make(&data.join(dir))?;
    }
    for target in ["/etc/cni", "/opt"] {
        make(Path::new(target))?;
    }
    let run = data.join("var/run");
    if !run.exists() {
        let _ = std::os::unix::fs::symlink("/run", &run);
    }
    let _ = fs::remove_file(conf.join("images"));
    put(
        &data.join("own/resolv.conf"),
        &format!("nameserver {}\n", vnet::gateway(cluster.subnet)),
    )?;
    let machine_id = data.join("own/machine-id");
    if !machine_id.exists() {
        put(&machine_id, &format!("{}\n", uuid::Uuid::new_v4().simple()))?;
    }
    copy_plugins(&cache.plugins()?, &data.join("opt/cni/bin"))?;
    certificates(cluster, node, &conf)?;
    put(&conf.join("containerd.toml"), &containerd(cache.image("PAUSE")?))?;
    put_json(&conf.join("kubelet.json"), &kubelet(cluster))?;
    put_json(&conf.join("proxy.json"), &proxy(cluster, node))?;
    let plan = plan(cluster, cache, node, cgroups)?;
    put_json(&data.join("node.json"), &serde_json::to_value(&plan)?)
}

fn plan(cluster: &Cluster, cache: &Cache, node: &Node, cgroups: &[PathBuf]) -> Result<Plan> {
    let mut kubelet = vec![
        "kubelet".to_owned(),
        format!("--config={CONF}/kubelet.json"),
        format!("--kubeconfig={CONF}/kubelet.kubeconfig"),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={}", node.address),
        "--v=2".to_owned(),
    ];
    if let Some(zone) = zone(node) {
        kubelet.push(format!("--node-labels=topology.kubernetes.io/zone={zone}"));
    }
    let taints: Vec<String> = [
        (TAINT, cluster.config.cni == Cni::Weft),
        (CONTROL_PLANE_ROLE, node.name == CONTROL_PLANE),
    ]
    .into_iter()
    .filter(|(_, applies)| *applies)
    .map(|(key, _)| format!("{key}=:NoSchedule"))
    .collect();
    if !taints.is_empty() {
        kubelet.push(format!("--register-with-taints={}", taints.join(",")));
    }
    let mut services = vec![Service {
        name: "kubelet".to_owned(),
        command: kubelet,
    }];
    if cluster.config.proxy != Proxy::None {
        services.push(Service {
            name: "kube-proxy".to_owned(),
            command: vec![
                "kube-proxy".to_owned(),
                format!("--config={CONF}/proxy.json"),
                "--v=2".to_owned(),
            ],
        });
    }
    let mut archives = cache.archives()?;
    archives.extend(cluster.config.weft_image.clone());
    Ok(Plan {
        name: node.name.clone(),
        cgroups: cgroups.to_owned(),
        bin: cache.bin(),
        archives,
        services,
    })
}

/// Nodes for pods lie in three zones in turn.
fn zone(node: &Node) -> Option<String> {
    let number: u32 = node.name.strip_prefix("node")?.parse().ok()?;
    Some(format!("zone{}", number.checked_sub(1)? % 3 + 1))
}

fn certificates(cluster: &Cluster, node: &Node, conf: &Path) -> Result<()> {
    let pki = Pki::open(&cluster.pki());
    let signed = format!("kubelet-{}", node.name);
    let user = format!("system:node:{}", node.name);
    let subject = Subject {
        name: &user,
        group: Some("system:nodes"),
    };
    pki.sign(&signed, subject, &[node.address.to_string(), node.name.clone()])?;
    pki.kubeconfig(
        &signed,
        &cluster.server(),
        &cluster.name,
        &conf.join("kubelet.kubeconfig"),
    )?;
    pki.kubeconfig(
        "proxy",
        &cluster.server(),
        &cluster.name,
        &conf.join("proxy.kubeconfig"),
    )?;
    for (from, to) in [
        (pki.path(&signed, "crt"), "kubelet.crt"),
        (pki.path(&signed, "key"), "kubelet.key"),
        (pki.path("ca", "crt"), "ca.crt"),
    ] {
        fs::copy(&from, conf.join(to)).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

fn containerd(pause: &str) -> String {
    // restrict_oom_score_adj: in some sandboxes nobody may lower an oom_score_adj (CAP_SYS_RESOURCE).
    format!(
        "version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/opt/cni/bin']
  conf_dir = '/etc/cni/net.d'
"
    )
}

fn kubelet(cluster: &Cluster) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{CONF}/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{CONF}/kubelet.crt"),
        "tlsPrivateKeyFile": format!("{CONF}/kubelet.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [cluster.dns_address()],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // Nodes share the machine's disk and memory; its fullness is not theirs.
        "evictionHard": {
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "memory.available": "100Mi",
        },
        "imageGCHighThresholdPercent": 100,
        "maxPods": 250,
    })
}

fn proxy(cluster: &Cluster, node: &Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": cluster.config.proxy,
        "clientConnection": {"kubeconfig": format!("{CONF}/proxy.kubeconfig")},
        "hostnameOverride": node.name,
        // The table's size belongs to the machine's first network namespace.
        "conntrack": {"maxPerCore": 0},
    })
}

/// Copies plugins that the node has not got. A node's own, Weft's among them, stay.
fn copy_plugins(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        if path.is_file() && !target.exists() {
            fs::copy(&path, &target).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn put_json(path: &Path, value: &Value) -> Result<()> {
    put(path, &format!("{value:#}\n"))
}
