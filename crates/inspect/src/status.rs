//! Whether a cluster's pod network is as it should be.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;
use weft_api::{NodeNetwork, NodeSliceEntry, PodPool, Transport};
use weft_model::Block;

use crate::API_VERSION;
use crate::snapshot::Snapshot;

/// A pod network at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Always `NetworkStatus`.
    pub kind: &'static str,
    /// Whether there are [`problems`](Self::problems).
    pub verdict: Verdict,
    /// What is not as it should be, the gravest first.
    pub problems: Vec<Problem>,
    /// The pools by name.
    pub pools: Vec<PoolState>,
    /// The nodes by name.
    pub nodes: Vec<NodeState>,
    /// What the nodes are told of each other.
    pub slices: SliceState,
    /// The addresses of all nodes.
    pub addresses: AddressTotals,
}

/// How it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// As it should be.
    Healthy,
    /// Something is not as it should be.
    Degraded,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What it is about.
    pub subject: Subject,
    /// One sentence without a full stop.
    pub message: String,
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "name")]
pub enum Subject {
    /// The cluster as a whole.
    Cluster,
    /// The PodPool of that name.
    Pool(String),
    /// The Node of that name.
    Node(String),
    /// The NodeSlices.
    Slices,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolState {
    /// Name of the PodPool.
    pub name: String,
    /// Its ranges.
    pub cidrs: Vec<String>,
    /// Prefix length of its blocks.
    pub block_size: u8,
    /// Blocks that belong to nodes; absent until the operator has counted.
    pub allocated: Option<u32>,
    /// Blocks in all; absent until the operator has counted.
    pub capacity: Option<u32>,
    /// What is not as it should be: `Type: message`.
    pub problems: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Name of the Node.
    pub name: String,
    /// Whether its agent serves new pods.
    pub ready: bool,
    /// Its first IPv4 InternalIP.
    pub address: Option<Ipv4Addr>,
    /// Its blocks, in the order they were granted.
    pub blocks: Vec<String>,
    /// Addresses that belong to pods.
    pub used: u32,
    /// Addresses that rest after their pod is gone.
    pub cooling: u32,
    /// Addresses in all blocks.
    pub capacity: u32,
    /// MTU of its pods in bytes.
    pub mtu: Option<u32>,
    /// How its packets to other nodes' pods leave.
    pub transport: Option<Transport>,
    /// Why so, in a sentence of the agent's.
    pub transport_reason: Option<String>,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

/// What the nodes are told of each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceState {
    /// How many NodeSlices there are.
    pub slices: usize,
    /// How many nodes they list.
    pub nodes: usize,
    /// Where they differ from the nodes.
    pub problems: Vec<String>,
}

/// Addresses, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressTotals {
    /// Addresses that belong to pods.
    pub used: u64,
    /// Addresses that rest after their pod is gone.
    pub cooling: u64,
    /// Addresses in all blocks of all nodes.
    pub capacity: u64,
}

/// Judges a pod network.
pub fn assess(seen: &Snapshot) -> NetworkStatus {
    let mut pools: Vec<PoolState> = seen.pools.iter().map(pool).collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    let networks: BTreeMap<&str, &NodeNetwork> = seen
        .networks
        .iter()
        .filter_map(|network| Some((network.metadata.name.as_deref()?, network)))
        .collect();
    let by_name: BTreeMap<&str, &Node> = seen
        .nodes
        .iter()
        .filter_map(|node| Some((node.metadata.name.as_deref()?, node)))
        .collect();
    let mut nodes: Vec<NodeState> = by_name
        .iter()
        .map(|(name, object)| node(name, object, networks.get(name).copied()))
        .collect();
    for (name, message) in contested(&networks) {
        if let Some(node) = nodes.iter_mut().find(|node| node.name == name) {
            node.problems.push(message);
        }
    }
    let slices = slices(seen, &by_name, &networks);
    let problems = problems(&pools, &nodes, &slices);
    let addresses = nodes
        .iter()
        .fold(AddressTotals::default(), |sum, node| AddressTotals {
            used: sum.used + u64::from(node.used),
            cooling: sum.cooling + u64::from(node.cooling),
            capacity: sum.capacity + u64::from(node.capacity),
        });
    NetworkStatus {
        api_version: API_VERSION,
        kind: "NetworkStatus",
        verdict: if problems.is_empty() {
            Verdict::Healthy
        } else {
            Verdict::Degraded
        },
        problems,
        pools,
        nodes,
        slices,
        addresses,
    }
}

