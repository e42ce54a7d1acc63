//! Workloads and what steers them.

use serde_json::{Map, Value};

use super::pod::template;
use super::{Empty, Problems, is_empty_text, selects};
use crate::error::FieldError;

const STATEFUL_SET_CHANGEABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(super) fn apps(plural: &str, spec: &Value, problems: &mut Problems) {
    problems.not_negative("spec.replicas", &spec["replicas"]);
    problems.not_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
    problems.not_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
    selector(plural, spec, problems);
    template(&spec["template"], "spec.template", problems);
    always_restarted(&spec["template"], problems);
    let (field, kinds): (&str, &[&str]) = match plural {
        "deployments" => ("strategy", &["Recreate", "RollingUpdate"]),
        "statefulsets" | "daemonsets" => ("updateStrategy", &["OnDelete", "RollingUpdate"]),
        _ => return,
    };
    let path = format!("spec.{field}");
    problems.one_of(&format!("{path}.type"), &spec[field]["type"], kinds, Empty::Wrong);
    if spec[field]["type"] == "Recreate" && spec[field]["rollingUpdate"].is_object() {
        problems.forbidden(
            &format!("{path}.rollingUpdate"),
            "may not be specified when strategy `type` is 'Recreate'",
        );
    }
    if plural == "deployments" && spec[field]["type"] == "RollingUpdate" {
        let rolling = &spec[field]["rollingUpdate"];
        let zero = |value: &Value| *value == 0 || *value == "0%";
        if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
            problems.invalid(
                &format!("{path}.rollingUpdate.maxUnavailable"),
                &rolling["maxUnavailable"],
                "may not be 0 when `maxSurge` is 0",
            );
        }
    }
    if plural == "statefulsets" {
        problems.one_of(
            "spec.podManagementPolicy",
            &spec["podManagementPolicy"],
            &["OrderedReady", "Parallel"],
            Empty::Wrong,
        );
    }
}

fn selector(plural: &str, spec: &Value, problems: &mut Problems) {
    let selector = &spec["selector"];
    let empty = |part: &str| match &selector[part] {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if !selector.is_object() {
        problems.required("spec.selector", "");
        return;
    }
    problems.label_selector("spec.selector", selector);
    if empty("matchLabels") && empty("matchExpressions") {
        let kind = plural.trim_end_matches('s');
        problems.invalid(
            "spec.selector",
            selector,
            format!("empty selector is invalid for {kind}"),
        );
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !selects(selector, labels) {
        let none = Value::Object(Map::new());
        problems.invalid(
            "spec.template.metadata.labels",
            if labels.is_null() { &none } else { labels },
            "`selector` does not match template `labels`",
        );
    }
}

fn always_restarted(template: &Value, problems: &mut Problems) {
    let policy = &template["spec"]["restartPolicy"];
    if matches!(policy.as_str(), Some("Never" | "OnFailure")) {
        problems.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
}

pub(super) fn stateful_set_update(spec: &Value, old: &Value, problems: &mut Problems) {
    let fixed = |spec: &Value| -> Map<String, Value> {
        let fields = spec.as_object().into_iter().flatten();
        fields
            .filter(|(name, value)| !STATEFUL_SET_CHANGEABLE.contains(&name.as_str()) && !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    if fixed(spec) != fixed(old) {
        problems.forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
    }
}

pub(super) fn replication_controller(spec: &Value, problems: &mut Problems) {
    problems.not_negative("spec.replicas", &spec["replicas"]);
    let selector = spec["selector"].as_object();
    if selector.is_none_or(Map::is_empty) {
        problems.required("spec.selector", "");
    } else {
        let labels = &spec["template"]["metadata"]["labels"];
        if selector
            .into_iter()
            .flatten()
            .any(|(key, value)| labels[key] != *value)
        {
            problems.invalid(
                "spec.template.metadata.labels",
                labels,
                "`selector` does not match template `labels`",
            );
        }
    }
    template(&spec["template"], "spec.template", problems);
    always_restarted(&spec["template"], problems);
}

pub(super) fn job(spec: &Value, path: &str, problems: &mut Problems) {
    for field in [
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ] {
        problems.not_negative(&format!("{path}.{field}"), &spec[field]);
    }
    problems.one_of(
        &format!("{path}.completionMode"),
        &spec["completionMode"],
        &["Indexed", "NonIndexed"],
        Empty::Fine,
    );
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        problems.required(&format!("{path}.completions"), "when completion mode is Indexed");
    }
    template(&spec["template"], &format!("{path}.template"), problems);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Always" {
        problems.required(
            &format!("{path}.template.spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        );
    }
}

pub(super) fn job_update(spec: &Value, old: &Value, problems: &mut Problems) {
    for field in ["selector", "completionMode", "template"] {
        let suspended = old["suspend"] == true;
        if field == "template" && suspended {
            continue;
        }
        problems.unchanged(spec, old, field, &format!("spec.{field}"));
    }
    if spec["completionMode"] != "Indexed" {
        problems.unchanged(spec, old, "completions", "spec.completions");
    }
}

pub(super) fn cron_job(object: &Value, problems: &mut Problems) {
    let spec = &object["spec"];
    match spec["schedule"].as_str() {
        None | Some("") => problems.required("spec.schedule", ""),
        Some(schedule) => {
            let fields = schedule.split_whitespace().count();
            if !schedule.starts_with('@') && fields != 5 {
                problems.invalid(
                    "spec.schedule",
                    &spec["schedule"],
                    format!(
                        "expected exactly 5 fields, found {fields}: [{}]",
                        schedule.split_whitespace().collect::<Vec<_>>().join(" ")
                    ),
                );
            }
        }
    }
    problems.one_of(
        "spec.concurrencyPolicy",
        &spec["concurrencyPolicy"],
        &["Allow", "Forbid", "Replace"],
        Empty::Wrong,
    );
    job(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", problems);
}

pub(super) fn autoscaler(spec: &Value, problems: &mut Problems) {
    let number = |field: &str| spec[field].as_i64().unwrap_or_default();
    if number("maxReplicas") < 1 {
        problems.invalid(
            "spec.maxReplicas",
            &Value::from(number("maxReplicas")),
            "must be greater than 0",
        );
    } else if number("maxReplicas") < number("minReplicas") {
        problems.invalid(
            "spec.maxReplicas",
            &spec["maxReplicas"],
            "must be greater than or equal to `minReplicas`",
        );
    }
    for field in ["kind", "name"] {
        if is_empty_text(&spec["scaleTargetRef"][field]) {
            problems.required(&format!("spec.scaleTargetRef.{field}"), "");
        }
    }
}

pub(super) fn disruption_budget(spec: &Value, problems: &mut Problems) {
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        problems.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        problems.not_negative(&format!("spec.{field}"), &spec[field]);
    }
    problems.label_selector("spec.selector", &spec["selector"]);
}
