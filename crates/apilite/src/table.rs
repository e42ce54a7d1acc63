//! Server-side tables, as `kubectl get` prints them.
//!
//! Columns are those of `pkg/printers/internalversion` for built-in types, and of
//! `additionalPrinterColumns` for custom resources.

mod cells;
mod cluster;
mod jsonpath;
mod network;
mod pod;
mod storage;
mod workload;

use serde_json::{Value, json};

use crate::crd;
use crate::read;
use crate::registry::{Origin, Resource};
use cells::age;

/// The form in which objects are asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Full,
    /// `PartialObjectMetadata`
    Metadata,
    Table(TableOptions),
}

/// What goes along with each row (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum TableOptions {
    #[default]
    Metadata,
    None,
    Object,
}

/// A column of a built-in type.
#[derive(Clone, Copy, Debug)]
struct Column {
    name: &'static str,
    kind: &'static str,
    /// Shown by `-o wide` only.
    wide: bool,
}

/// How a built-in type is printed.
struct Printer {
    columns: &'static [Column],
    cells: fn(&Value) -> Vec<Value>,
}

const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        wide: false,
    }
}

const fn number(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        wide: false,
    }
}

const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        wide: true,
    }
}

const NAME: Column = text("Name");
const AGE: Column = text("Age");

// === impl TableOptions ===

impl TableOptions {
    pub(crate) fn parse(parameter: Option<&str>) -> Self {
        match parameter {
            Some("None") => Self::None,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// The table of some objects of a resource.
pub(crate) fn render(resource: &Resource, objects: &[Value], options: TableOptions) -> Value {
    let (columns, cells): (Vec<Value>, Vec<Vec<Value>>) = match &resource.origin {
        Origin::BuiltIn(_) => {
            let printer = printer(resource);
            let columns = printer.columns.iter().map(|column| {
                let format = if column.name == "Name" { "name" } else { "" };
                definition(column.name, column.kind, format, "", i64::from(column.wide))
            });
            (columns.collect(), objects.iter().map(printer.cells).collect())
        }
        Origin::Custom(custom) => {
            let name = definition("Name", "string", "name", "", 0);
            let declared = custom.columns.iter().map(|column| {
                definition(
                    &column.name,
                    &column.kind,
                    &column.format,
                    &column.description,
                    column.priority,
                )
            });
            let cells = objects.iter().map(|object| {
                let declared = custom.columns.iter().map(|column| custom_cell(column, object));
                std::iter::once(object["metadata"]["name"].clone())
                    .chain(declared)
                    .collect()
            });
            (std::iter::once(name).chain(declared).collect(), cells.collect())
        }
    };
    let rows: Vec<Value> = objects
        .iter()
        .zip(cells)
        .map(|(object, cells)| {
            let mut row = json!({ "cells": cells });
            match options {
                TableOptions::Metadata => row["object"] = read::metadata_only(object),
                TableOptions::Object => row["object"] = object.clone(),
                TableOptions::None => {}
            }
            row
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn definition(name: &str, kind: &str, format: &str, description: &str, priority: i64) -> Value {
    json!({ "name": name, "type": kind, "format": format, "description": description, "priority": priority })
}

fn custom_cell(column: &crd::Column, object: &Value) -> Value {
    let Some(value) = jsonpath::find(&column.json_path, object) else {
        return Value::Null;
    };
    match (column.kind.as_str(), value) {
        ("string", Value::String(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        ("date", Value::String(_)) => age(value).into(),
        ("integer", Value::Number(number)) if number.is_f64() => number
            .as_f64()
            .map_or(Value::Null, |number| (number.trunc() as i64).into()),
        ("integer" | "number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        _ => Value::Null,
    }
}

fn printer(resource: &Resource) -> &'static Printer {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => &pod::POD,
        ("", "podtemplates") => &workload::POD_TEMPLATE,
        ("", "replicationcontrollers") | ("apps", "replicasets") => &workload::REPLICA_SET,
        ("apps", "deployments") => &workload::DEPLOYMENT,
        ("apps", "statefulsets") => &workload::STATEFUL_SET,
        ("apps", "daemonsets") => &workload::DAEMON_SET,
        ("apps", "controllerrevisions") => &workload::CONTROLLER_REVISION,
        ("batch", "jobs") => &workload::JOB,
        ("batch", "cronjobs") => &workload::CRON_JOB,
        ("autoscaling", _) => &workload::AUTOSCALER,
        ("policy", _) => &workload::DISRUPTION_BUDGET,
        ("", "services") => &network::SERVICE,
        ("", "endpoints") => &network::ENDPOINTS,
        ("discovery.k8s.io", _) => &network::ENDPOINT_SLICE,
        ("networking.k8s.io", "ingresses") => &network::INGRESS,
        ("networking.k8s.io", "ingressclasses") => &network::INGRESS_CLASS,
        ("networking.k8s.io", "networkpolicies") => &network::NETWORK_POLICY,
        ("", "nodes") => &cluster::NODE,
        ("", "namespaces") => &cluster::NAMESPACE,
        ("" | "events.k8s.io", "events") => &cluster::EVENT,
        ("", "configmaps") => &cluster::CONFIG_MAP,
        ("", "secrets") => &cluster::SECRET,
        ("", "serviceaccounts") => &cluster::SERVICE_ACCOUNT,
        ("", "persistentvolumes") => &storage::VOLUME,
        ("", "persistentvolumeclaims") => &storage::CLAIM,
        ("", "resourcequotas") => &cluster::QUOTA,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => &cluster::ROLE_BINDING,
        ("storage.k8s.io", "storageclasses") => &storage::STORAGE_CLASS,
        ("scheduling.k8s.io", _) => &cluster::PRIORITY_CLASS,
        ("coordination.k8s.io", _) => &cluster::LEASE,
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => &cluster::WEBHOOKS,
        _ => &cluster::PLAIN,
    }
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
