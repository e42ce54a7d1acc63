//! A cluster as it is at one moment, for tables and programs.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::ClusterConfig;

/// Version of the schema of everything the lab prints for programs.
pub const API_VERSION: &str = "lab.weft.dev/v1alpha1";

/// A cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// [`API_VERSION`].
    pub api_version: String,
    /// Always `LabCluster`.
    pub kind: String,
    /// Name of the cluster.
    pub name: String,
    /// How it is doing.
    pub phase: Phase,
    /// Why it is not [`Phase::Ready`], a sentence for each reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What it was made to be.
    pub config: ClusterConfig,
    /// URL of the API in the host's namespace.
    pub api: Option<String>,
    /// Path of the kubeconfig.
    pub kubeconfig: String,
    /// Addresses of the VNet that are no node's.
    pub network: NetworkStatus,
    /// The nodes in the order in which they joined.
    pub nodes: Vec<NodeStatus>,
    /// The pods of the whole cluster.
    pub pods: PodCounts,
    /// The pod CIDR's blocks.
    pub blocks: BlockCounts,
}

/// How a cluster is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It is being made.
    Creating,
    /// All nodes are Ready.
    Ready,
    /// Some part does not do what it should.
    Degraded,
    /// Its daemon has gone; only `weft lab delete` helps.
    Unreachable,
}

/// Addresses of the VNet that are no node's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// The router.
    pub gateway: Ipv4Addr,
    /// The host that is no node.
    pub host: Ipv4Addr,
    /// The host beyond the router.
    pub internet: Ipv4Addr,
    /// The cluster's API.
    pub api: Ipv4Addr,
}

/// A node at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of the node.
    pub name: String,
    /// Its address in the VNet.
    pub address: Ipv4Addr,
    /// Whether its agent would attach a pod.
    pub ready: bool,
    /// Whether pods may be scheduled to it.
    pub schedulable: bool,
    /// Its blocks of pod addresses.
    pub blocks: Vec<String>,
    /// Its pods that have not ended.
    pub pods: u32,
    /// Largest number of pods.
    pub max_pods: u32,
    /// Its network namespace, as `ip netns` names it.
    pub netns: String,
    /// Process ID of its agent.
    pub agent_pid: Option<u32>,
    /// How often its agent was started again.
    pub agent_restarts: u32,
    /// Faults that were injected and not mended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

/// Pods by what has become of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Running.
    pub running: u32,
    /// Not yet running.
    pub pending: u32,
    /// Ended well.
    pub succeeded: u32,
    /// Ended badly.
    pub failed: u32,
}

/// Blocks of the pod CIDR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockCounts {
    /// Given to nodes.
    pub allocated: u32,
    /// All there are.
    pub capacity: u32,
}

/// What `weft lab list` prints for programs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterList {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Always `LabClusterList`.
    pub kind: &'static str,
    /// The clusters, by name.
    pub items: Vec<ClusterStatus>,
}
