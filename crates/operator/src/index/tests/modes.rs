//! Blocks that somebody else chose, nodes that are not on Weft yet, and what the scheduler sees.

use super::*;

const NODE_POOL: &str = r#"{"cidrs": ["10.244.0.0/16"], "ipam": "node"}"#;

fn node_pool(selector: Option<&str>) -> Cluster {
    let mut cluster = Cluster::new();
    let mut spec: serde_json::Value = serde_json::from_str(NODE_POOL).unwrap();
    if let Some(label) = selector {
        spec["nodeSelector"] = serde_json::json!({ "matchLabels": { label: "true" } });
    }
    cluster.pool("default", spec);
    cluster
}

#[test]
fn a_node_pool_takes_the_ranges_that_nodes_come_with() {
    let mut cluster = node_pool(None);
    cluster.ranged_node("n1", "u1", "10.224.0.4", &["10.244.7.0/24"], &[]);
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.7.0/24");
    assert_eq!(
        cluster.allocation("n2"),
        "NoPodCIDR: pool default has ipam node, and the Node has no IPv4 in spec.podCIDRs: \
         kube-controller-manager gives it one with --allocate-node-cidrs"
    );
    assert_eq!(
        cluster.pool_condition("default", "Ready"),
        "True NodeIPAM: nodes use the blocks of their spec.podCIDRs"
    );
    cluster.change_node("n2", |node| node.pod_cidrs = vec!["10.244.9.0/24".to_owned()]);
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "10.244.9.0/24");
    assert_eq!(cluster.pools["default"].status.as_ref().unwrap().allocated, 2);
    // It has no more to give than what others chose.
    cluster.wants("n1", 2);
    cluster.settle();
    assert_eq!(
        cluster.allocation("n1"),
        "PodCIDRsOnly: has 1 of 2 blocks: pool default has ipam node, and the Node has 1 IPv4 in spec.podCIDRs"
    );
}

#[test]
fn ranges_outside_of_the_pool_and_ranges_of_two_nodes_are_named() {
    let mut cluster = node_pool(None);
    cluster.ranged_node("n1", "u1", "10.224.0.4", &["10.244.7.0/24"], &[]);
    cluster.ranged_node("n2", "u2", "10.224.0.5", &["10.244.7.0/24"], &[]);
    cluster.ranged_node("n3", "u3", "10.224.0.6", &["10.245.0.0/24"], &[]);
    cluster.ranged_node("n4", "u4", "10.224.0.7", &["10.244.0.0/17"], &[]);
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.7.0/24");
    assert_eq!(
        cluster.allocation("n2"),
        "DuplicateBlock: 10.244.7.0/24 of the Node's spec.podCIDRs overlaps 10.244.7.0/24 of node n1"
    );
    assert_eq!(
        cluster.allocation("n3"),
        "PodCIDROutsidePool: pool default has ipam node, and 10.245.0.0/24 of the Node's spec.podCIDRs lies \
         outside of its cidrs"
    );
    assert_eq!(
        cluster.allocation("n4"),
        "PodCIDRUnusable: pool default has ipam node, and spec.podCIDRs of the Node is no block: \
         block size /17 is outside /20 to /30"
    );
    // Its range rests, also if it is given out again at once.
    cluster.remove_node("n1");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(GRACE);
    assert_eq!(cluster.blocks("n2"), "10.244.7.0/24");
}

