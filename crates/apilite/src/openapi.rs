//! OpenAPI v3 documents, one per group version, as kubectl reads them for validation and `explain`.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::http::{json_response, to_bytes};
use crate::registry::{Catalog, Origin, Resource};
use crate::schema::{REFERENCE, Schema, definitions};
use crate::server::Body;

const GVK: &str = "x-kubernetes-group-version-kind";

/// `/openapi/v3`, or the document of a group version below it (`api/v1`, `apis/apps/v1`).
pub(crate) fn answer(catalog: &Catalog, path: Option<&str>) -> Result<Response<Body>, ApiError> {
    let body = match path {
        None => index(catalog),
        Some(path) => {
            let parts: Vec<&str> = path.split('/').collect();
            match parts.as_slice() {
                ["api", version] => document(catalog, "", version)?,
                ["apis", group, version] => document(catalog, group, version)?,
                _ => return Err(ApiError::no_such_path()),
            }
        }
    };
    Ok(json_response(StatusCode::OK, to_bytes(&body)))
}

fn index(catalog: &Catalog) -> Value {
    let mut paths = Map::new();
    for group in catalog.groups() {
        for version in catalog.versions(&group) {
            let path = base_path(&group, &version);
            // Clients cache by this address: it has to change with what is served.
            let mut hasher = DefaultHasher::new();
            for resource in catalog.of(&group, &version) {
                resource.plural.hash(&mut hasher);
                if let Origin::Custom(custom) = &resource.origin {
                    custom.schema.to_string().hash(&mut hasher);
                }
            }
            let address = format!("/openapi/v3{path}?hash={:016X}", hasher.finish());
            paths.insert(
                path.trim_start_matches('/').to_owned(),
                json!({ "serverRelativeURL": address }),
            );
        }
    }
    json!({ "paths": paths })
}

fn base_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

fn document(catalog: &Catalog, group: &str, version: &str) -> Result<Value, ApiError> {
    let resources: Vec<_> = catalog.of(group, version).collect();
    if resources.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for resource in resources {
        let name = component(resource);
        add_paths(resource, &name, &mut paths);
        let mut root = root_schema(resource);
        root[GVK] = json!([gvk(resource)]);
        add_references(&root, &mut schemas);
        schemas.insert(name, root);
    }
    Ok(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "apilite" },
        "paths": paths,
        "components": { "schemas": schemas },
    }))
}

fn gvk(resource: &Resource) -> Value {
    json!({ "group": resource.group, "version": resource.version, "kind": resource.kind })
}

/// Name of the component that describes a resource's objects.
fn component(resource: &Resource) -> String {
    match resource.origin {
        Origin::BuiltIn(name) => name.to_owned(),
        Origin::Custom(_) => {
            let mut parts: Vec<&str> = resource.group.split('.').rev().collect();
            parts.extend([resource.version.as_str(), resource.kind.as_str()]);
            parts.join(".")
        }
    }
}

fn root_schema(resource: &Resource) -> Value {
    match &resource.origin {
        Origin::BuiltIn(name) => definitions().get(*name).cloned().unwrap_or_default(),
        Origin::Custom(custom) => {
            let mut schema = if custom.schema.is_object() {
                custom.schema.clone()
            } else {
                json!({ "type": "object" })
            };
            for (field, description) in [
                (
                    "apiVersion",
                    "APIVersion defines the versioned schema of this representation of an object.",
                ),
                (
                    "kind",
                    "Kind is a string value representing the REST resource this object represents.",
                ),
            ] {
                schema["properties"][field] = json!({ "type": "string", "description": description });
            }
            schema["properties"]["metadata"] = Schema::metadata_reference();
            schema
        }
    }
}

/// Adds every definition that a schema leads to.
fn add_references(schema: &Value, schemas: &mut Map<String, Value>) {
    let mut seen = BTreeSet::new();
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                let target = fields.get("$ref").and_then(Value::as_str);
                if let Some(name) = target.and_then(|target| target.strip_prefix(REFERENCE))
                    && seen.insert(name)
                    && let Some(definition) = definitions().get(name)
                {
                    schemas.entry(name).or_insert_with(|| definition.clone());
                    open.push(definition);
                }
                open.extend(fields.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
}

fn add_paths(resource: &Resource, component: &str, paths: &mut Map<String, Value>) {
    let base = base_path(&resource.group, &resource.version);
    let scope = if resource.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection = format!("{base}{scope}/{}", resource.plural);
    let body = |media: &[&str]| -> Value {
        let reference = json!({ "schema": { "$ref": format!("{REFERENCE}{component}") } });
        media
            .iter()
            .map(|media| ((*media).to_owned(), reference.clone()))
            .collect::<Map<_, _>>()
            .into()
    };
    let operation = |action: &str, parameters: &[&str], request: Option<&[&str]>| {
        let parameters: Vec<Value> = parameters
            .iter()
            .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } }))
            .collect();
        let mut out = json!({
            "tags": [resource.qualified()],
            "parameters": parameters,
            "responses": { "200": { "description": "OK", "content": body(&["application/json"]) } },
            "x-kubernetes-action": action,
            GVK: gvk(resource),
        });
        if let Some(media) = request {
            out["requestBody"] = json!({ "content": body(media) });
        }
        out
    };
    const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
    const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force", "pretty"];
    const LIST: &[&str] = &[
        "continue",
        "fieldSelector",
        "labelSelector",
        "limit",
        "resourceVersion",
        "watch",
    ];
    // Strategic merge patches work, but kubectl is to compute them from its own types: its OpenAPI way
    // would read merge keys from documents that are only meant to be read by people.
    const PATCHES: &[&str] = &[
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
    ];
    paths.insert(
        collection.clone(),
        json!({
            "get": operation("list", LIST, None),
            "post": operation("post", WRITE, Some(&["application/json"])),
            "delete": operation("deletecollection", LIST, None),
        }),
    );
    let item = json!({
        "get": operation("get", &["pretty"], None),
        "put": operation("put", WRITE, Some(&["application/json"])),
        "patch": operation("patch", PATCH, Some(PATCHES)),
        "delete": operation("delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"], None),
    });
    paths.insert(format!("{collection}/{{name}}"), item.clone());
    if resource.status {
        let mut item = item;
        if let Some(operations) = item.as_object_mut() {
            operations.remove("delete");
        }
        paths.insert(format!("{collection}/{{name}}/status"), item);
    }
}
