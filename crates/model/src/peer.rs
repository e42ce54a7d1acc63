use std::net::Ipv4Addr;

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
}
