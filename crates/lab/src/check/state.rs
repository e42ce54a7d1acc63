//! What has to hold before the first packet, and after the last.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use ipnet::Ipv4Net;
use weft_abi::DropReason;
use weft_cni::protocol::{self, Command, Reply, Request};

use super::probe::same;
use super::scene::{Scene, end_of};
use super::{Check, Outcome, Trouble};

/// Bytes that VXLAN adds to a packet: outer IPv4, UDP, VXLAN, inner Ethernet (RFC 7348).
const OVERHEAD: u32 = 50;

/// How long an agent may take to answer.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Reasons for which a healthy node drops nothing, whatever the checks before provoked.
const UNEXPECTED: [DropReason; 11] = [
    DropReason::NoConfig,
    DropReason::NoEndpoint,
    DropReason::Malformed,
    DropReason::VlanTag,
    DropReason::NoBlock,
    DropReason::TunnelKey,
    DropReason::ForeignSourceFromStack,
    DropReason::NoOverlayRoute,
    DropReason::NoTunnelKey,
    DropReason::UnmasqueradedEgress,
    DropReason::EtherType,
];

pub(super) const BEFORE: &[Check] = &[
    Check {
        name: "nodes-ready",
        description: "all nodes are Ready and have a block",
        run: nodes_ready,
    },
    Check {
        name: "agents-serve",
        description: "the agent of every node answers STATUS: it would attach a pod",
        run: agents_serve,
    },
    Check {
        name: "api-from-nodes",
        description: "the nodes reach the cluster's API in the VNet",
        run: api_from_nodes,
    },
    Check {
        name: "blocks-disjoint",
        description: "no two nodes share a block, and all lie in the pod CIDR",
        run: blocks_disjoint,
    },
    Check {
        name: "pod-addresses-in-blocks",
        description: "every probe pod has its own address, in a block of its node",
        run: addresses_in_blocks,
    },
    Check {
        name: "pod-mtu",
        description: "a pod's MTU is its node's uplink's less 50 bytes",
        run: pod_mtu,
    },
];

pub(super) const AFTER: &[Check] = &[Check {
    name: "no-unexpected-drops",
    description: "meanwhile nothing was dropped but what had to be",
    run: no_unexpected_drops,
}];

fn nodes_ready(scene: &Scene) -> Outcome {
    for node in &scene.cluster.nodes {
        if !node.ready || node.blocks.is_empty() {
            return Err(Trouble::Failed(format!(
                "{} is {} and has {} blocks",
                node.name,
                if node.ready { "Ready" } else { "NotReady" },
                node.blocks.len()
            )));
        }
    }
    Ok(format!(
        "{} of {}",
        scene.cluster.nodes.len(),
        scene.cluster.nodes.len()
    ))
}

fn agents_serve(scene: &Scene) -> Outcome {
    let mut slowest = Duration::ZERO;
    for node in scene.nodes() {
        let request = Request {
            network: "weft".to_owned(),
            wait_ms: u64::try_from(AGENT_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
            times: None,
            command: Command::Status,
        };
        let began = std::time::Instant::now();
        match protocol::call(&node.dir.join("agent.sock"), &request, None, AGENT_TIMEOUT)? {
            Reply::Done => slowest = slowest.max(began.elapsed()),
            other => return Err(Trouble::Failed(format!("{}: {other:?}", node.status.name))),
        }
    }
    Ok(format!("slowest answer {} µs", slowest.as_micros()))
}

fn api_from_nodes(scene: &Scene) -> Outcome {
    let api = (scene.cluster.network.api, crate::daemon::API_PORT).into();
    for node in scene.nodes() {
        let connected: std::io::Result<TcpStream> = node
            .machine
            .netns
            .run(|| TcpStream::connect_timeout(&api, AGENT_TIMEOUT))?;
        connected.map_err(|error| Trouble::Failed(format!("{} to {api}: {error}", node.status.name)))?;
    }
    Ok(api.to_string())
}

fn blocks_disjoint(scene: &Scene) -> Outcome {
    let pool = scene.cluster.config.pod_cidr.net();
    let mut seen: Vec<(&str, Ipv4Net)> = Vec::new();
    for node in &scene.cluster.nodes {
        for block in &node.blocks {
            let block: Ipv4Net = block.parse()?;
            if !pool.contains(&block) {
                return Err(Trouble::Failed(format!(
                    "{block} of {} is not in {pool}",
                    node.name
                )));
            }
            if let Some((other, taken)) = seen
                .iter()
                .find(|(_, taken)| taken.contains(&block) || block.contains(taken))
            {
                return Err(Trouble::Failed(format!(
                    "{block} of {} overlaps {taken} of {other}",
                    node.name
                )));
            }
            seen.push((&node.name, block));
        }
    }
    Ok(format!("{} blocks", seen.len()))
}

fn addresses_in_blocks(scene: &Scene) -> Outcome {
    let mut seen = BTreeMap::new();
    for probe in [Some(&scene.a), Some(&scene.a2), scene.b.as_ref()]
        .into_iter()
        .flatten()
    {
        let address = probe.pod.address;
        if let Some(other) = seen.insert(address, &probe.pod.name) {
            return Err(Trouble::Failed(format!(
                "{} and {other} both have {address}",
                probe.pod.name
            )));
        }
        let inside = probe.node.status.blocks.iter().any(|block| {
            block
                .parse::<Ipv4Net>()
                .is_ok_and(|block| block.contains(&address))
        });
        if !inside {
            return Err(Trouble::Failed(format!(
                "{address} of {} is in no block of {}",
                probe.pod.name, probe.node.status.name
            )));
        }
    }
    let all: Vec<String> = seen.keys().map(ToString::to_string).collect();
    Ok(all.join(", "))
}

fn pod_mtu(scene: &Scene) -> Outcome {
    let uplink = end_of(&scene.a.node.machine.netns, "eth0")?.mtu;
    let pod = scene.a.pod_end()?.mtu;
    same("the pod's MTU", pod, uplink - OVERHEAD)?;
    Ok(format!("{pod}, uplink {uplink}"))
}

fn no_unexpected_drops(scene: &Scene) -> Outcome {
    let mut expected = 0;
    for node in scene.nodes() {
        for (reason, now) in node.drops()? {
            let new = now - node.before.get(&reason).copied().unwrap_or(0);
            if new > 0 && UNEXPECTED.contains(&reason) {
                return Err(Trouble::Failed(format!(
                    "{} dropped {new} for {}",
                    node.status.name,
                    reason.name()
                )));
            }
            expected += new;
        }
    }
    Ok(format!("0, and {expected} that had to be"))
}
