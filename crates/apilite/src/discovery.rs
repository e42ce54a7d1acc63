//! Discovery, legacy and aggregated, and the other endpoints that describe the server.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::core::Core;
use crate::error::ApiError;
use crate::http::{Accept, json_response, to_bytes};
use crate::registry::{Catalog, Resource, api_version};
use crate::route::Route;
use crate::server::Body;

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const SUBRESOURCE_VERBS: &[&str] = &["get", "patch", "update"];

/// The Kubernetes version whose API this is; its types are those of `k8s-openapi`'s feature.
const MAJOR: &str = "1";
const MINOR: &str = "36";
const GIT_VERSION: &str = "v1.36.0+apilite";

pub(crate) fn answer(core: &Core, route: &Route, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let catalog = core.registry.catalog();
    let body = match route {
        Route::CoreVersions | Route::Groups => {
            let legacy = matches!(route, Route::CoreVersions);
            if Accept::of(headers)?.aggregated_discovery {
                return Ok(aggregated(&catalog, legacy));
            }
            if legacy {
                json!({
                    "kind": "APIVersions",
                    "versions": ["v1"],
                    "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }],
                })
            } else {
                let groups: Vec<Value> = catalog
                    .groups()
                    .iter()
                    .filter(|group| !group.is_empty())
                    .map(|group| group_json(&catalog, group))
                    .collect();
                json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
            }
        }
        Route::Group(group) => {
            if group.is_empty() || catalog.versions(group).is_empty() {
                return Err(ApiError::no_such_path());
            }
            let mut out = group_json(&catalog, group);
            out["kind"] = "APIGroup".into();
            out["apiVersion"] = "v1".into();
            out
        }
        Route::Resources { group, version } => {
            let resources: Vec<Value> = catalog.of(group, version).flat_map(legacy_rows).collect();
            if resources.is_empty() {
                return Err(ApiError::no_such_path());
            }
            json!({
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": api_version(group, version),
                "resources": resources,
            })
        }
        Route::Version => json!({
            "major": MAJOR,
            "minor": MINOR,
            "gitVersion": GIT_VERSION,
            "gitCommit": "",
            "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
        }),
        Route::Healthy => {
            let mut response = json_response(StatusCode::OK, "ok".into());
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            return Ok(response);
        }
        Route::Root => {
            let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
            for group in catalog.groups().iter().filter(|group| !group.is_empty()) {
                paths.push(format!("/apis/{group}"));
                paths.extend(
                    catalog
                        .versions(group)
                        .iter()
                        .map(|version| format!("/apis/{group}/{version}")),
                );
            }
            paths.extend(["/healthz", "/livez", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
            json!({ "paths": paths })
        }
        Route::OpenApiV3(path) => return crate::openapi::answer(&catalog, path.as_deref()),
        Route::OpenApiV2 | Route::Target(_) => return Err(ApiError::no_such_path()),
    };
    Ok(json_response(StatusCode::OK, to_bytes(&body)))
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn group_json(catalog: &Catalog, group: &str) -> Value {
    let versions: Vec<Value> = catalog
        .versions(group)
        .iter()
        .map(|version| json!({ "groupVersion": api_version(group, version), "version": version }))
        .collect();
    json!({ "name": group, "versions": versions, "preferredVersion": versions.first() })
}

fn legacy_rows(resource: &Arc<Resource>) -> Vec<Value> {
    let mut row = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": VERBS,
    });
    if !resource.short_names.is_empty() {
        row["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        row["categories"] = json!(resource.categories);
    }
    let mut rows = vec![row];
    for sub in subresources(resource) {
        let mut row = json!({
            "name": format!("{}/{}", resource.plural, sub.name),
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": sub.kind,
            "verbs": sub.verbs,
        });
        if (sub.group, sub.version) != (resource.group.as_str(), resource.version.as_str()) {
            row["group"] = sub.group.into();
            row["version"] = sub.version.into();
        }
        rows.push(row);
    }
    rows
}

struct Subresource<'a> {
    name: &'a str,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    verbs: &'a [&'a str],
}

fn subresources(resource: &Resource) -> Vec<Subresource<'_>> {
    let mut rows: Vec<Subresource<'_>> = resource
        .actions
        .iter()
        .map(|action| Subresource {
            name: action.name,
            group: action.group,
            version: action.version,
            kind: action.kind,
            verbs: action.verbs,
        })
        .collect();
    if resource.scale.is_some() {
        rows.push(Subresource {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: SUBRESOURCE_VERBS,
        });
    }
    if resource.status {
        rows.push(Subresource {
            name: "status",
            group: &resource.group,
            version: &resource.version,
            kind: &resource.kind,
            verbs: SUBRESOURCE_VERBS,
        });
    }
    rows
}

fn aggregated(catalog: &Catalog, legacy: bool) -> Response<Body> {
    let items: Vec<Value> = catalog
        .groups()
        .iter()
        .filter(|group| group.is_empty() == legacy)
        .map(|group| {
            let versions: Vec<Value> = catalog
                .versions(group)
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        catalog.of(group, version).map(|r| aggregated_row(r)).collect();
                    json!({ "version": version, "freshness": "Current", "resources": resources })
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({ "creationTimestamp": null })
            } else {
                json!({ "name": group, "creationTimestamp": null })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    let body = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    });
    let mut response = json_response(StatusCode::OK, to_bytes(&body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
    );
    response
}

fn aggregated_row(resource: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let subresources: Vec<Value> = subresources(resource)
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": kind(sub.group, sub.version, sub.kind),
                "verbs": sub.verbs,
            })
        })
        .collect();
    let mut row = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": VERBS,
    });
    if !resource.short_names.is_empty() {
        row["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        row["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        row["subresources"] = subresources.into();
    }
    row
}
