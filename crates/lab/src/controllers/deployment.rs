//! Deployments: ReplicaSets that take over from one another.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::facts::{Key, Labels, PodFacts, controller_reference, timestamp};
use super::template::{POD_TEMPLATE_HASH, hash};

/// Annotation with the number of a revision, on a Deployment and its ReplicaSets.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const HISTORY_LIMIT: usize = 10;
const PROGRESS_DEADLINE: i32 = 600;

/// What is to be done for a Deployment, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The ReplicaSet of the current template, to be created.
    pub create: Option<ReplicaSet>,
    /// ReplicaSets to scale: name and replicas.
    pub scale: Vec<(Key, i32)>,
    /// Annotations to set on ReplicaSets.
    pub annotate: Vec<(Key, Labels)>,
    /// Revision to note on the Deployment.
    pub revision: Option<String>,
    /// ReplicaSets of the past to delete.
    pub delete: Vec<Key>,
    /// The status to be written, where it changed.
    pub status: Option<DeploymentStatus>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// How a rollout may deviate from the wanted number of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    desired: i32,
    /// Pods that may exist at most.
    most: i32,
    /// Pods that must be available at least.
    least: i32,
}

/// Compares a Deployment with the ReplicaSets it owns; `pods` are those of all its ReplicaSets.
pub fn plan(
    deployment: &Deployment,
    owned: &[Arc<ReplicaSet>],
    pods: &[Arc<PodFacts>],
    now: Timestamp,
) -> Plan {
    let (Some(spec), None) = (&deployment.spec, &deployment.metadata.deletion_timestamp) else {
        return Plan::default();
    };
    let hash = hash(&spec.template);
    let mut sets: Vec<&Arc<ReplicaSet>> = owned
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .collect();
    sets.sort_by_key(|set| {
        (
            timestamp(set.metadata.creation_timestamp.as_ref()),
            set.metadata.name.clone(),
        )
    });
    let (current, old): (Vec<&Arc<ReplicaSet>>, Vec<&Arc<ReplicaSet>>) = sets
        .iter()
        .partition(|set| label(set, POD_TEMPLATE_HASH) == Some(&hash));
    let current = current.first().copied();
    let mut plan = Plan::default();
    let paused = spec.paused == Some(true);
    let desired = spec.replicas.unwrap_or(1);
    let strategy = spec.strategy.clone().unwrap_or_default();
    let recreate = strategy.type_.as_deref() == Some("Recreate");
    let bounds = if recreate {
        Bounds {
            desired,
            most: desired,
            least: 0,
        }
    } else {
        let rolling = strategy.rolling_update.unwrap_or_default();
        Bounds::of(
            desired,
            rolling.max_surge.as_ref(),
            rolling.max_unavailable.as_ref(),
        )
    };

    // Revisions: the current template has the highest number.
    let highest_old = old.iter().filter_map(|set| revision(set)).max().unwrap_or(0);
    let number = match current.and_then(|set| revision(set)) {
        Some(number) if number > highest_old => number,
        _ if current.is_none() && paused => highest_old,
        _ => highest_old + 1,
    };
    let annotations = annotations(deployment, bounds, number);

    let old_running = || {
        old.iter()
            .any(|set| replicas(set) > 0 || set.status.as_ref().is_some_and(|status| status.replicas > 0))
            || pods
                .iter()
                .any(|pod| !pod.phase.is_terminal() && pod.labels.get(POD_TEMPLATE_HASH) != Some(&hash))
    };
    if paused {
        // No rollout, but a change of scale is passed on to the ReplicaSet that holds the pods.
        let active: Vec<&&Arc<ReplicaSet>> = sets.iter().filter(|set| replicas(set) > 0).collect();
        if let Some(only) = active
            .first()
            .copied()
            .or(sets.last())
            .filter(|_| active.len() <= 1)
            && replicas(only) != desired
        {
            plan.scale.push((Key::of(&only.metadata), desired));
        }
    } else if recreate {
        plan.scale.extend(
            old.iter()
                .filter(|set| replicas(set) > 0)
                .map(|set| (Key::of(&set.metadata), 0)),
        );
        if !old_running() {
            match current {
                None => plan.create = Some(replica_set(deployment, &hash, desired, annotations.clone())),
                Some(set) if replicas(set) != desired => plan.scale.push((Key::of(&set.metadata), desired)),
                Some(_) => {}
            }
        }
    } else {
        roll(&mut plan, deployment, current, &old, bounds, &hash, &annotations);
    }

    if let Some(set) = current {
        let known = set.metadata.annotations.clone().unwrap_or_default();
        if annotations
            .iter()
            .any(|(key, value)| known.get(key) != Some(value))
        {
            plan.annotate.push((Key::of(&set.metadata), annotations));
        }
    }
    if current.is_some() || plan.create.is_some() {
        let noted = deployment
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(REVISION));
        let number = number.to_string();
        plan.revision = (noted != Some(&number)).then_some(number);
    }
    plan.delete = history(&old, spec.revision_history_limit, paused);
    let (status, again) = status(deployment, current, &sets, bounds, paused, now);
    plan.status = status;
    plan.again = again;
    plan
}

