//! Who reaches whom, and under which address.

use std::net::Ipv4Addr;

use super::probe::{self, Met, same};
use super::scene::{Machine, Scene};
use super::{Check, Outcome, Trouble};

/// Size of the transfers, in bytes.
const TRANSFER: usize = 1 << 20;

/// Datagrams of a burst.
const BURST: usize = 500;

/// Datagrams of it that are under way at the same time.
const PORTION: usize = 50;

/// Bytes of a datagram that has to be cut in fragments.
const LARGE_DATAGRAM: usize = 8000;

pub(super) const ALL: &[Check] = &[
    Check {
        name: "pod-to-pod-same-node",
        description: "a pod reaches a pod of its node by TCP, which sees its address",
        run: |scene| reach(&scene.a.pod, &scene.a2.pod, scene.a.pod.address),
    },
    Check {
        name: "pod-to-pod-other-node",
        description: "a pod reaches a pod of another node by TCP, which sees its address",
        run: |scene| reach(&scene.a.pod, &scene.b()?.pod, scene.a.pod.address),
    },
    Check {
        name: "pod-to-pod-other-node-reverse",
        description: "the same in the other direction",
        run: |scene| reach(&scene.b()?.pod, &scene.a.pod, scene.b()?.pod.address),
    },
    Check {
        name: "pod-to-pod-same-node-udp",
        description: "a UDP datagram and its answer cross between pods of a node",
        run: |scene| reach_udp(&scene.a.pod, &scene.a2.pod, scene.a.pod.address),
    },
    Check {
        name: "pod-to-pod-other-node-udp",
        description: "a UDP datagram and its answer cross between pods of two nodes",
        run: |scene| reach_udp(&scene.a.pod, &scene.b()?.pod, scene.a.pod.address),
    },
    Check {
        name: "pod-to-itself",
        description: "a pod reaches itself at its own address",
        run: |scene| reach(&scene.a.pod, &scene.a.pod, scene.a.pod.address),
    },
    Check {
        name: "pod-to-own-node",
        description: "a pod reaches its node, which sees the pod's address",
        run: |scene| reach(&scene.a.pod, &scene.a.node.machine, scene.a.pod.address),
    },
    Check {
        name: "pod-to-other-node",
        description: "a pod reaches another node through the overlay, which sees the pod's address",
        run: |scene| reach(&scene.a.pod, &scene.b()?.node.machine, scene.a.pod.address),
    },
    Check {
        name: "node-to-own-pod",
        description: "a node reaches its pod, which sees the node's address",
        run: |scene| reach(&scene.a.node.machine, &scene.a.pod, scene.a.node.machine.address),
    },
    Check {
        name: "node-to-other-nodes-pod",
        description: "a node reaches another node's pod, which sees the node's address",
        run: |scene| {
            reach(
                &scene.a.node.machine,
                &scene.b()?.pod,
                scene.a.node.machine.address,
            )
        },
    },
    Check {
        name: "other-node-to-pod",
        description: "the same in the other direction",
        run: |scene| {
            reach(
                &scene.b()?.node.machine,
                &scene.a.pod,
                scene.b()?.node.machine.address,
            )
        },
    },
    Check {
        name: "pod-to-vnet-host",
        description: "a pod reaches a host of the VNet, which sees the node's address",
        run: |scene| reach(&scene.a.pod, &scene.host, scene.a.node.machine.address),
    },
    Check {
        name: "pod-to-vnet-host-udp",
        description: "the same by UDP",
        run: |scene| reach_udp(&scene.a.pod, &scene.host, scene.a.node.machine.address),
    },
    Check {
        name: "pod-to-internet",
        description: "a pod reaches a host beyond the VNet's router, which sees the node's address",
        run: |scene| reach(&scene.a.pod, &scene.internet, scene.a.node.machine.address),
    },
    Check {
        name: "vnet-host-to-pod",
        description: "a host of the VNet can't open a connection to a pod",
        run: |scene| probe::refused_tcp(&scene.host.netns, &scene.a.pod.netns, scene.a.pod.address),
    },
    Check {
        name: "internet-to-pod",
        description: "a host beyond the router can't open a connection to a pod",
        run: |scene| probe::refused_tcp(&scene.internet.netns, &scene.a.pod.netns, scene.a.pod.address),
    },
    Check {
        name: "tcp-1mb-same-node",
        description: "1 MiB each way between pods of a node arrives as it was sent (SHA-256)",
        run: |scene| transfer(&scene.a.pod, &scene.a2.pod),
    },
    Check {
        name: "tcp-1mb-other-node",
        description: "1 MiB each way between pods of two nodes arrives as it was sent (SHA-256)",
        run: |scene| transfer(&scene.a.pod, &scene.b()?.pod),
    },
    Check {
        name: "tcp-1mb-to-vnet-host",
        description: "1 MiB each way between a pod and a VNet host arrives as it was sent (SHA-256)",
        run: |scene| transfer(&scene.a.pod, &scene.host),
    },
    Check {
        name: "udp-burst-other-node",
        description: "datagrams sent one after the other to a pod of another node all arrive",
        run: burst,
    },
    Check {
        name: "udp-fragments-other-node",
        description: "a datagram larger than the MTU crosses in fragments and arrives whole",
        run: |scene| {
            let (a, b) = (&scene.a.pod, &scene.b()?.pod);
            let source = probe::udp(&a.netns, &b.netns, b.address, LARGE_DATAGRAM)?;
            same("the source", source, a.address)?;
            Ok(format!("{LARGE_DATAGRAM} bytes both ways"))
        },
    },
    Check {
        name: "many-connections",
        description: "a hundred connections in a row between pods of two nodes all come about",
        run: |scene| {
            let (a, b) = (&scene.a.pod, &scene.b()?.pod);
            for at in 1..=100 {
                probe::connect(&a.netns, &b.netns, b.address).map_err(|trouble| match trouble {
                    Trouble::Failed(why) => Trouble::Failed(format!("connection {at}: {why}")),
                    skipped => skipped,
                })?;
            }
            Ok("100 of 100".to_owned())
        },
    },
];

