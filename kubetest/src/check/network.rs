//! Pods, nodes and what is beyond them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weft_kernel::sockets;

use super::scene::{PORT, Scene, expect_client, http_from};
use super::{Check, Outcome, yes};
use crate::vnet;

pub(super) const ALL: &[Check] = &[
    Check {
        name: "pod-pod-same-node",
        description: "Pods of one node reach each other both ways under their own addresses",
        run: |scene| {
            for (from, to) in [(&scene.a, &scene.a2), (&scene.a2, &scene.a)] {
                expect_client(
                    &scene.fetch(from, &format!("{}:{PORT}/clientip", to.address))?,
                    from.address,
                )?;
            }
            yes(format!("{} and {}", scene.a.address, scene.a2.address))
        },
    },
    Check {
        name: "pod-pod-other-node",
        description: "Pods of two nodes reach each other both ways under their own addresses",
        run: |scene| {
            for (from, to) in [(&scene.a, &scene.b), (&scene.b, &scene.a)] {
                expect_client(
                    &scene.fetch(from, &format!("{}:{PORT}/clientip", to.address))?,
                    from.address,
                )?;
            }
            yes(format!("{} and {}", scene.a.address, scene.b.address))
        },
    },
    Check {
        name: "node-pod",
        description: "A node reaches its own pods and those of another node",
        run: |scene| {
            let node = scene.node(&scene.a.node)?;
            for pod in [&scene.a, &scene.b] {
                http_from(&node, pod.address, PORT, "/hostname")
                    .with_context(|| format!("to pod {}", pod.name))?;
            }
            yes(format!("from {}", scene.a.node.address))
        },
    },
    Check {
        name: "pod-node",
        description: "A pod reaches its own node and another node",
        run: |scene| {
            for node in [&scene.a.node, &scene.b.node] {
                // The kubelet's port answers on every node; that it wants TLS and a certificate does not matter.
                scene.shell(
                    &scene.a,
                    &format!("/agnhost connect {}:10250 --timeout=5s", node.address),
                )?;
            }
            yes(format!("{} and {}", scene.a.node.address, scene.b.node.address))
        },
    },
    Check {
        name: "pod-outside-snat",
        description: "A pod reaches the outside, which sees the node's address",
        run: egress,
    },
    Check {
        name: "mtu",
        description: "Datagrams of the pods' MTU fill the packets between nodes, one each, none of them in fragments",
        run: mtu,
    },
    Check {
        name: "large-transfer",
        description: "32 MiB between two nodes arrive as they were sent, and no outer packet is fragmented",
        run: transfer,
    },
];

fn egress(scene: &Scene) -> Outcome {
    let listener = sockets::tcp_listener(&scene.outside()?, SocketAddr::from((vnet::OUTSIDE, 0)))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    scene.shell(
        &scene.a,
        &format!("/agnhost connect {}:{port} --timeout=5s", vnet::OUTSIDE),
    )?;
    std::thread::sleep(Duration::from_millis(50));
    let (_, peer) = listener
        .accept()
        .context("nobody came to the outside's listener")?;
    if peer.ip() != scene.a.node.address {
        bail!(
            "the outside saw {} instead of the node's {}",
            peer.ip(),
            scene.a.node.address
        );
    }
    yes(format!("seen as {}", peer.ip()))
}

fn mtu(scene: &Scene) -> Outcome {
    const DATAGRAMS: usize = 2000;
    let mtu: usize = scene.shell(&scene.a, "cat /sys/class/net/eth0/mtu")?.parse()?;
    // What IPv4 and UDP take of it.
    let payload = vec![0; mtu - 28];
    let to = SocketAddr::from((scene.b.address, 8081));
    let (from, server) = (scene.pod(&scene.a)?, scene.node(&scene.a.node)?);
    let (fragments_before, before) = (fragments(scene)?, sent(&server)?);
    // The server says nothing to what is no command of its: a stop on the way is heard as an error of the next send.
    from.run(|| -> std::io::Result<()> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        for _ in 0..DATAGRAMS {
            socket.send(&payload)?;
        }
        Ok(())
    })??;
    let (bytes, packets) = {
        let after = sent(&server)?;
        (after.0 - before.0, after.1 - before.1)
    };
    let fragmented = fragments(scene)? - fragments_before;
    let (wire, wanted) = (bytes / packets.max(1), u64::try_from(DATAGRAMS)?);
    // What the kubelet sends meanwhile is little and small.
    let average_fits = wire > u64::try_from(mtu)? && wire <= u64::try_from(mtu + 64)?;
    if fragmented != 0 || packets < wanted || packets > wanted + wanted / 10 || !average_fits {
        bail!(
            "{packets} packets of {wire} bytes on average for {DATAGRAMS} datagrams of {mtu}, {fragmented} fragmented"
        );
    }
    yes(format!(
        "{packets} packets of {wire} bytes for {DATAGRAMS} datagrams of {mtu}"
    ))
}

/// Bytes and packets that left a node by eth0 (/proc/net/dev: after the name 8 columns of what came).
fn sent(node: &weft_kernel::NetNs) -> Result<(u64, u64)> {
    let text = node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("eth0:"))
        .context("no eth0 in /proc/net/dev")?;
    let column = |place: usize| -> Result<u64> {
        let text = line.split_ascii_whitespace().nth(place);
        text.and_then(|text| text.parse().ok())
            .with_context(|| format!("column {place} of {line:?}"))
    };
    Ok((column(8)?, column(9)?))
}

fn transfer(scene: &Scene) -> Outcome {
    const SIZE: u32 = 32 << 20;
    let before = fragments(scene)?;
    let (sent, received) = std::thread::scope(|scope| {
        let server = scope.spawn(|| scene.shell(&scene.b, "nc -l 9000 | sha256sum"));
        std::thread::sleep(Duration::from_millis(700));
        let script = format!(
            "head -c {SIZE} /dev/urandom >/tmp/data; nc -N -w 20 {} 9000 </tmp/data; sha256sum </tmp/data; rm /tmp/data",
            scene.b.address
        );
        let sent = scene.shell(&scene.a, &script);
        let received = server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sent, received)
    });
    let (sent, received) = (sent?, received?);
    if sent != received {
        bail!("sent {sent}, received {received}");
    }
    let after = fragments(scene)?;
    if after != before {
        bail!("{} packets were fragmented", after - before);
    }
    yes(format!(
        "{SIZE} bytes, sha256 {}",
        sent.get(..12).unwrap_or(&sent)
    ))
}

/// `FragCreates` of the `Ip:` lines of /proc/net/snmp of both nodes.
fn fragments(scene: &Scene) -> Result<u64> {
    let mut sum = 0;
    for node in [&scene.a.node, &scene.b.node] {
        let text = scene
            .node(node)?
            .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
        let place = lines
            .next()
            .and_then(|names| {
                names
                    .split_ascii_whitespace()
                    .position(|name| name == "FragCreates")
            })
            .context("no FragCreates in /proc/net/snmp")?;
        let value: u64 = lines
            .next()
            .and_then(|values| values.split_ascii_whitespace().nth(place)?.parse().ok())
            .context("no value of FragCreates in /proc/net/snmp")?;
        sum += value;
    }
    Ok(sum)
}

/// Address of the outside, for messages.
pub(super) const OUTSIDE: Ipv4Addr = vnet::OUTSIDE;
