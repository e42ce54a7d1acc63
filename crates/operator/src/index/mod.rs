//! What the cluster has, what it should have, and the writes between the two.
//!
//! Synchronous and without I/O: watch events go in, [`Index::plan`] says what
//! to write. Time comes as an argument.
//!
//! What a node holds is decided here and kept in `held`; the NodeNetwork objects
//! are where it is written down. A block is a node's from the moment it is
//! chosen, before the write; it is free again only when the node has been gone
//! for the grace and no NodeNetwork shows the block any more. The NodeNetwork of
//! a node that is gone stays for the grace, so that an operator which starts
//! meanwhile honours it too. Only where another node takes the name does it have
//! to go at once; then an operator that starts within the grace can't know of it.

mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use weft_api::{NodeBlock, NodeSliceEntry, PodPoolStatus};
use weft_ipam::{BlockAllocator, Exhausted};
use weft_model::{Block, NodeName, NodeUid};

use self::pools::Pools;
use crate::slices::{SLICE_SIZE, SliceChange, pack};

pub(crate) use self::pools::Pool;

/// The most blocks a node is given, the limit of the NodeNetwork's schema.
const MAX_BLOCKS: usize = 1024;

/// What a Node object says that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) uid: NodeUid,
    pub(crate) labels: BTreeMap<String, String>,
    /// All InternalIPs, in the Node's order.
    pub(crate) addresses: Vec<Ipv4Addr>,
}

/// What a NodeNetwork object says that matters here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// The object's own UID.
    pub(crate) object_uid: String,
    pub(crate) node_uid: NodeUid,
    pub(crate) blocks: Vec<Held>,
    pub(crate) wanted: u32,
    pub(crate) allocation: Option<Condition>,
    /// It is about to go: a finalizer holds it, or its deletion was just asked for.
    pub(crate) deleting: bool,
}

/// A block and the pool it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) block: Block,
    pub(crate) pool: String,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    CreateNetwork {
        name: NodeName,
        uid: NodeUid,
        blocks: Vec<Held>,
    },
    SetBlocks {
        name: NodeName,
        uid: NodeUid,
        blocks: Vec<Held>,
    },
    DeleteNetwork {
        name: NodeName,
        object_uid: String,
    },
    SetAllocation {
        name: NodeName,
        uid: NodeUid,
        condition: Condition,
    },
    SetPoolStatus {
        pool: String,
        uid: String,
        status: PodPoolStatus,
    },
    Slice(SliceChange),
}

/// What [`Index::plan`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// When to plan again although nothing changes, on the clock of `plan`'s argument.
    pub(crate) again_at: Option<Duration>,
    /// Pairs of nodes with shared addresses that were not there at the last plan.
    pub(crate) new_conflicts: Vec<String>,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Nodes,
    Networks,
    Pools,
    Slices,
}

#[derive(Debug)]
pub(crate) struct Index {
    grace: Duration,
    nodes: BTreeMap<NodeName, Node>,
    networks: BTreeMap<NodeName, Network>,
    pools: Pools,
    slices: BTreeMap<String, Vec<NodeSliceEntry>>,
    allocator: BlockAllocator,
    /// The blocks of every node, by UID; the allocator knows each of them.
    held: BTreeMap<NodeUid, Vec<Held>>,
    /// Since when holders have no Node object.
    gone: BTreeMap<NodeUid, Duration>,
    listed: BTreeSet<Source>,
    conflicts: BTreeSet<String>,
}

/// Why a node has not all the blocks it asks for.
struct Shortage {
    reason: &'static str,
    message: String,
}

// === impl Index ===

impl Index {
    /// An index of nothing. Blocks of nodes that are gone are used again after
    /// `grace`; pools must keep clear of `service_cidrs`.
    pub(crate) fn new(grace: Duration, service_cidrs: Vec<Ipv4Net>) -> Self {
        Self {
            grace,
            nodes: BTreeMap::new(),
            networks: BTreeMap::new(),
            pools: Pools::new(service_cidrs),
            slices: BTreeMap::new(),
            allocator: BlockAllocator::new(),
            held: BTreeMap::new(),
            gone: BTreeMap::new(),
            listed: BTreeSet::new(),
            conflicts: BTreeSet::new(),
        }
    }

