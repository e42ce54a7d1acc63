use std::net::{AddrParseError, Ipv4Addr};

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_model::{Block, BlockError, Node, NodeNameError, NodeUidError, Routing};

/// Up to 200 nodes with their underlay addresses and blocks.
///
/// All slices together are the list of all nodes: what every agent has to know
/// of the others. Written by the operator alone.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "NodeSlice",
    plural = "nodeslices",
    shortname = "nsl",
    category = "weft",
    derive = "PartialEq",
    no_spec,
    doc = "A NodeSlice lists up to 200 nodes with their underlay addresses and blocks. All slices together are what every agent knows of the other nodes.",
    printcolumn(
        name = "First node",
        type_ = "string",
        json_path = ".nodes[0].name",
        description = "The first of the nodes listed"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NodeSliceSpec {
    /// The nodes, in no order that means anything. A node is in one slice only.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub nodes: Vec<NodeSliceEntry>,
}

/// One node as the others see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeSliceEntry {
    /// The Node's name.
    pub name: String,
    /// The Node's UID.
    pub uid: String,
    /// All InternalIPs of the Node, in the Node's order: where its packets are
    /// sent to and come from.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,
    /// The node's blocks.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub blocks: Vec<String>,
    /// How the node's pods are reached: `overlay` through the tunnel, the
    /// default, or `native` by the other nodes' ordinary routes (a node whose
    /// pods are not on Weft yet).
    #[serde(default, skip_serializing_if = "is_overlay")]
    #[schemars(schema_with = "crate::schema::routing")]
    pub routing: Routing,
}

/// What is wrong with an entry of a NodeSlice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeSliceError {
    /// The name is none.
    #[error("name: {0}")]
    Name(#[from] NodeNameError),
    /// The UID is none.
    #[error("uid: {0}")]
    Uid(#[from] NodeUidError),
    /// An address is none.
    #[error("addresses: \"{text}\": {cause}")]
    Address {
        /// The address as given.
        text: String,
        /// What is wrong.
        cause: AddrParseError,
    },
    /// A block is none.
    #[error("blocks: {0}")]
    Block(#[from] BlockError),
}

// === impl NodeSliceEntry ===

impl From<&Node> for NodeSliceEntry {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.to_string(),
            uid: node.uid.to_string(),
            addresses: node.addresses.iter().map(Ipv4Addr::to_string).collect(),
            blocks: node.blocks.iter().map(Block::to_string).collect(),
            routing: node.routing,
        }
    }
}

impl TryFrom<&NodeSliceEntry> for Node {
    type Error = NodeSliceError;

    fn try_from(entry: &NodeSliceEntry) -> Result<Self, NodeSliceError> {
        let address = |text: &String| {
            text.parse().map_err(|cause| NodeSliceError::Address {
                text: text.clone(),
                cause,
            })
        };
        Ok(Self {
            name: entry.name.parse()?,
            uid: entry.uid.parse()?,
            addresses: entry.addresses.iter().map(address).collect::<Result<_, _>>()?,
            blocks: entry
                .blocks
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, BlockError>>()?,
            routing: entry.routing,
        })
    }
}

/// What is not written, because nearly all entries would say it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_overlay(routing: &Routing) -> bool {
    *routing == Routing::Overlay
}
