//! Ranges come and go while nodes live on them.

use super::*;

fn two_ranges(retiring: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "cidrs": ["10.244.0.0/24", "10.99.0.0/24"],
        "blockSize": 26,
        "retiring": retiring,
    })
}

fn ranges(cluster: &Cluster) -> Vec<(String, u32, u32, bool)> {
    let status = cluster.pools["default"].status.as_ref().unwrap();
    let ranges = status.ranges.iter();
    ranges
        .map(|range| {
            (
                range.cidr.clone(),
                range.capacity,
                range.allocated,
                range.retiring,
            )
        })
        .collect()
}

#[test]
fn a_retiring_range_is_replaced_first_marked_and_taken_back_when_empty() {
    let mut cluster = Cluster::new();
    cluster.pool("default", two_ranges(&[]));
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/26");
    cluster.counts("n1", "10.244.0.0/26", 7, 0, false);
    cluster.pool("default", two_ranges(&["10.244.0.0/24"]));
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/26!,10.99.0.0/26");
    assert_eq!(
        ranges(&cluster),
        [
            ("10.244.0.0/24".to_owned(), 4, 1, true),
            ("10.99.0.0/24".to_owned(), 4, 1, false)
        ]
    );
    // Used, cooling, and empty but not known to be retiring.
    for (used, cooling, retiring) in [(1, 0, true), (0, 1, true), (0, 0, false)] {
        cluster.counts("n1", "10.244.0.0/26", used, cooling, retiring);
        cluster.settle();
        assert_eq!(cluster.blocks("n1"), "10.244.0.0/26!,10.99.0.0/26");
    }
    // And not by an operator that has just started either.
    let mut cluster = cluster.restarted();
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/26!,10.99.0.0/26");
    assert!(cluster.counts("n1", "10.244.0.0/26", 0, 0, true));
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.99.0.0/26");
    assert_eq!(ranges(&cluster)[0], ("10.244.0.0/24".to_owned(), 4, 0, true));
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "10.99.0.64/26");
}

#[test]
fn without_a_replacement_a_block_stays_as_it_is() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 26);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.244.0.0/24"], "blockSize": 26, "retiring": ["10.244.0.0/24"] }),
    );
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/26");
    assert_eq!(
        cluster.allocation("n1"),
        "PoolExhausted: has no block that lasts: pool default has no free /26 block: 1 of 0 given out"
    );
    // Minds change.
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.244.0.0/24"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(
        cluster.allocation("n1"),
        "Granted: the node has the blocks it asks for"
    );
}

#[test]
fn blocks_of_a_range_that_was_removed_are_drained_and_kept_if_it_comes_back() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 26);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.99.0.0/24"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/26!,10.99.0.0/26");
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.99.0.0/24", "10.244.0.0/24"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/26,10.99.0.0/26");
}

#[test]
fn a_block_that_leaves_is_nobody_elses_before_its_network_shows_it_no_more() {
    let mut cluster = Cluster::new();
    cluster.pool("default", two_ranges(&["10.244.0.0/24"]));
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.foreign_network("n1", "u1", &["10.244.0.0/26", "10.99.0.0/26"]);
    cluster.settle();
    cluster.counts("n1", "10.244.0.0/26", 0, 0, true);
    let plan = cluster.index.plan(cluster.now, wall(0));
    assert!(
        matches!(&plan.actions[..], [Action::SetBlocks { blocks, .. }] if join(blocks) == "10.99.0.0/26")
    );
    // Its write is under way when the range comes back, and a node that needs it.
    cluster.pool("default", two_ranges(&["10.99.0.0/24"]));
    cluster.node("n2", "u2", "10.224.0.5");
    let plan = cluster.index.plan(cluster.now, wall(0));
    let created = plan.actions.iter().find_map(|action| match action {
        Action::CreateNetwork { blocks, .. } => Some(join(blocks)),
        _ => None,
    });
    assert_eq!(created.as_deref(), Some("10.244.0.64/26"));
}

#[test]
fn a_pool_that_is_deleted_leaves_its_blocks_where_they_are() {
    let mut cluster = Cluster::with_pool("10.244.0.0/24", 26);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.pools.remove("default");
    cluster.index.set_pool("default", None);
    assert_eq!(cluster.settle(), [""; 0]);
    cluster.pool(
        "default",
        serde_json::json!({ "cidrs": ["10.244.0.0/24"], "blockSize": 26 }),
    );
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/26");
}

#[test]
fn what_an_agent_said_of_an_earlier_retirement_does_not_count() {
    let mut cluster = Cluster::new();
    cluster.pool("default", two_ranges(&["10.244.0.0/24"]));
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.foreign_network("n1", "u1", &["10.244.0.0/26", "10.99.0.0/26"]);
    cluster.counts("n1", "10.244.0.0/26", 0, 0, true);
    let plan = cluster.index.plan(cluster.now, wall(0));
    let [Action::SetBlocks { blocks, .. }, ..] = &plan.actions[..] else {
        panic!("{plan:?}");
    };
    assert_eq!(join(blocks), "10.244.0.0/26!,10.99.0.0/26");
}

#[test]
fn an_empty_block_stays_until_its_replacement_is_there() {
    let mut cluster = Cluster::new();
    cluster.pool("default", two_ranges(&["10.244.0.0/24"]));
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.foreign_network("n1", "u1", &["10.244.0.0/26"]);
    cluster.report("n1", |network| network.blocks[0].retiring = true);
    cluster.counts("n1", "10.244.0.0/26", 0, 0, true);
    let plan = cluster.index.plan(cluster.now, wall(0));
    let [Action::SetBlocks { blocks, .. }, ..] = &plan.actions[..] else {
        panic!("{plan:?}");
    };
    assert_eq!(join(blocks), "10.244.0.0/26!,10.99.0.0/26");
}