/// Scales the current ReplicaSet up and the old ones down, as far as the bounds allow now.
fn roll(
    plan: &mut Plan,
    deployment: &Deployment,
    current: Option<&Arc<ReplicaSet>>,
    old: &[&Arc<ReplicaSet>],
    bounds: Bounds,
    hash: &str,
    annotations: &Labels,
) {
    let old_total: i32 = old.iter().map(|set| replicas(set)).sum();
    let current_replicas = current.map_or(0, |set| replicas(set));
    let room = (bounds.most - old_total - current_replicas).max(0);
    let wanted = if current_replicas > bounds.desired {
        bounds.desired
    } else {
        current_replicas + room.min(bounds.desired - current_replicas)
    };
    match current {
        None => {
            plan.create = Some(replica_set(deployment, hash, wanted, annotations.clone()));
            return;
        }
        Some(set) if wanted != current_replicas => plan.scale.push((Key::of(&set.metadata), wanted)),
        Some(_) => {}
    }

    let current_available = current.map_or(0, |set| available(set));
    let mut spare = old_total + current_replicas - bounds.least - (current_replicas - current_available);
    let mut left: Vec<(Key, i32, i32)> = old
        .iter()
        .map(|set| (Key::of(&set.metadata), replicas(set), available(set)))
        .collect();
    // First those that serve nobody, then the oldest, without going below the least.
    for (_, replicas, available) in &mut left {
        let unhealthy = (*replicas - *available).clamp(0, spare.max(0));
        *replicas -= unhealthy;
        spare -= unhealthy;
    }
    let total_available: i32 = current_available
        + left
            .iter()
            .map(|(_, replicas, available)| available.min(replicas))
            .sum::<i32>();
    let mut surplus = (total_available - bounds.least).clamp(0, spare.max(0));
    for (_, replicas, _) in &mut left {
        let down = surplus.min(*replicas);
        *replicas -= down;
        surplus -= down;
    }
    for (set, (key, wanted, _)) in old.iter().zip(left) {
        if wanted != replicas(set) {
            plan.scale.push((key, wanted));
        }
    }
}

/// The status, where it changed, and when to look again.
fn status(
    deployment: &Deployment,
    current: Option<&Arc<ReplicaSet>>,
    sets: &[&Arc<ReplicaSet>],
    bounds: Bounds,
    paused: bool,
    now: Timestamp,
) -> (Option<DeploymentStatus>, Option<Duration>) {
    let before = deployment.status.clone().unwrap_or_default();
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(|set| of(set)).sum::<i32>();
    let actual = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let total = sum(&actual);
    let available = sum(&|set| available(set));
    let updated = current.map_or(0, |set| actual(set));
    let ready = sum(&|set| {
        set.status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0)
    });
    let complete = updated == bounds.desired && total == bounds.desired && available == bounds.desired;
    let name = current
        .and_then(|set| set.metadata.name.clone())
        .unwrap_or_default();

    let least_met = available >= bounds.least;
    let available_condition = if least_met {
        (
            "Available",
            true,
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".to_owned(),
        )
    } else {
        (
            "Available",
            false,
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".to_owned(),
        )
    };
    let known_progress = before
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Progressing");
    let moved = updated != before.updated_replicas.unwrap_or(0)
        || available > before.available_replicas.unwrap_or(0)
        || ready > before.ready_replicas.unwrap_or(0)
        || total < before.replicas.unwrap_or(0);
    let deadline = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.progress_deadline_seconds)
        .unwrap_or(PROGRESS_DEADLINE);
    let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or(0));
    let since = known_progress
        .and_then(|condition| condition.last_update_time.as_ref())
        .map_or(now, |time| time.0);
    let waited = Duration::from_secs(u64::try_from(now.as_second() - since.as_second()).unwrap_or(0));
    let was_complete =
        known_progress.and_then(|condition| condition.reason.as_deref()) == Some("NewReplicaSetAvailable");
    let progress = if paused {
        (
            "Progressing",
            "Unknown",
            "DeploymentPaused",
            "Deployment is paused".to_owned(),
        )
    } else if complete {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        ("Progressing", "True", "NewReplicaSetAvailable", message)
    } else if current.is_none() {
        (
            "Progressing",
            "True",
            "NewReplicaSetCreated",
            "Created new replica set".to_owned(),
        )
    } else if !moved && !was_complete && waited >= deadline {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        ("Progressing", "False", "ProgressDeadlineExceeded", message)
    } else {
        (
            "Progressing",
            "True",
            "ReplicaSetUpdated",
            format!("ReplicaSet \"{name}\" is progressing."),
        )
    };
    let again = (!complete && !paused && progress.2 != "ProgressDeadlineExceeded")
        .then(|| deadline.saturating_sub(waited).max(Duration::from_secs(1)));

    let (kind, holds, reason, message) = available_condition;
    let conditions = vec![
        condition(
            &before,
            (kind, if holds { "True" } else { "False" }, reason, message),
            false,
            now,
        ),
        condition(&before, progress, moved, now),
    ];
    let status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(total),
        updated_replicas: Some(updated),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        unavailable_replicas: Some((total.max(bounds.desired) - available).max(0)),
        conditions: Some(conditions),
        ..DeploymentStatus::default()
    };
    ((!same(&before, &status)).then_some(status), again)
}

