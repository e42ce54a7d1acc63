//! Applying manifests: files to objects, objects to the API.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, ApiResource, Scope};
use kube::{Client, ResourceExt};
use serde_json::Value;
use weft_model::{UserError, codes};

use crate::daemon::api_error;

/// Name under which the lab owns the fields it applies.
const FIELD_MANAGER: &str = "weft-lab";

/// An object and where it was written.
#[derive(Clone, Debug)]
pub struct Manifest {
    origin: String,
    object: DynamicObject,
    gvk: GroupVersionKind,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// `kind/name`, as kubectl writes it.
    pub object: String,
    /// Its namespace, where it has one.
    pub namespace: Option<String>,
    /// What happened to it.
    pub change: Change,
}

/// What applying did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Created,
    /// It was there, in another form.
    Configured,
    /// It was there as it is.
    Unchanged,
}

/// Reads all objects of a file, of a directory's `.yaml`, `.yml` and `.json` files, or of standard input (`-`).
///
/// # Errors
/// Something can't be read, does not parse, or is no Kubernetes object; the error has file, line and column.
pub fn read(source: &str) -> Result<Vec<Manifest>, UserError> {
    if source == "-" {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| unreadable("standard input", &error))?;
        return parse("standard input", &text);
    }
    let mut manifests = Vec::new();
    for file in files(Path::new(source))? {
        let name = file.display().to_string();
        let text = fs::read_to_string(&file).map_err(|error| unreadable(&name, &error))?;
        manifests.extend(parse(&name, &text)?);
    }
    if manifests.is_empty() {
        return Err(UserError::new(
            codes::UNREADABLE_FILE,
            format!("{source} holds no Kubernetes object"),
            "give a file or a directory of .yaml, .yml or .json files",
        ));
    }
    Ok(manifests)
}

/// Reads all objects of a text with one or more YAML documents; `origin` names it in errors.
///
/// # Errors
/// As [`read`].
pub fn parse(origin: &str, text: &str) -> Result<Vec<Manifest>, UserError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let place = match error.location() {
            Some(at) => format!("{origin}:{}:{}", at.line(), at.column()),
            None => origin.to_owned(),
        };
        let error = error.without_snippet();
        UserError::new(
            codes::MALFORMED_YAML,
            format!("{place}: {}", one_line(&error.to_string())),
            format!("mend {place}"),
        )
    })?;
    let mut manifests = Vec::new();
    for (at, document) in documents.into_iter().enumerate() {
        let place = format!("{origin}, document {}", at + 1);
        match document {
            Value::Null => {}
            Value::Object(mut list)
                if list
                    .get("kind")
                    .and_then(Value::as_str)
                    .is_some_and(|kind| kind.ends_with("List"))
                    && list.get("items").is_some_and(Value::is_array) =>
            {
                let items = list.remove("items");
                for item in items
                    .iter()
                    .flat_map(|items| items.as_array().into_iter().flatten())
                {
                    manifests.push(manifest(&place, item.clone())?);
                }
            }
            document => manifests.push(manifest(&place, document)?),
        }
    }
    Ok(manifests)
}

/// Applies objects, namespaces and definitions first; `on_applied` hears of each.
///
/// # Errors
/// A kind is unknown, a pod asks for what no node has, or the API refuses an object. Unknown kinds and impossible
/// pods are found before anything is applied.
pub async fn apply(
    client: &Client,
    manifests: Vec<Manifest>,
    namespace: &str,
    mut on_applied: impl FnMut(&Applied),
) -> Result<(), UserError> {
    let mut manifests = manifests;
    manifests.sort_by_key(|manifest| match manifest.gvk.kind.as_str() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        _ => 2,
    });
    let defined: Vec<GroupVersionKind> = manifests.iter().flat_map(defined_kinds).collect();
    let mut kinds: HashMap<GroupVersionKind, (ApiResource, Scope)> = HashMap::new();
    for manifest in &manifests {
        if !kinds.contains_key(&manifest.gvk) && !defined.contains(&manifest.gvk) {
            kinds.insert(manifest.gvk.clone(), resolve(client, manifest).await?);
        }
    }
    check_pods(client, &manifests).await?;
    for manifest in manifests {
        let (resource, scope) = match kinds.get(&manifest.gvk) {
            Some(known) => known.clone(),
            None => {
                let found = resolve(client, &manifest).await?;
                kinds.entry(manifest.gvk.clone()).or_insert(found).clone()
            }
        };
        on_applied(&apply_one(client, manifest, &resource, &scope, namespace).await?);
    }
    Ok(())
}

