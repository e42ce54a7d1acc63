//! What the cluster has, what it should have, and the writes between the two.
//!
//! Synchronous and without I/O: watch events go in, [`Index::plan`] says what
//! to write. Time comes as an argument.
//!
//! What a node holds is decided here and kept in `held`; the NodeNetwork objects
//! are where it is written down. A block is a node's from the moment it is
//! chosen, before the write; it is free again only when the node has been gone
//! for the grace and no NodeNetwork shows the block any more, or when the node
//! left Weft with a block that is its own all the same. And a block is a node's
//! whose agent has pods in it, unless another node holds it. The NodeNetwork of
//! a node that is gone stays for the grace, so that an operator which starts
//! meanwhile honours it too. Where another node takes the name it has to go at
//! once. Its blocks are then in the [`Note`], as all are that somebody holds and
//! no NodeNetwork shows; the note has to be written before the plan's actions
//! are, and an operator that starts reads it.

mod grants;
mod networks;
mod nodes;
mod pools;
mod published;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use weft_api::{BlockUse, NodeBlock, NodeSliceEntry, PodPoolStatus};
use weft_ipam::{BlockAllocator, Exhausted};
use weft_model::{Block, NodeName, NodeUid};

use self::pools::Pools;
use crate::lease::Note;
use crate::slices::SliceChange;

pub(crate) use self::pools::{Pool, PoolFigures};

/// The most blocks a node is given, the limit of the NodeNetwork's schema.
const MAX_BLOCKS: usize = 1024;

/// The most blocks that are written at a time: the note of them has to fit into an annotation.
const MAX_NOTED: usize = 1000;

/// How fast things go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Blocks of nodes that are gone are used again after this time.
    pub(crate) grace: Duration,
    /// Between two writes of slices: nodes that join together are written together.
    pub(crate) slices: Duration,
    /// Between two writes of a pool's counts.
    pub(crate) counts: Duration,
    /// For how long an agent has to be unready, or a node without the range that another controller gives it,
    /// before anybody is told: restarts are shorter.
    pub(crate) unready: Duration,
}

/// What a Node object says that matters here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) uid: NodeUid,
    pub(crate) labels: BTreeMap<String, String>,
    /// All InternalIPs, in the Node's order.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// IPv4 of `spec.podCIDRs`, as written.
    pub(crate) pod_cidrs: Vec<String>,
    /// The condition `NetworkUnavailable`.
    pub(crate) unavailable: Option<Condition>,
    pub(crate) taints: Taints,
}

/// An agent that is a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentOn {
    pub(crate) node: NodeName,
    pub(crate) ready: bool,
}

/// A Node's taints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taints {
    /// Of whatever kind.
    pub(crate) count: usize,
    /// Where `weft.dev/agent-not-ready` is among them.
    pub(crate) ours: Option<usize>,
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
    /// The agent's condition `Ready`.
    pub(crate) ready: Option<Condition>,
    /// Which route of the node overlaps, if one does.
    pub(crate) route_overlap: Option<String>,
    pub(crate) uses: BTreeMap<Block, BlockUse>,
    /// It is about to go: a finalizer holds it, or its deletion was just asked for.
    pub(crate) deleting: bool,
}

/// A block and the pool it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) block: Block,
    pub(crate) pool: String,
    /// The node gives no new address of it.
    pub(crate) retiring: bool,
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
        /// Conditions that turned, or say something else.
        news: Vec<Condition>,
    },
    SetNodeCondition {
        name: NodeName,
        uid: NodeUid,
        condition: Condition,
    },
    SetTaint {
        name: NodeName,
        on: bool,
        taints: Taints,
    },
    Slice(SliceChange),
}

/// What [`Index::plan`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// What pods need to reach each other.
    pub(crate) actions: Vec<Action>,
    /// What is only told about it. When `actions` are done others may be due.
    pub(crate) statuses: Vec<Action>,
    /// Who leads next has to know this before any of the actions is done.
    pub(crate) note: Note,
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
    ServiceCidrs,
    Agents,
}

