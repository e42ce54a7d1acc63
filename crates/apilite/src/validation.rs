//! Validation of built-in types, with the field paths and messages of `pkg/apis/*/validation`.

mod meta;
mod network;
mod pod;
mod service;
mod storage;
mod workload;

use serde_json::Value;

use crate::error::FieldError;
use crate::names;
use crate::registry::{Origin, Resource};
use crate::selector::LabelSelector;

/// Findings of one validation, and the readers that field checks share.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<FieldError>);

/// Everything about a new object.
pub(crate) fn create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut problems = Problems::default();
    meta::object_meta(resource, object, &mut problems);
    spec(resource, object, &mut problems);
    problems.0
}

/// Everything about a changed object; `old` is the state before.
pub(crate) fn update(resource: &Resource, object: &Value, old: &Value) -> Vec<FieldError> {
    let mut problems = Problems::default();
    meta::object_meta(resource, object, &mut problems);
    meta::object_meta_update(object, old, &mut problems);
    if let Origin::Custom(_) = resource.origin {
        return problems.0;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        // A pod's specification is checked when it is made; afterwards hardly anything may change.
        ("", "pods") => pod::update(object, old, &mut problems),
        _ => {
            spec(resource, object, &mut problems);
            spec_update(resource, object, old, &mut problems);
        }
    }
    problems.0
}

fn spec(resource: &Resource, object: &Value, problems: &mut Problems) {
    if let Origin::Custom(_) = resource.origin {
        return;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::pod(object, problems),
        ("", "services") => service::service(&object["spec"], problems),
        ("", "configmaps") => storage::config_map(object, problems),
        ("", "secrets") => storage::secret(object, problems),
        ("", "persistentvolumeclaims") => storage::claim(&object["spec"], "spec", problems),
        ("", "nodes") => meta::node(object, problems),
        ("", "replicationcontrollers") => workload::replication_controller(&object["spec"], problems),
        ("", "endpoints") => network::endpoints(object, problems),
        ("apps", "controllerrevisions") => {}
        ("apps", plural) => workload::apps(plural, &object["spec"], problems),
        ("batch", "jobs") => workload::job(&object["spec"], "spec", problems),
        ("batch", "cronjobs") => workload::cron_job(object, problems),
        ("autoscaling", _) => workload::autoscaler(&object["spec"], problems),
        ("policy", _) => workload::disruption_budget(&object["spec"], problems),
        ("networking.k8s.io", "networkpolicies") => network::policy(&object["spec"], problems),
        ("networking.k8s.io", "ingresses") => network::ingress(&object["spec"], problems),
        ("discovery.k8s.io", _) => network::endpoint_slice(object, problems),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            meta::role_binding(object, problems);
        }
        ("apiextensions.k8s.io", _) => problems.0.extend(crate::crd::validate(object)),
        _ => {}
    }
}

fn spec_update(resource: &Resource, object: &Value, old: &Value, problems: &mut Problems) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "services") => service::update(&object["spec"], &old["spec"], problems),
        ("", "configmaps") => storage::immutable(object, old, &["data", "binaryData"], problems),
        ("", "secrets") => {
            storage::immutable(object, old, &["data"], problems);
            problems.unchanged(object, old, "type", "type");
        }
        ("", "nodes") => meta::node_update(object, old, problems),
        ("apps", "statefulsets") => workload::stateful_set_update(&object["spec"], &old["spec"], problems),
        ("apps", "deployments" | "replicasets" | "daemonsets") => {
            problems.unchanged(&object["spec"], &old["spec"], "selector", "spec.selector");
        }
        ("batch", "jobs") => workload::job_update(&object["spec"], &old["spec"], problems),
        ("discovery.k8s.io", _) => problems.unchanged(object, old, "addressType", "addressType"),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings")
            if object["roleRef"] != old["roleRef"] =>
        {
            problems.invalid("roleRef", &object["roleRef"], "cannot change roleRef");
        }
        ("scheduling.k8s.io", _) if object["value"] != old["value"] => {
            problems.forbidden("value", "may not be changed in an update.");
        }
        ("storage.k8s.io", "storageclasses") => {
            for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
                if object[field] != old[field] {
                    problems.forbidden(
                        field,
                        "updates to {field} are forbidden.".replace("{field}", field),
                    );
                }
            }
        }
        ("apiextensions.k8s.io", _) => {
            for field in ["group", "scope"] {
                problems.unchanged(&object["spec"], &old["spec"], field, &format!("spec.{field}"));
            }
            for field in ["plural", "kind"] {
                let (new, old) = (&object["spec"]["names"], &old["spec"]["names"]);
                problems.unchanged(new, old, field, &format!("spec.names.{field}"));
            }
        }
        _ => {}
    }
}