    /// Notes that all objects of a source are known. Before all four are,
    /// nothing is planned: what is not known yet must not be taken for gone.
    pub(crate) fn listed(&mut self, source: Source) {
        self.listed.insert(source);
    }

    /// True if that changes anything; so for all of these.
    pub(crate) fn set_node(&mut self, name: &NodeName, node: Option<Node>) -> bool {
        if let Some(node) = &node {
            // However short it is back for, the grace begins anew.
            self.gone.remove(&node.uid);
        }
        set(&mut self.nodes, name, node)
    }

    pub(crate) fn set_network(&mut self, name: &NodeName, network: Option<Network>) -> bool {
        match &network {
            Some(network) => {
                for held in &network.blocks {
                    self.claim(&network.node_uid, held);
                }
            }
            None => self.forget_network(name),
        }
        set(&mut self.networks, name, network)
    }

    pub(crate) fn set_pool(&mut self, name: &str, pool: Option<Pool>) -> bool {
        self.pools.set(name, pool, &mut self.allocator)
    }

    pub(crate) fn set_slice(&mut self, name: &str, nodes: Option<Vec<NodeSliceEntry>>) -> bool {
        set(&mut self.slices, &name.to_owned(), nodes)
    }

    /// The names of all objects of a source, to find those that a new list lacks.
    pub(crate) fn names(&self, source: Source) -> Vec<String> {
        match source {
            Source::Nodes => self.nodes.keys().map(NodeName::to_string).collect(),
            Source::Networks => self.networks.keys().map(NodeName::to_string).collect(),
            Source::Pools => self.pools.names().map(str::to_owned).collect(),
            Source::Slices => self.slices.keys().cloned().collect(),
        }
    }

    /// Notes that the API has accepted a deletion, so that it is not asked for again.
    pub(crate) fn deletion_accepted(&mut self, name: &NodeName) {
        if let Some(network) = self.networks.get_mut(name) {
            network.deleting = true;
        }
    }

    /// Everything that has to be written now. `now` is monotonic, `wall` goes
    /// into conditions.
    ///
    /// Planning again after the writes were done and fed back yields nothing.
    pub(crate) fn plan(&mut self, now: Duration, wall: Timestamp) -> Plan {
        let mut plan = Plan::default();
        if self.listed.len() < 4 {
            return plan;
        }
        self.return_blocks(now, &mut plan);
        let shortages = self.grant();
        self.plan_networks(wall, &shortages, &mut plan);
        self.plan_slices(&mut plan);
        for (pool, uid, status) in self.pools.statuses(&self.allocator, wall) {
            plan.actions.push(Action::SetPoolStatus { pool, uid, status });
        }
        plan
    }

    fn claim(&mut self, uid: &NodeUid, held: &Held) {
        let blocks = self.held.entry(uid.clone()).or_default();
        if !blocks.iter().any(|known| known.block == held.block) {
            blocks.push(held.clone());
            self.allocator.claim(&held.pool, held.block, uid);
        }
    }

    fn release(&mut self, uid: &NodeUid, release: impl Fn(&Held) -> bool) {
        let Some(blocks) = self.held.get_mut(uid) else {
            return;
        };
        blocks.retain(|held| {
            let released = release(held);
            if released {
                self.allocator.release(held.block, uid);
            }
            !released
        });
        if blocks.is_empty() {
            self.held.remove(uid);
        }
    }

    /// A NodeNetwork that goes takes contested blocks with it, and nothing
    /// else: its node, if it lives, still has pods with the other addresses.
    fn forget_network(&mut self, name: &NodeName) {
        let Some(network) = self.networks.get(name) else {
            return;
        };
        let uid = network.node_uid.clone();
        let contested: BTreeSet<Block> = self
            .allocator
            .conflicts()
            .into_iter()
            .flat_map(|conflict| [conflict.first, conflict.second])
            .filter(|claim| claim.owner == uid)
            .map(|claim| claim.block)
            .collect();
        self.release(&uid, |held| contested.contains(&held.block));
    }