/// The gravest first: without pools or nodes nothing works, a pool concerns all its nodes.
fn problems(pools: &[PoolState], nodes: &[NodeState], slices: &SliceState) -> Vec<Problem> {
    let missing = [
        (
            pools.is_empty(),
            "there is no PodPool, so no node gets addresses for pods",
        ),
        (nodes.is_empty(), "there are no nodes"),
    ];
    let missing = missing
        .into_iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, text)| (Subject::Cluster, text.to_owned()));
    let of_pools = pools.iter().flat_map(|pool| {
        let subject = Subject::Pool(pool.name.clone());
        pool.problems
            .iter()
            .map(move |text| (subject.clone(), text.clone()))
    });
    let of_nodes = nodes.iter().flat_map(|node| {
        let subject = Subject::Node(node.name.clone());
        node.problems
            .iter()
            .map(move |text| (subject.clone(), text.clone()))
    });
    let of_slices = slices.problems.iter().map(|text| (Subject::Slices, text.clone()));
    missing
        .chain(of_pools)
        .chain(of_nodes)
        .chain(of_slices)
        .map(|(subject, message)| Problem { subject, message })
        .collect()
}

fn pool(pool: &PodPool) -> PoolState {
    let mut problems = Vec::new();
    match &pool.status {
        None => problems.push("the operator has not looked at it yet".to_owned()),
        Some(status) => {
            for condition in &status.conditions {
                let bad = match condition.type_.as_str() {
                    "Ready" => condition.status != "True",
                    "Exhausted" => condition.status == "True",
                    _ => false,
                };
                if bad {
                    problems.push(format!("{}: {}", condition.reason, condition.message));
                }
            }
        }
    }
    PoolState {
        name: pool.metadata.name.clone().unwrap_or_default(),
        cidrs: pool.spec.cidrs.clone(),
        block_size: pool.spec.block_size,
        allocated: pool.status.as_ref().map(|status| status.allocated),
        capacity: pool.status.as_ref().map(|status| status.capacity),
        problems,
    }
}

fn node(name: &str, node: &Node, network: Option<&NodeNetwork>) -> NodeState {
    let status = network.and_then(|network| network.status.as_ref());
    let addresses = status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = internal_addresses(node);
    let mut problems = Vec::new();
    if internal.is_empty() {
        problems.push("the Node has no IPv4 InternalIP, so no other node can send to it".to_owned());
    }
    let agent = status.and_then(|status| condition(&status.conditions, "Ready"));
    match (network, agent) {
        (None, _) => problems.push("the operator has made no NodeNetwork for it yet".to_owned()),
        (Some(network), _) if !is_of(network, node) => problems
            .push("it was registered anew and its NodeNetwork is still that of the Node before".to_owned()),
        (Some(_), None) => problems.push("its agent has not reported yet".to_owned()),
        (Some(_), Some(ready)) if ready.status != "True" => {
            problems.push(format!("its agent does not serve new pods: {}", ready.message));
        }
        (Some(_), Some(_)) => {
            // An agent that has gone leaves its last word. The operator sees it go, and the kubelet asks the plugin all
            // the time.
            if let Some(why) = unavailable(node) {
                problems.push(format!("its network is unavailable: {why}"));
            } else if let Err(why) = kubelet_ready(node) {
                problems.push(format!("its kubelet is not ready: {why}"));
            }
        }
    }
    let ready = problems.is_empty();
    if let Some(short) = status
        .and_then(|status| status.allocation.as_ref())
        .filter(|granted| granted.status == "False")
    {
        problems.push(format!("it waits for a block: {}", short.message));
    }
    let transport = status.and_then(|status| condition(&status.conditions, "TransportAsRequested"));
    if let Some(refused) = transport.filter(|said| said.status == "False") {
        problems.push(refused.message.clone());
    }
    if addresses.quarantined > 0 {
        problems.push(format!(
            "{} of its addresses are quarantined, which nobody gets: weft audit says why",
            addresses.quarantined
        ));
    }
    if let Some(damaged) = status
        .and_then(|status| condition(&status.conditions, "LedgerIntact"))
        .filter(|intact| intact.status == "False")
    {
        problems.push(damaged.message.clone());
    }
    NodeState {
        name: name.to_owned(),
        ready,
        address: internal.first().copied(),
        blocks: network.map(blocks).unwrap_or_default(),
        used: addresses.used,
        cooling: addresses.cooling,
        capacity: addresses.capacity,
        mtu: status.and_then(|status| status.mtu),
        transport: status.and_then(|status| status.transport),
        transport_reason: transport.map(|said| said.message.clone()),
        problems,
    }
}

