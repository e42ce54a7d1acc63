//! Who owns an address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use weft_api::AddressCounts;
use weft_model::Block;

use crate::API_VERSION;
use crate::snapshot::Snapshot;
use crate::status::internal_addresses;

/// The answer to "who owns this address?".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressAnswer {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Always `AddressAnswer`.
    pub kind: &'static str,
    /// The address asked for.
    pub address: Ipv4Addr,
    /// Who owns it.
    pub owner: AddressOwner,
    /// What contradicts itself: the address is claimed twice, or its pod runs on another node than its block's.
    pub problems: Vec<String>,
}

/// Who owns an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum AddressOwner {
    /// Pods have it: one, where all is well.
    #[serde(rename_all = "camelCase")]
    Pod {
        /// The pods.
        pods: Vec<PodRef>,
        /// The block it lies in.
        #[serde(flatten)]
        block: Option<BlockRef>,
    },
    /// It is a node's own.
    Node {
        /// Name of the Node.
        node: String,
    },
    /// It lies in a node's block, and no pod has it: free, or cooling.
    #[serde(rename_all = "camelCase")]
    Unused {
        /// The block.
        #[serde(flatten)]
        block: BlockRef,
        /// How many of the node's addresses cool. None: this one is free.
        cooling: u32,
        /// How many of the node's addresses are free. None: this one cools.
        free: u32,
        /// A pod that has ended and had it last.
        ended: Option<PodRef>,
    },
    /// It lies in a pool, and in no node's block.
    Unassigned {
        /// Name of the PodPool.
        pool: String,
        /// Whether the pool excludes it, so that it is never given out.
        excluded: bool,
    },
    /// Neither a pod, a node nor a pool has it.
    Outside,
}

/// A block of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockRef {
    /// The block.
    pub block: Block,
    /// The PodPool it is of.
    pub pool: String,
    /// The Node it belongs to.
    pub node: String,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Node it runs on.
    pub node: String,
}

/// All blocks and all addresses of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressList {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Always `AddressList`.
    pub kind: &'static str,
    /// The blocks, by address.
    pub blocks: Vec<BlockUse>,
    /// The pods' addresses, in order.
    pub addresses: Vec<PodAddress>,
}

/// A block and how full it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockUse {
    /// Whose it is.
    #[serde(flatten)]
    pub block: BlockRef,
    /// Addresses that pods have.
    pub used: u32,
    /// Addresses in all.
    pub capacity: u32,
}

/// A pod's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The pod.
    pub pod: PodRef,
    /// The block it lies in; absent where it lies in none of Weft's.
    pub block: Option<Block>,
}

/// Finds the owner of an address. `pods` are the pods whose status has it, or more.
pub fn look_up(address: Ipv4Addr, seen: &Snapshot, pods: &[Pod]) -> AddressAnswer {
    let having = || {
        pods.iter()
            .filter(|pod| !on_host_network(pod) && pod_address(pod) == Some(address))
    };
    let live: Vec<PodRef> = having().filter(|pod| !has_ended(pod)).map(pod_ref).collect();
    let (block, node) = node_of(address, seen);
    let problems = contradictions(address, &live, block.as_ref(), node.as_deref());
    let owner = if !live.is_empty() {
        AddressOwner::Pod { pods: live, block }
    } else if let Some(node) = node {
        AddressOwner::Node { node }
    } else if let Some(block) = block {
        let counts = counts(seen, &block.node);
        AddressOwner::Unused {
            cooling: counts.cooling,
            free: counts.capacity.saturating_sub(counts.used + counts.cooling),
            block,
            ended: having().map(pod_ref).next(),
        }
    } else {
        unassigned(address, seen)
    };
    AddressAnswer {
        api_version: API_VERSION,
        kind: "AddressAnswer",
        address,
        owner,
        problems,
    }
}

