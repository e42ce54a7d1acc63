//! The two Event APIs show the same objects: core/v1 is the stored form, events.k8s.io/v1 a view of it.

use serde_json::Value;

/// (core/v1, events.k8s.io/v1)
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

pub(crate) fn to_events_api(object: &mut Value) {
    rename(object, RENAMED.iter().map(|(core, events)| (*core, *events)));
}

pub(crate) fn from_events_api(object: &mut Value) {
    rename(object, RENAMED.iter().map(|(core, events)| (*events, *core)));
    object["apiVersion"] = Value::from("v1");
}

fn rename(object: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}
