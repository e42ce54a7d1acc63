//! What the Node object of a lab node says from its first moment on: labels, addresses, capacity.
//!
//! The daemon registers the Node with it, and the kubelet keeps it true.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The Node as it is registered, before anything is known of its health.
pub(crate) fn registered(name: &str, address: Ipv4Addr, max_pods: u32) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels(name)),
            ..ObjectMeta::default()
        },
        status: Some(status(name, address, max_pods)),
        ..Node::default()
    }
}

/// The part of a Node's status that stays the same for as long as the node is there.
pub(crate) fn status(name: &str, address: Ipv4Addr, max_pods: u32) -> NodeStatus {
    let resources: BTreeMap<String, Quantity> = [
        // Pods of a lab run nothing: what they request is never the limit, the number of pods is.
        ("cpu", "1000".to_owned()),
        ("memory", "4Ti".to_owned()),
        ("ephemeral-storage", "4Ti".to_owned()),
        ("pods", max_pods.to_string()),
    ]
    .map(|(name, quantity)| (name.to_owned(), Quantity(quantity)))
    .into();
    let address_of = |kind: &str, address: String| NodeAddress {
        type_: kind.to_owned(),
        address,
    };
    NodeStatus {
        addresses: Some(vec![
            address_of("InternalIP", address.to_string()),
            address_of("Hostname", name.to_owned()),
        ]),
        capacity: Some(resources.clone()),
        allocatable: Some(resources),
        ..NodeStatus::default()
    }
}

/// The labels that a kubelet sets.
pub(crate) fn labels(name: &str) -> BTreeMap<String, String> {
    let arch = architecture();
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
        ("node.kubernetes.io/instance-type", "weft-lab"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Go's name of the architecture, which is what Kubernetes labels hold.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
