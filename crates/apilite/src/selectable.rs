//! Fields that field selectors can name, per resource, as the real server's `GetAttrs` functions list them.

use serde_json::Value;

use crate::registry::Shelf;
use crate::selector::FieldSelector;
use crate::store::Stored;

/// (field of the selector, JSON pointer) beyond `metadata.name` and `metadata.namespace`.
pub(crate) type Field = (&'static str, &'static str);

const POD: &[Field] = &[
    ("spec.nodeName", "/spec/nodeName"),
    ("spec.restartPolicy", "/spec/restartPolicy"),
    ("spec.schedulerName", "/spec/schedulerName"),
    ("spec.serviceAccountName", "/spec/serviceAccountName"),
    ("spec.hostNetwork", "/spec/hostNetwork"),
    ("status.phase", "/status/phase"),
    ("status.podIP", "/status/podIP"),
    ("status.nominatedNodeName", "/status/nominatedNodeName"),
];
const EVENT: &[Field] = &[
    ("involvedObject.kind", "/involvedObject/kind"),
    ("involvedObject.namespace", "/involvedObject/namespace"),
    ("involvedObject.name", "/involvedObject/name"),
    ("involvedObject.uid", "/involvedObject/uid"),
    ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
    (
        "involvedObject.resourceVersion",
        "/involvedObject/resourceVersion",
    ),
    ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
    ("reason", "/reason"),
    ("reportingComponent", "/reportingComponent"),
    ("source", "/source/component"),
    ("type", "/type"),
];
const NODE: &[Field] = &[("spec.unschedulable", "/spec/unschedulable")];
const NAMESPACE: &[Field] = &[("status.phase", "/status/phase")];
const SECRET: &[Field] = &[("type", "/type")];
const SERVICE: &[Field] = &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")];
const REPLICAS: &[Field] = &[("status.replicas", "/status/replicas")];
const JOB: &[Field] = &[("status.successful", "/status/succeeded")];

/// The fields of a resource; their values are kept with every stored object.
pub(crate) fn fields(shelf: &Shelf) -> &'static [Field] {
    match (shelf.group.as_str(), shelf.plural.as_str()) {
        ("", "pods") => POD,
        ("", "events") => EVENT,
        ("", "nodes") => NODE,
        ("", "namespaces") => NAMESPACE,
        ("", "secrets") => SECRET,
        ("", "services") => SERVICE,
        ("", "replicationcontrollers") | ("apps", "replicasets") => REPLICAS,
        ("batch", "jobs") => JOB,
        _ => &[],
    }
}

/// Values of [`fields`] in an object, in the same order.
pub(crate) fn values(shelf: &Shelf, object: &Value) -> Box<[Box<str>]> {
    fields(shelf)
        .iter()
        .map(|(field, pointer)| match object.pointer(pointer) {
            Some(Value::String(text)) => text.as_str().into(),
            Some(Value::Null) | None => match *field {
                "spec.unschedulable" | "spec.hostNetwork" => "false".into(),
                "status.replicas" | "status.successful" => "0".into(),
                _ => "".into(),
            },
            Some(other) => other.to_string().into(),
        })
        .collect()
}

/// The first field of a selector that the resource doesn't offer.
pub(crate) fn unknown_field<'a>(
    shelf: &Shelf,
    custom: &[(String, String)],
    selector: &'a FieldSelector,
) -> Option<&'a str> {
    selector
        .terms()
        .iter()
        .map(|term| term.field.as_str())
        .find(|field| {
            !matches!(*field, "metadata.name" | "metadata.namespace")
                && !fields(shelf).iter().any(|(known, _)| known == field)
                && !custom.iter().any(|(known, _)| known == field)
        })
}

/// Whether a stored object has the selected values. `custom` are the fields a CRD version declares.
pub(crate) fn matches(
    shelf: &Shelf,
    custom: &[(String, String)],
    selector: &FieldSelector,
    stored: &Stored,
) -> bool {
    selector.terms().iter().all(|term| {
        let value: std::borrow::Cow<'_, str> = match term.field.as_str() {
            "metadata.name" => (&*stored.key.name).into(),
            "metadata.namespace" => (&*stored.key.namespace).into(),
            field => {
                if let Some(index) = fields(shelf).iter().position(|(known, _)| *known == field) {
                    (&*stored.fields[index]).into()
                } else {
                    let object = stored.value();
                    let pointer = custom
                        .iter()
                        .find(|(known, _)| known == field)
                        .map(|(_, pointer)| pointer);
                    match pointer.and_then(|pointer| object.pointer(pointer)) {
                        Some(Value::String(text)) => text.clone().into(),
                        Some(Value::Null) | None => "".into(),
                        Some(other) => other.to_string().into(),
                    }
                }
            }
        };
        (*value == *term.value) == term.equal
    })
}

/// The kept value of one field.
pub(crate) fn value<'a>(shelf: &Shelf, stored: &'a Stored, field: &str) -> Option<&'a str> {
    let index = fields(shelf).iter().position(|(known, _)| *known == field)?;
    Some(&stored.fields[index])
}