async fn apply_one(
    client: &Client,
    manifest: Manifest,
    resource: &ApiResource,
    scope: &Scope,
    namespace: &str,
) -> Result<Applied, UserError> {
    let Manifest {
        origin,
        mut object,
        gvk,
    } = manifest;
    let name = object.name_any();
    let namespace = match scope {
        Scope::Namespaced => Some(object.namespace().unwrap_or_else(|| namespace.to_owned())),
        Scope::Cluster => None,
    };
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    };
    let title = format!("{}/{name}", gvk.kind.to_lowercase());
    let failed = |error: kube::Error| match error {
        kube::Error::Api(status) => UserError::new(
            codes::API_REJECTED,
            format!("{origin}: {title}: {}", status.message),
            "mend the object and apply it again",
        ),
        error => api_error(&format!("{origin}: {title}"), &error),
    };
    let before = api.get_opt(&name).await.map_err(failed)?;
    object.metadata.namespace.clone_from(&namespace);
    object.metadata.managed_fields = None;
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let after = api
        .patch(&name, &params, &Patch::Apply(&object))
        .await
        .map_err(failed)?;
    let change = match before {
        None => Change::Created,
        Some(before) if before.metadata.resource_version == after.metadata.resource_version => {
            Change::Unchanged
        }
        Some(_) => Change::Configured,
    };
    Ok(Applied {
        object: title,
        namespace,
        change,
    })
}

async fn resolve(client: &Client, manifest: &Manifest) -> Result<(ApiResource, Scope), UserError> {
    let gvk = &manifest.gvk;
    match discovery::pinned_kind(client, gvk).await {
        Ok((resource, capabilities)) => Ok((resource, capabilities.scope)),
        Err(kube::Error::Service(error)) => Err(UserError::new(
            codes::API_UNREACHABLE,
            format!("{}: {error}", manifest.origin),
            "weft lab list",
        )),
        Err(_) => Err(UserError::new(
            codes::INVALID_OBJECT,
            format!(
                "{}: the cluster has no kind {} in {}",
                manifest.origin,
                gvk.kind,
                gvk.api_version()
            ),
            "correct apiVersion and kind, or apply the kind's CustomResourceDefinition first",
        )),
    }
}

/// The kinds that a CustomResourceDefinition among the manifests will bring.
fn defined_kinds(manifest: &Manifest) -> Vec<GroupVersionKind> {
    if manifest.gvk.kind != "CustomResourceDefinition" {
        return Vec::new();
    }
    let spec = &manifest.object.data["spec"];
    let (Some(group), Some(kind)) = (spec["group"].as_str(), spec["names"]["kind"].as_str()) else {
        return Vec::new();
    };
    let versions = spec["versions"].as_array().into_iter().flatten();
    versions
        .filter_map(|version| version["name"].as_str())
        .map(|version| GroupVersionKind::gvk(group, version, kind))
        .collect()
}

/// Finds pods that no node of the cluster can ever take.
async fn check_pods(client: &Client, manifests: &[Manifest]) -> Result<(), UserError> {
    let pods: Vec<(&Manifest, &Value)> = manifests
        .iter()
        .filter_map(|manifest| Some((manifest, pod_spec(manifest)?)))
        .collect();
    if pods.is_empty() {
        return Ok(());
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes
        .list(&ListParams::default())
        .await
        .map_err(|error| api_error("listing nodes", &error))?
        .items;
    for (manifest, spec) in pods {
        if let Some(wish) = impossible(spec, &nodes) {
            return Err(UserError::new(
                codes::UNSATISFIABLE_POD,
                format!(
                    "{}: {}/{} {wish}",
                    manifest.origin,
                    manifest.gvk.kind.to_lowercase(),
                    manifest.object.name_any()
                ),
                "change the pod's spec; kubectl get nodes --show-labels shows what there is",
            ));
        }
    }
    Ok(())
}

/// The pod, or the template of pods, that an object holds.
fn pod_spec(manifest: &Manifest) -> Option<&Value> {
    let spec = manifest.object.data.get("spec")?;
    match manifest.gvk.kind.as_str() {
        "Pod" => Some(spec),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController" => {
            spec.get("template")?.get("spec")
        }
        "CronJob" => spec.get("jobTemplate")?.get("spec")?.get("template")?.get("spec"),
        _ => None,
    }
}

