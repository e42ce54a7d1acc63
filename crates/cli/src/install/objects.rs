//! The objects that an installation consists of: the chart as it renders by default, changed by the command's flags.

use std::collections::BTreeMap;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};
use weft_api::{Ipam, PodPoolSpec};
use weft_model::{BlockSize, PodCidr, UserError, codes};

/// `cargo xtask chart` renders it; tests keep it equal to the chart.
const MANIFEST: &str = include_str!("../../../../deploy/manifests/weft.yaml");

/// Where agent and operator run.
pub(super) const NAMESPACE: &str = "weft-system";

/// Flags whose absence leaves what the chart has.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    pub(super) pod_cidrs: Vec<PodCidr>,
    pub(super) block_size: Option<BlockSize>,
    pub(super) ipam: Option<Ipam>,
    pub(super) image: Option<String>,
    pub(super) cni_bin_dir: Option<String>,
    pub(super) cni_conf_dir: Option<String>,
    /// Labels of the nodes that Weft serves; all nodes where there are none.
    pub(super) node_labels: BTreeMap<String, String>,
    pub(super) chain_portmap: bool,
    /// The cluster has a single node, which has room for one operator.
    pub(super) one_node: bool,
}

// === impl Changes ===

impl Changes {
    /// Whether they say anything about the pool.
    pub(super) fn pool(&self) -> bool {
        !self.pod_cidrs.is_empty()
            || self.block_size.is_some()
            || self.ipam.is_some()
            || !self.node_labels.is_empty()
    }

    fn apply_to(&self, object: &mut Value) {
        if object["kind"] == "PodPool" {
            let spec = &mut object["spec"];
            if !self.pod_cidrs.is_empty() {
                spec["cidrs"] = self.pod_cidrs.iter().map(ToString::to_string).collect();
            }
            if let Some(size) = self.block_size {
                spec["blockSize"] = json!(u8::from(size));
            }
            if self.ipam == Some(Ipam::Node) {
                *spec = json!({ "cidrs": spec["cidrs"], "ipam": "node" });
            }
            if !self.node_labels.is_empty() {
                spec["nodeSelector"] = json!({ "matchLabels": self.node_labels });
            }
        }
        if self.one_node && object["kind"] == "Deployment" {
            object["spec"]["replicas"] = json!(1);
        }
        let agents = object["kind"] == "DaemonSet";
        let Some(pod) = object.pointer_mut("/spec/template/spec") else {
            return;
        };
        if agents {
            for (label, value) in &self.node_labels {
                pod["nodeSelector"][label] = json!(value);
            }
            if self.chain_portmap {
                chain_portmap(&mut pod["containers"][0]);
            }
        }
        // By `get_mut`: an index makes what isn't there.
        if let Some(image) = &self.image {
            for list in ["initContainers", "containers"] {
                let containers = pod.get_mut(list).and_then(Value::as_array_mut);
                for container in containers.into_iter().flatten() {
                    container["image"] = json!(image);
                }
            }
        }
        for (name, path) in [("cni-bin", &self.cni_bin_dir), ("cni-conf", &self.cni_conf_dir)] {
            let volumes = pod.get_mut("volumes").and_then(Value::as_array_mut);
            for volume in volumes
                .into_iter()
                .flatten()
                .filter(|volume| volume["name"] == name)
            {
                if let Some(path) = path {
                    volume["hostPath"]["path"] = json!(path);
                }
            }
        }
    }
}

/// What the chart's `cni.chainPortmap` adds to the agent.
fn chain_portmap(agent: &mut Value) {
    let added = [
        (
            "args",
            json!(["--cni-chain=portmap", "--cni-bin-dir=/host/cni/bin"]),
        ),
        (
            "volumeMounts",
            json!([{"name": "cni-bin", "mountPath": "/host/cni/bin", "readOnly": true}]),
        ),
    ];
    for (list, items) in added {
        let list = agent.get_mut(list).and_then(Value::as_array_mut);
        if let (Some(list), Value::Array(items)) = (list, items) {
            list.extend(items);
        }
    }
}

/// All objects in the order in which they are applied: what others need comes first, what runs comes last.
///
/// What no flag says of the pool is as `existing` has it, where there is one: the chart's ranges would shrink it.
///
/// # Errors
/// None in a build whose tests passed: the manifests are part of it.
pub(super) fn all(
    changes: &Changes,
    existing: Option<&PodPoolSpec>,
) -> Result<Vec<DynamicObject>, UserError> {
    let defect = |error: &dyn std::fmt::Display| {
        UserError::new(
            codes::MALFORMED_YAML,
            format!("the manifests in this binary: {error}"),
            "report it",
        )
    };
    let mut values: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).map_err(|error| defect(&error))?;
    if let Some(spec) = existing {
        let spec = serde_json::to_value(spec).map_err(|error| defect(&error))?;
        for pool in values.iter_mut().filter(|value| value["kind"] == "PodPool") {
            pool["spec"] = spec.clone();
        }
    }
    values.iter_mut().for_each(|value| changes.apply_to(value));
    for definition in weft_api::crds() {
        values.push(serde_json::to_value(definition).map_err(|error| defect(&error))?);
    }
    values.sort_by_key(rank);
    values
        .into_iter()
        .map(|value| serde_json::from_value(value).map_err(|error| defect(&error)))
        .collect()
}

/// `DaemonSet weft-system/weft-agent`.
pub(super) fn describe(object: &DynamicObject) -> String {
    let kind = kind(object);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    match &object.metadata.namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// The kind, such as `DaemonSet`.
pub(super) fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map_or("", |types| types.kind.as_str())
}

/// Where the API serves objects of this one's kind. Plurals follow the rule for all kinds there are here.
pub(super) fn resource(object: &DynamicObject) -> ApiResource {
    let version = object
        .types
        .as_ref()
        .map_or("v1", |types| types.api_version.as_str());
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind(object)))
}

fn rank(object: &Value) -> u8 {
    match object["kind"].as_str().unwrap_or_default() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "PodPool" => 3,
        "Deployment" => 4,
        "DaemonSet" => 5,
        _ => 2,
    }
}
