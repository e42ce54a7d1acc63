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

fn label(cluster: &mut Cluster, node: &str) {
    cluster.change_node(node, |node| {
        node.labels.insert("weft".to_owned(), "true".to_owned());
    });
}

/// What the slices say about blocks.
fn routing(cluster: &Cluster) -> String {
    let nodes = cluster.slices.values().flatten();
    let mut nodes: Vec<String> = nodes
        .map(|node| {
            let native = node.routing == weft_model::Routing::Native;
            let routing = if native { "native" } else { "overlay" };
            format!("{} {routing}", node.blocks.join("+"))
        })
        .collect();
    nodes.sort();
    nodes.join(", ")
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
    assert_eq!(routing(&cluster), "10.244.1.0/24 overlay, 10.244.2.0/24 native");
    assert!(!cluster.networks.contains_key(&NodeName::from_str("n2").unwrap()));
    label(&mut cluster, "n2");
    let writes = cluster.settle();
    assert_eq!(cluster.blocks("n2"), "10.244.2.0/24");
    assert!(
        !writes.iter().any(|write| write.contains("nodes-0")),
        "others go the old way until the agent is ready: {writes:?}"
    );
    // Its agent is there, but may not take the block yet.
    cluster.ready("n2", "False", "cni0 has the block");
    cluster.settle();
    let mut cluster = cluster.restarted();
    cluster.settle();
    assert_eq!(routing(&cluster), "10.244.1.0/24 overlay, 10.244.2.0/24 native");
    cluster.ready("n2", "True", "");
    cluster.settle();
    assert_eq!(routing(&cluster), "10.244.1.0/24 overlay, 10.244.2.0/24 overlay");
    // Its pods are on Weft now, whatever the agent says.
    cluster.ready("n2", "False", "the uplink is gone");
    cluster.settle();
    let mut cluster = cluster.restarted();
    cluster.settle();
    assert_eq!(routing(&cluster), "10.244.1.0/24 overlay, 10.244.2.0/24 overlay");
}

#[test]
fn a_node_that_gets_other_blocks_than_its_own_does_not_stay_native() {
    let mut cluster = node_pool(Some("weft"));
    cluster.pool(
        "more",
        serde_json::json!({ "cidrs": ["10.99.0.0/16"], "nodeSelector": {"matchLabels": {"more": "true"}} }),
    );
    cluster.ranged_node("n1", "u1", "10.224.0.4", &["10.244.1.0/24"], &[]);
    cluster.settle();
    assert_eq!(routing(&cluster), "10.244.1.0/24 native");
    cluster.change_node("n1", |node| {
        node.labels.insert("more".to_owned(), "true".to_owned());
    });
    cluster.settle();
    assert_eq!(routing(&cluster), "10.99.0.0/24 overlay");
}

#[test]
fn a_node_goes_back_when_no_pool_selects_it_and_its_network_is_deleted() {
    for label_first in [true, false] {
        for restart in [true, false] {
            let mut cluster = node_pool(Some("weft"));
            cluster.ranged_node("n1", "u1", "10.224.0.4", &["10.244.1.0/24"], &[("weft", "true")]);
            cluster.settle();
            cluster.ready("n1", "True", "");
            cluster.settle();
            // Without the label its pods may still be on Weft.
            if label_first {
                cluster.change_node("n1", |node| node.labels.clear());
                cluster.settle();
                assert_eq!(cluster.blocks("n1"), "10.244.1.0/24");
                assert_eq!(routing(&cluster), "10.244.1.0/24 overlay");
                cluster.remove_network("n1");
            } else {
                // The watches may tell it the other way round.
                cluster.remove_network("n1");
                cluster.change_node("n1", |node| node.labels.clear());
            }
            if restart {
                cluster.note.add("default", "u1", "10.244.1.0/24".to_owned());
                cluster = cluster.restarted();
            }
            cluster.settle();
            assert_eq!(routing(&cluster), "10.244.1.0/24 native");
            assert!(cluster.networks.is_empty());
            assert_eq!(cluster.pools["default"].status.as_ref().unwrap().allocated, 0);
            assert_eq!(cluster.note.iter().count(), 0);
            // And once more to Weft.
            label(&mut cluster, "n1");
            cluster.settle();
            assert_eq!(cluster.blocks("n1"), "10.244.1.0/24");
            assert_eq!(routing(&cluster), "10.244.1.0/24 native");
            cluster.ready("n1", "True", "");
            cluster.settle();
            assert_eq!(routing(&cluster), "10.244.1.0/24 overlay");
        }
    }
}