#[derive(Debug)]
pub(crate) struct Index {
    pace: Pace,
    nodes: BTreeMap<NodeName, Node>,
    /// The names of `nodes`.
    names: BTreeMap<NodeUid, NodeName>,
    /// The addresses of `nodes`.
    addresses: BTreeMap<Ipv4Addr, BTreeSet<NodeName>>,
    networks: BTreeMap<NodeName, Network>,
    pools: Pools,
    slices: BTreeMap<String, Vec<NodeSliceEntry>>,
    /// By the names of their pods; `None` where agents are not pods, or those can't be read.
    agents: Option<BTreeMap<String, AgentOn>>,
    /// What the slices should say, but for the nodes in `unpublished`.
    entries: BTreeMap<String, NodeSliceEntry>,
    unpublished: BTreeSet<NodeName>,
    allocator: BlockAllocator,
    /// The blocks of every node, by UID; the allocator knows each of them.
    held: BTreeMap<NodeUid, Vec<Held>>,
    /// Retiring blocks that are empty. They are the node's until its NodeNetwork shows them no more.
    leaving: BTreeSet<(NodeUid, Block)>,
    /// Since when holders have no Node object.
    gone: BTreeMap<NodeUid, Duration>,
    /// Since when agents are away, or say that they can't serve.
    unready: BTreeMap<NodeUid, Duration>,
    /// Since when nodes are there that kube-controller-manager may still give a range.
    rangeless: BTreeMap<NodeUid, Duration>,
    listed: BTreeSet<Source>,
    conflicts: BTreeSet<String>,
    /// Nodes and blocks of other nodes that they have pods in, told once.
    disputed: BTreeSet<(NodeUid, Block)>,
    /// Slices may differ from what they should be.
    slices_due: bool,
    slices_not_before: Duration,
    /// Counts changed since the last plan, which was then.
    counts_changed: bool,
    planned: Duration,
}

/// Why a node has not all the blocks it asks for.
struct Shortage {
    reason: &'static str,
    message: String,
}

// === impl Source ===

impl Source {
    pub(crate) const ALL: [Self; 6] = [
        Self::Nodes,
        Self::Networks,
        Self::Pools,
        Self::Slices,
        Self::ServiceCidrs,
        Self::Agents,
    ];

    /// The kind of its objects.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Nodes => "Node",
            Self::Networks => "NodeNetwork",
            Self::Pools => "PodPool",
            Self::Slices => "NodeSlice",
            Self::ServiceCidrs => "ServiceCIDR",
            Self::Agents => "Pod",
        }
    }
}

// === impl Index ===

impl Index {
    /// An index of nothing. Pools must keep clear of `service_cidrs`, and of
    /// those of ServiceCIDR objects. `note` is what the operator before this one
    /// has left.
    pub(crate) fn new(pace: Pace, service_cidrs: Vec<Ipv4Net>, note: &Note) -> Self {
        let mut index = Self {
            pace,
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
            networks: BTreeMap::new(),
            pools: Pools::new(service_cidrs),
            slices: BTreeMap::new(),
            agents: None,
            entries: BTreeMap::new(),
            unpublished: BTreeSet::new(),
            allocator: BlockAllocator::new(),
            held: BTreeMap::new(),
            leaving: BTreeSet::new(),
            gone: BTreeMap::new(),
            unready: BTreeMap::new(),
            rangeless: BTreeMap::new(),
            listed: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            disputed: BTreeSet::new(),
            slices_due: true,
            slices_not_before: Duration::ZERO,
            counts_changed: false,
            planned: Duration::ZERO,
        };
        for (pool, uid, block) in note.iter() {
            if let (Ok(uid), Ok(block)) = (uid.parse(), block.parse()) {
                let held = Held {
                    block,
                    pool: pool.to_owned(),
                    retiring: false,
                };
                index.claim(&uid, &held);
            } else {
                tracing::error!(
                    pool,
                    uid,
                    block,
                    "the note of the operator before names a block that is none"
                );
            }
        }
        index
    }

    /// Notes that all objects of a source are known. Before all sources are,
    /// nothing is planned: what is not known yet must not be taken for gone.
    pub(crate) fn listed(&mut self, source: Source) {
        self.listed.insert(source);
    }

