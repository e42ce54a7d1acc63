//! StatefulSets: pods with ordinals, one after another unless they may go in parallel.
//!
//! Old revisions of the template are not kept: a pod made anew while an update waits (`partition`, `OnDelete`) is
//! made from the current template. Volume claims are not made, for volumes have no meaning in the lab.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::facts::{Key, Labels, PodFacts, controller_reference};
use super::replicaset::until_available;
use super::template::{self, CONTROLLER_REVISION_HASH};

/// What is to be done for a StatefulSet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Pods to create.
    pub create: Vec<Pod>,
    /// Pods to delete.
    pub delete: Vec<Key>,
    /// The status to be written, where it changed.
    pub status: Option<StatefulSetStatus>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// Compares a StatefulSet with the pods it owns.
pub fn plan(set: &StatefulSet, owned: &[Arc<PodFacts>], now: Timestamp) -> Plan {
    let (Some(spec), None) = (&set.spec, &set.metadata.deletion_timestamp) else {
        return Plan::default();
    };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let desired = spec.replicas.unwrap_or(1).max(0);
    let first = spec
        .ordinals
        .as_ref()
        .and_then(|ordinals| ordinals.start)
        .unwrap_or(0);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let revision = format!("{name}-{}", template::hash(&spec.template));
    let by_ordinal: BTreeMap<i32, &Arc<PodFacts>> = owned
        .iter()
        .filter_map(|pod| Some((ordinal(name, &pod.key.name)?, pod)))
        .collect();
    let wanted = first..first + desired;
    let updated = |pod: &PodFacts| pod.labels.get(CONTROLLER_REVISION_HASH) == Some(&revision);
    let mut plan = Plan::default();

    // Fill the gaps, lowest ordinal first; in order, each waits for the one before it.
    let mut blocked = false;
    for number in wanted.clone() {
        match by_ordinal.get(&number) {
            None => plan.create.push(pod(set, name, number, &revision)),
            // An ended pod makes room for its successor under the same name.
            Some(pod) if pod.phase.is_terminal() && !pod.deleting => plan.delete.push(pod.key.clone()),
            Some(pod) if !pod.deleting && pod.is_available(min_ready, now) => continue,
            Some(_) => {}
        }
        if !parallel {
            blocked = true;
            break;
        }
    }

    // Drop what is beyond, highest ordinal first; in order, each waits until the one above it is gone.
    let beyond: Vec<&Arc<PodFacts>> = by_ordinal
        .iter()
        .rev()
        .filter(|(number, _)| !wanted.contains(number))
        .map(|(_, pod)| *pod)
        .collect();
    let at_once = if parallel {
        beyond.len()
    } else {
        usize::from(!blocked)
    };
    plan.delete.extend(
        beyond
            .iter()
            .take(at_once)
            .filter(|pod| !pod.deleting)
            .map(|pod| pod.key.clone()),
    );

    // Update from the highest ordinal down, one at a time, each waiting until all others are ready.
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    let partition = strategy
        .rolling_update
        .as_ref()
        .and_then(|rolling| rolling.partition)
        .unwrap_or(0)
        .max(first);
    let settled = !blocked && beyond.is_empty() && plan.create.is_empty() && plan.delete.is_empty();
    if settled && strategy.type_.as_deref() != Some("OnDelete") {
        for number in wanted.clone().rev().take_while(|number| *number >= partition) {
            let Some(pod) = by_ordinal.get(&number) else { break };
            if !updated(pod) && !pod.deleting {
                plan.delete.push(pod.key.clone());
                break;
            }
            if !pod.is_available(min_ready, now) {
                break;
            }
        }
    }

    let present: Vec<&Arc<PodFacts>> = by_ordinal
        .values()
        .copied()
        .filter(|pod| !pod.phase.is_terminal())
        .collect();
    let count = |matches: &dyn Fn(&PodFacts) -> bool| {
        i32::try_from(present.iter().filter(|pod| matches(pod)).count()).unwrap_or(i32::MAX)
    };
    let before = set.status.clone().unwrap_or_default();
    let replicas = count(&|_| true);
    let up_to_date = count(&updated);
    let current_revision = match before.current_revision {
        Some(current) if up_to_date < replicas || replicas < desired => current,
        _ => revision.clone(),
    };
    let status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: Some(count(&|pod| pod.ready_since.is_some())),
        available_replicas: Some(count(&|pod| pod.is_available(min_ready, now))),
        current_replicas: Some(count(&|pod| {
            pod.labels.get(CONTROLLER_REVISION_HASH) == Some(&current_revision)
        })),
        updated_replicas: Some(up_to_date),
        current_revision: Some(current_revision),
        update_revision: Some(revision),
        collision_count: Some(0),
        ..StatefulSetStatus::default()
    };
    let changed = set.status.as_ref().is_none_or(|before| !same(before, &status));
    plan.status = changed.then_some(status);
    plan.again = until_available(&present, min_ready, now);
    plan
}