#[test]
fn nodes_turn_from_native_to_overlay_one_by_one() {
    let mut cluster = node_pool(Some("weft"));
    cluster.ranged_node("n1", "u1", "10.224.0.4", &["10.244.1.0/24"], &[("weft", "true")]);
    cluster.ranged_node("n2", "u2", "10.224.0.5", &["10.244.2.0/24"], &[]);
    cluster.settle();
    let routing = |cluster: &Cluster| -> Vec<(String, weft_model::Routing)> {
        let nodes = &cluster.slices["nodes-0"];
        let mut nodes: Vec<_> = nodes
            .iter()
            .map(|node| (node.blocks.join(","), node.routing))
            .collect();
        nodes.sort_by(|a, b| a.0.cmp(&b.0));
        nodes
    };
    let (overlay, native) = (weft_model::Routing::Overlay, weft_model::Routing::Native);
    let ranges = ["10.244.1.0/24".to_owned(), "10.244.2.0/24".to_owned()];
    assert_eq!(
        routing(&cluster),
        [(ranges[0].clone(), overlay), (ranges[1].clone(), native)]
    );
    assert!(!cluster.networks.contains_key(&NodeName::from_str("n2").unwrap()));
    cluster.change_node("n2", |node| {
        node.labels.insert("weft".to_owned(), "true".to_owned());
    });
    cluster.settle();
    assert_eq!(
        routing(&cluster),
        [(ranges[0].clone(), overlay), (ranges[1].clone(), overlay)]
    );
    assert_eq!(cluster.blocks("n2"), "10.244.2.0/24");
}

#[test]
fn the_node_says_what_its_agent_says() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.pace.unready = Duration::from_secs(10);
    let mut cluster = cluster.restarted();
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.change_node("n1", |node| {
        node.taints = Taints {
            count: 2,
            ours: Some(1),
        }
    });
    let silent = cluster.settle();
    assert!(
        !silent
            .iter()
            .any(|write| write.contains("taint") || write.contains("unavailable")),
        "{silent:?}"
    );
    cluster.ready("n1", "True", "");
    assert_eq!(
        cluster.settle(),
        [
            "n1 unavailable False WeftReady: pods of the node are connected",
            "n1 taint false"
        ]
    );
    assert_eq!(
        cluster.nodes.values().next().unwrap().taints,
        Taints { count: 1, ours: None }
    );
    // Short enough for a restart.
    cluster.ready("n1", "False", "the uplink is gone");
    assert_eq!(cluster.settle(), [""; 0]);
    assert_eq!(cluster.later(Duration::from_secs(9)), [""; 0]);
    assert_eq!(
        cluster.later(Duration::from_secs(1)),
        [
            "n1 unavailable True WeftNotReady: the uplink is gone",
            "n1 taint true"
        ]
    );
    cluster.ready("n1", "True", "");
    assert_eq!(cluster.settle().len(), 2);
    // A blink starts the time anew.
    cluster.ready("n1", "False", "the uplink is gone");
    cluster.settle();
    cluster.later(Duration::from_secs(9));
    cluster.ready("n1", "True", "");
    cluster.settle();
    cluster.ready("n1", "False", "the uplink is gone");
    cluster.settle();
    assert_eq!(cluster.later(Duration::from_secs(9)), [""; 0]);
}

#[test]
fn nodes_of_no_pool_are_left_alone() {
    let mut cluster = Cluster::new();
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.244.0.0/16"], "nodeSelector": {"matchLabels": {"weft": "true"}} }),
    );
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.ready("n1", "False", "no");
    assert_eq!(cluster.settle(), [""; 0]);
}

#[test]
fn a_new_node_is_given_time_to_get_its_range() {
    let mut cluster = Cluster::new();
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.244.0.0/16"], "ipam": "node",
            "nodeSelector": {"matchLabels": {"weft": "yes"}} }),
    );
    cluster.pace.unready = Duration::from_secs(10);
    let mut cluster = cluster.restarted();
    cluster.labelled_node("n1", "u1", "10.224.0.4", &[("weft", "yes")]);
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.labelled_node("n3", "u3", "10.224.0.6", &[("weft", "yes")]);
    assert_eq!(cluster.settle(), ["pool default 0/256"]);
    let plan = cluster.index.plan(cluster.now, wall(0));
    assert_eq!(plan.again_at, Some(Duration::from_secs(10)));
    for (node, range) in [("n1", "10.244.0.0/24"), ("n2", "10.244.1.0/24")] {
        cluster.change_node(node, |node| node.pod_cidrs = vec![range.to_owned()]);
    }
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
    assert_eq!(cluster.networks.len(), 1, "a native node needs none");
    cluster.later(Duration::from_secs(10));
    assert!(cluster.allocation("n3").starts_with("NoPodCIDR"));
}
