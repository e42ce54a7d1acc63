//! DaemonSets: one pod on every node that takes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use super::deployment::share;
use super::facts::{Key, NodeFacts, Placement, PodFacts, controller_reference};
use super::replicaset::until_available;
use super::template::{self, CONTROLLER_REVISION_HASH};
use crate::scheduler::fit::{term_matches, tolerates};

/// What is to be done for a DaemonSet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Pods to create, each bound to its node by affinity.
    pub create: Vec<Pod>,
    /// Pods to delete.
    pub delete: Vec<Key>,
    /// The status to be written, where it changed.
    pub status: Option<DaemonSetStatus>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// Compares a DaemonSet with the nodes and the pods it owns.
pub fn plan(set: &DaemonSet, nodes: &[Arc<NodeFacts>], owned: &[Arc<PodFacts>], now: Timestamp) -> Plan {
    let (Some(spec), None) = (&set.spec, &set.metadata.deletion_timestamp) else {
        return Plan::default();
    };
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let revision = template::hash(&spec.template);
    let mut pod_spec = spec.template.spec.clone().unwrap_or_default();
    tolerate(&mut pod_spec);
    let placement = Placement::of(&pod_spec);
    let wants = |node: &NodeFacts| {
        let selected = placement
            .node_selector
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value));
        let affine = placement
            .node_affinity
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)));
        selected && affine && !node.deleting && tolerates(&node.taints, &placement.tolerations)
    };
    let mut by_node: BTreeMap<&str, Vec<&Arc<PodFacts>>> = BTreeMap::new();
    for pod in owned {
        if let Some(node) = target(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let mut plan = Plan::default();
    let mut serving = Vec::new();
    let (mut desired, mut misscheduled) = (0, 0);
    for node in nodes {
        let mut here = by_node.remove(node.key.name.as_str()).unwrap_or_default();
        if !wants(node) {
            misscheduled += i32::from(here.iter().any(|pod| pod.is_active()));
            plan.delete
                .extend(here.iter().filter(|pod| !pod.deleting).map(|pod| pod.key.clone()));
            continue;
        }
        desired += 1;
        plan.delete.extend(
            here.iter()
                .filter(|pod| pod.phase.is_terminal() && !pod.deleting)
                .map(|pod| pod.key.clone()),
        );
        here.retain(|pod| !pod.phase.is_terminal());
        here.sort_by_key(|pod| (pod.deleting, pod.created));
        match here.split_first() {
            None => plan.create.push(pod(set, &pod_spec, node, &revision)),
            Some((kept, others)) => {
                plan.delete.extend(
                    others
                        .iter()
                        .filter(|pod| !pod.deleting)
                        .map(|pod| pod.key.clone()),
                );
                serving.push(*kept);
            }
        }
    }
    // Pods of nodes that are gone.
    plan.delete.extend(
        by_node
            .values()
            .flatten()
            .filter(|pod| !pod.deleting)
            .map(|pod| pod.key.clone()),
    );

    let updated = |pod: &PodFacts| pod.labels.get(CONTROLLER_REVISION_HASH) == Some(&revision);
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    if strategy.type_.as_deref() != Some("OnDelete") {
        let unavailable = strategy
            .rolling_update
            .as_ref()
            .and_then(|rolling| rolling.max_unavailable.as_ref());
        let allowed = unavailable
            .map_or(1, |value| share(Some(value), desired, true))
            .max(1);
        let missing = desired - count(&serving, |pod| !pod.deleting && pod.is_available(min_ready, now));
        let mut budget = usize::try_from(allowed - missing).unwrap_or(0);
        for pod in serving.iter().filter(|pod| !pod.deleting && !updated(pod)) {
            let idle = !pod.is_available(min_ready, now);
            if idle || budget > 0 {
                budget -= usize::from(!idle);
                plan.delete.push(pod.key.clone());
            }
        }
    }

    let available = count(&serving, |pod| pod.is_available(min_ready, now));
    let status = DaemonSetStatus {
        current_number_scheduled: count(&serving, |_| true),
        desired_number_scheduled: desired,
        number_misscheduled: misscheduled,
        number_ready: count(&serving, |pod| pod.ready_since.is_some()),
        number_available: Some(available),
        number_unavailable: Some(desired - available),
        updated_number_scheduled: Some(count(&serving, updated)),
        observed_generation: set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let changed = set.status.as_ref().is_none_or(|before| !same(before, &status));
    plan.status = changed.then_some(status);
    plan.again = until_available(&serving, min_ready, now);
    plan
}

fn count(pods: &[&Arc<PodFacts>], matches: impl Fn(&PodFacts) -> bool) -> i32 {
    i32::try_from(pods.iter().filter(|pod| matches(pod)).count()).unwrap_or(i32::MAX)
}

/// Status fields that are 0 may be absent in what the server returns.
fn same(a: &DaemonSetStatus, b: &DaemonSetStatus) -> bool {
    let shape = |status: &DaemonSetStatus| {
        (
            [
                status.current_number_scheduled,
                status.desired_number_scheduled,
                status.number_misscheduled,
                status.number_ready,
                status.number_available.unwrap_or(0),
                status.number_unavailable.unwrap_or(0),
                status.updated_number_scheduled.unwrap_or(0),
            ],
            status.observed_generation,
        )
    };
    shape(a) == shape(b)
}

/// The node a pod is on, or meant for.
fn target(pod: &PodFacts) -> Option<&str> {
    pod.node.as_deref().or_else(|| {
        let terms = pod.placement.node_affinity.as_ref()?;
        let field = terms.first()?.match_fields.as_ref()?.first()?;
        field.values.as_ref()?.first().map(String::as_str)
    })
}

/// Adds the tolerations that every DaemonSet's pods have.
fn tolerate(spec: &mut PodSpec) {
    let mut taints = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        taints.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in taints {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

fn pod(set: &DaemonSet, spec: &PodSpec, node: &NodeFacts, revision: &str) -> Pod {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let set_spec = set.spec.clone().unwrap_or_default();
    let generation = set.metadata.generation.unwrap_or(1).to_string();
    let labels = [
        (CONTROLLER_REVISION_HASH, revision),
        ("pod-template-generation", &generation),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let mut pod = template::pod(
        &set_spec.template,
        controller_reference(set),
        &format!("{name}-"),
        None,
        labels,
    );
    let mut spec = spec.clone();
    // As the real controller does it: the scheduler binds the pod, and can bind it nowhere else.
    let only_here = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.key.name.clone()]),
    };
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let node_affinity = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    node_affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![only_here]),
        }],
    });
    pod.spec = Some(spec);
    pod
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(
        clippy::needless_pass_by_value,
        reason = "a literal reads best without a borrow"
    )]
    fn set(extra: Value) -> DaemonSet {
        let mut set = json!({
            "metadata": {"name": "agent", "namespace": "ns", "uid": "s", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "agent"}},
                     "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c"}]}}},
        });
        for (key, value) in extra.as_object().cloned().unwrap_or_default() {
            set["spec"][key] = value;
        }
        serde_json::from_value(set).unwrap()
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "a literal reads best without a borrow"
    )]
    fn node(name: &str, spec: Value) -> Arc<NodeFacts> {
        let node =
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": spec});
        Arc::new(NodeFacts::of(&serde_json::from_value(node).unwrap()))
    }

    fn pod_on(node: &str, revision: &str, ready: bool) -> Arc<PodFacts> {
        let pod = json!({
            "metadata": {"name": format!("agent-{node}"), "namespace": "ns", "labels": {"controller-revision-hash": revision}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(PodFacts::of(&serde_json::from_value(pod).unwrap()))
    }

    fn targets(plan: &Plan) -> Vec<String> {
        plan.create
            .iter()
            .map(|pod| target(&PodFacts::of(pod)).unwrap().to_owned())
            .collect()
    }

    fn revision(set: &DaemonSet) -> String {
        template::hash(&set.spec.as_ref().unwrap().template)
    }

    #[test]
    fn every_node_that_takes_it_gets_one_pod_even_cordoned_ones() {
        let taint = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]});
        let nodes = [
            node("n1", json!({})),
            node("n2", taint),
            node(
                "n3",
                json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}),
            ),
        ];
        let plan = plan(&set(json!({})), &nodes, &[], Timestamp::UNIX_EPOCH);
        assert_eq!(targets(&plan), ["n1", "n3"]);
        assert_eq!(plan.status.unwrap().desired_number_scheduled, 2);
    }

    #[test]
    fn pods_on_nodes_that_are_gone_or_no_longer_selected_go() {
        let mut set = set(json!({}));
        set.spec
            .as_mut()
            .unwrap()
            .template
            .spec
            .as_mut()
            .unwrap()
            .node_selector = Some([("kubernetes.io/hostname".to_owned(), "n1".to_owned())].into());
        let pods = ["n1", "n2", "gone"].map(|node| pod_on(node, &revision(&set), true));
        let plan = plan(
            &set,
            &[node("n1", json!({})), node("n2", json!({}))],
            &pods,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(
            plan.delete,
            [Key::new("ns", "agent-n2"), Key::new("ns", "agent-gone")]
        );
        assert_eq!(plan.status.unwrap().number_misscheduled, 1);
    }

    #[test]
    fn an_update_takes_as_many_pods_down_as_may_be_missing() {
        let set = set(json!({}));
        let nodes = ["n1", "n2", "n3"].map(|name| node(name, json!({})));
        let deleted = |states: [(&str, bool); 3]| {
            let pods: Vec<_> = nodes
                .iter()
                .zip(states)
                .map(|(node, (rev, ready))| pod_on(&node.key.name, rev, ready))
                .collect();
            plan(&set, &nodes, &pods, Timestamp::UNIX_EPOCH)
                .delete
                .iter()
                .map(|key| key.name.clone())
                .collect::<Vec<_>>()
        };
        let new = revision(&set);
        assert_eq!(
            deleted([("old", true), ("old", true), ("old", true)]),
            ["agent-n1"]
        );
        assert_eq!(
            deleted([(&new, false), ("old", true), ("old", true)]),
            Vec::<String>::new()
        );
        assert_eq!(
            deleted([(&new, true), ("old", false), ("old", true)]),
            ["agent-n2"]
        );
        assert_eq!(
            deleted([(&new, true), (&new, true), (&new, true)]),
            Vec::<String>::new()
        );
    }
}
