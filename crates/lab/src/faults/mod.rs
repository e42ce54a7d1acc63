//! Things that break, on purpose.

mod cluster;
mod inject;
mod kernel;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use weft_model::{UserError, codes};

pub(crate) use self::cluster::Past;

/// What to break, or to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRequest {
    /// The kind of fault.
    pub kind: FaultKind,
    /// On which nodes; all, where none is named.
    pub nodes: Vec<String>,
    /// See [`FaultKind::value`].
    pub value: Option<u32>,
    /// Mend it after that many milliseconds.
    pub for_ms: Option<u64>,
    /// Mend it now.
    pub clear: bool,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The agent is killed, as by the kernel when memory is short.
    KillAgent,
    /// The agent is frozen.
    StopAgent,
    /// The node's link loses packets.
    Loss,
    /// The node's link takes smaller packets.
    Mtu,
    /// The node is cut from its VNet.
    Partition,
    /// Somebody removes the agent's nftables table.
    FlushNft,
    /// Somebody removes the agent's routes.
    DeleteRoute,
    /// Somebody removes the overlay device.
    DeleteLink,
    /// Somebody removes entries of the datapath's maps.
    DeleteMapEntry,
    /// Somebody changes kernel parameters that the node needs.
    Sysctl,
    /// The file system of the agent's state is full.
    DiskFull,
    /// The node loses power and comes back.
    RebootNode,
    /// Another machine comes under the node's name.
    ReplaceNode,
    /// The node gets another address in its VNet.
    ChangeAddress,
    /// The operator is killed.
    KillOperator,
    /// The API answers nobody.
    ApiDown,
    /// The API is restored to an older state.
    ApiRewind,
    /// Somebody deletes the NodeSlices.
    LoseSlice,
}

/// What a kind of fault breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Something of each node named.
    Node,
    /// Something that the cluster has once.
    Cluster,
}

/// How a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Itself,
    /// After the time given, or when it is mended.
    Mended,
    /// After the time given; by itself, where none is.
    Either,
}

/// The number that a kind of fault takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What it may be.
    pub range: RangeInclusive<u32>,
    /// What it is where none is given.
    pub default: u32,
    /// What it counts, in the plural.
    pub unit: &'static str,
}

/// The faults that were injected and not mended: a node's by its name, the cluster's under none.
#[derive(Debug, Default)]
pub(crate) struct ActiveFaults(Mutex<BTreeMap<(Option<String>, FaultKind), String>>);

// === impl FaultKind ===

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 18] = [
        Self::KillAgent,
        Self::StopAgent,
        Self::Loss,
        Self::Mtu,
        Self::Partition,
        Self::FlushNft,
        Self::DeleteRoute,
        Self::DeleteLink,
        Self::DeleteMapEntry,
        Self::Sysctl,
        Self::DiskFull,
        Self::RebootNode,
        Self::ReplaceNode,
        Self::ChangeAddress,
        Self::KillOperator,
        Self::ApiDown,
        Self::ApiRewind,
        Self::LoseSlice,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillAgent => "kill-agent",
            Self::StopAgent => "freeze-agent",
            Self::Loss => "loss",
            Self::Mtu => "mtu",
            Self::Partition => "partition",
            Self::FlushNft => "flush-nft",
            Self::DeleteRoute => "delete-route",
            Self::DeleteLink => "delete-link",
            Self::DeleteMapEntry => "delete-map-entry",
            Self::Sysctl => "sysctl",
            Self::DiskFull => "disk-full",
            Self::RebootNode => "reboot-node",
            Self::ReplaceNode => "replace-node",
            Self::ChangeAddress => "change-address",
            Self::KillOperator => "kill-operator",
            Self::ApiDown => "api-down",
            Self::ApiRewind => "api-rewind",
            Self::LoseSlice => "lose-slice",
        }
    }

    /// What it does, in a sentence.
    pub fn describe(self) -> &'static str {
        match self {
            Self::KillAgent => {
                "kill -9 the agent; it is started again at once, or with --for after that time"
            }
            Self::StopAgent => "freeze the agent (SIGSTOP)",
            Self::Loss => "lose --value percent (20) of the packets that the node sends",
            Self::Mtu => "give the node's link an MTU of --value (1400) bytes",
            Self::Partition => "cut the node from its VNet",
            Self::FlushNft => "remove the agent's nftables table",
            Self::DeleteRoute => "remove all routes of the agent's",
            Self::DeleteLink => "remove the overlay device weft0",
            Self::DeleteMapEntry => {
                "remove an entry of each of the datapath's maps of prefixes, nodes and pods"
            }
            Self::Sysctl => "switch forwarding off and strict reverse-path filtering on",
            Self::DiskFull => "fill the file system that ledger and DEL intents are on",
            Self::RebootNode => {
                "power off the node and start it again: processes, links and pins are gone, the disk stays"
            }
            Self::ReplaceNode => {
                "put another machine in the node's place: same name and address, new Node object, empty disk"
            }
            Self::ChangeAddress => "give the node another address in its VNet while its pods run",
            Self::KillOperator => {
                "kill -9 the operator; it is started again at once, or with --for after that time"
            }
            Self::ApiDown => "have the Kubernetes API answer every request with 503 and end all watches",
            Self::ApiRewind => {
                "restore the Kubernetes API to what it was --value seconds (30) ago, as from a backup"
            }
            Self::LoseSlice => "delete all NodeSlices",
        }
    }

    /// Whose fault it is.
    pub fn scope(self) -> Scope {
        match self {
            Self::KillOperator | Self::ApiDown | Self::ApiRewind | Self::LoseSlice => Scope::Cluster,
            _ => Scope::Node,
        }
    }

    /// How it ends.
    pub fn ending(self) -> Ending {
        match self {
            Self::KillAgent | Self::KillOperator => Ending::Either,
            Self::StopAgent | Self::Loss | Self::Mtu | Self::Partition | Self::DiskFull | Self::ApiDown => {
                Ending::Mended
            }
            Self::FlushNft
            | Self::DeleteRoute
            | Self::DeleteLink
            | Self::DeleteMapEntry
            | Self::Sysctl
            | Self::RebootNode
            | Self::ReplaceNode
            | Self::ChangeAddress
            | Self::ApiRewind
            | Self::LoseSlice => Ending::Itself,
        }
    }

    /// The number that it takes, if it takes one.
    pub fn value(self) -> Option<Value> {
        let value = |range, default, unit| Some(Value { range, default, unit });
        match self {
            Self::Loss => value(1..=100, 20, "percent"),
            Self::Mtu => value(576..=crate::vnet::MTU, 1400, "bytes"),
            Self::ApiRewind => value(1..=Past::SECONDS, 30, "seconds"),
            _ => None,
        }
    }

    /// Reads the name of a kind.
    ///
    /// # Errors
    /// There is none; the error names all.
    pub fn parse(text: &str) -> Result<Self, UserError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
                UserError::new(
                    codes::UNKNOWN_FAULT,
                    format!("there is no fault {text:?}"),
                    format!("choose one of {}", names.join(", ")),
                )
            })
    }
}

