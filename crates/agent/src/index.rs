//! What the cluster wants of this node, kept from watch events.
//!
//! ```text
//! [ Node (own) ] ─┐
//! [ NodeNetwork ] ─┤
//! [ PodPool … ]   ─┼─▶ Index ─▶ Desired ─▶ reconciler ─▶ kernel
//! [ NodeSlice … ] ─┘
//! ```
//!
//! One task owns the [`Index`] and feeds it; nothing here does I/O or waits. [`Index::desired`] is `None`
//! until every source was listed once, so that a missing answer is never taken for "nothing is wanted".

use crate::desired::{Desired, Prefix};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use weft_model::{Block, Node, NodeName, NodeUid, Routing};

/// The part of a PodPool that a node needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    pub cidrs: Vec<Ipv4Net>,
    pub non_masquerade: Vec<Ipv4Net>,
}

/// This node's own Node object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnNode {
    pub uid: NodeUid,
    pub addresses: Vec<Ipv4Addr>,
    /// Pods the node may run (`status.capacity.pods`), where it says so.
    pub max_pods: Option<u32>,
}

/// Blocks the operator gave this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// UID of the Node the blocks were given to.
    pub node_uid: NodeUid,
    pub blocks: Vec<Block>,
    /// Those among them that no new pod is to get an address of.
    pub retiring: Vec<Block>,
}

/// Two nodes that claim the same addresses. The one that was there first keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub prefix: Ipv4Net,
    pub kept: NodeName,
    pub refused: NodeName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Node,
    Network,
    Pools,
    Slices,
}

impl Source {
    pub const ALL: [Self; 4] = [Self::Node, Self::Network, Self::Pools, Self::Slices];
}

#[derive(Debug)]
pub struct Index {
    name: NodeName,
    node: Option<OwnNode>,
    grant: Option<Grant>,
    pools: BTreeMap<String, Pool>,
    slices: BTreeMap<String, Vec<Node>>,
    /// What slices said that are gone.
    lost: BTreeMap<String, Vec<Node>>,
    listed: BTreeSet<Source>,
}

// === impl Index ===

impl Index {
    /// An empty index for the node called `name`.
    pub fn new(name: NodeName) -> Self {
        Self {
            name,
            node: None,
            grant: None,
            pools: BTreeMap::new(),
            slices: BTreeMap::new(),
            lost: BTreeMap::new(),
            listed: BTreeSet::new(),
        }
    }

    /// Says that `source` was listed in full at least once.
    pub fn listed(&mut self, source: Source) {
        self.listed.insert(source);
    }

    /// Sources that were not listed yet, for messages.
    pub fn missing(&self) -> Vec<Source> {
        Source::ALL
            .into_iter()
            .filter(|s| !self.listed.contains(s))
            .collect()
    }

    /// Whether `uid` may be this node's, by what is known so far.
    pub fn may_be(&self, uid: &NodeUid) -> bool {
        match &self.node {
            Some(node) => node.uid == *uid,
            None => !self.listed.contains(&Source::Node),
        }
    }

    pub fn set_node(&mut self, node: Option<OwnNode>) {
        self.node = node;
    }

    pub fn set_grant(&mut self, grant: Option<Grant>) {
        self.grant = grant;
    }

    pub fn set_pool(&mut self, name: &str, pool: Option<Pool>) {
        match pool {
            Some(pool) => self.pools.insert(name.to_owned(), pool),
            None => self.pools.remove(name),
        };
    }

    pub fn set_slice(&mut self, name: &str, peers: Vec<Node>) {
        self.lost.remove(name);
        self.slices.insert(name.to_owned(), peers);
    }

    /// Remembers what a slice said that is gone: its nodes count until others say something else of them, or of what is
    /// theirs, or until the slice is [forgotten](Self::forget_slice).
    pub fn lose_slice(&mut self, name: &str) {
        if let Some(peers) = self.slices.remove(name) {
            self.lost.insert(name.to_owned(), peers);
        }
    }

    pub fn forget_slice(&mut self, name: &str) {
        self.lost.remove(name);
    }

    /// The slices that are gone and not forgotten.
    pub fn lost_slices(&self) -> impl Iterator<Item = &str> {
        self.lost.keys().map(String::as_str)
    }

    /// Forgets pools that are not in `names`, after a relist.
    pub fn retain_pools(&mut self, names: &BTreeSet<String>) {
        self.pools.retain(|name, _| names.contains(name));
    }

