use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_model::{Block, BlockError, NodeUid, NodeUidError};

/// The blocks of one node, and what its agent reports.
///
/// Named as the Node. Made, granted blocks and deleted by the operator; the
/// agent writes all of `status` but `status.allocation`.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "nn",
    category = "weft",
    derive = "PartialEq",
    status = "NodeNetworkStatus",
    doc = "A NodeNetwork holds the blocks of pod addresses that belong to the Node of the same name, and what the node's agent reports.",
    printcolumn(
        name = "First block",
        type_ = "string",
        json_path = ".spec.blocks[0].cidr",
        description = "The node's first block"
    ),
    printcolumn(
        name = "Used",
        type_ = "integer",
        json_path = ".status.addresses.used",
        description = "Addresses of pods"
    ),
    printcolumn(
        name = "Capacity",
        type_ = "integer",
        json_path = ".status.addresses.capacity",
        description = "Addresses in all blocks"
    ),
    printcolumn(
        name = "Transport",
        type_ = "string",
        json_path = ".status.transport",
        description = "How packets to other nodes leave"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the agent serves new pods"
    ),
    printcolumn(
        name = "Wanted",
        type_ = "integer",
        json_path = ".status.wantedBlocks",
        description = "Blocks the node asks for",
        priority = 1
    ),
    printcolumn(
        name = "Cooling",
        type_ = "integer",
        json_path = ".status.addresses.cooling",
        description = "Addresses that rest before they are used again",
        priority = 1
    ),
    printcolumn(
        name = "MTU",
        type_ = "integer",
        json_path = ".status.mtu",
        description = "MTU of pods",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = crate::rules::node_network_spec()))]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// UID of the Node the blocks belong to. A node registered anew under the
    /// same name has another UID and inherits nothing.
    #[serde(rename = "nodeUID")]
    #[schemars(length(min = 1, max = 128))]
    pub node_uid: String,

    /// The node's blocks, in the order they were granted.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub blocks: Vec<NodeBlock>,
}

/// One block of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeBlock {
    /// The block's range, /20 to /30.
    #[schemars(schema_with = "crate::schema::cidr")]
    pub cidr: String,
    /// The PodPool it was taken from.
    #[schemars(length(max = 253))]
    pub pool: String,
    /// Whether the node gives no pod another address of it. The operator takes
    /// it back once the node has another block and no address of this one is in
    /// use or cooling.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retiring: bool,
}

/// What the node's agent reports, and what the operator has to say about blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    /// How many blocks the node asks for, its present ones included. The agent
    /// raises it before the last block is full; absent counts as 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1024))]
    pub wanted_blocks: Option<u32>,

    /// The addresses of all blocks, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<AddressCounts>,

    /// The addresses of each block, counted.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::block_uses")]
    pub blocks: Vec<BlockUse>,

    /// How packets to pods of other nodes leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,

    /// MTU of the node's pods in bytes: the uplink's less 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,

    /// The agent's conditions: `Ready` (new pods get addresses and reach the
    /// others), `RoutesClear` (no route of the node that is not Weft's
    /// overlaps the pod CIDRs or a block; the message names the pair) and
    /// `TransportAsRequested` (the message says why packets leave as they do;
    /// False where the node can't do what its agent was told).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// The condition `BlocksGranted`: whether the node has the blocks it asks
    /// for and, if not, which pools have none left. Written by the operator, in
    /// a field of its own so that neither writer can undo the other's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::optional_condition")]
    pub allocation: Option<Condition>,
}

/// The addresses of one block of a node, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockUse {
    /// The block's range.
    #[schemars(schema_with = "crate::schema::cidr")]
    pub cidr: String,
    /// Addresses that belong to pods.
    pub used: u32,
    /// Addresses that rest after their pod is gone, at least 130 seconds.
    pub cooling: u32,
    /// Whether the agent has read that the block is retiring, and gives no pod
    /// another address of it. Before it says so the block is not taken back,
    /// however empty it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retiring: bool,
}

/// The addresses of all blocks of a node or a pool, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressCounts {
    /// All addresses of all blocks.
    pub capacity: u32,
    /// Addresses that belong to pods.
    pub used: u32,
    /// Addresses that rest after their pod is gone, at least 130 seconds.
    pub cooling: u32,
    /// Addresses that nobody gets, because more than one claimed them or what was noted of them can't be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub quarantined: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// How packets to pods of other nodes leave a node. Both kinds understand each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Transport {
    /// Through the VXLAN device `weft0`.
    Device,
    /// The eBPF program writes the outer headers and sends by the uplink.
    Direct,
}

/// What is wrong with a NodeNetwork's specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNetworkError {
    /// The UID is none.
    #[error("spec.nodeUID: {0}")]
    Uid(#[from] NodeUidError),
    /// A block is none.
    #[error("spec.blocks[{index}]: {cause}")]
    Block {
        /// The position in the list, from 0.
        index: usize,
        /// What is wrong.
        cause: BlockError,
    },
}

// === impl NodeNetworkSpec ===

impl NodeNetworkSpec {
    /// Reads the node's UID.
    ///
    /// # Errors
    /// [`NodeNetworkError::Uid`] if it is empty or no printable ASCII.
    pub fn uid(&self) -> Result<NodeUid, NodeNetworkError> {
        Ok(self.node_uid.parse()?)
    }

    /// Reads the blocks, in order.
    ///
    /// # Errors
    /// [`NodeNetworkError::Block`] for the first that is none.
    pub fn model_blocks(&self) -> Result<Vec<Block>, NodeNetworkError> {
        self.blocks
            .iter()
            .enumerate()
            .map(|(index, block)| {
                block
                    .cidr
                    .parse()
                    .map_err(|cause| NodeNetworkError::Block { index, cause })
            })
            .collect()
    }
}
