//! Real Kubernetes clusters in namespaces of one machine, to test and develop Weft with.

#![forbid(unsafe_code)]

pub mod build;
pub mod cache;
pub mod check;
pub mod cluster;
pub mod cni;
pub mod commands;
pub mod control_plane;
pub mod dns;
pub mod e2e;
pub mod image;
pub mod kubectl;
pub mod logs;
pub mod node;
pub mod oci;
pub mod pki;
pub mod preflight;
pub mod progress;
pub mod rehearsal;
pub mod remove;
pub mod state;
pub mod vnet;
