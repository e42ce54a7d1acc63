//! The node agent: index, desired state, reconciler, and the server behind the CNI plugin.
#![forbid(unsafe_code)]

pub mod desired;
pub mod index;
mod http;
mod metrics;