/// Status fields that are 0 may be absent in what the server returns.
fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let number = |value: Option<i32>| value.unwrap_or(0);
    let shape = |status: &DeploymentStatus| {
        (
            [
                number(status.replicas),
                number(status.updated_replicas),
                number(status.ready_replicas),
                number(status.available_replicas),
                number(status.unavailable_replicas),
            ],
            status.observed_generation,
            status.conditions.clone().unwrap_or_default(),
        )
    };
    shape(a) == shape(b)
}

/// A condition whose times move only with its content.
fn condition(
    before: &DeploymentStatus,
    (kind, status, reason, message): (&str, &str, &str, String),
    moved: bool,
    now: Timestamp,
) -> DeploymentCondition {
    let known = before
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind);
    let unchanged = known.filter(|known| {
        known.status == status
            && known.reason.as_deref() == Some(reason)
            && known.message.as_deref() == Some(&message)
    });
    if let Some(known) = unchanged
        && !moved
    {
        return known.clone();
    }
    let transition = known
        .filter(|known| known.status == status)
        .and_then(|known| known.last_transition_time.clone());
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(transition.unwrap_or(Time(now))),
    }
}

/// ReplicaSets of the past beyond the limit of history, oldest first.
fn history(old: &[&Arc<ReplicaSet>], limit: Option<i32>, paused: bool) -> Vec<Key> {
    let limit = limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(HISTORY_LIMIT);
    let idle = |set: &&&Arc<ReplicaSet>| {
        replicas(set) == 0
            && set.status.as_ref().is_none_or(|status| status.replicas == 0)
            && set.metadata.generation.is_none_or(|generation| {
                set.status
                    .as_ref()
                    .and_then(|status| status.observed_generation)
                    .is_none_or(|seen| seen >= generation)
            })
    };
    let mut past: Vec<&&Arc<ReplicaSet>> = old.iter().filter(idle).collect();
    if paused || past.len() <= limit {
        return Vec::new();
    }
    past.sort_by_key(|set| revision(set).unwrap_or(0));
    past[..past.len() - limit]
        .iter()
        .map(|set| Key::of(&set.metadata))
        .collect()
}

fn replica_set(deployment: &Deployment, hash: &str, replicas: i32, annotations: Labels) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.to_owned());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(POD_TEMPLATE_HASH.to_owned(), hash.to_owned());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{hash}",
                deployment.metadata.name.as_deref().unwrap_or_default()
            )),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        ..ReplicaSet::default()
    }
}

fn annotations(deployment: &Deployment, bounds: Bounds, revision: i64) -> Labels {
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    annotations.insert(REVISION.to_owned(), revision.to_string());
    annotations.insert(DESIRED_REPLICAS.to_owned(), bounds.desired.to_string());
    annotations.insert(MAX_REPLICAS.to_owned(), bounds.most.to_string());
    annotations
}

fn label<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a String> {
    set.metadata.labels.as_ref()?.get(key)
}

fn revision(set: &ReplicaSet) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(REVISION)?.parse().ok()
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

// === impl Bounds ===

impl Bounds {
    /// Shares are of `desired`: a surge rounds up, what may be unavailable rounds down; they are never both 0.
    fn of(desired: i32, max_surge: Option<&IntOrString>, max_unavailable: Option<&IntOrString>) -> Self {
        let surge = share(max_surge, desired, true);
        let mut unavailable = share(max_unavailable, desired, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self {
            desired,
            most: desired + surge,
            least: (desired - unavailable).max(0),
        }
    }
}

/// A number, or a percentage of `total`; 25 % where absent.
pub fn share(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    let percent = |percent: i32| {
        let exact = i64::from(total) * i64::from(percent);
        let rounded = if round_up { (exact + 99) / 100 } else { exact / 100 };
        i32::try_from(rounded).unwrap_or(total)
    };
    match value {
        None => percent(25),
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse().map_or_else(
            |_| percent(25),
            |number| {
                if text.ends_with('%') {
                    percent(number)
                } else {
                    number
                }
            },
        ),
    }
}

#[cfg(test)]
#[path = "deployment_tests.rs"]
mod tests;
