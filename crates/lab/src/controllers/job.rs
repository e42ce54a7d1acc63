//! Jobs: pods until enough of them have succeeded.
//!
//! A pod that fails is replaced without counting towards a limit: in the lab only a kubelet that refuses a pod makes
//! one fail.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::facts::{Key, Labels, Phase, PodFacts, controller_reference};
use super::template;

/// Label and annotation with the index of a pod of an indexed Job.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// What is to be done for a Job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Pods to create.
    pub create: Vec<Pod>,
    /// Pods to delete.
    pub delete: Vec<Key>,
    /// Whether the Job itself is to be deleted: it ended, and its time to live is over.
    pub expire: bool,
    /// The status to be written, where it changed.
    pub status: Option<JobStatus>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// Compares a Job with the pods it owns.
pub fn plan(job: &Job, owned: &[Arc<PodFacts>], now: Timestamp) -> Plan {
    let (Some(spec), None) = (&job.spec, &job.metadata.deletion_timestamp) else {
        return Plan::default();
    };
    let before = job.status.clone().unwrap_or_default();
    let mut plan = Plan::default();
    if let Some(ended) = before
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Complete")
    {
        if let Some(ttl) = spec.ttl_seconds_after_finished {
            let end = ended.last_transition_time.as_ref().map_or(now, |time| time.0);
            let left = end.as_second() + i64::from(ttl) - now.as_second();
            plan.expire = left <= 0;
            plan.again = u64::try_from(left)
                .ok()
                .filter(|left| *left > 0)
                .map(Duration::from_secs);
        }
        return plan;
    }
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let suspended = spec.suspend == Some(true);
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let succeeded: Vec<&Arc<PodFacts>> = owned.iter().filter(|pod| pod.phase == Phase::Succeeded).collect();
    let done_indexes: BTreeSet<i32> = succeeded.iter().filter_map(|pod| index(pod)).collect();
    let done = if indexed {
        done_indexes.len()
    } else {
        succeeded.len()
    };
    let active: Vec<&Arc<PodFacts>> = owned.iter().filter(|pod| pod.is_active()).collect();
    // Without a number of completions the first success is enough, and no pod is started after it.
    let completions = spec
        .completions
        .map(|completions| usize::try_from(completions).unwrap_or(0));
    let complete = match completions {
        Some(completions) => done >= completions,
        None => done > 0 && active.is_empty(),
    };
    let wanted = match completions {
        _ if suspended || complete => 0,
        Some(completions) => parallelism.min(completions.saturating_sub(done)),
        None if done > 0 => active.len().min(parallelism),
        None => parallelism,
    };
    if active.len() < wanted {
        let taken: BTreeSet<i32> = active
            .iter()
            .filter_map(|pod| index(pod))
            .chain(done_indexes.iter().copied())
            .collect();
        let mut free = (0..).filter(|index| !taken.contains(index));
        for _ in active.len()..wanted {
            let index = indexed.then(|| free.next()).flatten();
            plan.create.push(pod(job, index));
        }
    } else {
        plan.delete = active[wanted..].iter().map(|pod| pod.key.clone()).collect();
    }

    let count = |number: usize| Some(i32::try_from(number).unwrap_or(i32::MAX));
    let mut status = JobStatus {
        active: count(active.len() + plan.create.len() - plan.delete.len()),
        ready: count(active.iter().filter(|pod| pod.ready_since.is_some()).count()),
        succeeded: count(done),
        failed: count(owned.iter().filter(|pod| pod.phase == Phase::Failed).count()),
        completed_indexes: indexed.then(|| ranges(&done_indexes)),
        start_time: before
            .start_time
            .clone()
            .or_else(|| (!suspended).then_some(Time(now))),
        conditions: before.conditions.clone(),
        ..JobStatus::default()
    };
    if complete {
        status.completion_time = Some(Time(now));
        let reached = |kind: &str| {
            condition(
                kind,
                "CompletionsReached",
                "Reached expected number of succeeded pods",
                now,
            )
        };
        status.conditions = Some(vec![reached("SuccessCriteriaMet"), reached("Complete")]);
    } else if suspended
        && before
            .conditions
            .iter()
            .flatten()
            .all(|condition| condition.type_ != "Suspended")
    {
        status.conditions.get_or_insert_default().push(condition(
            "Suspended",
            "JobSuspended",
            "Job suspended",
            now,
        ));
    } else if !suspended && let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != "Suspended");
    }
    let changed = job.status.as_ref().is_none_or(|before| !same(before, &status));
    plan.status = changed.then_some(status);
    plan
}

/// Status fields that are 0 may be absent in what the server returns.
fn same(a: &JobStatus, b: &JobStatus) -> bool {
    let shape = |status: &JobStatus| {
        (
            [status.active, status.ready, status.succeeded, status.failed].map(|number| number.unwrap_or(0)),
            status.completed_indexes.clone().unwrap_or_default(),
            status.start_time.is_some(),
            status.conditions.clone().unwrap_or_default(),
        )
    };
    shape(a) == shape(b)
}

fn condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn index(pod: &PodFacts) -> Option<i32> {
    pod.labels.get(INDEX)?.parse().ok()
}

