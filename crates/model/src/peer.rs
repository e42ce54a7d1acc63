use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Block, NodeName, NodeUid};

/// What the rest of the cluster knows of a node: where to send, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The Node object's name.
    pub name: NodeName,
    /// The Node object's UID.
    pub uid: NodeUid,
    /// The node's addresses in the underlay, the preferred one first.
    pub addresses: Vec<Ipv4Addr>,
    /// The blocks whose addresses are this node's pods.
    pub blocks: Vec<Block>,
    /// How these pods are reached.
    pub routing: Routing,
}

/// How the pods of another node are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Routing {
    /// Through the tunnel to the node.
    #[default]
    Overlay,
    /// By this node's ordinary routes, un-masqueraded: pods there are not on
    /// Weft (yet).
    Native,
}