/// All blocks, and the addresses of all pods that have not ended.
pub fn list_addresses(seen: &Snapshot, pods: &[Pod]) -> AddressList {
    let blocks = blocks(seen);
    let block_of = |address| {
        // The last one that begins no later: blocks do not overlap.
        let after = blocks.partition_point(|held| held.block.first() <= address);
        let held = blocks.get(after.checked_sub(1)?)?;
        held.block.contains(address).then_some(held.block)
    };
    let mut addresses: Vec<PodAddress> = pods
        .iter()
        .filter(|pod| !on_host_network(pod) && !has_ended(pod))
        .filter_map(|pod| {
            let address = pod_address(pod)?;
            Some(PodAddress {
                address,
                pod: pod_ref(pod),
                block: block_of(address),
            })
        })
        .collect();
    addresses.sort_by(|a, b| (a.address, &a.pod).cmp(&(b.address, &b.pod)));
    let mut used: BTreeMap<Block, u32> = BTreeMap::new();
    for block in addresses.iter().filter_map(|held| held.block) {
        *used.entry(block).or_default() += 1;
    }
    let blocks = blocks.iter().map(|held| BlockUse {
        used: used.get(&held.block).copied().unwrap_or(0),
        capacity: held.block.size().addresses(),
        block: held.clone(),
    });
    AddressList {
        api_version: API_VERSION,
        kind: "AddressList",
        blocks: blocks.collect(),
        addresses,
    }
}

/// The block that an address lies in, and the node whose own it is.
pub(crate) fn node_of(address: Ipv4Addr, seen: &Snapshot) -> (Option<BlockRef>, Option<String>) {
    let block = blocks(seen).into_iter().find(|held| held.block.contains(address));
    let node = seen
        .nodes
        .iter()
        .find(|node| internal_addresses(node).contains(&address))
        .and_then(|node| node.metadata.name.clone());
    (block, node)
}

/// What can't be true of an address all at once.
pub(crate) fn contradictions(
    address: Ipv4Addr,
    pods: &[PodRef],
    block: Option<&BlockRef>,
    node: Option<&str>,
) -> Vec<String> {
    let mut problems = Vec::new();
    if pods.len() > 1 {
        let names: Vec<String> = pods.iter().map(PodRef::to_string).collect();
        problems.push(format!("{} pods have it: {}", pods.len(), names.join(", ")));
    }
    for pod in pods {
        match block {
            Some(block) if block.node != pod.node => problems.push(format!(
                "pod {pod} runs on node {}, and block {} belongs to node {}",
                pod.node, block.block, block.node
            )),
            None => problems.push(format!("pod {pod} has it, and it lies in no node's block")),
            Some(_) => {}
        }
    }
    if let (Some(node), Some(block)) = (node, block) {
        problems.push(format!(
            "it is node {node}'s own and lies in block {} of node {}",
            block.block, block.node
        ));
    }
    if let (Some(node), Some(pod)) = (node, pods.first()) {
        problems.push(format!("{address} is node {node}'s own and pod {pod}'s"));
    }
    problems
}

fn unassigned(address: Ipv4Addr, seen: &Snapshot) -> AddressOwner {
    let within = |ranges: &[String]| {
        ranges
            .iter()
            .filter_map(|range| range.parse::<Ipv4Net>().ok())
            .any(|range| range.contains(&address))
    };
    match seen.pools.iter().find(|pool| within(&pool.spec.cidrs)) {
        Some(pool) => AddressOwner::Unassigned {
            pool: pool.metadata.name.clone().unwrap_or_default(),
            excluded: within(&pool.spec.excluded),
        },
        None => AddressOwner::Outside,
    }
}

/// All blocks in the order of their addresses; what is no block is left out.
fn blocks(seen: &Snapshot) -> Vec<BlockRef> {
    let mut blocks: Vec<BlockRef> = seen
        .networks
        .iter()
        .flat_map(|network| {
            let node = network.metadata.name.clone().unwrap_or_default();
            network.spec.blocks.iter().filter_map(move |held| {
                Some(BlockRef {
                    block: held.cidr.parse().ok()?,
                    pool: held.pool.clone(),
                    node: node.clone(),
                })
            })
        })
        .collect();
    blocks.sort_by_key(|held| held.block.first());
    blocks
}

fn counts(seen: &Snapshot, node: &str) -> AddressCounts {
    seen.networks
        .iter()
        .find(|network| network.metadata.name.as_deref() == Some(node))
        .and_then(|network| network.status.as_ref()?.addresses)
        .unwrap_or_default()
}

// === impl PodRef ===

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn pod_ref(pod: &Pod) -> PodRef {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        node: node.unwrap_or_default(),
    }
}

fn pod_address(pod: &Pod) -> Option<Ipv4Addr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn on_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// Whether a pod's address is no longer its own, though its status still has it.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests;
