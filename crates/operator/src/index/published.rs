//! What every node is told of the others.

use std::collections::BTreeSet;
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
        let native = self.published_natively();
        for name in std::mem::take(&mut self.unpublished) {
            match self.entry(&name, &native) {
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

    /// The UIDs of the nodes that the slices list as `native` now, whoever wrote that.
    fn published_natively(&self) -> BTreeSet<String> {
        let entries = self.slices.values().flatten();
        let native = entries.filter(|entry| entry.routing == Routing::Native);
        native.map(|entry| entry.uid.clone()).collect()
    }

    /// What others are told of a node. `native` are the nodes that they reach without the tunnel now.
    fn entry(&self, name: &NodeName, native: &BTreeSet<String>) -> Option<NodeSliceEntry> {
        let node = self.nodes.get(name).filter(|node| !node.addresses.is_empty())?;
        let (routing, blocks) = self.published_blocks(name, node, native)?;
        Some(NodeSliceEntry::from(&weft_model::Node {
            name: name.clone(),
            uid: node.uid.clone(),
            addresses: node.addresses.clone(),
            blocks,
            routing,
        }))
    }

    fn published_blocks(
        &self,
        name: &NodeName,
        node: &Node,
        native: &BTreeSet<String>,
    ) -> Option<(Routing, Vec<Block>)> {
        if let Some(blocks) = self.native_blocks(name, node) {
            return Some((Routing::Native, blocks));
        }
        let network = self.network_of(name, node);
        let granted = || network.into_iter().flat_map(|network| &network.blocks);
        // Until its agent can serve, what answers at its addresses is the network from before. Slices know who waits
        // for that, so that neither an agent that fails later nor another operator turns a node back.
        let ready = network.and_then(|network| network.ready.as_ref());
        if native.contains(node.uid.as_str()) && ready.is_none_or(|ready| ready.status != "True") {
            let blocks = self.pools.native_blocks(node);
            if !blocks.is_empty() && granted().all(|held| blocks.contains(&held.block)) {
                return Some((Routing::Native, blocks));
            }
        }
        // Only what is written down is told to others: a block that was chosen
        // but never written might be chosen for another node by the next operator.
        network?;
        Some((Routing::Overlay, granted().map(|held| held.block).collect()))
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
        let blocks = self.pools.native_blocks(node);
        (!blocks.is_empty()).then_some(blocks)
    }
}
