//! Services by kube-proxy, and DNS.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use weft_kernel::NetNs;

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
        name: "udp-affinity",
        description: "With sessionAffinity ClientIP all datagrams of a pod go to one pod, from whatever port",
        run: udp_affinity,
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

/// Clients of the check: without affinity they would hardly all meet one of three pods.
const CLIENTS: usize = 12;

fn udp_affinity(scene: &Scene) -> Outcome {
    if let Some(not_here) = no_proxy(scene) {
        return Ok(not_here);
    }
    let object = |name: &str, affinity: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "selector": {"app": "check"},
                "sessionAffinity": affinity,
                "ports": [{"port": 80, "protocol": "UDP", "targetPort": 8081}],
            },
        })
    };
    let mut met = Vec::new();
    for (name, affinity) in [("udp-sticky", "ClientIP"), ("udp-free", "None")] {
        scene.kubectl.apply(&object(name, affinity).to_string())?;
        let address: Ipv4Addr = scene
            .field(&format!("service/{name}"), "{.spec.clusterIP}")?
            .parse()?;
        let netns = scene.pod(&scene.a)?;
        // kube-proxy needs a moment for the new Service.
        wait_for("the Service to answer", || Ok(hostname(&netns, address).ok()))?;
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..CLIENTS {
            names.insert(hostname(&netns, address)?);
        }
        met.push(names);
    }
    let [sticky, free] = met.as_slice() else {
        bail!("two Services were asked");
    };
    if sticky.len() != 1 || free.len() < 2 {
        bail!("with affinity {sticky:?} answered, without {free:?}");
    }
    scene.read(&["delete", "service", "udp-sticky", "udp-free"])?;
    yes(format!(
        "{CLIENTS} ports: {} with, {} without",
        sticky.len(),
        free.len()
    ))
}

/// The name of the pod that answers a datagram of a new port.
fn hostname(netns: &NetNs, address: Ipv4Addr) -> Result<String> {
    netns.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect((address, 80))?;
        socket.send(b"hostname")?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    })?
}

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
