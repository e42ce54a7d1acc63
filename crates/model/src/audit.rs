//! What an audit of a node finds: differences between what should be there and what is.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::AttachmentKey;

/// The audit of one node, by its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAudit {
    /// Name of the Node object.
    pub node: String,
    /// What is not as it should be at this moment.
    pub findings: Vec<Finding>,
    /// What the agent put right lately, the last first.
    pub repaired: Vec<Repaired>,
    /// How much was compared.
    pub checked: Checked,
    /// Who has which address, by the node's ledger.
    pub held: Vec<Held>,
}

/// An address that the ledger has for an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The address.
    pub address: Ipv4Addr,
    /// The attachment.
    pub attachment: AttachmentKey,
    /// The pod as `namespace/name`, where the runtime named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// How much an audit compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// Other nodes in the datapath's maps.
    pub nodes: usize,
    /// Prefixes in the datapath's map.
    pub prefixes: usize,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What kind of thing differs.
    pub kind: FindingKind,
    /// The difference, in words.
    pub what: String,
    /// Whose it is: an attachment with its pod where that is known, or the node.
    pub owner: String,
    /// Who puts it right.
    pub remedy: Remedy,
}

/// Something that was put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repaired {
    /// What it was.
    pub finding: Finding,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FindingKind {
    /// An interface: missing, down, another MTU or Ethernet address.
    Link,
    /// An address of an interface.
    Address,
    /// A route.
    Route,
    /// A permanent neighbour.
    Neighbour,
    /// The nftables table.
    Rules,
    /// An entry of an eBPF map.
    Map,
    /// An eBPF program that is not attached.
    Program,
    /// A kernel parameter.
    Sysctl,
    /// An attachment whose pod is gone, or whose interface is nobody's.
    Attachment,
    /// An address that the ledger gives to nobody.
    Quarantine,
    /// What packets do.
    Packets,
    /// An object of the Kubernetes API.
    Object,
}

/// Who puts a difference right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Remedy {
    /// The node's agent, by itself.
    Agent,
    /// The operator, by itself.
    Operator,
    /// A person, with this command or step.
    Person(String),
}

// === impl FindingKind ===

impl FindingKind {
    /// Its name, as in metrics and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Rules => "rules",
            Self::Map => "map",
            Self::Program => "program",
            Self::Sysctl => "sysctl",
            Self::Attachment => "attachment",
            Self::Quarantine => "quarantine",
            Self::Packets => "packets",
            Self::Object => "object",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Remedy ===

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("the node's agent puts it right"),
            Self::Operator => f.write_str("the operator puts it right"),
            Self::Person(step) => f.write_str(step),
        }
    }
}
