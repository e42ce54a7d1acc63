//! Who gets what, and what pools say about themselves.

use super::*;

#[test]
fn selectors_say_who_gets_blocks_and_the_more_special_pool_goes_first() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.pool(
        "gpu",
        serde_json::json!({
            "cidrs": ["10.200.0.0/24"],
            "nodeSelector": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
        }),
    );
    cluster.labelled_node("a", "u1", "10.224.0.4", &[("gpu", "a100")]);
    cluster.labelled_node("b", "u2", "10.224.0.5", &[("gpu", "a100")]);
    cluster.node("c", "u3", "10.224.0.6");
    cluster.settle();
    assert_eq!(cluster.blocks("a"), "10.200.0.0/24");
    assert_eq!(cluster.blocks("b"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("c"), "10.244.1.0/24");
}

#[test]
fn a_node_no_pool_selects_says_so() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    assert_eq!(cluster.allocation("n1"), "NoPool: no PodPool selects the node");
    assert_eq!(cluster.slices["nodes-0"][0].blocks, [""; 0]);
    cluster.pool("default", serde_json::json!({ "cidrs": ["10.244.0.0/16"] }));
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
}

#[test]
fn a_pool_that_overlaps_names_the_pair_and_gives_out_nothing() {
    for (cidrs, expected) in [
        (
            vec!["10.224.0.0/12"],
            "False Overlap: 10.224.0.0/12 contains 10.224.0.4, the address of node n1",
        ),
        (
            vec!["10.0.0.0/8"],
            "False Overlap: 10.0.0.0/8 contains 10.224.0.4, the address of node n1",
        ),
        (
            vec!["10.0.128.0/20"],
            "False Overlap: service CIDR 10.0.0.0/16 overlaps pool late 10.0.128.0/20",
        ),
        (
            vec!["10.9.0.0/16", "10.9.8.0/24"],
            "False Invalid: spec.cidrs: 10.9.0.0/16 overlaps 10.9.8.0/24",
        ),
        (
            vec!["10.244.7.0/24"],
            "False Overlap: pool default 10.244.0.0/24 overlaps pool late 10.244.0.0/25",
        ),
        (
            vec!["10.244.0.7/16"],
            "False Invalid: spec.cidrs[0]: 10.244.0.7/16 has host bits set: the range it lies in is written 10.244.0.0/16",
        ),
    ] {
        let cidrs = if cidrs == ["10.244.7.0/24"] {
            vec!["10.244.0.0/25"]
        } else {
            cidrs
        };
        let mut cluster = Cluster::with_pool("10.244.0.0/24", 26);
        cluster.pool("late", serde_json::json!({ "cidrs": cidrs, "blockSize": 26 }));
        cluster.node("n1", "u1", "10.224.0.4");
        cluster.settle();
        cluster.wants("n1", 5);
        cluster.settle();
        assert_eq!(cluster.pool_condition("late", "Ready"), expected);
        assert_eq!(
            cluster.pool_condition("default", "Ready"),
            "True Ready: the pool gives out blocks"
        );
        assert_eq!(cluster.networks.values().next().unwrap().blocks.len(), 4);
        let message = cluster.allocation("n1");
        assert!(message.contains("; pool late: "), "{message}");
    }
}

#[test]
fn conditions_keep_their_time_while_their_status_stays() {
    let present = changed_condition(None, "T", ("False", "A", "m"), wall(1)).unwrap();
    assert_eq!(
        changed_condition(Some(&present), "T", ("False", "A", "m"), wall(2)),
        None
    );
    let reworded = changed_condition(Some(&present), "T", ("False", "B", "m"), wall(2)).unwrap();
    assert_eq!(reworded.last_transition_time, Time(wall(1)));
    let turned = changed_condition(Some(&reworded), "T", ("True", "C", "m"), wall(3)).unwrap();
    assert_eq!(turned.last_transition_time, Time(wall(3)));
}

