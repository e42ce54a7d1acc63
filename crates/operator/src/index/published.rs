//! What every node is told of the others.

use std::time::Duration;

use weft_api::NodeSliceEntry;
use weft_model::{Block, NodeName, Routing};

use super::{Action, Index, Node, Plan};
use crate::slices::{SLICE_SIZE, pack};

// === impl Index ===

impl Index {
    pub(super) fn plan_slices(&mut self, now: Duration, plan: &mut Plan) {
        if !self.slices_due {
            return;
        }
        if now < self.slices_not_before {
            plan.wake_at(self.slices_not_before);
            return;
        }
        for name in std::mem::take(&mut self.unpublished) {
            match self.entry(&name) {
                Some(entry) => self.entries.insert(name.to_string(), entry),
                None => self.entries.remove(name.as_str()),
            };
        }
        let changes = pack(&self.slices, &self.entries, SLICE_SIZE);
        self.slices_due = !changes.is_empty();
        if self.slices_due {
            self.slices_not_before = now + self.pace.slices;
        }
        plan.actions.extend(changes.into_iter().map(Action::Slice));
    }

    /// What others are told of a node.
    fn entry(&self, name: &NodeName) -> Option<NodeSliceEntry> {
        let node = self.nodes.get(name).filter(|node| !node.addresses.is_empty())?;
        let (routing, blocks) = self.published_blocks(name, node)?;
        Some(NodeSliceEntry::from(&weft_model::Node {
            name: name.clone(),
            uid: node.uid.clone(),
            addresses: node.addresses.clone(),
            blocks,
            routing,
        }))
    }

    fn published_blocks(&self, name: &NodeName, node: &Node) -> Option<(Routing, Vec<Block>)> {
        if let Some(blocks) = self.native_blocks(name, node) {
            return Some((Routing::Native, blocks));
        }
        // Only what is written down is told to others: a block that was chosen
        // but never written might be chosen for another node by the next operator.
        let network = self.network_of(name, node)?;
        let blocks = network.blocks.iter().map(|held| held.block).collect();
        Some((Routing::Overlay, blocks))
    }

    /// The blocks of a node whose pods are still on the network that was there
    /// before Weft: no pool selects it, and its `spec.podCIDRs` are of a pool
    /// with `ipam: node`.
    pub(super) fn native_blocks(&self, name: &NodeName, node: &Node) -> Option<Vec<Block>> {
        let network = self.network_of(name, node);
        if network.is_some_and(|network| !network.blocks.is_empty())
            || self.held.contains_key(&node.uid)
            || self.pools.any_selects(node)
        {
            return None;
        }
        let blocks: Vec<Block> = (node.pod_cidrs.iter())
            .filter_map(|cidr| cidr.parse().ok())
            .filter(|block: &Block| self.pools.covered_by_node_pool(*block))
            .collect();
        (!blocks.is_empty()).then_some(blocks)
    }
}
