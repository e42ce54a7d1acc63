//! A small cluster for tests: one pool, two nodes with a block each, one slice.

use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::snapshot::Snapshot;

/// An object from JSON.
pub(crate) fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a valid object")
}

/// The cluster as it is when all is well.
pub(crate) fn healthy() -> Snapshot {
    Snapshot {
        pools: vec![object(json!({
            "metadata": {"name": "default"},
            "spec": {"cidrs": ["10.244.0.0/16"], "blockSize": 24, "excluded": ["10.244.255.0/24"]},
            "status": {"capacity": 255, "allocated": 2, "conditions": [
                condition("Ready", "True", "the pool gives out blocks"),
                condition("Exhausted", "False", "no node waits for a block"),
            ]},
        }))],
        networks: vec![
            object(network("a", "10.244.0.0/24", 3)),
            object(network("b", "10.244.1.0/24", 0)),
        ],
        slices: vec![object(json!({
            "metadata": {"name": "nodes-0"},
            "nodes": [
                {"name": "a", "uid": "uid-a", "addresses": ["10.224.0.4"], "blocks": ["10.244.0.0/24"]},
                {"name": "b", "uid": "uid-b", "addresses": ["10.224.0.5"], "blocks": ["10.244.1.0/24"]},
            ],
        }))],
        nodes: vec![object(node("a", "10.224.0.4")), object(node("b", "10.224.0.5"))],
    }
}

/// A NodeNetwork with one block; that many of its addresses cool.
pub(crate) fn network(node: &str, block: &str, cooling: u32) -> Value {
    json!({
        "metadata": {"name": node},
        "spec": {"nodeUID": format!("uid-{node}"), "blocks": [{"cidr": block, "pool": "default"}]},
        "status": {
            "wantedBlocks": 1,
            "addresses": {"capacity": 256, "used": 2, "cooling": cooling},
            "transport": "device",
            "mtu": 1450,
            "conditions": [
                condition("Ready", "True", "the node serves new pods"),
                condition("TransportAsRequested", "True", "the agent was told --transport device"),
            ],
            "allocation": condition("BlocksGranted", "True", "the node has the blocks it asks for"),
        },
    })
}

/// A Node that is Ready.
pub(crate) fn node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-{name}")},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": address},
            ],
            "conditions": [condition("Ready", "True", "kubelet is posting ready status")],
        },
    })
}

/// A condition with its message.
pub(crate) fn condition(type_: &str, status: &str, message: &str) -> Value {
    json!({
        "type": type_,
        "status": status,
        "reason": "Because",
        "message": message,
        "lastTransitionTime": "2026-11-23T10:00:00Z",
    })
}

/// A pod in namespace `shop`.
pub(crate) fn pod(name: &str, node: &str, address: &str, phase: &str) -> Pod {
    object(json!({
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": phase, "podIP": address},
    }))
}
