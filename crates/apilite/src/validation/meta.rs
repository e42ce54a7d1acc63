//! Metadata, and types that are little more.

use serde_json::Value;

use super::{Empty, Problems, is_empty_text, list};
use crate::error::FieldError;
use crate::names;
use crate::registry::Resource;

/// Bytes of all annotations together.
const ANNOTATIONS_MAX: usize = 256 * 1024;

pub(super) fn object_meta(resource: &Resource, object: &Value, problems: &mut Problems) {
    let meta = &object["metadata"];
    if is_empty_text(&meta["name"]) {
        problems.required("metadata.name", "name or generateName is required");
    } else {
        let complaints = name_complaints(resource, meta["name"].as_str().unwrap_or_default());
        problems.text("metadata.name", &meta["name"], complaints);
    }
    problems.labels("metadata.labels", &meta["labels"]);
    let mut size = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        let complaints = names::qualified_name(&key.to_lowercase());
        problems.text("metadata.annotations", &Value::from(key.as_str()), complaints);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        problems.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_MAX));
    }
    finalizers(meta, problems);
    owners(meta, problems);
}

fn name_complaints(resource: &Resource, name: &str) -> Vec<String> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") => names::dns1123_label(name),
        ("", "services") => names::dns1035_label(name),
        ("rbac.authorization.k8s.io", _) => names::path_segment(name),
        ("batch", "cronjobs") if name.len() > 52 => {
            vec!["must be no more than 52 characters".to_owned()]
        }
        _ => names::dns1123_subdomain(name),
    }
}

fn finalizers(meta: &Value, problems: &mut Problems) {
    let standard = ["orphan", "foregroundDeletion", "kubernetes"];
    for finalizer in list(&meta["finalizers"]) {
        let text = finalizer.as_str().unwrap_or_default();
        let complaints = names::qualified_name(text);
        if !complaints.is_empty() {
            problems.text("metadata.finalizers", finalizer, complaints);
        } else if !text.contains('/') && !standard.contains(&text) {
            problems.invalid(
                "metadata.finalizers",
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    let has = |name: &str| list(&meta["finalizers"]).any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        problems.invalid(
            "metadata.finalizers",
            &meta["finalizers"],
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

fn owners(meta: &Value, problems: &mut Problems) {
    const PATH: &str = "metadata.ownerReferences";
    for owner in list(&meta["ownerReferences"]) {
        for (field, what) in [
            ("apiVersion", "version"),
            ("kind", "kind"),
            ("name", "name"),
            ("uid", "uid"),
        ] {
            if is_empty_text(&owner[field]) {
                let field = format!("{PATH}.{field}");
                problems.invalid(&field, &Value::from(""), format!("{what} must not be empty"));
            }
        }
    }
    let controllers: Vec<&Value> = list(&meta["ownerReferences"])
        .filter(|owner| owner["controller"] == true)
        .collect();
    if let [first, second, ..] = controllers.as_slice() {
        let name = |owner: &Value| format!("{}/{}", text(&owner["kind"]), text(&owner["name"]));
        problems.invalid(
            PATH,
            &meta["ownerReferences"],
            format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                name(first),
                name(second)
            ),
        );
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn object_meta_update(object: &Value, old: &Value, problems: &mut Problems) {
    let (meta, old) = (&object["metadata"], &old["metadata"]);
    if !old["deletionTimestamp"].is_string() {
        return;
    }
    let added: Vec<String> = list(&meta["finalizers"])
        .filter(|finalizer| !list(&old["finalizers"]).any(|known| known == *finalizer))
        .map(ToString::to_string)
        .collect();
    if !added.is_empty() {
        problems.forbidden(
            "metadata.finalizers",
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            ),
        );
    }
}

pub(super) fn node(object: &Value, problems: &mut Problems) {
    for (i, taint) in list(&object["spec"]["taints"]).enumerate() {
        let path = format!("spec.taints[{i}]");
        problems.text(
            &format!("{path}.key"),
            &taint["key"],
            names::qualified_name(text(&taint["key"])),
        );
        problems.text(
            &format!("{path}.value"),
            &taint["value"],
            names::label_value(text(&taint["value"])),
        );
        problems.one_of(
            &format!("{path}.effect"),
            &taint["effect"],
            &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            Empty::Wrong,
        );
        let same = |other: &&Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
        if list(&object["spec"]["taints"]).take(i).any(|other| same(&other)) {
            problems.duplicate(&path, taint);
        }
    }
}

pub(super) fn node_update(object: &Value, old: &Value, problems: &mut Problems) {
    let (spec, old) = (&object["spec"], &old["spec"]);
    if list(&old["podCIDRs"]).next().is_some() && spec["podCIDRs"] != old["podCIDRs"] {
        problems.forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    if !is_empty_text(&old["providerID"]) && spec["providerID"] != old["providerID"] {
        problems.forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        );
    }
}

pub(super) fn role_binding(object: &Value, problems: &mut Problems) {
    problems.one_of(
        "roleRef.apiGroup",
        &object["roleRef"]["apiGroup"],
        &["rbac.authorization.k8s.io"],
        Empty::Wrong,
    );
    let kinds: &[&str] = if object["kind"] == "RoleBinding" {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    problems.one_of("roleRef.kind", &object["roleRef"]["kind"], kinds, Empty::Wrong);
    if is_empty_text(&object["roleRef"]["name"]) {
        problems.required("roleRef.name", "");
    }
    for (i, subject) in list(&object["subjects"]).enumerate() {
        let path = format!("subjects[{i}]");
        if is_empty_text(&subject["name"]) {
            problems.required(&format!("{path}.name"), "");
        }
        problems.one_of(
            &format!("{path}.kind"),
            &subject["kind"],
            &["ServiceAccount", "User", "Group"],
            Empty::Wrong,
        );
    }
}
