//! Blocks come and go with their nodes.

use super::*;

#[test]
fn a_node_that_appears_gets_a_network_a_block_and_a_place_in_a_slice() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    assert_eq!(
        cluster.settle(),
        [
            "create n1 10.244.0.0/24",
            "create nodes-0 n1=10.244.0.0/24",
            "pool default 1/256",
        ]
    );
    assert_eq!(
        cluster.pool_condition("default", "Ready"),
        "True Ready: the pool gives out blocks"
    );
    cluster.node("n2", "u2", "10.224.0.5");
    assert_eq!(
        cluster.settle(),
        [
            "create n2 10.244.1.0/24",
            "set nodes-0 n1=10.244.0.0/24,n2=10.244.1.0/24",
            "pool default 2/256",
        ]
    );
}

#[test]
fn nothing_is_planned_before_everything_is_listed() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    // `restarted` checks that a plan without the pools is empty.
    let mut cluster = cluster.restarted();
    assert_eq!(cluster.settle(), [""; 0]);
}

#[test]
fn a_restart_writes_nothing_and_goes_on_behind_the_last_block() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    for node in 0..450 {
        cluster.node(
            &format!("n{node:03}"),
            &format!("u{node}"),
            &format!("10.224.{}.{}", node / 250, node % 250),
        );
    }
    cluster.pool(
        "more",
        serde_json::json!({ "cidrs": ["10.240.0.0/16"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(
        cluster.slices.values().map(Vec::len).collect::<Vec<_>>(),
        [200, 200, 50]
    );
    let mut cluster = cluster.restarted();
    assert_eq!(cluster.settle(), [""; 0]);
    cluster.node("n999", "u999", "10.224.9.9");
    let writes = cluster.settle();
    assert!(
        writes[0].starts_with("create n999 10.240.48.128/26"),
        "{writes:?}"
    );
    assert_eq!(
        writes.iter().filter(|write| write.contains("nodes-")).count(),
        1,
        "{writes:?}"
    );
}

#[test]
fn a_node_gets_the_blocks_it_asks_for_as_long_as_there_are_some() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 26);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    cluster.wants("n1", 4);
    cluster.settle();
    assert_eq!(
        cluster.blocks("n1"),
        "10.244.0.0/26,10.244.0.128/26,10.244.0.192/26"
    );
    let exhausted = "pool default has no free /26 block: 4 of 4 given out";
    assert_eq!(
        cluster.allocation("n1"),
        format!("PoolExhausted: has 3 of 4 blocks: {exhausted}")
    );
    assert_eq!(cluster.allocation("n2"), "", "what was never missing is not said");
    assert_eq!(
        cluster.pool_condition("default", "Exhausted"),
        format!("True NoFreeBlock: {exhausted}")
    );
    // Room appears: the pool grows live.
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.244.0.0/24", "10.99.0.0/24"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(
        cluster.blocks("n1"),
        "10.244.0.0/26,10.244.0.128/26,10.244.0.192/26,10.99.0.0/26"
    );
    assert_eq!(
        cluster.allocation("n1"),
        "Granted: the node has the blocks it asks for"
    );
    assert_eq!(
        cluster.pool_condition("default", "Exhausted"),
        "False BlocksFree: no node waits for a block"
    );
}

#[test]
fn a_node_without_any_block_goes_before_one_that_wants_another() {
    let mut cluster = Cluster::with_pool("10.244.0.0/25", 26);
    cluster.node("a", "u1", "10.224.0.4");
    cluster.settle();
    cluster.wants("a", 2);
    cluster.node("b", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("a"), "10.244.0.0/26");
    assert_eq!(cluster.blocks("b"), "10.244.0.64/26");
}

#[test]
fn a_node_that_is_gone_keeps_its_blocks_from_others_for_the_grace() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_node("n1");
    assert_eq!(cluster.settle(), ["delete nodes-0"]);
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(GRACE - Duration::from_secs(1));
    assert_eq!(cluster.blocks("n2"), "");
    assert_eq!(
        cluster.index.plan(cluster.now, wall(0)).again_at,
        Some(cluster.now + Duration::from_secs(1))
    );
    let writes = cluster.later(Duration::from_secs(1));
    assert_eq!(
        writes,
        [
            "delete n1",
            "set n2 10.244.0.0/24",
            "set nodes-0 n2=10.244.0.0/24",
            "pool default 1/1",
            "n2 True Granted: the node has the blocks it asks for",
        ]
    );
}

#[test]
fn the_grace_outlives_a_restart() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_node("n1");
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    cluster.now += Duration::from_secs(20);
    let mut cluster = cluster.restarted();
    cluster.settle();
    cluster.later(Duration::from_secs(29));
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(Duration::from_secs(1));
    assert_eq!(cluster.blocks("n2"), "10.244.0.0/24");
}

