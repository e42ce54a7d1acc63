//! Control loops of Kubernetes that turn objects into pods: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and
//! Service.
//!
//! Each has a pure part, `plan`, that compares an object with what belongs to it and says what is to be done, and
//! shares one I/O part, [`run`], that watches, calls the plans, and carries them out:
//!
//! ```text
//! Deployment ─▶ ReplicaSet ─▶ Pod ◀─ StatefulSet, DaemonSet ◀─ Node, Job
//!                              └─▶ Service ─▶ EndpointSlice, Endpoints
//! ```
//!
//! An arrow points to what a change makes the controller look at, and back again.

pub mod cache;
pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod events;
pub mod facts;
pub mod feed;
pub mod job;
mod manager;
pub mod queue;
pub mod replicaset;
pub mod statefulset;
mod store;
pub mod template;

pub use manager::{run, run_with};
