//! An in-memory Kubernetes API for the lab and for tests.
//!
//! [`ApiServer`] speaks enough of the Kubernetes API over plain HTTP that the `kube` client's watchers
//! and `kubectl` work against it as against a real kube-apiserver: lists and watches with resource
//! versions, all patch kinds, server-side tables, discovery, OpenAPI, custom resources, finalizers,
//! garbage collection. `README.md` beside this crate lists where it differs.
//!
//! Nothing is authenticated, nothing is persisted: bind it to loopback or to a namespace of your own.
#![forbid(unsafe_code)]

mod apply;
mod body;
mod core;
mod crd;
mod decode;
mod defaults;
mod discovery;
mod error;
mod events;
mod faults;
mod housekeeping;
mod http;
mod names;
mod openapi;
mod ownership;
mod patch;
mod protobuf;
mod quantity;
mod read;
mod registry;
mod remove;
mod route;
mod schema;
mod selectable;
mod selector;
mod server;
mod services;
mod store;
mod strategic;
mod strategy;
mod structural;
mod subresource;
mod table;
mod typed;
mod validation;
mod watch;
mod write;

pub use crate::core::{Admission, BuildError, Builder};
pub use crate::faults::Faults;
pub use crate::server::{ApiServer, Body, RewindError};