#[test]
fn five_thousand_nodes_are_twenty_five_slices() {
    let mut cluster = Cluster::with_pool("10.32.0.0/11", 24);
    for node in 0..5000 {
        let address = Ipv4Addr::from_bits(u32::from_be_bytes([10, 224, 0, 0]) + node);
        cluster.node(&format!("n{node}"), &format!("u{node}"), &address.to_string());
    }
    cluster.settle();
    assert_eq!(cluster.slices.len(), 25);
    cluster.remove_node("n77");
    assert_eq!(cluster.settle().len(), 1);
}

#[test]
fn pools_with_blocks_of_their_own_size_serve_the_nodes_they_select() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    for (name, cidr, size) in [("small", "10.200.0.0/24", 28), ("large", "10.100.0.0/16", 22)] {
        cluster.pool(
            name,
            serde_json::json!({
                "cidrs": [cidr],
                "blockSize": size,
                "nodeSelector": {"matchLabels": {"size": name}},
            }),
        );
    }
    cluster.labelled_node("a", "u1", "10.224.0.4", &[("size", "small")]);
    cluster.labelled_node("b", "u2", "10.224.0.5", &[("size", "large")]);
    cluster.node("c", "u3", "10.224.0.6");
    cluster.settle();
    assert_eq!(cluster.blocks("a"), "10.200.0.0/28");
    assert_eq!(cluster.blocks("b"), "10.100.0.0/22");
    assert_eq!(cluster.blocks("c"), "10.244.0.0/24");
    let capacity = |name: &str| cluster.pools[name].status.as_ref().unwrap().capacity;
    assert_eq!(
        [capacity("small"), capacity("large"), capacity("default")],
        [16, 64, 256]
    );
}

#[test]
fn warnings_come_at_80_and_95_percent_and_do_not_flap() {
    let mut cluster = Cluster::with_pool("10.244.0.0/20", 26);
    let low = |cluster: &Cluster| {
        let condition = cluster.pool_condition("default", "CapacityLow");
        condition.split_once(": ").unwrap().0.to_owned()
    };
    let at = |cluster: &mut Cluster, nodes: usize| {
        let has = cluster.nodes.len();
        for node in has..nodes {
            cluster.node(
                &format!("n{node}"),
                &format!("u{node}"),
                &format!("10.224.0.{node}"),
            );
        }
        for node in nodes..has {
            cluster.remove_node(&format!("n{node}"));
        }
        cluster.settle();
        cluster.later(GRACE);
        low(cluster)
    };
    // Of 64 blocks: 51 are 79 %, 52 are 81 %, 50 are 78 %, 49 are 76 %.
    assert_eq!(at(&mut cluster, 51), "False Sufficient");
    assert_eq!(at(&mut cluster, 52), "True Above80Percent");
    assert_eq!(
        cluster.pool_condition("default", "CapacityLow"),
        "True Above80Percent: 52 of 64 blocks given out, 0 of 4096 addresses in use"
    );
    assert_eq!(at(&mut cluster, 50), "True Above80Percent");
    let mut cluster = cluster.restarted();
    assert_eq!(at(&mut cluster, 50), "True Above80Percent");
    assert_eq!(at(&mut cluster, 49), "False Sufficient");
    assert_eq!(at(&mut cluster, 50), "False Sufficient");
    assert_eq!(at(&mut cluster, 61), "True Above95Percent");
    assert_eq!(at(&mut cluster, 60), "True Above95Percent");
    assert_eq!(at(&mut cluster, 59), "True Above80Percent");
    assert_eq!(at(&mut cluster, 49), "False Sufficient");
}

#[test]
fn a_route_in_the_way_is_named_and_nothing_stops() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    for node in 1..=3 {
        cluster.node(
            &format!("n{node}"),
            &format!("u{node}"),
            &format!("10.224.0.{node}"),
        );
    }
    cluster.settle();
    for node in ["n2", "n3"] {
        cluster.report(node, |network| {
            network.route_overlap = Some("route 10.244.128.0/17 dev eth1 overlaps 10.244.0.0/16".to_owned());
        });
    }
    cluster.settle();
    assert_eq!(
        cluster.pool_condition("default", "Overlapping"),
        "True NodeRoute: node n2: route 10.244.128.0/17 dev eth1 overlaps 10.244.0.0/16 (and 1 more nodes)"
    );
    cluster.node("n4", "u4", "10.224.0.9");
    cluster.settle();
    assert_eq!(cluster.blocks("n4"), "10.244.3.0/24");
}

