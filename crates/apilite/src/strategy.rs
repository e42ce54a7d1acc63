//! What happens to an object between its arrival and its storing.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::error::FieldError;
use crate::registry::{Origin, Resource};
use crate::schema::Schema;
use crate::write::Endpoint;
use crate::{crd, defaults, structural, validation};

/// Now, in whole seconds of RFC 3339, as `metav1.Time` prints it.
pub(crate) fn now() -> String {
    in_seconds(0)
}

/// The time that many seconds from now, in whole seconds of RFC 3339.
pub(crate) fn in_seconds(seconds: i64) -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second().saturating_add(seconds))
        .unwrap_or(now)
        .to_string()
}

/// Sets what only the server sets on a new object.
pub(crate) fn new_object(resource: &Resource, object: &mut Value) {
    let metadata = &mut object["metadata"];
    metadata["uid"] = Value::from(uuid::Uuid::new_v4().to_string());
    metadata["creationTimestamp"] = Value::from(now());
    if let Some(metadata) = metadata.as_object_mut() {
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "generation",
            "resourceVersion",
        ] {
            metadata.remove(field);
        }
        if has_generation(resource) {
            metadata.insert("generation".to_owned(), Value::from(1));
        }
    }
    if resets_status(resource)
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
}

/// Nodes keep the status they are registered with.
fn resets_status(resource: &Resource) -> bool {
    resource.status && !resource.is("", "nodes")
}

/// Whether `metadata.generation` counts the changes of the spec.
fn has_generation(resource: &Resource) -> bool {
    match &resource.origin {
        Origin::Custom(_) => true,
        Origin::BuiltIn(_) => match resource.group.as_str() {
            "apps" => resource.plural != "controllerrevisions",
            "batch"
            | "networking.k8s.io"
            | "policy"
            | "discovery.k8s.io"
            | "apiextensions.k8s.io"
            | "admissionregistration.k8s.io"
            | "autoscaling"
            | "scheduling.k8s.io" => true,
            "" => matches!(resource.plural.as_str(), "pods" | "replicationcontrollers"),
            _ => false,
        },
    }
}

/// Kind-specific initial state.
pub(crate) fn prepare_create(resource: &Resource, object: &mut Value) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => {
            let class = defaults::qos_class(&object["spec"]);
            object["status"] = json!({ "phase": "Pending", "qosClass": class });
        }
        ("batch", "jobs") => select_own_pods(object),
        ("", "namespaces") => {
            object["status"] = json!({ "phase": "Active" });
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        ("", "persistentvolumeclaims" | "persistentvolumes") => {
            object["status"] = json!({ "phase": "Pending" });
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") => crd::settle_status(object),
        _ => {}
    }
}

/// A Job without a selector of its own selects its pods by its UID.
fn select_own_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true || !job["spec"]["template"].is_object() {
        return;
    }
    let uid = job["metadata"]["uid"].clone();
    let name = job["metadata"]["name"].clone();
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        job["spec"]["template"]["metadata"]["labels"][label] = value.clone();
    }
    job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid;
}

/// Takes over from the old object what this endpoint may not change.
pub(crate) fn carry_over(resource: &Resource, endpoint: Endpoint, new: &mut Value, old: &Value) {
    match endpoint {
        Endpoint::Main if resource.status => {
            copy(new, old, "status");
            if resource.is("", "namespaces") && new["spec"].is_object() {
                copy(&mut new["spec"], &old["spec"], "finalizers");
            }
        }
        Endpoint::Main | Endpoint::Whole => {}
        Endpoint::Status => {
            let status = new["status"].take();
            let metadata = new["metadata"].take();
            *new = old.clone();
            new["status"] = status;
            if status_is_null(new)
                && let Some(fields) = new.as_object_mut()
            {
                fields.remove("status");
            }
            if matches!(resource.origin, Origin::BuiltIn(_)) {
                let owners = old["metadata"]["ownerReferences"].clone();
                new["metadata"] = metadata;
                if owners.is_null() {
                    if let Some(fields) = new["metadata"].as_object_mut() {
                        fields.remove("ownerReferences");
                    }
                } else {
                    new["metadata"]["ownerReferences"] = owners;
                }
            } else {
                let managed = metadata["managedFields"].clone();
                if !managed.is_null() {
                    new["metadata"]["managedFields"] = managed;
                }
            }
        }
    }
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        copy(&mut new["metadata"], &old["metadata"], field);
    }
    new["metadata"]["name"] = old["metadata"]["name"].clone();
}

fn status_is_null(object: &Value) -> bool {
    object["status"].is_null()
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.remove(field),
    };
}

/// Kind-specific upkeep, and the generation.
pub(crate) fn prepare_update(resource: &Resource, endpoint: Endpoint, new: &mut Value, old: &Value) {
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions") && endpoint == Endpoint::Main {
        crd::settle_status(new);
    }
    if endpoint == Endpoint::Main && has_generation(resource) && content_differs(resource, new, old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or_default();
        new["metadata"]["generation"] = Value::from(generation + 1);
    }
}

/// Whether anything but metadata, and status where it is a subresource, changed.
fn content_differs(resource: &Resource, new: &Value, old: &Value) -> bool {
    let ignored = |field: &str| field == "metadata" || (field == "status" && resource.status);
    let content = |object: &Value| -> Vec<(String, Value)> {
        let fields = object.as_object().into_iter().flatten();
        fields
            .filter(|(field, value)| !ignored(field) && !value.is_null())
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect()
    };
    content(new) != content(old)
}

pub(crate) fn default(resource: &Resource, object: &mut Value) {
    match &resource.origin {
        Origin::Custom(_) => structural::default(Schema::of(resource), object),
        Origin::BuiltIn(_) if resource.is("apiextensions.k8s.io", "customresourcedefinitions") => {
            crd::default(object);
        }
        Origin::BuiltIn(_) => defaults::apply(resource, object),
    }
}

pub(crate) fn validate_create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut problems = validation::create(resource, object);
    if let Origin::Custom(_) = resource.origin {
        problems.extend(structural::validate(Schema::of(resource), object, ""));
    }
    problems
}

pub(crate) fn validate_update(
    resource: &Resource,
    endpoint: Endpoint,
    new: &Value,
    old: &Value,
) -> Vec<FieldError> {
    match (&resource.origin, endpoint) {
        // What status says of built-in types is their controllers' affair.
        (Origin::BuiltIn(_), Endpoint::Status | Endpoint::Whole) => Vec::new(),
        (Origin::BuiltIn(_), Endpoint::Main) => validation::update(resource, new, old),
        (Origin::Custom(_), _) => {
            let mut problems = validation::update(resource, new, old);
            problems.extend(structural::validate(Schema::of(resource), new, ""));
            problems
        }
    }
}

/// Equal up to what the server itself notes about writes.
pub(crate) fn same_but_bookkeeping(new: &Value, old: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        for entry in object["metadata"]["managedFields"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
        object
    };
    new == old || strip(new) == strip(old)
}

/// A terminating object that nothing holds back any more.
pub(crate) fn may_vanish(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let held = |list: &Value| list.as_array().is_some_and(|items| !items.is_empty());
    metadata["deletionTimestamp"].is_string()
        && !held(&metadata["finalizers"])
        && metadata["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or_default()
            == 0
        && !(object["kind"] == "Namespace"
            && object["apiVersion"] == "v1"
            && held(&object["spec"]["finalizers"]))
}
