//! Server-side apply: merging what a manager applies, and who owns which field.
//!
//! Ownership is tracked from the first apply on. An object that was never applied carries no
//! `managedFields`; at its first apply, everything it has belongs to `before-first-apply`, as in the real
//! server for objects from before it had server-side apply.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::ownership::{FieldSet, Parts, below, parts};
use crate::registry::Resource;
use crate::schema::{ListType, Schema};
use crate::strategy;
use crate::write::{Endpoint, WriteOptions};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One entry of `managedFields`.
#[derive(Clone, Debug)]
struct Manager {
    name: String,
    applies: bool,
    api_version: String,
    subresource: String,
    time: Value,
    fields: FieldSet,
}

/// A new object from an applied configuration.
pub(crate) fn create(resource: &Resource, applied: &Value, options: &WriteOptions) -> Value {
    let mut object = applied.clone();
    let mut fields = FieldSet::of(Schema::of(resource), applied);
    reset(resource, Endpoint::Main, &mut fields);
    let manager = Manager::new(options, true, resource, Endpoint::Main, fields);
    write_managers(&mut object, &[manager]);
    object
}

/// The live object with an applied configuration merged into it.
pub(crate) fn merge(
    resource: &Resource,
    live: &Value,
    applied: &Value,
    endpoint: Endpoint,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let schema = Schema::of(resource);
    let mut managers = read_managers(live);
    if managers.is_empty() {
        let everything = FieldSet::of(schema, live);
        let options = WriteOptions {
            manager: "before-first-apply".to_owned(),
            ..WriteOptions::internal()
        };
        managers.push(Manager::new(
            &options,
            false,
            resource,
            Endpoint::Main,
            everything,
        ));
    }
    let mut mine = FieldSet::of(schema, applied);
    reset(resource, endpoint, &mut mine);
    let mut wanted = applied.clone();
    drop_other_half(resource, endpoint, &mut wanted);
    let mut merged = live.clone();
    merge_value(schema, &mut merged, &wanted);

    let me = Manager::new(options, true, resource, endpoint, mine.clone());
    let before = managers.iter().position(|manager| manager.same_as(&me));
    let previous = before.map(|i| managers.remove(i).fields).unwrap_or_default();
    let others = managers
        .iter()
        .fold(FieldSet::default(), |all, manager| all.union(&manager.fields));
    let abandoned = previous.difference(&mine).difference(&others);
    remove_fields(schema, &mut merged, &abandoned, &others);

    let (changed, _) = FieldSet::differences(schema, live, &merged);
    let conflicts: Vec<(&Manager, FieldSet)> = managers
        .iter()
        .map(|manager| (manager, manager.fields.intersection(&changed)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    if !conflicts.is_empty() && !options.force && !tolerated(schema, options, live, &conflicts) {
        return Err(conflict(&conflicts));
    }
    for manager in &mut managers {
        manager.fields = manager.fields.difference(&changed);
    }
    managers.retain(|manager| !manager.fields.is_empty());
    managers.push(me);
    merged["metadata"]["resourceVersion"] = match applied["metadata"].get("resourceVersion") {
        Some(revision) => revision.clone(),
        None => live["metadata"]["resourceVersion"].clone(),
    };
    write_managers(&mut merged, &managers);
    Ok(merged)
}

/// Notes the owner of what an update or another kind of patch changed, where ownership is tracked.
pub(crate) fn note_update(
    resource: &Resource,
    endpoint: Endpoint,
    options: &WriteOptions,
    old: &Value,
    new: &mut Value,
) {
    let given = new["metadata"]["managedFields"].take();
    let before = &old["metadata"]["managedFields"];
    // Clients may rewrite the list; leaving it out means no change, an empty one starts anew.
    let managers = match &given {
        Value::Null => read_managers(old),
        Value::Array(entries) if entries.is_empty() || entries.iter().all(|entry| *entry == json!({})) => {
            Vec::new()
        }
        _ => {
            new["metadata"]["managedFields"] = given.clone();
            read_managers(new)
        }
    };
    if let Some(metadata) = new["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    if managers.is_empty() {
        return;
    }
    let schema = Schema::of(resource);
    let (changed, removed) = FieldSet::differences(schema, old, new);
    if changed.is_empty() && removed.is_empty() {
        new["metadata"]["managedFields"] = if given.is_null() { before.clone() } else { given };
        return;
    }
    let mut managers = managers;
    let mut me = Manager::new(options, false, resource, endpoint, changed.clone());
    if let Some(i) = managers.iter().position(|manager| manager.same_as(&me)) {
        me.fields = managers.remove(i).fields.difference(&removed).union(&changed);
    }
    for manager in &mut managers {
        manager.fields = manager.fields.difference(&changed).difference(&removed);
    }
    managers.push(me);
    managers.retain(|manager| !manager.fields.is_empty());
    write_managers(new, &managers);
}

// === impl Manager ===

impl Manager {
    fn new(
        options: &WriteOptions,
        applies: bool,
        resource: &Resource,
        endpoint: Endpoint,
        fields: FieldSet,
    ) -> Self {
        Self {
            name: options.manager.clone(),
            applies,
            api_version: resource.api_version(),
            subresource: if endpoint == Endpoint::Status {
                "status".to_owned()
            } else {
                String::new()
            },
            time: strategy::now().into(),
            fields,
        }
    }

    fn same_as(&self, other: &Self) -> bool {
        self.name == other.name && self.applies == other.applies && self.subresource == other.subresource
    }

    fn printed(&self) -> String {
        let mut out = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        out.push_str(&format!(" using {}", self.api_version));
        if let (false, Some(time)) = (self.applies, self.time.as_str()) {
            out.push_str(&format!(" at {time}"));
        }
        out
    }
}

fn read_managers(object: &Value) -> Vec<Manager> {
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| Manager {
            name: text(&entry["manager"]),
            applies: entry["operation"] == "Apply",
            api_version: text(&entry["apiVersion"]),
            subresource: text(&entry["subresource"]),
            time: entry["time"].clone(),
            fields: FieldSet::parse(&entry["fieldsV1"]),
        })
        .collect()
}

fn write_managers(object: &mut Value, managers: &[Manager]) {
    let entries: Vec<Value> = managers
        .iter()
        .map(|manager| {
            let mut entry = json!({
                "manager": manager.name,
                "operation": if manager.applies { "Apply" } else { "Update" },
                "apiVersion": manager.api_version,
                "time": manager.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": manager.fields.to_json(),
            });
            if !manager.subresource.is_empty() {
                entry["subresource"] = manager.subresource.as_str().into();
            }
            entry
        })
        .collect();
    object["metadata"]["managedFields"] = entries.into();
}

/// Takes out of a set what an endpoint doesn't write.
fn reset(resource: &Resource, endpoint: Endpoint, fields: &mut FieldSet) {
    match endpoint {
        Endpoint::Main if resource.status => fields.retain_top(|name| name != "f:status"),
        Endpoint::Status => fields.retain_top(|name| name == "f:status"),
        Endpoint::Main | Endpoint::Whole => {}
    }
}

fn drop_other_half(resource: &Resource, endpoint: Endpoint, applied: &mut Value) {
    let Some(fields) = applied.as_object_mut() else {
        return;
    };
    match endpoint {
        Endpoint::Main if resource.status => {
            fields.remove("status");
        }
        Endpoint::Status => fields.retain(|name, _| name == "status"),
        Endpoint::Main | Endpoint::Whole => {}
    }
}

fn merge_value(schema: Schema<'_>, live: &mut Value, applied: &Value) {
    match parts(schema, applied) {
        Parts::Fields(fields) if live.is_object() => {
            for (name, value) in fields {
                let schema = below(schema, &format!("f:{name}"));
                match live.get_mut(name) {
                    Some(place) => merge_value(schema, place, value),
                    None => live[name] = value.clone(),
                }
            }
        }
        Parts::Items(items) if live.is_array() => {
            let known: Vec<String> = match parts(schema, live) {
                Parts::Items(items) => items.into_iter().map(|(element, _)| element).collect(),
                _ => Vec::new(),
            };
            let Some(list) = live.as_array_mut() else { return };
            for (element, item) in items {
                match known.iter().position(|one| *one == element) {
                    Some(i) if schema.list_type() != ListType::Set => {
                        merge_value(below(schema, &element), &mut list[i], item);
                    }
                    Some(_) => {}
                    None => list.push(item.clone()),
                }
            }
        }
        _ => *live = applied.clone(),
    }
}

/// Removes the members of a set; what others own below them stays.
fn remove_fields(schema: Schema<'_>, value: &mut Value, gone: &FieldSet, others: &FieldSet) {
    let none = FieldSet::default();
    for (element, set) in &gone.children {
        let kept = others.children.get(element).unwrap_or(&none);
        let whole = set.member && kept.is_empty();
        let inner = below(schema, element);
        match element.split_once(':') {
            Some(("f", name)) => {
                let Some(fields) = value.as_object_mut() else {
                    continue;
                };
                let Some(place) = fields.get_mut(name) else {
                    continue;
                };
                if !whole {
                    remove_fields(inner, place, set, kept);
                }
                if whole || is_hollow(place) {
                    fields.remove(name);
                }
            }
            _ => {
                let at = match parts(schema, value) {
                    Parts::Items(items) => items.iter().position(|(known, _)| known == element),
                    _ => None,
                };
                let (Some(at), Some(list)) = (at, value.as_array_mut()) else {
                    continue;
                };
                if whole {
                    list.remove(at);
                } else {
                    remove_fields(inner, &mut list[at], set, kept);
                }
            }
        }
    }
}

fn is_hollow(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// `kubectl apply --server-side` over an object that was applied on the client's side: what its last
/// configuration said is kubectl's own.
fn tolerated(
    schema: Schema<'_>,
    options: &WriteOptions,
    live: &Value,
    conflicts: &[(&Manager, FieldSet)],
) -> bool {
    if options.manager != "kubectl" {
        return false;
    }
    let last = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let Some(last) = last.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return false;
    };
    let own = FieldSet::of(schema, &last);
    conflicts
        .iter()
        .all(|(_, fields)| fields.difference(&own).is_empty())
}

fn conflict(conflicts: &[(&Manager, FieldSet)]) -> ApiError {
    let all: Vec<(String, String)> = conflicts
        .iter()
        .flat_map(|(manager, fields)| fields.paths().into_iter().map(|path| (manager.printed(), path)))
        .collect();
    let message = match all.as_slice() {
        [(manager, path)] => format!("Apply failed with 1 conflict: conflict with {manager}: {path}"),
        many => {
            let mut text = Vec::new();
            let mut managers: Vec<&String> = many.iter().map(|(manager, _)| manager).collect();
            managers.dedup();
            for manager in managers {
                let paths: Vec<String> = many
                    .iter()
                    .filter(|(candidate, _)| candidate == manager)
                    .map(|(_, path)| format!("- {path}"))
                    .collect();
                text.push(format!("conflicts with {manager}:\n{}", paths.join("\n")));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), text.join("\n"))
        }
    };
    let mut error = ApiError::new(http::StatusCode::CONFLICT, "Conflict", message);
    for (manager, path) in all {
        error = error.with_cause("FieldManagerConflict", format!("conflict with {manager}"), &path);
    }
    error
}