#[test]
fn blocks_that_others_could_get_stay_with_a_node_that_no_pool_selects() {
    let mut cluster = Cluster::new();
    let selector = serde_json::json!({ "matchLabels": { "weft": "true" } });
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.240.0.0/23"], "blockSize": 24, "nodeSelector": selector }),
    );
    cluster.ranged_node("n1", "u1", "10.224.0.4", &["10.240.0.0/24"], &[("weft", "true")]);
    cluster.settle();
    cluster.change_node("n1", |node| node.labels.clear());
    cluster.remove_network("n1");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.240.0.0/24");
    assert_eq!(routing(&cluster), "10.240.0.0/24 overlay");
    // Nor is one given up that is not the node's own, or that a pool still wants there.
    let mut cluster = node_pool(Some("weft"));
    cluster.ranged_node("n1", "u1", "10.224.0.4", &["10.244.1.0/24"], &[("weft", "true")]);
    cluster.settle();
    cluster.remove_network("n1");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.1.0/24");
    cluster.change_node("n1", |node| {
        node.labels.clear();
        node.pod_cidrs = vec!["10.244.2.0/24".to_owned()];
    });
    cluster.remove_network("n1");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.1.0/24");
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
fn a_node_whose_agent_vanished_without_a_word_is_unavailable() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.pace.unready = Duration::from_secs(10);
    let mut cluster = cluster.restarted();
    cluster.index.agents_are_pods();
    let agent = |ready| {
        Some(AgentOn {
            node: "n1".parse().unwrap(),
            ready,
        })
    };
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.index.set_agent("weft-agent-a", agent(true));
    cluster.settle();
    cluster.ready("n1", "True", "");
    let available = ["n1 unavailable False WeftReady: pods of the node are connected"];
    assert_eq!(cluster.settle(), available);

    // A rollout: the next agent is ready in time, or the old one until then.
    cluster.index.set_agent("weft-agent-b", agent(false));
    cluster.index.set_agent("weft-agent-a", None);
    assert_eq!(cluster.settle(), [""; 0]);
    assert_eq!(cluster.later(Duration::from_secs(9)), [""; 0]);
    cluster.index.set_agent("weft-agent-b", agent(true));
    assert_eq!(cluster.settle(), [""; 0]);
    assert_eq!(cluster.later(Duration::from_secs(20)), [""; 0]);

    // Killed, hung, or its DaemonSet deleted.
    for gone in [agent(false), None] {
        cluster.index.set_agent("weft-agent-b", gone);
        assert_eq!(cluster.settle(), [""; 0]);
        let writes = cluster.later(Duration::from_secs(10));
        assert!(
            writes[0].starts_with("n1 unavailable True WeftAgentAway: no pod of weft-agent is Ready"),
            "{writes:?}"
        );
        assert_eq!(writes[1..], ["n1 taint true"]);
        cluster.index.set_agent("weft-agent-b", agent(true));
        assert_eq!(cluster.settle(), [available[0], "n1 taint false"]);
    }

    // Who may not read the pods goes by what agents say.
    cluster.index.set_agent("weft-agent-b", None);
    cluster.index.no_agent_pods();
    assert_eq!(cluster.settle(), [""; 0]);
    assert_eq!(cluster.later(Duration::from_secs(10)), [""; 0]);
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
