//! Blocks that nodes have pods in, and of which the API knows nothing.

use super::*;

/// An operator that starts on what the API was before `n1` got its second block.
fn restored() -> Cluster {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    let backup = cluster.networks.clone();
    cluster.wants("n1", 2);
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24,10.244.1.0/24");
    cluster.networks = backup;
    cluster.note = Note::default();
    cluster.restarted()
}

#[test]
fn a_block_with_pods_is_their_nodes_again_after_the_api_was_restored() {
    let mut cluster = restored();
    assert!(cluster.counts("n1", "10.244.1.0/24", 3, 0, true));
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24,10.244.1.0/24");
    assert_eq!(cluster.blocks("n2"), "10.244.2.0/24");
}

#[test]
fn a_block_whose_addresses_only_cool_is_kept_too_and_one_without_any_is_not() {
    let mut cluster = restored();
    cluster.counts("n1", "10.244.1.0/24", 0, 1, true);
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24,10.244.1.0/24");

    let mut cluster = restored();
    cluster.counts("n1", "10.244.1.0/24", 0, 0, true);
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("n2"), "10.244.1.0/24");
}

#[test]
fn a_block_that_was_given_to_another_meanwhile_stays_the_others() {
    let mut cluster = restored();
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    assert_eq!(cluster.blocks("n2"), "10.244.1.0/24");
    cluster.counts("n1", "10.244.1.0/24", 3, 0, true);
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
    assert_eq!(cluster.blocks("n2"), "10.244.1.0/24");
}

#[test]
fn a_node_that_was_registered_anew_keeps_the_blocks_of_its_pods_and_gives_up_the_others() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.wants("n1", 2);
    cluster.settle();
    // Deleted and registered within the grace: same machine, same pods, another UID.
    cluster.remove_node("n1");
    cluster.settle();
    cluster.node("n1", "u1b", "10.224.0.4");
    cluster.settle();
    assert_eq!(
        cluster.blocks("n1"),
        "10.244.2.0/24",
        "nothing is inherited unasked"
    );
    cluster.counts("n1", "10.244.1.0/24", 3, 0, true);
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.2.0/24,10.244.1.0/24");
    cluster.later(GRACE);
    cluster.node("n2", "u2", "10.224.0.5");
    cluster.settle();
    // Once the grace of the old Node is over, what nobody has pods in is used again; before that, new blocks come first.
    assert_eq!(cluster.blocks("n1"), "10.244.2.0/24,10.244.1.0/24");
    assert_eq!(cluster.blocks("n2"), "10.244.3.0/24");
}

#[test]
fn a_block_of_no_pool_is_nobodys_to_give() {
    let mut cluster = Cluster::with_pool("10.244.0.0/16", 24);
    cluster.node("n1", "u1", "10.224.0.4");
    cluster.settle();
    cluster.counts("n1", "10.99.0.0/24", 3, 0, true);
    cluster.settle();
    assert_eq!(cluster.blocks("n1"), "10.244.0.0/24");
}
