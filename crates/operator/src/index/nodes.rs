//! What the scheduler and people see on the Node: whether pods can have a network there.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::{Action, Index, Plan, changed_condition};

// === impl Index ===

impl Index {
    /// Only nodes that belong to a pool and whose agent has said something are
    /// touched: others may be another network's.
    pub(super) fn plan_nodes(&mut self, now: Duration, wall: Timestamp, plan: &mut Plan) {
        for (name, node) in &self.nodes {
            let network =
                (self.networks.get(name)).filter(|network| network.node_uid == node.uid && !network.deleting);
            let Some(report) = network.and_then(|network| network.ready.as_ref()) else {
                continue;
            };
            if !self.pools.any_selects(node) {
                continue;
            }
            let ready = report.status == "True";
            let wanted = if ready {
                self.unready.remove(&node.uid);
                ("False", "WeftReady", "pods of the node are connected")
            } else {
                let until = *self.unready.entry(node.uid.clone()).or_insert(now) + self.pace.unready;
                if now < until {
                    plan.wake_at(until);
                    continue;
                }
                ("True", "WeftNotReady", report.message.as_str())
            };
            let present = node.unavailable.as_ref();
            if let Some(condition) = changed_condition(present, "NetworkUnavailable", wanted, wall) {
                plan.statuses.push(Action::SetNodeCondition {
                    name: name.clone(),
                    uid: node.uid.clone(),
                    condition,
                });
            } else if node.taints.ours.is_some() == ready {
                // Afterwards, because its write names the version of the Node.
                plan.statuses.push(Action::SetTaint {
                    name: name.clone(),
                    on: !ready,
                    taints: node.taints,
                });
            }
        }
    }
}
