//! What the scheduler and people see on the Node: whether pods can have a network there.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use weft_model::NodeName;

use super::{Action, Index, Plan, changed_condition};

/// What the Node says where its agent can't.
const AWAY: &str = "no pod of weft-agent is Ready on the node: no pod can start or end there, those that run go on; \
                    next: kubectl get pods --namespace weft-system --output wide";

// === impl Index ===

impl Index {
    /// Only nodes that belong to a pool and whose agent has said something are
    /// touched: others may be another network's. An agent that vanishes says
    /// nothing; that its pod is not Ready does.
    pub(super) fn plan_nodes(&mut self, now: Duration, wall: Timestamp, plan: &mut Plan) {
        let serving: Option<BTreeSet<&NodeName>> = self.agents.as_ref().map(|agents| {
            let ready = agents.values().filter(|agent| agent.ready);
            ready.map(|agent| &agent.node).collect()
        });
        for (name, node) in &self.nodes {
            let network =
                (self.networks.get(name)).filter(|network| network.node_uid == node.uid && !network.deleting);
            let Some(report) = network.and_then(|network| network.ready.as_ref()) else {
                continue;
            };
            if !self.pools.any_selects(node) {
                continue;
            }
            let broken = report.status != "True";
            let away = serving.as_ref().is_some_and(|serving| !serving.contains(name));
            let ready = !broken && !away;
            let wanted = if ready {
                self.unready.remove(&node.uid);
                ("False", "WeftReady", "pods of the node are connected")
            } else {
                let until = *self.unready.entry(node.uid.clone()).or_insert(now) + self.pace.unready;
                if now < until {
                    plan.wake_at(until);
                    continue;
                }
                // What it says of itself tells more than that its pod is not ready.
                if broken {
                    ("True", "WeftNotReady", report.message.as_str())
                } else {
                    ("True", "WeftAgentAway", AWAY)
                }
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
