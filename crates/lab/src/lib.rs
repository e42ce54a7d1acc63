//! Clusters whose nodes are network namespaces: virtual networks, nodes, pods, faults.
//!
//! A lab runs the real agent, operator and plugin; this crate stands in for what surrounds them in a data
//! centre: the virtual network, the machines, and of Kubernetes whatever a network plugin meets.

#![forbid(unsafe_code)]

pub mod apply;
pub mod autoscaler;
pub mod check;
pub mod cluster;
pub mod config;
pub mod control;
pub mod controllers;
mod daemon;
pub mod exec;
pub mod faults;
pub mod kubelet;
mod machine;
pub mod node;
mod node_object;
mod preflight;
mod registration;
mod remove;
mod report;
pub mod responder;
pub mod scheduler;
pub mod state;
pub mod status;
mod supervise;
pub mod vnet;
mod workloads;

pub use daemon::run as run_daemon;
pub use remove::Removed;