    /// Loses slices that are not in `names`, after a relist.
    pub fn retain_slices(&mut self, names: &BTreeSet<String>) {
        let gone = self.slices.keys().filter(|name| !names.contains(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.lose_slice(&name);
        }
    }

    /// The nodes of slices but this one.
    fn others<'a>(&'a self, slices: &'a BTreeMap<String, Vec<Node>>) -> impl Iterator<Item = &'a Node> {
        slices.values().flatten().filter(|peer| peer.name != self.name)
    }

    /// Compiles what the kernel should hold. `None` while a source was never listed or the node has no address.
    pub fn desired(&self) -> Option<(Desired, Vec<Conflict>)> {
        if self.listed.len() < Source::ALL.len() {
            return None;
        }
        let node = self.node.as_ref()?;
        let address = *node.addresses.first()?;
        let mut build = Build::default();

        // Blocks given to an earlier node of this name are not ours.
        let (own_blocks, retiring) = match &self.grant {
            Some(grant) if grant.node_uid == node.uid => (grant.blocks.clone(), grant.retiring.clone()),
            _ => Default::default(),
        };
        for own in &node.addresses {
            build.claim((*own).into(), Prefix::SelfNode, &self.name);
        }
        for block in &own_blocks {
            build.claim(block.net(), Prefix::LocalBlock, &self.name);
        }
        let mut non_masquerade = BTreeSet::new();
        let told: Vec<&Node> = self.others(&self.slices).collect();
        for peer in &told {
            build.add(peer);
        }
        let names: BTreeSet<&NodeName> = told.iter().map(|peer| &peer.name).collect();
        for peer in self.others(&self.lost) {
            if !names.contains(&peer.name) && build.has_room_for(peer) {
                build.add(peer);
            }
        }
        let native = build
            .prefixes
            .iter()
            .filter(|(_, prefix)| **prefix == Prefix::Native);
        non_masquerade.extend(native.map(|(net, _)| *net));
        let mut pod_cidrs = BTreeSet::new();
        for pool in self.pools.values() {
            pod_cidrs.extend(pool.cidrs.iter().copied());
            non_masquerade.extend(pool.non_masquerade.iter().copied());
        }
        // A whole CIDR may be one node's block, so these come after the nodes and never displace them.
        for cidr in &pod_cidrs {
            build.prefixes.entry(*cidr).or_insert(Prefix::Pool);
        }
        for cidr in &non_masquerade {
            build.prefixes.entry(*cidr).or_insert(Prefix::Native);
        }
        let desired = Desired {
            node_uid: node.uid.clone(),
            address,
            addresses: node.addresses.clone(),
            max_pods: node.max_pods,
            blocks: own_blocks,
            retiring,
            pod_cidrs,
            non_masquerade,
            prefixes: build.prefixes,
            nodes: build.nodes,
        };
        Some((desired, build.conflicts))
    }
}

// === private ===

#[derive(Default)]
struct Build {
    prefixes: BTreeMap<Ipv4Net, Prefix>,
    owners: BTreeMap<Ipv4Net, NodeName>,
    /// Underlay addresses of other nodes.
    nodes: BTreeSet<Ipv4Addr>,
    conflicts: Vec<Conflict>,
}

impl Build {
    /// Adds another node, what is its own and how it is reached.
    fn add(&mut self, peer: &Node) {
        let Some(&underlay) = peer.addresses.first() else {
            return;
        };
        let (of_node, of_block) = match peer.routing {
            Routing::Overlay => {
                self.nodes.extend(peer.addresses.iter().copied());
                (Prefix::RemoteNode { underlay }, Prefix::RemoteBlock { underlay })
            }
            // The node's own address too: its bridge may give it to what its pods send.
            Routing::Native => (Prefix::Native, Prefix::Native),
        };
        for address in &peer.addresses {
            self.claim((*address).into(), of_node, &peer.name);
        }
        for block in &peer.blocks {
            self.claim(block.net(), of_block, &peer.name);
        }
    }

    /// Whether nobody else has anything of what a node had.
    fn has_room_for(&self, peer: &Node) -> bool {
        let addresses = peer.addresses.iter().map(|address| (*address).into());
        let mut prefixes = addresses.chain(peer.blocks.iter().map(|block| block.net()));
        prefixes.all(|prefix| self.clash(prefix, &peer.name).is_none())
    }

    /// Gives `prefix` to `owner` unless its addresses are somebody else's: two nodes never share a block, and
    /// a slice that says so must not move traffic of the one who had it.
    fn claim(&mut self, prefix: Ipv4Net, value: Prefix, owner: &NodeName) {
        if let Some(kept) = self.clash(prefix, owner).cloned() {
            self.conflicts.push(Conflict {
                prefix,
                kept,
                refused: owner.clone(),
            });
            return;
        }
        self.owners.insert(prefix, owner.clone());
        self.prefixes.insert(prefix, value);
    }

    /// Who else has addresses of `prefix`.
    fn clash(&self, prefix: Ipv4Net, owner: &NodeName) -> Option<&NodeName> {
        let below = self.owners.range(..=prefix).next_back();
        let above = self.owners.range(prefix..).next();
        below
            .into_iter()
            .chain(above)
            .find(|(held, holder)| *holder != owner && (held.contains(&prefix) || prefix.contains(*held)))
            .map(|(_, holder)| holder)
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