// === impl Problems ===

impl Problems {
    fn required(&mut self, field: &str, detail: &str) {
        self.0.push(FieldError::required(field, detail));
    }

    fn invalid(&mut self, field: &str, value: &Value, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(field, value, detail));
    }

    fn forbidden(&mut self, field: &str, detail: impl Into<String>) {
        self.0.push(FieldError::forbidden(field, detail));
    }

    fn duplicate(&mut self, field: &str, value: &Value) {
        self.0.push(FieldError::duplicate(field, value));
    }

    fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    /// One finding per complaint about a text.
    fn text(&mut self, field: &str, value: &Value, complaints: Vec<String>) {
        for complaint in complaints {
            self.invalid(field, value, complaint);
        }
    }

    /// A field of a closed set; `empty` says what an absent one means.
    fn one_of(&mut self, field: &str, value: &Value, allowed: &[&str], empty: Empty) {
        match value.as_str() {
            None | Some("") if empty == Empty::Fine => {}
            None | Some("") => self.required(field, ""),
            Some(text) if allowed.contains(&text) => {}
            Some(_) => self.0.push(FieldError::not_supported(field, value, allowed)),
        }
    }

    fn not_negative(&mut self, field: &str, value: &Value) {
        if value.as_i64().is_some_and(|number| number < 0) {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }

    /// A number between 1 and 65535.
    fn port(&mut self, field: &str, value: &Value) {
        let number = value.as_i64().unwrap_or_default();
        if !(1..=65_535).contains(&number) {
            self.invalid(
                field,
                &Value::from(number),
                "must be between 1 and 65535, inclusive",
            );
        }
    }

    /// A port by number or name.
    fn port_or_name(&mut self, field: &str, value: &Value) {
        match value {
            Value::String(name) => self.text(field, value, port_name(name)),
            other => self.port(field, other),
        }
    }

    fn labels(&mut self, field: &str, labels: &Value) {
        for (key, value) in labels.as_object().into_iter().flatten() {
            self.text(field, &Value::from(key.as_str()), names::qualified_name(key));
            self.text(
                field,
                value,
                names::label_value(value.as_str().unwrap_or_default()),
            );
        }
    }

    /// A `metav1.LabelSelector`.
    fn label_selector(&mut self, field: &str, selector: &Value) {
        self.labels(&format!("{field}.matchLabels"), &selector["matchLabels"]);
        for (i, expression) in list(&selector["matchExpressions"]).enumerate() {
            let path = format!("{field}.matchExpressions[{i}]");
            let has_values = list(&expression["values"]).next().is_some();
            match expression["operator"].as_str() {
                Some("In" | "NotIn") if !has_values => {
                    self.required(
                        &format!("{path}.values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
                Some("Exists" | "DoesNotExist") if has_values => {
                    self.forbidden(
                        &format!("{path}.values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
                Some("In" | "NotIn" | "Exists" | "DoesNotExist") => {}
                _ => self.invalid(
                    &format!("{path}.operator"),
                    &expression["operator"],
                    "not a valid selector operator",
                ),
            }
            let key = expression["key"].as_str().unwrap_or_default();
            self.text(
                &format!("{path}.key"),
                &expression["key"],
                names::qualified_name(key),
            );
        }
    }

    fn unchanged(&mut self, new: &Value, old: &Value, field: &str, path: &str) {
        if new[field] != old[field] {
            self.invalid(path, &new[field], "field is immutable");
        }
    }
}

/// Whether a field of a closed set may be left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Empty {
    Fine,
    Wrong,
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn is_empty_text(value: &Value) -> bool {
    value.as_str().is_none_or(str::is_empty)
}

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// IANA service name (RFC 6335), as container ports and target ports have them.
fn port_name(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > 15 {
        problems.push("must be no more than 15 characters".to_owned());
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        || name.is_empty()
    {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        problems.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        problems.push("must not begin or end with a hyphen".to_owned());
    }
    problems
}

fn selects(selector: &Value, labels: &Value) -> bool {
    LabelSelector::from_object(selector).is_some_and(|selector| selector.matches(|key| labels[key].as_str()))
}