/// Nodes that share addresses with another, and a sentence about it.
fn contested<'a>(networks: &BTreeMap<&'a str, &NodeNetwork>) -> Vec<(&'a str, String)> {
    let mut held: Vec<(Block, &str)> = networks
        .iter()
        .flat_map(|(name, network)| network.spec.blocks.iter().map(move |block| (block, *name)))
        .filter_map(|(block, name)| Some((block.cidr.parse().ok()?, name)))
        .collect();
    held.sort_by_key(|(block, name)| (block.first(), Reverse(block.last()), *name));
    let mut overlaps = Vec::new();
    let mut furthest: Option<(Block, &str)> = None;
    for (block, name) in held {
        match furthest {
            Some((before, owner)) if before.overlaps(block) => {
                if owner != name {
                    overlaps.push((
                        name,
                        format!("its block {block} overlaps {before} of node {owner}"),
                    ));
                }
            }
            // Blocks do not half overlap: what lies within the one before ends no later.
            _ => furthest = Some((block, name)),
        }
    }
    overlaps
}

fn slices(
    seen: &Snapshot,
    nodes: &BTreeMap<&str, &Node>,
    networks: &BTreeMap<&str, &NodeNetwork>,
) -> SliceState {
    let mut problems = Vec::new();
    let mut listed: BTreeSet<&str> = BTreeSet::new();
    for entry in seen.slices.iter().flat_map(|slice| &slice.spec.nodes) {
        if !listed.insert(&entry.name) {
            problems.push(format!("they list node {} twice", entry.name));
            continue;
        }
        let expected = nodes
            .get(entry.name.as_str())
            .and_then(|node| expected_entry(node, networks.get(entry.name.as_str()).copied()));
        match expected {
            None => problems.push(format!("they list node {}, which is gone", entry.name)),
            Some(expected) if expected != *entry => problems.push(format!(
                "they do not show node {} as it is: {} instead of {}",
                entry.name,
                shown(entry),
                shown(&expected)
            )),
            Some(_) => {}
        }
    }
    for (name, node) in nodes {
        if !listed.contains(name) && expected_entry(node, networks.get(name).copied()).is_some() {
            problems.push(format!(
                "they do not list node {name}, so no other node can reach its pods"
            ));
        }
    }
    SliceState {
        slices: seen.slices.len(),
        nodes: listed.len(),
        problems,
    }
}

/// What the slices have to say of a node; `None` where it is not ready to be told of.
fn expected_entry(node: &Node, network: Option<&NodeNetwork>) -> Option<NodeSliceEntry> {
    let network = network.filter(|network| is_of(network, node))?;
    let addresses = internal_addresses(node);
    (!addresses.is_empty()).then(|| NodeSliceEntry {
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        addresses: addresses.iter().map(Ipv4Addr::to_string).collect(),
        blocks: blocks(network),
        ..NodeSliceEntry::default()
    })
}

fn shown(entry: &NodeSliceEntry) -> String {
    let list = |texts: &[String]| {
        if texts.is_empty() {
            "nothing".to_owned()
        } else {
            texts.join(" ")
        }
    };
    format!("{} at {}", list(&entry.blocks), list(&entry.addresses))
}

fn blocks(network: &NodeNetwork) -> Vec<String> {
    network
        .spec
        .blocks
        .iter()
        .map(|block| block.cidr.clone())
        .collect()
}

fn is_of(network: &NodeNetwork, node: &Node) -> bool {
    network.metadata.deletion_timestamp.is_none()
        && node.metadata.uid.as_deref() == Some(network.spec.node_uid.as_str())
}

pub(crate) fn internal_addresses(node: &Node) -> Vec<Ipv4Addr> {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

fn kubelet_ready(node: &Node) -> Result<(), String> {
    match node_condition(node, "Ready") {
        Some(ready) if ready.status == "True" => Ok(()),
        Some(ready) => Err(ready.message.clone().unwrap_or_default()),
        None => Err("it has not reported yet".to_owned()),
    }
}

/// Why the node takes no pods for the sake of its network, by the condition that the operator keeps.
fn unavailable(node: &Node) -> Option<&str> {
    let condition = node_condition(node, "NetworkUnavailable")?;
    (condition.status == "True").then(|| condition.message.as_deref().unwrap_or_default())
}

fn node_condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let status = node.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests;