    /// Whether plans are made.
    pub(crate) fn complete(&self) -> bool {
        self.listed.len() == Source::ALL.len()
    }

    /// True if a plan has to be made; so for all of these.
    pub(crate) fn set_node(&mut self, name: &NodeName, node: Option<Node>) -> bool {
        if self.nodes.get(name) == node.as_ref() {
            return false;
        }
        if let Some(before) = self.nodes.get(name) {
            self.names.remove(&before.uid);
            for address in &before.addresses {
                if let Some(names) = self.addresses.get_mut(address) {
                    names.remove(name);
                    if names.is_empty() {
                        self.addresses.remove(address);
                    }
                }
            }
        }
        if let Some(node) = &node {
            // However short it is back for, the grace begins anew.
            self.gone.remove(&node.uid);
            self.names.insert(node.uid.clone(), name.clone());
            for address in &node.addresses {
                self.addresses.entry(*address).or_default().insert(name.clone());
            }
        }
        self.slices_due = true;
        self.unpublished.insert(name.clone());
        set(&mut self.nodes, name, node)
    }

    pub(crate) fn set_network(&mut self, name: &NodeName, network: Option<Network>) -> bool {
        let before = self.networks.get(name);
        let only_counts = match (before, &network) {
            (Some(before), Some(after)) => before.differs_in_counts_only(after),
            _ => false,
        };
        let holders = before
            .into_iter()
            .chain(&network)
            .map(|network| &network.node_uid);
        let holders: Vec<NodeName> = holders.filter_map(|uid| self.names.get(uid)).cloned().collect();
        match &network {
            Some(network) => {
                for held in &network.blocks {
                    self.claim(&network.node_uid, held);
                }
                self.release_left(network);
            }
            None => self.forget_network(name),
        }
        let changed = set(&mut self.networks, name, network);
        let foreign = self
            .networks
            .get(name)
            .is_some_and(|network| self.unheld(network).next().is_some());
        self.counts_changed |= changed && only_counts;
        if !changed || (only_counts && !foreign) {
            return false;
        }
        self.slices_due = true;
        self.unpublished.insert(name.clone());
        self.unpublished.extend(holders);
        true
    }

    pub(crate) fn set_pool(&mut self, name: &str, pool: Option<Pool>) -> bool {
        let known = self.pools.pools.get(name);
        let specified = |pool: Option<&Pool>| pool.map(|pool| (pool.ranges.clone(), pool.selector.clone()));
        if specified(known) != specified(pool.as_ref()) {
            // Which nodes are native follows from the pools.
            self.slices_due = true;
            self.unpublished.extend(self.nodes.keys().cloned());
        }
        self.pools.set(name, pool, &mut self.allocator)
    }

    pub(crate) fn set_slice(&mut self, name: &str, nodes: Option<Vec<NodeSliceEntry>>) -> bool {
        let changed = set(&mut self.slices, &name.to_owned(), nodes);
        self.slices_due |= changed;
        changed
    }

    pub(crate) fn set_service_cidrs(&mut self, name: &str, cidrs: Option<Vec<Ipv4Net>>) -> bool {
        self.pools.set_service_cidrs(name, cidrs)
    }

    /// Notes that every agent is a pod: where none is known to be ready, none serves.
    pub(crate) fn agents_are_pods(&mut self) {
        self.agents = Some(BTreeMap::new());
    }

    pub(crate) fn set_agent(&mut self, pod: &str, agent: Option<AgentOn>) -> bool {
        let Some(agents) = &mut self.agents else {
            return false;
        };
        set(agents, &pod.to_owned(), agent)
    }

    /// Notes that what agents say of themselves is all that will be known of them.
    pub(crate) fn no_agent_pods(&mut self) {
        self.agents = None;
        self.listed(Source::Agents);
    }