fn reach(from: &Machine, to: &Machine, expected_source: Ipv4Addr) -> Outcome {
    let Met { source, round_trip } = probe::tcp(&from.netns, &to.netns, to.address)?;
    same("the source", source, expected_source)?;
    Ok(format!(
        "source {source}, round trip {} µs",
        round_trip.as_micros()
    ))
}

fn reach_udp(from: &Machine, to: &Machine, expected_source: Ipv4Addr) -> Outcome {
    let source = probe::udp(&from.netns, &to.netns, to.address, 512)?;
    same("the source", source, expected_source)?;
    Ok(format!("source {source}"))
}

fn transfer(from: &Machine, to: &Machine) -> Outcome {
    let speed = probe::transfer(&from.netns, &to.netns, to.address, TRANSFER)?;
    Ok(format!("2 × 1 MiB intact, {:.1} Gbit/s", speed / 1e9))
}

fn burst(scene: &Scene) -> Outcome {
    let (a, b) = (&scene.a.pod, &scene.b()?.pod);
    let server = probe::udp_socket(&b.netns, b.address)?;
    let client = probe::udp_socket(&a.netns, a.address)?;
    let target = server.local_addr()?;
    let mut arrived = 0;
    let mut buffer = [0; 64];
    // In portions that a receive buffer of the smallest default size takes.
    for _ in 0..BURST / PORTION {
        for _ in 0..PORTION {
            client.send_to(&[7; 32], target)?;
        }
        for _ in 0..PORTION {
            if server.recv(&mut buffer).is_err() {
                return Err(Trouble::Failed(format!("{arrived} of {BURST} arrived")));
            }
            arrived += 1;
        }
    }
    same("the number that arrived", arrived, BURST)?;
    Ok(format!("{arrived} of {BURST}"))
}