#[test]
fn a_node_made_again_under_its_name_inherits_nothing() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.node("n1", "u2", "10.224.0.4");
    let writes = cluster.settle();
    assert_eq!(writes[0], "delete n1");
    assert!(
        writes.contains(&"create n1 10.244.1.0/24".to_owned()),
        "{writes:?}"
    );
    assert_eq!(
        cluster.networks[&NodeName::from_str("n1").unwrap()]
            .node_uid
            .as_str(),
        "u2"
    );
    cluster.node("n2", "u3", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(GRACE);
    assert_eq!(cluster.blocks("n2"), "10.244.0.0/24");
}

#[test]
fn a_node_that_is_away_for_less_than_the_grace_keeps_everything() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_node("n1");
    cluster.later(Duration::from_secs(20));
    cluster.node("n1", "u1", "10.224.0.4");
    assert_eq!(cluster.settle(), ["create nodes-0 n1=10.244.0.0/24"]);
    assert_eq!(cluster.later(GRACE), [""; 0]);
}

#[test]
fn a_network_deleted_by_hand_comes_back_with_the_blocks_its_pods_use() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.remove_network("n1");
    let writes = cluster.settle();
    assert!(
        writes.contains(&"create n1 10.244.0.0/24".to_owned()),
        "{writes:?}"
    );
}

#[test]
fn blocks_taken_out_of_a_network_by_hand_are_written_back() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.foreign_network("n1", "u1", &[]);
    let writes = cluster.settle();
    assert_eq!(writes[0], "set n1 10.244.0.0/24");
}

#[test]
fn two_nodes_with_the_same_block_are_both_named_until_one_network_is_deleted() {
    let mut cluster = Cluster::with_pool("10.244.0.0/22", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.foreign_network("n1", "u1", &["10.244.0.0/24"]);
    cluster.foreign_network("n2", "u2", &["10.244.0.128/25"]);
    let plan = cluster.index.plan(cluster.now, wall(0));
    let sentence = "node n1 holds 10.244.0.0/24 and node n2 holds 10.244.0.128/25: \
                    delete the NodeNetwork of the one that may be drained";
    assert_eq!(plan.new_conflicts, [sentence]);
    assert_eq!(cluster.index.plan(cluster.now, wall(0)).new_conflicts, [""; 0]);
    cluster.settle();
    for node in ["n1", "n2"] {
        assert_eq!(cluster.allocation(node), format!("DuplicateBlock: {sentence}"));
    }
    cluster.remove_network("n2");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("n2"), "10.244.1.0/24");
    assert_eq!(
        cluster.allocation("n1"),
        "Granted: the node has the blocks it asks for"
    );
    assert_eq!(cluster.allocation("n2"), "");
}

#[test]
fn what_is_granted_at_a_time_fits_into_the_note() {
    let mut cluster = Cluster::with_pool("10.32.0.0/11", 24);
    for node in 0..2500_u32 {
        let address = Ipv4Addr::from_bits(u32::from_be_bytes([10, 224, 0, 0]) + node);
        cluster.node(&format!("n{node}"), &format!("u{node}"), &address.to_string());
    }
    let plan = cluster.index.plan(cluster.now, wall(0));
    let created = plan
        .actions
        .iter()
        .filter(|action| matches!(action, Action::CreateNetwork { .. }));
    assert_eq!(created.count(), MAX_NOTED);
    assert_eq!(plan.note.iter().count(), MAX_NOTED);
    let text = serde_json::to_string(&plan.note).unwrap();
    assert!(text.len() < 256 * 1024, "{}", text.len());
    cluster.settle();
    assert!(cluster.networks.values().all(|network| network.blocks.len() == 1));
    assert_eq!(cluster.note, Note::default());
}

#[test]
fn an_operator_that_dies_leaves_what_it_was_about_to_grant() {
    let mut cluster = Cluster::with_pool("10.244.0.0/22", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    // The note is written, the NodeNetwork is not: the write may still be under way.
    let mut cluster = cluster.crashed(0);
    cluster.node("n0", "u0", "10.224.0.3");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("n0"), "10.244.1.0/24");
}

#[test]
fn blocks_of_a_node_that_lost_its_name_rest_also_under_the_next_operator() {
    let mut cluster = Cluster::with_pool("10.244.0.0/23", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.node("n1", "u2", "10.224.0.4");
    cluster.settle();
    let mut cluster = cluster.restarted();
    cluster.node("n2", "u3", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "");
    cluster.later(GRACE);
    assert_eq!(cluster.blocks("n2"), "10.244.0.0/24");
    assert_eq!(cluster.note, Note::default());
}
