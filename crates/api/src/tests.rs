use std::net::Ipv4Addr;

use serde_json::{Value, json};
use weft_model::{Node, UserError};

use super::*;

fn pool(spec: Value) -> PodPoolSpec {
    serde_json::from_value(spec).unwrap()
}

/// Every schema below `value` that describes a node of the tree.
fn walk<'a>(value: &'a Value, path: &str, visit: &mut dyn FnMut(&str, &'a Value)) {
    visit(path, value);
    if let Some(properties) = value.get("properties").and_then(Value::as_object) {
        for (name, schema) in properties {
            walk(schema, &format!("{path}.{name}"), visit);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(schema) = value.get(key).filter(|schema| schema.is_object()) {
            walk(schema, &format!("{path}[]"), visit);
        }
    }
}

#[test]
fn the_types_are_cluster_scoped_and_named_as_documented() {
    let names: Vec<_> = crds()
        .into_iter()
        .map(|crd| (crd.metadata.name.unwrap(), crd.spec.scope))
        .collect();
    assert_eq!(
        names,
        ["podpools", "nodenetworks", "nodeslices", "identityslices"]
            .map(|plural| (format!("{plural}.{GROUP}"), "Cluster".to_owned()))
    );
    for crd in crds() {
        assert_eq!(crd.spec.versions[0].name, VERSION);
    }
}

#[test]
fn every_schema_is_structural_and_every_field_is_explained() {
    for crd in crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(root, &kind, &mut |path, schema| {
            for forbidden in ["$ref", "oneOf", "allOf", "definitions", "$defs"] {
                assert!(schema.get(forbidden).is_none(), "{path} has {forbidden}");
            }
            assert!(
                schema.get("type").is_some()
                    || schema.get("x-kubernetes-preserve-unknown-fields").is_some()
                    || schema.get("x-kubernetes-int-or-string").is_some(),
                "{path} has no type: {schema}"
            );
            let format = schema
                .get("format")
                .map_or("int32", |format| format.as_str().unwrap());
            assert!(
                ["int32", "int64", "date-time"].contains(&format),
                "{path} has format {format}"
            );
            let parts: Vec<_> = path.split('.').collect();
            let described = parts.len() == 1 || path.ends_with("[]") || schema.get("description").is_some();
            assert!(described, "{path} has no description: {schema}");
        });
    }
}

#[test]
fn a_pool_with_defaults_is_what_the_lab_creates() {
    let ranges = pool(json!({"cidrs": ["10.244.0.0/16"]})).ranges().unwrap();
    assert_eq!(
        ranges,
        PoolRanges {
            cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            block_size: weft_model::BlockSize::new(24).unwrap(),
            excluded: vec![],
            retiring: vec![],
            ipam: Ipam::Pool,
            non_masquerade: vec![],
        }
    );
}

#[test]
fn a_pool_that_can_not_work_says_which_field_and_why() {
    for (spec, expected) in [
        (
            json!({"cidrs": ["10.244.0.1/16"]}),
            "error[WEFT-1002]: spec.cidrs[0]: 10.244.0.1/16 has host bits set: the range it lies in is written 10.244.0.0/16\n  \
             next: use 10.244.0.0/16 if the whole range is meant",
        ),
        (
            json!({"cidrs": ["10.244.0.0/16"], "excluded": ["10.244.0.0/24", "x"]}),
            "error[WEFT-1001]: spec.excluded[1]: \"x\" is not an IPv4 range: expected a.b.c.d/length, for example 10.244.0.0/16\n  \
             next: write the range as 10.244.0.0/16",
        ),
        (
            json!({"cidrs": ["10.244.0.0/25", "10.245.0.0/26"], "blockSize": 24}),
            "error[WEFT-1005]: spec.blockSize: a block of /24 is larger than 10.244.0.0/25, the largest range of the pool\n  \
             next: use a block size of 25 or more, or a range of /24 or larger",
        ),
        (
            json!({"cidrs": ["10.244.0.0/16"], "blockSize": 31}),
            "error[WEFT-1004]: spec.blockSize: block size /31 is outside /20 to /30\n  \
             next: choose a block size of 20 to 30; 24 (256 addresses) suits 250 pods a node",
        ),
    ] {
        let error = UserError::from(pool(spec).ranges().unwrap_err());
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_slice_keeps_its_nodes_beside_the_metadata_and_reads_back() {
    let node = Node {
        name: "n1".parse().unwrap(),
        uid: "u1".parse().unwrap(),
        addresses: vec![Ipv4Addr::new(10, 224, 0, 4)],
        blocks: vec!["10.244.0.0/24".parse().unwrap()],
        routing: weft_model::Routing::Overlay,
    };
    let slice = NodeSlice::new(
        "nodes-1",
        NodeSliceSpec {
            nodes: vec![(&node).into()],
        },
    );
    let written = serde_json::to_value(&slice).unwrap();
    assert_eq!(
        written,
        json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "NodeSlice",
            "metadata": {"name": "nodes-1"},
            "nodes": [{
                "name": "n1",
                "uid": "u1",
                "addresses": ["10.224.0.4"],
                "blocks": ["10.244.0.0/24"],
            }],
        })
    );
    let read: NodeSlice = serde_json::from_value(written).unwrap();
    assert_eq!(Node::try_from(&read.spec.nodes[0]), Ok(node));
}

#[test]
fn a_node_network_with_a_bad_block_names_its_place() {
    let spec: NodeNetworkSpec = serde_json::from_value(json!({
        "nodeUID": "u1",
        "blocks": [
            {"cidr": "10.244.0.0/24", "pool": "default"},
            {"cidr": "10.244.0.0/16", "pool": "default"},
        ],
    }))
    .unwrap();
    assert_eq!(
        spec.model_blocks().unwrap_err().to_string(),
        "spec.blocks[1]: block size /16 is outside /20 to /30"
    );
}
