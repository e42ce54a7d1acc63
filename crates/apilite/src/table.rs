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
