//! A cluster's pod network as its API shows it: how it is doing, and who owns an address.
//!
//! Reads objects and judges them. Writes nothing, prints nothing, and needs no access to nodes: what an agent alone
//! knows is not to be had here.

#![forbid(unsafe_code)]

mod address;
mod audit;
mod connect;
#[cfg(test)]
mod fixture;
mod snapshot;
mod status;

pub use address::{
    AddressAnswer, AddressList, AddressOwner, BlockRef, BlockUse, PodAddress, PodRef, list_addresses, look_up,
};
pub use audit::ClusterAudit;
pub use connect::client;
pub use kube::Client;
pub use snapshot::{Snapshot, pods, pods_with};
pub use status::{
    AddressTotals, NetworkStatus, NodeState, PoolState, Problem, SliceState, Subject, Verdict, assess,
};

/// Version of the schema of everything printed for programs.
pub const API_VERSION: &str = "cli.weft.dev/v1alpha1";
