//! Server-side tables, as kubectl prints them.

use serde_json::{Value, json};

use crate::registry::Resource;

/// The form in which objects are asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Full,
    /// `PartialObjectMetadata`
    Metadata,
    Table(TableOptions),
}

/// `includeObject` of a table request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum TableOptions {
    #[default]
    Metadata,
    None,
    Object,
}

pub(crate) fn render(_resource: &Resource, objects: &[Value], options: &TableOptions) -> Value {
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row =
                json!({ "cells": [object["metadata"]["name"], object["metadata"]["creationTimestamp"]] });
            match options {
                TableOptions::Metadata => row["object"] = crate::read::metadata_only(object),
                TableOptions::Object => row["object"] = object.clone(),
                TableOptions::None => {}
            }
            row
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": [
            {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0},
            {"name": "Created At", "type": "date", "format": "", "description": "", "priority": 0},
        ],
        "rows": rows,
    })
}

/// A label selector (object or plain map) in text form.
pub(crate) fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<String> = Vec::new();
    let labels = match selector.get("matchLabels") {
        Some(labels) => labels.as_object(),
        None if selector.get("matchExpressions").is_none() => selector.as_object(),
        None => None,
    };
    for (key, value) in labels.into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values = expression["values"].as_array().into_iter().flatten();
        let values: Vec<&str> = values.filter_map(Value::as_str).collect();
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}
