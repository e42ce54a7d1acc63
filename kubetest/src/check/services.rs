//! Services by kube-proxy, and DNS.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::live::wait_for;
use super::network::OUTSIDE;
use super::scene::{NAMESPACE, PORT, Scene, expect_client, http_from};
use super::{Check, Held, Outcome, yes};
use crate::state::Proxy;

pub(super) const ALL: &[Check] = &[
    Check {
        name: "cluster-ip",
        description: "A pod reaches a Service's address, and the server sees the pod's own address",
        run: |scene| {
            if let Some(not_here) = no_proxy(scene) {
                return Ok(not_here);
            }
            let address = scene.field("service/only-b", "{.spec.clusterIP}")?;
            expect_client(
                &scene.fetch(&scene.a, &format!("{address}/clientip"))?,
                scene.a.address,
            )?;
            yes(address)
        },
    },
    Check {
        name: "hairpin",
        description: "A pod reaches itself through its own Service",
        run: |scene| {
            if let Some(not_here) = no_proxy(scene) {
                return Ok(not_here);
            }
            let address = scene.field("service/only-a", "{.spec.clusterIP}")?;
            let name = scene.fetch(&scene.a, &format!("{address}/hostname"))?;
            if name != "a" {
                bail!("{name} answered instead of a");
            }
            yes(address)
        },
    },
    Check {
        name: "node-port",
        description: "A NodePort answers the outside and a node on every node, wherever the pod is",
        run: node_port,
    },
    Check {
        name: "node-port-local",
        description: "With externalTrafficPolicy Local the pod sees the client's own address, other nodes don't answer",
        run: node_port_local,
    },
    Check {
        name: "host-port",
        description: "A hostPort, by the reference plugin portmap after Weft's, answers the outside and a pod of another node",
        run: host_port,
    },
    Check {
        name: "headless",
        description: "The name of a headless Service leads to all its pods",
        run: |scene| {
            if let Some(not_here) = no_dns(scene) {
                return Ok(not_here);
            }
            let answer = scene.shell(
                &scene.a,
                &format!("dig +short none.{NAMESPACE}.svc.cluster.local"),
            )?;
            for pod in [&scene.a, &scene.a2, &scene.b] {
                if !answer.lines().any(|line| line == pod.address.to_string()) {
                    bail!(
                        "{} is not among {:?}",
                        pod.address,
                        answer.lines().collect::<Vec<_>>()
                    );
                }
            }
            yes(format!("{} addresses", answer.lines().count()))
        },
    },
    Check {
        name: "dns",
        description: "Pods of both nodes find a Service by its short name; a name outside the cluster is refused at once",
        run: |scene| {
            if let Some(not_here) = no_dns(scene) {
                return Ok(not_here);
            }
            for pod in [&scene.a, &scene.b] {
                scene.fetch(pod, "only-b/hostname")?;
            }
            let answer = scene.shell(&scene.a, "dig +tries=1 +time=2 name.invalid")?;
            if !answer.contains("status: NXDOMAIN") {
                bail!("no NXDOMAIN in {answer:?}");
            }
            let time = answer
                .lines()
                .find(|line| line.contains("Query time"))
                .unwrap_or("");
            yes(time.trim_start_matches([';', ' ']).to_owned())
        },
    },
];

fn node_port(scene: &Scene) -> Outcome {
    if let Some(not_here) = no_proxy(scene) {
        return Ok(not_here);
    }
    let port = port(scene, "only-b")?;
    let places = [
        ("outside", scene.outside()?),
        ("a node", scene.node(&scene.a.node)?),
    ];
    for (place, netns) in &places {
        for node in [&scene.a.node, &scene.b.node] {
            let name = http_from(netns, node.address, port, "/hostname")
                .with_context(|| format!("from {place} to {}", node.name))?;
            if name != "b" {
                bail!("{name} answered instead of b");
            }
        }
    }
    yes(format!(
        "port {port} of {} and {}",
        scene.a.node.address, scene.b.node.address
    ))
}

/// A port that no NodePort is from.
const HOST_PORT: u16 = 18_080;

fn host_port(scene: &Scene) -> Outcome {
    let node = &scene.b.node;
    let ports = json!({"ports": [{"containerPort": PORT, "hostPort": HOST_PORT}]});
    let pod = scene.new_pod_with("host-port", node, &ports)?;
    let outside = http_from(&scene.outside()?, node.address, HOST_PORT, "/hostname")?;
    let inside = scene.fetch(&scene.a, &format!("{}:{HOST_PORT}/hostname", node.address))?;
    if outside != pod.name || inside != pod.name {
        bail!(
            "{outside} answered the outside and {inside} the pod, instead of {}",
            pod.name
        );
    }
    scene.read(&["delete", "pod", pod.name, "--timeout=60s"])?;
    // The object goes before its sandbox does.
    wait_for("the port to go with its pod", || {
        let answer = http_from(&scene.outside()?, node.address, HOST_PORT, "/hostname");
        Ok(answer.is_err().then_some(()))
    })?;
    yes(format!("port {HOST_PORT} of {}", node.address))
}

fn node_port_local(scene: &Scene) -> Outcome {
    if let Some(not_here) = no_proxy(scene) {
        return Ok(not_here);
    }
    let port = port(scene, "local-b")?;
    let outside = scene.outside()?;
    let seen = http_from(&outside, scene.b.node.address, port, "/clientip")?;
    // Of the machine's addresses the kernel takes the one on the link to the nodes.
    expect_client(&seen, crate::vnet::gateway(scene.cluster.subnet))
        .or_else(|_| expect_client(&seen, OUTSIDE))?;
    if let Ok(answer) = http_from(&outside, scene.a.node.address, port, "/clientip") {
        bail!(
            "{}, which has no pod of the Service, answers {answer:?}",
            scene.a.node.name
        );
    }
    yes(format!("seen as {seen}"))
}

fn port(scene: &Scene, service: &str) -> Result<u16> {
    scene
        .field(&format!("service/{service}"), "{.spec.ports[0].nodePort}")?
        .parse()
        .with_context(|| format!("the node port of Service {service}"))
}

fn no_proxy(scene: &Scene) -> Option<Held> {
    (scene.cluster.config.proxy == Proxy::None).then_some(Held::NotHere("the cluster has no kube-proxy"))
}

fn no_dns(scene: &Scene) -> Option<Held> {
    (!scene.cluster.config.dns)
        .then_some(Held::NotHere("the cluster has no DNS"))
        .or_else(|| no_proxy(scene))
}