    /// Takes back the blocks of nodes that are gone for the grace.
    fn return_blocks(&mut self, now: Duration, plan: &mut Plan) {
        let alive: BTreeSet<&NodeUid> = self.nodes.values().map(|node| &node.uid).collect();
        self.gone.retain(|uid, _| !alive.contains(uid));
        for uid in self.held.keys().filter(|uid| !alive.contains(uid)) {
            self.gone.entry(uid.clone()).or_insert(now);
        }
        for network in self.networks.values() {
            if !alive.contains(&network.node_uid) {
                self.gone.entry(network.node_uid.clone()).or_insert(now);
            }
        }
        let mut over: Vec<NodeUid> = Vec::new();
        for (uid, since) in &self.gone {
            let until = *since + self.grace;
            if until <= now {
                over.push(uid.clone());
            } else {
                let again_at = plan.again_at.map_or(until, |at| at.min(until));
                plan.again_at = Some(again_at);
            }
        }
        let shown: BTreeSet<&NodeUid> = self.networks.values().map(|network| &network.node_uid).collect();
        over.retain(|uid| !shown.contains(uid));
        for uid in over {
            self.gone.remove(&uid);
            self.release(&uid, |_| true);
        }
        for (name, network) in &self.networks {
            let unwanted = match self.nodes.get(name) {
                // Its name is wanted for the node's own NodeNetwork.
                Some(node) => node.uid != network.node_uid,
                None => self
                    .gone
                    .get(&network.node_uid)
                    .is_none_or(|since| *since + self.grace <= now),
            };
            if unwanted && !network.deleting {
                plan.actions.push(Action::DeleteNetwork {
                    name: name.clone(),
                    object_uid: network.object_uid.clone(),
                });
            }
        }
    }

    /// Gives blocks to the nodes that ask for some, first to those without any.
    fn grant(&mut self) -> BTreeMap<NodeUid, Shortage> {
        self.pools.begin_grants(&self.nodes);
        let mut shortages = BTreeMap::new();
        for first in [true, false] {
            for (name, node) in &self.nodes {
                let network = self.network_of(name, node);
                let wanted = network.map_or(1, |network| network.wanted as usize);
                let wanted = if first { 1 } else { wanted.clamp(1, MAX_BLOCKS) };
                loop {
                    let has = self.held.get(&node.uid).map_or(0, Vec::len);
                    if has >= wanted {
                        break;
                    }
                    match self.pools.allocate(node, &mut self.allocator) {
                        Ok(held) => self.held.entry(node.uid.clone()).or_default().push(held),
                        Err(mut shortage) => {
                            if has > 0 {
                                shortage.message =
                                    format!("has {has} of {wanted} blocks: {}", shortage.message);
                            }
                            shortages.insert(node.uid.clone(), shortage);
                            break;
                        }
                    }
                }
            }
        }
        shortages
    }

    fn plan_networks(&mut self, wall: Timestamp, shortages: &BTreeMap<NodeUid, Shortage>, plan: &mut Plan) {
        let (contested, conflicts) = self.contested();
        plan.new_conflicts = conflicts.difference(&self.conflicts).cloned().collect();
        self.conflicts = conflicts;
        for (name, node) in &self.nodes {
            let held = self.held.get(&node.uid).cloned().unwrap_or_default();
            let Some(network) = self.network_of(name, node) else {
                if !self.networks.contains_key(name) {
                    plan.actions.push(Action::CreateNetwork {
                        name: name.clone(),
                        uid: node.uid.clone(),
                        blocks: held,
                    });
                }
                continue;
            };
            if network.blocks != held {
                plan.actions.push(Action::SetBlocks {
                    name: name.clone(),
                    uid: node.uid.clone(),
                    blocks: held,
                });
                // Its condition waits until the blocks are there.
                continue;
            }
            let shortage = contested.get(&node.uid).or_else(|| shortages.get(&node.uid));
            let (status, reason, message) = match shortage {
                None => ("True", "Granted", "the node has the blocks it asks for"),
                Some(shortage) => ("False", shortage.reason, shortage.message.as_str()),
            };
            if let Some(condition) = changed_condition(
                network.allocation.as_ref(),
                "BlocksGranted",
                (status, reason, message),
                wall,
            ) {
                plan.actions.push(Action::SetAllocation {
                    name: name.clone(),
                    uid: node.uid.clone(),
                    condition,
                });
            }
        }
    }

