//! Whether API objects agree with each other, and with what nodes' agents say of their own nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use weft_model::audit::{Finding, FindingKind, NodeAudit, Remedy};

use crate::API_VERSION;
use crate::address::{PodAddress, contradictions, list_addresses, node_of};
use crate::snapshot::Snapshot;

/// What an audit of a cluster found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterAudit {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Always `ClusterAudit`.
    pub kind: &'static str,
    /// Nodes whose agents were asked, in order.
    pub nodes: Vec<NodeAudit>,
    /// Nodes whose agents did not answer, and why.
    pub unreached: BTreeMap<String, String>,
    /// How the objects of the API differ from each other and from the nodes.
    pub objects: Vec<Finding>,
}

// === impl ClusterAudit ===

impl ClusterAudit {
    /// Compares the objects with each other and with the nodes that answered.
    pub fn new(
        seen: &Snapshot,
        pods: &[Pod],
        nodes: Vec<NodeAudit>,
        unreached: BTreeMap<String, String>,
    ) -> Self {
        let addresses = list_addresses(seen, pods).addresses;
        let mut objects = contradicting(seen, &addresses);
        for node in &nodes {
            objects.extend(unlike_its_node(node, &addresses, pods));
        }
        Self {
            api_version: API_VERSION,
            kind: "ClusterAudit",
            nodes,
            unreached,
            objects,
        }
    }

    /// Whether everything that was looked at is as it should be, and nothing was left out.
    pub fn is_clean(&self) -> bool {
        self.objects.is_empty()
            && self.unreached.is_empty()
            && self.nodes.iter().all(|node| node.findings.is_empty())
    }
}

/// Addresses that two pods have, or a pod of another node than their block's.
fn contradicting(seen: &Snapshot, addresses: &[PodAddress]) -> Vec<Finding> {
    let mut by_address: BTreeMap<Ipv4Addr, Vec<&PodAddress>> = BTreeMap::new();
    for held in addresses {
        by_address.entry(held.address).or_default().push(held);
    }
    let mut found = Vec::new();
    for (address, held) in by_address {
        let pods: Vec<_> = held.iter().map(|held| held.pod.clone()).collect();
        let owner: Vec<String> = pods.iter().map(|pod| format!("pod {pod}")).collect();
        let (block, node) = node_of(address, seen);
        for problem in contradictions(address, &pods, block.as_ref(), node.as_deref()) {
            found.push(Finding {
                kind: FindingKind::Object,
                what: format!("{address}: {problem}"),
                owner: owner.join(", "),
                remedy: Remedy::Person(
                    "delete the younger pod: its replacement gets an address of its own".into(),
                ),
            });
        }
    }
    found
}

/// Pods that the API and the node's ledger don't agree on.
fn unlike_its_node(node: &NodeAudit, addresses: &[PodAddress], pods: &[Pod]) -> Vec<Finding> {
    // Of attachments that were found when a ledger was made anew no pod is known.
    let nameless: BTreeSet<Ipv4Addr> = node
        .held
        .iter()
        .filter(|held| held.pod.is_none())
        .map(|held| held.address)
        .collect();
    let held: BTreeSet<(Ipv4Addr, &str)> = node
        .held
        .iter()
        .filter_map(|held| Some((held.address, held.pod.as_deref()?)))
        .collect();
    let known: BTreeSet<String> = pods
        .iter()
        .map(|pod| {
            let meta = &pod.metadata;
            format!(
                "{}/{}",
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default()
            )
        })
        .collect();
    let unheld = addresses
        .iter()
        .filter(|at| {
            at.pod.node == node.node
                && !nameless.contains(&at.address)
                && !held.contains(&(at.address, at.pod.to_string().as_str()))
        })
        .map(|at| Finding {
            kind: FindingKind::Object,
            what: format!(
                "its status says {}, which the ledger of {} does not have for it",
                at.address, node.node
            ),
            owner: format!("pod {}", at.pod),
            remedy: Remedy::Person("recreate the pod".into()),
        });
    let podless = held
        .iter()
        .filter(|(_, pod)| !known.contains(*pod))
        .map(|(address, pod)| Finding {
            kind: FindingKind::Attachment,
            what: format!(
                "the ledger of {} has {address} for it, and the API has no such pod",
                node.node
            ),
            owner: format!("pod {pod}"),
            remedy: Remedy::Person(
                "the runtime's DEL or GC gives the address back; see what sandboxes it has: crictl pods"
                    .into(),
            ),
        });
    unheld.chain(podless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{healthy, object};
    use serde_json::json;
    use weft_model::audit::Held;

    fn pod(name: &str, node: &str, address: &str) -> Pod {
        object(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "podIP": address},
        }))
    }

    fn node(name: &str, held: &[(&str, &str)]) -> NodeAudit {
        NodeAudit {
            node: name.into(),
            held: held
                .iter()
                .map(|(address, pod)| Held {
                    address: address.parse().unwrap(),
                    attachment: "c/eth0".parse().unwrap(),
                    pod: Some(format!("default/{pod}")),
                })
                .collect(),
            ..NodeAudit::default()
        }
    }

    fn found(pods: &[Pod], nodes: Vec<NodeAudit>) -> Vec<String> {
        let audit = ClusterAudit::new(&healthy(), pods, nodes, BTreeMap::new());
        assert_eq!(audit.is_clean(), audit.objects.is_empty());
        audit
            .objects
            .into_iter()
            .map(|found| format!("{}: {}", found.owner, found.what))
            .collect()
    }

    #[test]
    fn objects_and_ledgers_that_agree_are_clean() {
        let pods = [pod("web", "a", "10.244.0.7"), pod("db", "b", "10.244.1.9")];
        assert_eq!(found(&pods, vec![node("a", &[("10.244.0.7", "web")])]), [""; 0]);
    }

    #[test]
    fn every_disagreement_is_named_with_both_sides() {
        let pods = [
            pod("web", "a", "10.244.0.7"),
            pod("twin", "a", "10.244.0.7"),
            pod("lost", "b", "10.244.0.8"),
        ];
        assert_eq!(
            found(
                &pods,
                vec![node("a", &[("10.244.0.7", "web"), ("10.244.0.9", "ghost")])]
            ),
            [
                "pod default/twin, pod default/web: 10.244.0.7: 2 pods have it: default/twin, default/web",
                "pod default/lost: 10.244.0.8: pod default/lost runs on node b, and block 10.244.0.0/24 belongs to node a",
                "pod default/twin: its status says 10.244.0.7, which the ledger of a does not have for it",
                "pod default/ghost: the ledger of a has 10.244.0.9 for it, and the API has no such pod",
            ]
        );
    }
}
