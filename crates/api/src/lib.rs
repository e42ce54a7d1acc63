//! Weft's Kubernetes types, their conversion to the model, clients to get them with, and what Kubernetes asks a process.
//!
//! All types are cluster-scoped, in group `weft.dev`, version `v1alpha1`. Their
//! doc comments are the texts of `kubectl explain`. Addresses and ranges are
//! plain strings here, so that one bad value makes one object invalid and not a
//! whole list unreadable; the conversions say what is wrong with it.
#![forbid(unsafe_code)]
#![expect(
    clippy::duplicated_attributes,
    reason = "every printer column has a type of its own; the lint does not see the parentheses"
)]

mod connect;
pub mod http;
mod identity_slice;
mod node_network;
mod node_slice;
mod pod_pool;
mod rules;
mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResourceExt, Resource};

pub use connect::{client, config, root_cause};
pub use identity_slice::{IdentityEntry, IdentitySlice, IdentitySliceSpec};
pub use node_network::{
    AddressCounts, BlockUse, NodeBlock, NodeNetwork, NodeNetworkError, NodeNetworkSpec, NodeNetworkStatus,
    Transport,
};
pub use node_slice::{NodeSlice, NodeSliceEntry, NodeSliceError, NodeSliceSpec};
pub use pod_pool::{Ipam, PodPool, PodPoolSpec, PodPoolStatus, PoolError, PoolRange, PoolRanges};

/// The API group of all types.
pub const GROUP: &str = "weft.dev";

/// The version of all types.
pub const VERSION: &str = "v1alpha1";

/// The definitions a cluster needs before Weft can start.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![
        PodPool::crd(),
        NodeNetwork::crd(),
        NodeSlice::crd(),
        IdentitySlice::crd(),
    ];
    for crd in &mut crds {
        let pool = crd.spec.names.kind == PodPool::kind(&());
        for version in &mut crd.spec.versions {
            let validation = version.schema.as_mut();
            if let Some(schema) = validation.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                schema::tidy(schema);
                // A rule on a change reads the status beside the specification.
                schema.x_kubernetes_validations = pool.then(rules::pool);
            }
        }
    }
    crds
}

#[cfg(test)]
mod tests;