    /// Nodes that share addresses with another, and a sentence about each pair.
    fn contested(&self) -> (BTreeMap<NodeUid, Shortage>, BTreeSet<String>) {
        let mut contested = BTreeMap::new();
        let mut sentences = BTreeSet::new();
        for conflict in self.allocator.conflicts() {
            let (first, second) = (&conflict.first, &conflict.second);
            if first.owner == second.owner {
                continue;
            }
            let message = format!(
                "node {} holds {} and node {} holds {}: delete the NodeNetwork of the one that may be drained",
                self.name_of(&first.owner),
                first.block,
                self.name_of(&second.owner),
                second.block
            );
            for claim in [first, second] {
                contested.insert(
                    claim.owner.clone(),
                    Shortage {
                        reason: "DuplicateBlock",
                        message: message.clone(),
                    },
                );
            }
            sentences.insert(message);
        }
        (contested, sentences)
    }

    fn plan_slices(&self, plan: &mut Plan) {
        let entries: BTreeMap<String, NodeSliceEntry> = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.addresses.is_empty())
            // Only what is written down is told to others: a block that was
            // chosen but never written might be chosen for another node by the
            // next operator.
            .filter_map(|(name, node)| Some((name, node, self.network_of(name, node)?)))
            .map(|(name, node, network)| {
                let node = weft_model::Node {
                    name: name.clone(),
                    uid: node.uid.clone(),
                    addresses: node.addresses.clone(),
                    blocks: network.blocks.iter().map(|held| held.block).collect(),
                    routing: weft_model::Routing::Overlay,
                };
                (name.to_string(), NodeSliceEntry::from(&node))
            })
            .collect();
        let changes = pack(&self.slices, &entries, SLICE_SIZE);
        plan.actions.extend(changes.into_iter().map(Action::Slice));
    }

    /// The NodeNetwork that is this very node's, and stays.
    fn network_of(&self, name: &NodeName, node: &Node) -> Option<&Network> {
        self.networks
            .get(name)
            .filter(|network| network.node_uid == node.uid && !network.deleting)
    }

    fn name_of(&self, uid: &NodeUid) -> String {
        let nodes = self.nodes.iter().filter(|(_, node)| node.uid == *uid);
        let networks = self
            .networks
            .iter()
            .filter(|(_, network)| network.node_uid == *uid);
        nodes
            .map(|(name, _)| name)
            .chain(networks.map(|(name, _)| name))
            .next()
            .map_or_else(|| format!("with UID {uid}"), NodeName::to_string)
    }
}

// === impl Held ===

impl From<&Held> for NodeBlock {
    fn from(held: &Held) -> Self {
        Self {
            cidr: held.block.to_string(),
            pool: held.pool.clone(),
            ..Self::default()
        }
    }
}

// === impl Shortage ===

impl From<Exhausted> for Shortage {
    fn from(exhausted: Exhausted) -> Self {
        Self {
            reason: "PoolExhausted",
            message: exhausted.to_string(),
        }
    }
}

fn set<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) -> bool {
    if map.get(key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    };
    true
}

/// The condition to write, if the present one does not say the same already.
fn changed_condition(
    present: Option<&Condition>,
    type_: &str,
    (status, reason, message): (&str, &str, &str),
    wall: Timestamp,
) -> Option<Condition> {
    let since = match present {
        Some(present)
            if present.status == status && present.reason == reason && present.message == message =>
        {
            return None;
        }
        Some(present) if present.status == status => present.last_transition_time.clone(),
        _ => Time(wall),
    };
    Some(Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: None,
    })
}

#[cfg(test)]
mod tests;
