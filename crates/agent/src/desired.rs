//! The compiled wish: everything the reconciler needs to know about the cluster, as plain values.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;
use weft_kernel::bpf::BlockIndex;
use weft_model::{Block, NodeUid};

/// What the datapath does with a destination, and what it believes of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prefix {
    /// A block of this node.
    LocalBlock,
    /// A block of another node, reached through the tunnel to `underlay`.
    RemoteBlock { underlay: Ipv4Addr },
    /// An address of this node.
    SelfNode,
    /// An address of another node; pods reach it through the tunnel to `underlay`.
    RemoteNode { underlay: Ipv4Addr },
    /// Pod addresses that no node owns.
    Pool,
    /// Outside the overlay, but reached with the pod's own address.
    Native,
}

/// What this node's kernel should hold, pods aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose wish it is: another machine may come back under the node's name.
    pub node_uid: NodeUid,
    /// The tunnel's end on this node.
    pub address: Ipv4Addr,
    /// All addresses of this node, `address` among them.
    pub addresses: Vec<Ipv4Addr>,
    /// Pods the node may run: no more addresses are of any use to it.
    pub max_pods: Option<u32>,
    /// Blocks that this node's pods have addresses of.
    pub blocks: Vec<Block>,
    /// Those among them that no new pod gets an address of.
    #[serde(default)]
    pub retiring: Vec<Block>,
    pub pod_cidrs: BTreeSet<Ipv4Net>,
    /// What pods reach with their own address outside the overlay: what pools say, and the pods and addresses of nodes
    /// that are not on Weft.
    pub non_masquerade: BTreeSet<Ipv4Net>,
    pub prefixes: BTreeMap<Ipv4Net, Prefix>,
    /// Underlay addresses of all other nodes.
    pub nodes: BTreeSet<Ipv4Addr>,
}

// === impl Desired ===

impl Desired {
    /// Where the tunnels to other nodes end.
    pub fn tunnel_ends(&self) -> BTreeSet<Ipv4Addr> {
        let ends = self.prefixes.values().filter_map(|prefix| match prefix {
            Prefix::RemoteBlock { underlay } | Prefix::RemoteNode { underlay } => Some(*underlay),
            Prefix::LocalBlock | Prefix::SelfNode | Prefix::Pool | Prefix::Native => None,
        });
        ends.collect()
    }

    /// Which blocks the programs find by one look: those as long as this node's, since a cluster's mostly are.
    pub fn block_index(&self) -> Option<BlockIndex> {
        let len = self.blocks.first()?.net().prefix_len();
        let mut within = *self.pod_cidrs.first()?;
        while !self.pod_cidrs.iter().all(|cidr| within.contains(cidr)) {
            within = within.supernet()?;
        }
        Some(BlockIndex { len, within })
    }

    /// What a block that is found by one look stands for; `None` for one that isn't.
    pub fn indexed(&self, block: &Ipv4Net) -> Option<Prefix> {
        self.indexed_in(self.block_index()?, block)
    }

    /// All blocks that are found by one look.
    pub fn all_indexed(&self) -> impl Iterator<Item = (Ipv4Net, Prefix)> {
        let index = self.block_index();
        let blocks = self.prefixes.keys();
        blocks.filter_map(move |block| Some((*block, self.indexed_in(index?, block)?)))
    }

    /// The block that would be found by one look for addresses of `net`, whether or not there is one.
    pub fn block_around(&self, net: &Ipv4Net) -> Option<Ipv4Net> {
        let index = self.block_index()?;
        let block = Ipv4Net::new_assert(net.addr(), index.len.min(net.prefix_len())).trunc();
        (block.prefix_len() == index.len && index.within.contains(&block)).then_some(block)
    }

    fn indexed_in(&self, index: BlockIndex, block: &Ipv4Net) -> Option<Prefix> {
        let prefix = *self.prefixes.get(block)?;
        let is_block = matches!(prefix, Prefix::LocalBlock | Prefix::RemoteBlock { .. });
        // In this order, what is inside a network comes right behind it.
        let mut longer = self.prefixes.range((Bound::Excluded(block), Bound::Unbounded));
        let longest = longer.next().is_none_or(|(next, _)| !block.contains(next));
        (is_block && longest && block.prefix_len() == index.len && index.within.contains(block))
            .then_some(prefix)
    }

    /// Whether only what is in the maps of other nodes tells this wish from `other`.
    pub fn is_same_but_peers(&self, other: &Self) -> bool {
        let Self {
            node_uid,
            address,
            addresses,
            max_pods,
            blocks,
            retiring,
            pod_cidrs,
            non_masquerade,
            prefixes: _,
            nodes,
        } = self;
        *node_uid == other.node_uid
            && *address == other.address
            && *addresses == other.addresses
            && *max_pods == other.max_pods
            && *blocks == other.blocks
            && *retiring == other.retiring
            && *pod_cidrs == other.pod_cidrs
            && *non_masquerade == other.non_masquerade
            // The first other node shows whether packets leave under the right address.
            && nodes.is_empty() == other.nodes.is_empty()
    }
}
