//! ReplicaSets: as many pods as asked for.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};

use super::facts::{Key, Phase, PodFacts};

/// What is to be done for a ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// How many pods to create.
    pub create: usize,
    /// Pods to delete.
    pub delete: Vec<Key>,
    /// The status to be written, where it changed.
    pub status: Option<ReplicaSetStatus>,
    /// When to look again: a pod becomes available by the passing of time alone.
    pub again: Option<Duration>,
}

/// Compares a ReplicaSet with the pods it owns.
pub fn plan(set: &ReplicaSet, owned: &[Arc<PodFacts>], now: Timestamp) -> Plan {
    let Some(spec) = &set.spec else {
        return Plan::default();
    };
    let active: Vec<&Arc<PodFacts>> = owned.iter().filter(|pod| pod.is_active()).collect();
    let deleting = set.metadata.deletion_timestamp.is_some();
    let desired = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let (create, delete) = if deleting {
        (0, Vec::new())
    } else if active.len() < desired {
        (desired - active.len(), Vec::new())
    } else {
        (0, surplus(&active, active.len() - desired))
    };
    let count = |matches: &dyn Fn(&PodFacts) -> bool| {
        i32::try_from(active.iter().filter(|pod| matches(pod)).count()).unwrap_or(i32::MAX)
    };
    let template_labels = spec
        .template
        .as_ref()
        .and_then(|template| template.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let status = ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: Some(count(&|pod| {
            template_labels
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
        })),
        ready_replicas: Some(count(&|pod| pod.ready_since.is_some())),
        available_replicas: Some(count(&|pod| pod.is_available(min_ready, now))),
        observed_generation: set.metadata.generation,
        ..ReplicaSetStatus::default()
    };
    let changed = set.status.as_ref().is_none_or(|before| !same(before, &status));
    Plan {
        create,
        delete,
        status: changed.then_some(status),
        again: until_available(&active, min_ready, now),
    }
}

/// The next moment at which a ready pod becomes available.
pub fn until_available(pods: &[&Arc<PodFacts>], min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    pods.iter()
        .filter(|pod| !pod.is_available(min_ready_seconds, now))
        .filter_map(|pod| {
            let due = pod.ready_since?.as_second() + i64::from(min_ready_seconds) - now.as_second();
            Some(Duration::from_secs(u64::try_from(due).unwrap_or(0).max(1)))
        })
        .min()
}

/// Status fields that are 0 may be absent in what the server returns.
fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let shape = |status: &ReplicaSetStatus| {
        (
            status.replicas,
            status.fully_labeled_replicas.unwrap_or(0),
            status.ready_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
            status.observed_generation,
        )
    };
    shape(a) == shape(b)
}

/// The pods that are missed least: without a node, pending, not ready, on a node with many of them, ready for a
/// shorter time, younger.
fn surplus(active: &[&Arc<PodFacts>], count: usize) -> Vec<Key> {
    let on_same_node = |pod: &PodFacts| {
        active
            .iter()
            .filter(|other| pod.node.is_some() && other.node == pod.node)
            .count()
    };
    let mut ranked: Vec<_> = active
        .iter()
        .map(|pod| {
            let rank = (
                pod.node.is_some(),
                pod.phase == Phase::Running,
                pod.ready_since.is_some(),
                std::cmp::Reverse(on_same_node(pod)),
                std::cmp::Reverse(pod.ready_since),
                std::cmp::Reverse(pod.created),
            );
            (rank, &pod.key)
        })
        .collect();
    ranked.sort();
    ranked
        .into_iter()
        .take(count)
        .map(|(_, key)| key.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(
        clippy::needless_pass_by_value,
        reason = "a literal reads best without a borrow"
    )]
    fn set(replicas: i32, extra: Value) -> ReplicaSet {
        let mut set = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "rs", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}},
        });
        for (key, value) in extra.as_object().cloned().unwrap_or_default() {
            set["spec"][key] = value;
        }
        serde_json::from_value(set).unwrap()
    }

    /// `name:node:phase:ready-since`, empty where absent.
    fn pod(text: &str) -> Arc<PodFacts> {
        let [name, node, phase, ready] = text.split(':').collect::<Vec<_>>().try_into().unwrap();
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
        });
        if !ready.is_empty() {
            let since = Timestamp::from_second(ready.parse().unwrap()).unwrap();
            pod["status"]["conditions"] =
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": since.to_string()}]);
        }
        Arc::new(PodFacts::of(&serde_json::from_value(pod).unwrap()))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn missing_pods_are_created_and_ended_ones_do_not_count() {
        let plan = plan(
            &set(3, json!({})),
            &[pod("a:n1:Running:5"), pod("b:n1:Failed:")],
            at(10),
        );
        let status = ReplicaSetStatus {
            replicas: 1,
            fully_labeled_replicas: Some(1),
            ready_replicas: Some(1),
            available_replicas: Some(1),
            observed_generation: Some(3),
            ..ReplicaSetStatus::default()
        };
        assert_eq!(
            plan,
            Plan {
                create: 2,
                delete: vec![],
                status: Some(status),
                again: None
            }
        );
    }

    #[test]
    fn the_pods_missed_least_go_first() {
        let pods = [
            pod("old:n1:Running:5"),
            pod("lonely:n2:Running:9"),
            pod("young:n1:Running:8"),
            pod("unready:n3:Running:"),
            pod("waiting::Pending:"),
            pod("starting:n3:Pending:"),
        ];
        let order = plan(&set(0, json!({})), &pods, at(10)).delete;
        let order: Vec<&str> = order.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(
            order,
            ["waiting", "starting", "unready", "young", "old", "lonely"]
        );
        assert_eq!(
            plan(&set(5, json!({})), &pods, at(10)).delete,
            [Key::new("ns", "waiting")]
        );
    }

    #[test]
    fn availability_comes_with_time() {
        let set = set(1, json!({"minReadySeconds": 10}));
        let early = plan(&set, &[pod("a:n1:Running:5")], at(8));
        assert_eq!(
            (early.status.unwrap().available_replicas, early.again),
            (Some(0), Some(Duration::from_secs(7)))
        );
        let late = plan(&set, &[pod("a:n1:Running:5")], at(15));
        assert_eq!(
            (late.status.unwrap().available_replicas, late.again),
            (Some(1), None)
        );
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let mut set = set(1, json!({}));
        let pods = [pod("a:n1:Running:5")];
        set.status = plan(&set, &pods, at(10)).status;
        assert_eq!(plan(&set, &pods, at(10)), Plan::default());
    }
}
