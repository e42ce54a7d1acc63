//! What goes through the kubelet: exec, logs, port-forward, host network, removal of pods; and Weft's own objects.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::json;
use weft_kernel::rtnl::Rtnl;

use super::scene::{NAMESPACE, PORT, Scene, http_from};
use super::{Check, Held, Outcome, yes};
use crate::state::{Cni, Node};

pub(super) const ALL: &[Check] = &[
    Check {
        name: "exec-logs",
        description: "kubectl exec and kubectl logs reach pods of both nodes",
        run: |scene| {
            for pod in [&scene.a, &scene.b] {
                let name = scene.shell(pod, "hostname")?;
                if name != pod.name {
                    bail!("hostname in pod {} is {name}", pod.name);
                }
                if scene.read(&["logs", pod.name])?.is_empty() {
                    bail!("the log of pod {} is empty", pod.name);
                }
            }
            yes("pods a and b")
        },
    },
    Check {
        name: "port-forward",
        description: "kubectl port-forward reaches a pod",
        run: port_forward,
    },
    Check {
        name: "attach",
        description: "kubectl attach gives input to a pod and brings its output",
        run: attach,
    },
    Check {
        name: "host-network",
        description: "A pod with hostNetwork has its node's address and reaches pods of another node",
        run: host_network,
    },
    Check {
        name: "delete-leaves-nothing",
        description: "A pod that is deleted leaves no link and no route on its node",
        run: delete_leaves_nothing,
    },
    Check {
        name: "weft-objects",
        description: "kubectl lists pools, nodes and slices; every node is Ready and has a block",
        run: objects,
    },
];

fn port_forward(scene: &Scene) -> Outcome {
    let mut child = scene
        .kubectl
        .command()
        .args([
            "--namespace",
            NAMESPACE,
            "port-forward",
            "pod/b",
            &format!(":{PORT}"),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start kubectl")?;
    let result = child.stdout.take().context("no output").and_then(|output| {
        let mut line = String::new();
        // Held to the end: kubectl tells of every connection, and a write that nobody can read would end it.
        let mut output = BufReader::new(output);
        output.read_line(&mut line)?;
        // "Forwarding from 127.0.0.1:41231 -> 8080"
        let port = line
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("127.0.0.1:")?.parse().ok())
            .with_context(|| format!("kubectl said {line:?}"))?;
        http_from(
            &weft_kernel::NetNs::current()?,
            std::net::Ipv4Addr::LOCALHOST,
            port,
            "/hostname",
        )
    });
    let _ = child.kill();
    let _ = child.wait();
    let name = result?;
    if name != "b" {
        bail!("{name} answered instead of b");
    }
    yes("pod b")
}

fn attach(scene: &Scene) -> Outcome {
    let echo = json!({"args": null, "command": ["cat"], "stdin": true, "readinessProbe": null});
    let pod = scene.new_pod_with("echo", &scene.b.node, &echo)?;
    let mut child = scene
        .kubectl
        .command()
        .args(["--namespace", NAMESPACE, "attach", "--stdin", pod.name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start kubectl")?;
    let answer = child.stdin.take().zip(child.stdout.take()).context("no pipes");
    let answer = answer.and_then(|(mut input, output)| {
        input.write_all(b"marco\n")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(line)
    });
    let _ = child.kill();
    let _ = child.wait();
    let answer = answer?;
    if answer != "marco\n" {
        bail!("the pod said {answer:?} to \"marco\"");
    }
    scene.read(&["delete", "pod", pod.name, "--wait=false"])?;
    yes("a line there and back")
}

fn host_network(scene: &Scene) -> Outcome {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "host", "namespace": NAMESPACE},
        "spec": {
            "nodeName": scene.a.node.name,
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "agnhost", "image": scene.image, "args": ["pause"]}],
        },
    });
    scene.kubectl.apply(&pod.to_string())?;
    scene.read(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/host"])?;
    let address = scene.field("pod/host", "{.status.podIP}")?;
    if address != scene.a.node.address.to_string() {
        bail!("the pod has {address}, its node {}", scene.a.node.address);
    }
    let url = format!("http://{}:{PORT}/hostname", scene.b.address);
    scene.read(&[
        "exec",
        "host",
        "--",
        "curl",
        "--silent",
        "--fail",
        "--max-time",
        "5",
        &url,
    ])?;
    yes(address)
}

fn delete_leaves_nothing(scene: &Scene) -> Outcome {
    let before = traces(scene, &scene.b.node)?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "brief", "namespace": NAMESPACE},
        "spec": {
            "nodeName": scene.b.node.name,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "agnhost", "image": scene.image, "args": ["pause"]}],
        },
    });
    scene.kubectl.apply(&pod.to_string())?;
    scene.read(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/brief"])?;
    let with = traces(scene, &scene.b.node)?;
    let of_pod: BTreeSet<_> = with.difference(&before).cloned().collect();
    if !of_pod.iter().any(|trace| trace.starts_with("link")) {
        bail!("the pod has no link on its node");
    }
    scene.read(&["delete", "pod", "brief", "--timeout=60s"])?;
    // The object may go a moment before the kubelet is done with the sandbox, and the link a moment after.
    let mut left = of_pod.clone();
    for _ in 0..50 {
        let after = traces(scene, &scene.b.node)?;
        left = after.difference(&before).cloned().collect();
        if left.is_empty() {
            return yes(format!("{} links and routes came and went", of_pod.len()));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    bail!(
        "the pod left {}",
        left.into_iter().collect::<Vec<_>>().join(" and ")
    )
}

/// The links and routes that a node has, in words.
fn traces(scene: &Scene, node: &Node) -> Result<BTreeSet<String>> {
    let mut rtnl = Rtnl::open_in(&scene.node(node)?)?;
    let links = rtnl.links()?;
    let routes = rtnl.routes(weft_kernel::rtnl::RouteFilter::default())?;
    Ok(links
        .iter()
        .map(|link| format!("link {} ({})", link.name, link.index))
        .chain(routes.iter().map(|route| format!("route {}", route.dst)))
        .collect())
}

fn objects(scene: &Scene) -> Outcome {
    if scene.cluster.config.cni != Cni::Weft {
        return Ok(Held::NotHere("the cluster's network is not Weft"));
    }
    let table = scene.read(&["get", "podpools,nodenetworks,nodeslices"])?;
    let nodes = scene.cluster.members();
    for node in &nodes {
        let ready = scene.field(
            &format!("nodenetwork/{}", node.name),
            "{.status.conditions[?(@.type==\"Ready\")].status}",
        )?;
        let block = scene.field(&format!("nodenetwork/{}", node.name), "{.spec.blocks[0].cidr}")?;
        if ready != "True" || block.is_empty() {
            bail!("NodeNetwork {} is Ready={ready} with block {block:?}", node.name);
        }
        if !table.contains(&block) {
            bail!("block {block} is not in the table:\n{table}");
        }
    }
    yes(format!("{} nodes", nodes.len()))
}