/// Status fields that are 0 may be absent in what the server returns.
fn same(a: &StatefulSetStatus, b: &StatefulSetStatus) -> bool {
    let number = |value: Option<i32>| value.unwrap_or(0);
    let shape = |status: &StatefulSetStatus| {
        (
            [
                status.replicas,
                number(status.ready_replicas),
                number(status.available_replicas),
                number(status.current_replicas),
                number(status.updated_replicas),
            ],
            status.observed_generation,
            status.current_revision.clone(),
            status.update_revision.clone(),
        )
    };
    shape(a) == shape(b)
}

fn ordinal(set: &str, pod: &str) -> Option<i32> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

fn pod(set: &StatefulSet, name: &str, number: i32, revision: &str) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let pod_name = format!("{name}-{number}");
    let labels: Labels = [
        ("statefulset.kubernetes.io/pod-name", pod_name.as_str()),
        ("apps.kubernetes.io/pod-index", &number.to_string()),
        (CONTROLLER_REVISION_HASH, revision),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let mut pod = template::pod(
        &spec.template,
        controller_reference(set),
        "",
        Some(pod_name.clone()),
        labels,
    );
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(pod_name);
        pod_spec.subdomain = spec.service_name;
    }
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
    fn set(replicas: i32, extra: Value) -> StatefulSet {
        let mut set = json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "s", "generation": 1},
            "spec": {"replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                     "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c"}]}}},
        });
        for (key, value) in extra.as_object().cloned().unwrap_or_default() {
            set["spec"][key] = value;
        }
        serde_json::from_value(set).unwrap()
    }

    /// A pod of the set by ordinal: `+` ready, `-` not, `x` being deleted; `old` is of another revision.
    fn pod(set: &StatefulSet, number: i32, state: char, old: bool) -> Arc<PodFacts> {
        let revision = if old {
            "db-old".to_owned()
        } else {
            plan(set, &[], Timestamp::UNIX_EPOCH)
                .status
                .unwrap()
                .update_revision
                .unwrap()
        };
        let mut pod = json!({
            "metadata": {"name": format!("db-{number}"), "namespace": "ns", "uid": format!("{number}"),
                         "labels": {"controller-revision-hash": revision}},
            "status": {"phase": "Running"},
        });
        if state == '+' {
            pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        }
        if state == 'x' {
            pod["metadata"]["deletionTimestamp"] = json!("2026-11-23T00:00:00Z");
        }
        Arc::new(PodFacts::of(&serde_json::from_value(pod).unwrap()))
    }

    /// What is planned for pods given as in [`pod`], `o` before the state where it is old: `+db-1 -db-0`.
    fn actions(set: &StatefulSet, pods: &[(i32, &str)]) -> String {
        let pods: Vec<Arc<PodFacts>> = pods
            .iter()
            .map(|(number, state)| {
                pod(
                    set,
                    *number,
                    state.chars().last().unwrap(),
                    state.starts_with('o'),
                )
            })
            .collect();
        let plan = plan(set, &pods, Timestamp::UNIX_EPOCH);
        let created = plan
            .create
            .iter()
            .map(|pod| format!("+{}", pod.metadata.name.as_deref().unwrap()));
        let deleted = plan.delete.iter().map(|key| format!("-{}", key.name));
        created.chain(deleted).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn in_order_each_pod_waits_for_the_one_before() {
        let set = set(3, json!({}));
        assert_eq!(actions(&set, &[]), "+db-0");
        assert_eq!(actions(&set, &[(0, "-")]), "");
        assert_eq!(actions(&set, &[(0, "+")]), "+db-1");
        assert_eq!(actions(&set, &[(0, "+"), (2, "+")]), "+db-1");
        assert_eq!(actions(&set, &[(0, "+"), (1, "x"), (2, "+")]), "");
        assert_eq!(actions(&set, &[(0, "+"), (1, "+"), (2, "+")]), "");
    }

    #[test]
    fn in_parallel_all_go_at_once() {
        let policy = json!({"podManagementPolicy": "Parallel"});
        assert_eq!(actions(&set(3, policy.clone()), &[(1, "-")]), "+db-0 +db-2");
        assert_eq!(actions(&set(0, policy), &[(0, "+"), (1, "+")]), "-db-1 -db-0");
    }

    #[test]
    fn scaling_down_takes_the_highest_and_waits_for_it() {
        let set = set(1, json!({}));
        assert_eq!(actions(&set, &[(0, "+"), (1, "+"), (2, "+")]), "-db-2");
        assert_eq!(actions(&set, &[(0, "+"), (1, "+"), (2, "x")]), "");
        assert_eq!(actions(&set, &[(0, "-"), (1, "+")]), "");
    }

    #[test]
    fn an_update_goes_from_the_highest_down_to_the_partition() {
        let whole = set(3, json!({}));
        assert_eq!(actions(&whole, &[(0, "o+"), (1, "o+"), (2, "o+")]), "-db-2");
        assert_eq!(actions(&whole, &[(0, "o+"), (1, "o+"), (2, "-")]), "");
        assert_eq!(actions(&whole, &[(0, "o+"), (1, "o+"), (2, "+")]), "-db-1");
        let part = set(
            3,
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
        );
        assert_eq!(actions(&part, &[(0, "o+"), (1, "o+"), (2, "+")]), "");
        let manual = set(1, json!({"updateStrategy": {"type": "OnDelete"}}));
        assert_eq!(actions(&manual, &[(0, "o+")]), "");
    }

    #[test]
    fn ordinals_may_start_elsewhere_and_pods_are_named_and_labelled_by_them() {
        let set = set(1, json!({"ordinals": {"start": 5}}));
        let plan = plan(&set, &[], Timestamp::UNIX_EPOCH);
        let pod = &plan.create[0];
        assert_eq!(pod.metadata.name.as_deref(), Some("db-5"));
        assert_eq!(
            pod.metadata.labels.as_ref().unwrap()["apps.kubernetes.io/pod-index"],
            "5"
        );
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("db-5"), Some("db"))
        );
    }

    #[test]
    fn the_current_revision_follows_when_all_pods_are_updated() {
        let mut set = set(2, json!({}));
        set.status = Some(StatefulSetStatus {
            current_revision: Some("db-old".into()),
            ..StatefulSetStatus::default()
        });
        let revisions = |pods: &[Arc<PodFacts>]| {
            let status = plan(&set, pods, Timestamp::UNIX_EPOCH).status.unwrap();
            (
                status.current_revision == status.update_revision,
                status.updated_replicas,
            )
        };
        assert_eq!(
            revisions(&[pod(&set, 0, '+', true), pod(&set, 1, '+', false)]),
            (false, Some(1))
        );
        assert_eq!(
            revisions(&[pod(&set, 0, '+', false), pod(&set, 1, '+', false)]),
            (true, Some(2))
        );
    }
}