    /// The names of all objects of a source, to find those that a new list lacks.
    pub(crate) fn names(&self, source: Source) -> Vec<String> {
        match source {
            Source::Nodes => self.nodes.keys().map(NodeName::to_string).collect(),
            Source::Networks => self.networks.keys().map(NodeName::to_string).collect(),
            Source::Pools => self.pools.names().map(str::to_owned).collect(),
            Source::Slices => self.slices.keys().cloned().collect(),
            Source::ServiceCidrs => self.pools.service_names().map(str::to_owned).collect(),
            Source::Agents => self.agents.iter().flat_map(BTreeMap::keys).cloned().collect(),
        }
    }

    /// Notes that the API has accepted a deletion, so that it is not asked for again.
    pub(crate) fn deletion_accepted(&mut self, name: &NodeName) {
        if let Some(network) = self.networks.get_mut(name) {
            network.deleting = true;
            self.slices_due = true;
            self.unpublished.insert(name.clone());
        }
    }

    /// Notes that a pool's status was written at `now`.
    pub(crate) fn status_written(&mut self, pool: &str, now: Duration) {
        self.pools.written.insert(pool.to_owned(), now);
    }

    /// When to plan because counts have changed, which is no reason to plan at once.
    pub(crate) fn counts_due(&self) -> Option<Duration> {
        self.counts_changed.then_some(self.planned + self.pace.counts)
    }

    /// The numbers of all pools, as of the last plan.
    pub(crate) fn figures(&self) -> &[PoolFigures] {
        self.pools.figures()
    }

    /// Everything that has to be written now. `now` is monotonic, `wall` goes
    /// into conditions.
    ///
    /// Planning again after the writes were done and fed back yields nothing.
    pub(crate) fn plan(&mut self, now: Duration, wall: Timestamp) -> Plan {
        let mut plan = Plan::default();
        if !self.complete() {
            return plan;
        }
        self.counts_changed = false;
        self.planned = now;
        self.return_blocks(now, &mut plan);
        self.return_native_blocks();
        self.adopt();
        let grants = self.grant(now);
        self.retire();
        self.plan_pools(now, wall, &mut plan);
        self.plan_nodes(now, wall, &mut plan);
        self.plan_networks(now, wall, &grants, &mut plan);
        self.plan_slices(now, &mut plan);
        plan.note = self.unshown(now, &plan);
        plan
    }

    /// The NodeNetwork that is this very node's, and stays.
    fn network_of(&self, name: &NodeName, node: &Node) -> Option<&Network> {
        self.networks
            .get(name)
            .filter(|network| network.node_uid == node.uid && !network.deleting)
    }

    fn name_of(&self, uid: &NodeUid) -> String {
        let mut networks = self.networks.iter();
        self.names
            .get(uid)
            .or_else(|| Some(networks.find(|(_, network)| network.node_uid == *uid)?.0))
            .map_or_else(|| format!("with UID {uid}"), NodeName::to_string)
    }
}

// === impl Plan ===

impl Plan {
    fn wake_at(&mut self, at: Duration) {
        self.again_at = Some(self.again_at.map_or(at, |known| known.min(at)));
    }
}

// === impl Network ===

impl Network {
    /// A block that is empty, and known to its agent to be on its way out, matters more than as a count.
    fn differs_in_counts_only(&self, other: &Self) -> bool {
        let vacated = |network: &Self| -> Vec<Block> {
            let uses = network.uses.iter();
            uses.filter(|(_, block)| vacated(block))
                .map(|(block, _)| *block)
                .collect()
        };
        let mut same = self.clone();
        same.uses.clone_from(&other.uses);
        self.uses != other.uses && vacated(self) == vacated(other) && same == *other
    }

    fn shows(&self, block: Block) -> bool {
        self.blocks.iter().any(|held| held.block == block)
    }
}

/// Whether the agent is through with a block: it gives out no more of it, and there is nothing to give back.
fn vacated(block: &BlockUse) -> bool {
    block.retiring && block.used == 0 && block.cooling == 0
}

// === impl Held ===

impl From<&Held> for NodeBlock {
    fn from(held: &Held) -> Self {
        Self {
            cidr: held.block.to_string(),
            pool: held.pool.clone(),
            retiring: held.retiring,
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