/// What a pod asks for that no node has, in words.
fn impossible(spec: &Value, nodes: &[Node]) -> Option<String> {
    if let Some(wanted) = spec.get("nodeName").and_then(Value::as_str)
        && !nodes
            .iter()
            .any(|node| node.metadata.name.as_deref() == Some(wanted))
    {
        return Some(format!("asks for node {wanted:?}, which does not exist"));
    }
    let selector: BTreeMap<&str, &str> = spec
        .get("nodeSelector")
        .and_then(Value::as_object)
        .map(|selector| {
            selector
                .iter()
                .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
                .collect()
        })
        .unwrap_or_default();
    for (key, value) in selector {
        let matches = |node: &Node| {
            node.metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(key))
                .map(String::as_str)
                == Some(value)
        };
        if !nodes.iter().any(matches) {
            return Some(format!(
                "asks for a node with label {key}={value}, which no node has"
            ));
        }
    }
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        let wanted: f64 = containers(spec)
            .filter_map(|container| request(container, resource))
            .sum();
        let largest = nodes
            .iter()
            .filter_map(|node| allocatable(node, resource))
            .fold(0.0, f64::max);
        if !nodes.is_empty() && wanted > largest {
            return Some(format!(
                "requests {wanted} of {resource}, and the largest node has {largest}"
            ));
        }
    }
    None
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    spec.get("containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn request(container: &Value, resource: &str) -> Option<f64> {
    match container.get("resources")?.get("requests")?.get(resource)? {
        Value::String(text) => quantity(text),
        Value::Number(number) => number.as_f64(),
        _ => None,
    }
}

fn allocatable(node: &Node, resource: &str) -> Option<f64> {
    quantity(&node.status.as_ref()?.allocatable.as_ref()?.get(resource)?.0)
}

/// Reads a Kubernetes quantity such as `100m`, `1.5Gi` or `1e3`.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    SUFFIXES.iter().find_map(|(suffix, factor)| {
        let number: f64 = text.strip_suffix(suffix)?.parse().ok()?;
        Some(number * factor)
    })
}

fn manifest(place: &str, document: Value) -> Result<Manifest, UserError> {
    let invalid = |what: String| {
        UserError::new(
            codes::INVALID_OBJECT,
            format!("{place}: {what}"),
            "give apiVersion, kind and metadata.name",
        )
    };
    let object: DynamicObject = serde_json::from_value(document)
        .map_err(|error| invalid(format!("no Kubernetes object: {error}")))?;
    let types = object
        .types
        .as_ref()
        .filter(|types| !types.api_version.is_empty() && !types.kind.is_empty())
        .ok_or_else(|| invalid("apiVersion or kind is missing".to_owned()))?;
    let gvk = GroupVersionKind::try_from(types).map_err(|error| invalid(error.to_string()))?;
    if object.metadata.name.as_deref().is_none_or(str::is_empty) {
        return Err(invalid(format!("{} without metadata.name", gvk.kind)));
    }
    Ok(Manifest {
        origin: place.to_owned(),
        object,
        gvk,
    })
}

fn files(source: &Path) -> Result<Vec<PathBuf>, UserError> {
    let name = source.display().to_string();
    let metadata = fs::metadata(source).map_err(|error| unreadable(&name, &error))?;
    if !metadata.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let mut found: Vec<PathBuf> = fs::read_dir(source)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| unreadable(&name, &error))?;
    found.retain(|path| {
        path.extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
    });
    found.sort();
    Ok(found)
}

fn unreadable(what: &str, error: &io::Error) -> UserError {
    UserError::new(
        codes::UNREADABLE_FILE,
        format!("can't read {what}: {error}"),
        "check the path",
    )
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_become_objects() {
        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
# nothing but a comment
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}
";
        let names: Vec<(String, String)> = parse("shop.yaml", text)
            .unwrap()
            .iter()
            .map(|manifest| (manifest.gvk.kind.clone(), manifest.object.name_any()))
            .collect();
        let expected = [("Namespace", "shop"), ("Pod", "a"), ("Deployment", "b")];
        assert_eq!(
            names,
            expected.map(|(kind, name)| (kind.to_owned(), name.to_owned()))
        );
    }

    #[test]
    fn what_does_not_parse_is_named_by_line_and_column() {
        let error = parse("bad.yaml", "kind: Pod\nmetadata:\n  name: [a\nspec: {}\n").unwrap_err();
        assert_eq!(error.code(), codes::MALFORMED_YAML);
        assert!(error.message().starts_with("bad.yaml:4:"), "{}", error.message());
        assert!(!error.message().contains('\n'));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let read = ["2", "100m", "1.5Gi", "1e3", "2k", "x", ""].map(quantity);
        let expected = [
            Some(2.0),
            Some(0.1),
            Some(1_610_612_736.0),
            Some(1000.0),
            Some(2000.0),
            None,
            None,
        ];
        assert_eq!(read, expected);
    }
}