#[test]
fn a_service_range_that_appears_stops_new_blocks_and_leaves_those_there_are() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster
        .index
        .set_service_cidrs("more", Some(vec!["10.244.240.0/20".parse().unwrap()]));
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("n2"), "");
    let pair = "pool default 10.244.0.0/16 overlaps service CIDR 10.244.240.0/20";
    assert_eq!(
        cluster.pool_condition("default", "Overlapping"),
        format!("True ServiceCIDR: {pair}")
    );
    assert_eq!(
        cluster.allocation("n2"),
        format!("PoolNotReady: pool default: {pair}")
    );
    cluster.index.set_service_cidrs("more", None);
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "10.244.1.0/24");
}

#[test]
fn counts_are_written_at_a_pace_and_never_a_reason_to_plan_at_once() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.pace.counts = Duration::from_secs(5);
    let mut cluster = cluster.restarted();
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    assert!(!cluster.counts("n1", "10.244.0.0/24", 9, 2, false));
    let due = cluster.index.counts_due().unwrap();
    assert_eq!(due, Duration::from_secs(5));
    let plan = cluster.index.plan(cluster.now, wall(0));
    assert_eq!(
        (plan.actions, plan.statuses, plan.again_at),
        (Vec::new(), Vec::new(), Some(due))
    );
    assert_eq!(cluster.later(Duration::from_secs(5)), ["pool default 1/256"]);
    let addresses = cluster.pools["default"].status.as_ref().unwrap().addresses;
    assert_eq!(
        (addresses.capacity, addresses.used, addresses.cooling),
        (256, 9, 2)
    );
}

#[test]
fn slices_are_written_at_a_pace() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.pace.slices = Duration::from_millis(500);
    let mut cluster = cluster.restarted();
    let slices = |writes: &[String]| writes.iter().filter(|write| write.contains("nodes-0")).count();
    for node in 0..100 {
        cluster.node(
            &format!("n{node}"),
            &format!("u{node}"),
            &format!("10.224.0.{node}"),
        );
        let writes = cluster.later(Duration::from_millis(10));
        // The first one does not wait.
        assert_eq!(slices(&writes), usize::from(node % 50 == 0), "{node}: {writes:?}");
    }
    assert_eq!(slices(&cluster.later(Duration::from_millis(500))), 1);
    assert_eq!(cluster.slices["nodes-0"].len(), 100);
}

#[test]
fn nodes_reach_each_other_before_anything_is_told_about_them() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    for node in 0..3 {
        cluster.node(
            &format!("n{node}"),
            &format!("u{node}"),
            &format!("10.224.0.{node}"),
        );
    }
    cluster.settle();
    for node in 0..3 {
        cluster.ready(&format!("n{node}"), "True", "");
    }
    cluster.node("n3", "u3", "10.224.0.9");
    let writes = cluster.settle();
    let last = |what: &str| writes.iter().rposition(|write| write.contains(what));
    let first = |what: &str| writes.iter().position(|write| write.contains(what));
    assert!(last("nodes-0") < first("unavailable"), "{writes:?}");
    assert!(last("nodes-0") < first("pool default"), "{writes:?}");
}

#[test]
fn a_pool_gives_out_blocks_when_the_node_address_in_it_is_gone() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.244.0.4");
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "");
    cluster.change_node("n1", |node| node.addresses = vec!["10.224.0.4".parse().unwrap()]);
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "10.244.1.0/24");
    cluster.node("n3", "u3", "10.244.0.9");
    cluster.settle();
    assert_eq!(cluster.blocks("n3"), "");
    cluster.remove_node("n3");
    cluster.node("n4", "u4", "10.224.0.6");
    cluster.settle();
    assert_eq!(cluster.blocks("n4"), "10.244.2.0/24");
}
