//! How many nodes are missing, and which are not needed.

use std::collections::HashMap;
use std::sync::Arc;

use crate::controllers::facts::{Key, NodeFacts, PodFacts};
use crate::node::NodeRange;
use crate::scheduler::fit::{Usage, fits};

/// The cluster at one moment.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) nodes: &'a [Arc<NodeFacts>],
    pub(super) pods: &'a [Arc<PodFacts>],
    /// Nodes asked for that are not registered yet.
    pub(super) upcoming: usize,
    /// Names of nodes being removed.
    pub(super) going: &'a [String],
    pub(super) range: NodeRange,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nodes there are, those asked for among them.
    pub(super) nodes: usize,
    /// Nodes to add.
    pub(super) up: usize,
    /// Pods that these nodes are for.
    pub(super) helped: Vec<Arc<PodFacts>>,
    /// Pods that no further node helps, with the reason.
    pub(super) unhelped: Vec<(Arc<PodFacts>, &'static str)>,
    /// Nodes to remove.
    pub(super) down: Vec<String>,
}

// === impl View ===

impl View<'_> {
    /// As many nodes as the waiting pods need beyond those that are there or on their way, each filled before the
    /// next is counted.
    pub(super) fn grow(&self) -> Plan {
        let staying = self
            .nodes
            .iter()
            .filter(|node| !self.going.contains(&node.key.name));
        let count = staying.clone().count() + self.upcoming;
        let mut plan = Plan {
            nodes: count,
            ..Plan::default()
        };
        let mut waiting: Vec<&Arc<PodFacts>> = self
            .pods
            .iter()
            .filter(|pod| pod.awaits_node() && pod.unschedulable.is_some())
            .collect();
        if waiting.is_empty() {
            return plan;
        }
        waiting.sort_by_key(|pod| (pod.created, pod.key.clone()));
        // A node that is not Ready yet will be.
        let mut nodes: Vec<Arc<NodeFacts>> = staying
            .map(|node| {
                Arc::new(NodeFacts {
                    ready: Some(true),
                    ..(**node).clone()
                })
            })
            .collect();
        let Some(model) = nodes
            .iter()
            .find(|node| !node.unschedulable && !node.deleting)
            .cloned()
        else {
            return plan;
        };
        let mut usage = Usage::of(&nodes, self.pods.iter(), &HashMap::new());
        let mut fresh = 0;
        let mut add = |nodes: &mut Vec<Arc<NodeFacts>>, usage: &mut Usage| {
            nodes.push(Arc::new(alike(&model, fresh)));
            usage.add_node();
            fresh += 1;
            nodes.len() - 1
        };
        for _ in 0..self.upcoming {
            add(&mut nodes, &mut usage);
        }
        let most = usize::try_from(self.range.max).unwrap_or(usize::MAX);
        let asked = nodes.len();
        for pod in waiting {
            if let Some(index) = (0..nodes.len()).find(|index| fits(pod, *index, &nodes, &usage).is_ok()) {
                usage.add(index, pod);
                if index >= asked {
                    plan.helped.push(Arc::clone(pod));
                }
                continue;
            }
            let index = add(&mut nodes, &mut usage);
            let why = if fits(pod, index, &nodes, &usage).is_err() {
                Some("1 node(s) would not fit the pod")
            } else if count + plan.up >= most {
                Some("1 max node group size reached")
            } else {
                None
            };
            match why {
                Some(why) => {
                    nodes.pop();
                    usage.remove_node();
                    plan.unhelped.push((Arc::clone(pod), why));
                }
                None => {
                    plan.up += 1;
                    usage.add(index, pod);
                    plan.helped.push(Arc::clone(pod));
                }
            }
        }
        plan
    }

    /// Names of the nodes that have no pods but DaemonSets'.
    pub(super) fn idle_nodes(&self) -> Vec<String> {
        let busy = |node: &NodeFacts| {
            self.pods.iter().any(|pod| {
                pod.node.as_ref() == Some(&node.key.name)
                    && pod.occupies()
                    && pod.owner.as_ref().is_none_or(|owner| owner.kind != "DaemonSet")
            })
        };
        self.nodes
            .iter()
            .filter(|node| {
                node.ready == Some(true)
                    && !node.deleting
                    && !self.going.contains(&node.key.name)
                    && !busy(node)
            })
            .map(|node| node.key.name.clone())
            .collect()
    }

    /// Of the nodes that were idle long enough those that may go, the youngest first.
    pub(super) fn shrink(&self, ripe: &[&String]) -> Vec<String> {
        let least = usize::try_from(self.range.min).unwrap_or(usize::MAX);
        let staying = self.nodes.len().saturating_sub(self.going.len());
        let mut ripe: Vec<&Arc<NodeFacts>> = self
            .nodes
            .iter()
            .filter(|node| ripe.contains(&&node.key.name))
            .collect();
        ripe.sort_by(|a, b| (b.created, &b.key).cmp(&(a.created, &a.key)));
        ripe.truncate(staying.saturating_sub(least));
        ripe.into_iter().map(|node| node.key.name.clone()).collect()
    }
}

/// A node like `model`, under a name of its own and without what concerns only the model.
fn alike(model: &NodeFacts, number: usize) -> NodeFacts {
    let name = format!("{}+{number}", model.key.name);
    let mut node = NodeFacts {
        key: Key::new("", &name),
        uid: name.clone(),
        ..model.clone()
    };
    node.labels.insert("kubernetes.io/hostname".to_owned(), name);
    node
}
