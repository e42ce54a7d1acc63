//! From Kubernetes objects to what the index knows of them.

use std::str::FromStr;

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::Selector;
use serde::{Deserialize, Serialize};
use weft_api::{NodeNetwork, NodeSlice, PodPool};
use weft_model::{NodeName, UserError, parse_cidr};

use crate::index::{AgentOn, Held, Index, Network, Node, Pool, Taints};
use crate::write::TAINT;

/// The few fields of a Node that matter: the rest, most of its 10 KiB, is not
/// even decoded.
#[derive(Resource, Clone, Debug, Serialize, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(crate) struct SlimNode {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: SlimSpec,
    status: Option<SlimStatus>,
}

/// The few fields of an agent's Pod that matter.
#[derive(Resource, Clone, Debug, Serialize, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(crate) struct AgentPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: AgentPodSpec,
    status: Option<AgentPodStatus>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentPodSpec {
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct AgentPodStatus {
    #[serde(default)]
    conditions: Vec<SlimCondition>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimSpec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(default)]
    taints: Vec<SlimTaint>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SlimTaint {
    key: String,
}

/// A NodeCondition, whose fields may all be absent but for two.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SlimStatus {
    #[serde(default)]
    addresses: Vec<SlimAddress>,
    #[serde(default)]
    conditions: Vec<SlimCondition>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SlimAddress {
    #[serde(rename = "type")]
    type_: String,
    address: String,
}

pub(crate) fn set_node(index: &mut Index, name: &str, node: Option<SlimNode>) -> bool {
    with_name(name, |name| {
        index.set_node(name, node.and_then(|node| read_node(name, node)))
    })
}

pub(crate) fn set_network(index: &mut Index, name: &str, network: Option<NodeNetwork>) -> bool {
    with_name(name, |name| {
        index.set_network(name, network.and_then(|network| read_network(name, network)))
    })
}

pub(crate) fn set_pool(index: &mut Index, name: &str, pool: Option<PodPool>) -> bool {
    index.set_pool(name, pool.map(|pool| read_pool(name, pool)))
}

pub(crate) fn set_slice(index: &mut Index, name: &str, slice: Option<NodeSlice>) -> bool {
    index.set_slice(name, slice.map(|slice| slice.spec.nodes))
}

/// A ServiceCIDR that is IPv6 only counts as none.
pub(crate) fn set_service_cidr(index: &mut Index, name: &str, object: Option<ServiceCIDR>) -> bool {
    let cidrs = object.map(|object| {
        let cidrs = object.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        cidrs
            .iter()
            .filter_map(|cidr| parse_cidr(cidr).ok())
            .collect::<Vec<Ipv4Net>>()
    });
    index.set_service_cidrs(name, cidrs)
}

pub(crate) fn set_agent(index: &mut Index, name: &str, pod: Option<AgentPod>) -> bool {
    index.set_agent(name, pod.and_then(read_agent))
}

fn with_name(name: &str, set: impl FnOnce(&NodeName) -> bool) -> bool {
    match NodeName::from_str(name) {
        Ok(name) => set(&name),
        Err(error) => {
            tracing::error!(%error, "ignoring the object");
            false
        }
    }
}

// === impl SlimCondition ===

impl SlimCondition {
    fn into_condition(self) -> Condition {
        Condition {
            type_: self.type_,
            status: self.status,
            reason: self.reason,
            message: self.message,
            last_transition_time: self.last_transition_time.unwrap_or(Time(Timestamp::UNIX_EPOCH)),
            observed_generation: None,
        }
    }
}

/// Nothing of a pod that no node was chosen for yet.
fn read_agent(pod: AgentPod) -> Option<AgentOn> {
    let conditions = pod.status.unwrap_or_default().conditions;
    Some(AgentOn {
        node: pod.spec.node_name?.parse().ok()?,
        ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
    })
}

fn read_node(name: &NodeName, node: SlimNode) -> Option<Node> {
    let uid = node.metadata.uid.unwrap_or_default().parse();
    let uid = uid
        .inspect_err(|error| tracing::error!(%name, %error, "ignoring the Node"))
        .ok()?;
    let status = node.status.unwrap_or_default();
    let taints = &node.spec.taints;
    let conditions = status.conditions.into_iter();
    let unavailable = conditions.filter(|condition| condition.type_ == "NetworkUnavailable");
    Some(Node {
        uid,
        labels: node.metadata.labels.unwrap_or_default(),
        addresses: status
            .addresses
            .iter()
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect(),
        pod_cidrs: node
            .spec
            .pod_cidrs
            .iter()
            .filter(|cidr| !cidr.contains(':'))
            .cloned()
            .collect(),
        unavailable: unavailable.map(SlimCondition::into_condition).next(),
        taints: Taints {
            count: taints.len(),
            ours: taints.iter().position(|taint| taint.key == TAINT),
        },
    })
}

fn read_network(name: &NodeName, network: NodeNetwork) -> Option<Network> {
    let node_uid = network.spec.uid();
    let node_uid = node_uid
        .inspect_err(|error| tracing::error!(%name, %error, "ignoring the NodeNetwork"))
        .ok()?;
    let status = network.status.unwrap_or_default();
    let blocks = network.spec.blocks.into_iter().filter_map(|block| {
        let parsed = block.cidr.parse();
        let parsed = parsed
            .inspect_err(
                |error| tracing::error!(%name, %error, "taking a block that is none out of the NodeNetwork"),
            )
            .ok()?;
        Some(Held {
            block: parsed,
            pool: block.pool,
            retiring: block.retiring,
        })
    });
    let find = |type_: &str| {
        let found = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_);
        found.cloned()
    };
    Some(Network {
        node_uid,
        blocks: blocks.collect(),
        wanted: status.wanted_blocks.unwrap_or(1),
        allocation: status.allocation,
        ready: find("Ready"),
        route_overlap: find("RoutesClear")
            .filter(|condition| condition.status == "False")
            .map(|condition| condition.message),
        uses: status
            .blocks
            .into_iter()
            .filter_map(|block| Some((block.cidr.parse().ok()?, block)))
            .collect(),
        deleting: network.metadata.deletion_timestamp.is_some(),
        object_uid: network.metadata.uid.unwrap_or_default(),
    })
}

fn read_pool(name: &str, pool: PodPool) -> Pool {
    let ranges = pool
        .spec
        .ranges()
        .map_err(|error| UserError::from(error).message().to_owned());
    let selector = pool.spec.node_selector.map(Selector::try_from).transpose();
    let (ranges, selector) = match selector {
        Ok(selector) => (ranges, selector),
        Err(error) => (Err(format!("spec.nodeSelector: {error}")), None),
    };
    if let Err(error) = &ranges {
        tracing::error!(pool = name, "the PodPool gives out no blocks: {error}");
    }
    let created = pool.metadata.creation_timestamp.map(|time| time.0);
    Pool {
        uid: pool.metadata.uid.unwrap_or_default(),
        created: created.unwrap_or_default(),
        ranges,
        selector: selector.filter(|selector| !selector.selects_all()),
        status: pool.status,
    }
}