// === impl FaultRequest ===

impl FaultRequest {
    /// The number to go by.
    ///
    /// # Errors
    /// Something was asked for that this kind of fault does not have: nodes, a time, a number, or one out of range.
    pub fn check(&self) -> Result<u32, UserError> {
        let kind = self.kind.name();
        let refuse = |what: String, next: String| Err(UserError::new(codes::OUT_OF_RANGE, what, next));
        if self.kind.scope() == Scope::Cluster && !self.nodes.is_empty() {
            return refuse(
                format!(
                    "{kind} is no fault of a node, but {} is named",
                    self.nodes.join(", ")
                ),
                "leave the nodes out".to_owned(),
            );
        }
        if self.for_ms.is_some() && self.kind.ending() == Ending::Itself {
            return refuse(
                format!("--for means nothing to {kind}, which is over at once"),
                "leave --for out".to_owned(),
            );
        }
        match (self.kind.value(), self.value) {
            (Some(value), Some(given)) if !value.range.contains(&given) => refuse(
                format!("--value {given} is out of range for {kind}"),
                format!(
                    "use {} to {} {}",
                    value.range.start(),
                    value.range.end(),
                    value.unit
                ),
            ),
            (None, Some(given)) => refuse(
                format!("--value {given} means nothing to {kind}"),
                "leave --value out".to_owned(),
            ),
            (value, given) => Ok(given.or(value.map(|value| value.default)).unwrap_or_default()),
        }
    }
}

// === impl ActiveFaults ===

impl ActiveFaults {
    /// Descriptions of the faults of a node, or of the cluster.
    pub(crate) fn of(&self, node: Option<&str>) -> Vec<String> {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults
            .iter()
            .filter(|((name, _), _)| name.as_deref() == node)
            .map(|(_, text)| text.clone())
            .collect()
    }

    fn note(&self, node: Option<&str>, kind: FaultKind, text: Option<String>) {
        let key = (node.map(str::to_owned), kind);
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => faults.insert(key, text),
            None => faults.remove(&key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: FaultKind) -> FaultRequest {
        FaultRequest {
            kind,
            nodes: Vec::new(),
            value: None,
            for_ms: None,
            clear: false,
        }
    }

    #[test]
    fn every_kind_is_found_by_its_name_and_takes_its_default() {
        for kind in FaultKind::ALL {
            assert_eq!(FaultKind::parse(kind.name()).unwrap(), kind);
            let default = kind.value().map_or(0, |value| value.default);
            assert_eq!(request(kind).check().unwrap(), default, "{kind:?}");
        }
        assert_eq!(
            FaultKind::parse("reboot").unwrap_err().code(),
            codes::UNKNOWN_FAULT
        );
    }

    #[test]
    fn what_a_kind_does_not_have_is_refused_with_the_value() {
        let refused = |request: FaultRequest| request.check().unwrap_err().message().to_owned();
        assert_eq!(
            refused(FaultRequest {
                nodes: vec!["node-1".into()],
                ..request(FaultKind::ApiDown)
            }),
            "api-down is no fault of a node, but node-1 is named"
        );
        assert_eq!(
            refused(FaultRequest {
                for_ms: Some(1),
                ..request(FaultKind::ReplaceNode)
            }),
            "--for means nothing to replace-node, which is over at once"
        );
        assert_eq!(
            refused(FaultRequest {
                value: Some(7),
                ..request(FaultKind::KillAgent)
            }),
            "--value 7 means nothing to kill-agent"
        );
        assert_eq!(
            refused(FaultRequest {
                value: Some(301),
                ..request(FaultKind::ApiRewind)
            }),
            "--value 301 is out of range for api-rewind"
        );
    }
}
