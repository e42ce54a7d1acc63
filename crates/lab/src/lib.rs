//! Clusters whose nodes are network namespaces: virtual networks, nodes, pods, faults.
//!
//! A lab runs the real agent, operator and plugin; this crate stands in for what surrounds them in a data
//! centre: the virtual network, the machines, and of Kubernetes whatever a network plugin meets.

#![forbid(unsafe_code)]

pub mod config;
pub mod node;
pub mod vnet;