/// Numbers as `1,3-5,7`.
fn ranges(numbers: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let texts: Vec<String> = ranges
        .into_iter()
        .map(|(from, to)| {
            if from == to {
                from.to_string()
            } else {
                format!("{from}-{to}")
            }
        })
        .collect();
    texts.join(",")
}

fn pod(job: &Job, index: Option<i32>) -> Pod {
    let name = job.metadata.name.clone().unwrap_or_default();
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let spec = job.spec.clone().unwrap_or_default();
    let mut labels: Labels = [
        ("batch.kubernetes.io/job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("job-name", &name),
        ("controller-uid", &uid),
    ]
    .map(|(key, value)| (key.to_owned(), value.clone()))
    .into();
    if let Some(index) = index {
        labels.insert(INDEX.to_owned(), index.to_string());
    }
    let prefix = index.map_or_else(|| format!("{name}-"), |index| format!("{name}-{index}-"));
    let mut pod = template::pod(&spec.template, controller_reference(job), &prefix, None, labels);
    if let Some(index) = index {
        pod.metadata
            .annotations
            .get_or_insert_default()
            .insert(INDEX.to_owned(), index.to_string());
        for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
            container.env.get_or_insert_default().push(EnvVar {
                name: "JOB_COMPLETION_INDEX".to_owned(),
                value: Some(index.to_string()),
                value_from: None,
            });
        }
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
    fn job(extra: Value) -> Job {
        let mut job = json!({
            "metadata": {"name": "load", "namespace": "ns", "uid": "j"},
            "spec": {"template": {"spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}}},
        });
        for (key, value) in extra.as_object().cloned().unwrap_or_default() {
            job["spec"][key] = value;
        }
        serde_json::from_value(job).unwrap()
    }

    fn pods(phases: &[(&str, i32)]) -> Vec<Arc<PodFacts>> {
        let pod = |(number, (phase, index)): (usize, &(&str, i32))| {
            let pod = json!({
                "metadata": {"name": format!("load-{number}"), "namespace": "ns", "labels": {INDEX: index.to_string()}},
                "status": {"phase": phase},
            });
            Arc::new(PodFacts::of(&serde_json::from_value(pod).unwrap()))
        };
        phases.iter().enumerate().map(pod).collect()
    }

    /// Phase and index of each pod.
    type Phases = &'static [(&'static str, i32)];

    fn outcome(job: &Job, phases: Phases) -> (usize, usize, bool) {
        let plan = plan(job, &pods(phases), Timestamp::UNIX_EPOCH);
        let complete = plan
            .status
            .as_ref()
            .is_some_and(|status| status.completion_time.is_some());
        (plan.create.len(), plan.delete.len(), complete)
    }

    #[test]
    fn as_many_pods_as_parallelism_allows_and_completions_still_need() {
        let table: [(Value, Phases, (usize, usize, bool)); 8] = [
            (json!({}), &[], (1, 0, false)),
            (json!({}), &[("Succeeded", 0)], (0, 0, true)),
            (
                json!({"completions": 5, "parallelism": 3}),
                &[("Running", 0)],
                (2, 0, false),
            ),
            (
                json!({"completions": 3, "parallelism": 3}),
                &[("Succeeded", 0), ("Succeeded", 0), ("Running", 0)],
                (0, 0, false),
            ),
            (
                json!({"completions": 3, "parallelism": 3}),
                &[("Succeeded", 0), ("Succeeded", 0), ("Failed", 0)],
                (1, 0, false),
            ),
            (
                json!({"completions": 2}),
                &[("Succeeded", 0), ("Succeeded", 0)],
                (0, 0, true),
            ),
            (
                json!({"parallelism": 1}),
                &[("Running", 0), ("Running", 0)],
                (0, 1, false),
            ),
            (json!({"suspend": true}), &[("Running", 0)], (0, 1, false)),
        ];
        for (spec, phases, expected) in table {
            assert_eq!(outcome(&job(spec.clone()), phases), expected, "{spec} {phases:?}");
        }
    }

    #[test]
    fn an_indexed_job_runs_each_index_once() {
        let job = job(json!({"completionMode": "Indexed", "completions": 5, "parallelism": 2}));
        let plan = plan(
            &job,
            &pods(&[
                ("Succeeded", 0),
                ("Succeeded", 1),
                ("Succeeded", 3),
                ("Running", 2),
            ]),
            Timestamp::UNIX_EPOCH,
        );
        let created: Vec<_> = plan
            .create
            .iter()
            .map(|pod| pod.metadata.labels.as_ref().unwrap()[INDEX].as_str())
            .collect();
        assert_eq!(created, ["4"]);
        assert_eq!(plan.status.unwrap().completed_indexes.as_deref(), Some("0-1,3"));
    }

    #[test]
    fn an_ended_job_goes_when_its_time_is_over() {
        let mut job = job(json!({"ttlSecondsAfterFinished": 10}));
        job.status = plan(&job, &pods(&[("Succeeded", 0)]), Timestamp::UNIX_EPOCH).status;
        let at = |second| plan(&job, &[], Timestamp::from_second(second).unwrap());
        assert_eq!(
            at(4),
            Plan {
                again: Some(Duration::from_secs(6)),
                ..Plan::default()
            }
        );
        assert_eq!(
            at(10),
            Plan {
                expire: true,
                ..Plan::default()
            }
        );
    }
}
