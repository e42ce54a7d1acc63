//! The NodeNetworks: their blocks, and whether these are all that the node asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use weft_model::NodeUid;

use super::grants::Grants;
use super::{Action, Index, Plan, Shortage, changed_condition};

// === impl Index ===

impl Index {
    pub(super) fn plan_networks(&mut self, now: Duration, wall: Timestamp, grants: &Grants, plan: &mut Plan) {
        let (contested, conflicts) = self.contested();
        plan.new_conflicts = conflicts.difference(&self.conflicts).cloned().collect();
        self.conflicts = conflicts;
        for (name, node) in &self.nodes {
            if grants.postponed.contains(&node.uid) {
                continue;
            }
            // kube-controller-manager needs a moment for a new node; which one it is shows then.
            let awaited = node.pod_cidrs.is_empty() && self.pools.any_of_node_ipam();
            if awaited && !self.held.contains_key(&node.uid) {
                let until = *self.rangeless.entry(node.uid.clone()).or_insert(now) + self.pace.unready;
                if now < until {
                    plan.wake_at(until);
                    continue;
                }
            }
            let Some(network) = self.network_of(name, node) else {
                // A node whose pods are on another network needs none.
                if !self.networks.contains_key(name) && self.native_blocks(name, node).is_none() {
                    plan.actions.push(Action::CreateNetwork {
                        name: name.clone(),
                        uid: node.uid.clone(),
                        blocks: self.staying(&node.uid).cloned().collect(),
                    });
                }
                continue;
            };
            if !network.blocks.iter().eq(self.staying(&node.uid)) {
                plan.actions.push(Action::SetBlocks {
                    name: name.clone(),
                    uid: node.uid.clone(),
                    blocks: self.staying(&node.uid).cloned().collect(),
                });
                // Its condition waits until the blocks are there.
                continue;
            }
            let shortage = contested
                .get(&node.uid)
                .or_else(|| grants.shortages.get(&node.uid));
            let (status, reason, message) = match shortage {
                // Nobody waits for what goes without saying: it would be a write for every node.
                None if network.allocation.is_none() => continue,
                None => ("True", "Granted", "the node has the blocks it asks for"),
                Some(shortage) => ("False", shortage.reason, shortage.message.as_str()),
            };
            if let Some(condition) = changed_condition(
                network.allocation.as_ref(),
                "BlocksGranted",
                (status, reason, message),
                wall,
            ) {
                plan.statuses.push(Action::SetAllocation {
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
}
