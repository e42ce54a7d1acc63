//! Whatever happens in whatever order, and wherever the operator dies.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Node { name: usize, generation: usize },
    RemoveNode(usize),
    Want { name: usize, blocks: u32 },
    RemoveNetwork(usize),
    Wait(u64),
    Settle,
    Crash(usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    let name = 0..5_usize;
    prop_oneof![
        5 => (name.clone(), 0..3_usize).prop_map(|(name, generation)| Op::Node { name, generation }),
        3 => name.clone().prop_map(Op::RemoveNode),
        3 => (name.clone(), 1..4_u32).prop_map(|(name, blocks)| Op::Want { name, blocks }),
        1 => name.prop_map(Op::RemoveNetwork),
        3 => (1..40_u64).prop_map(Op::Wait),
        6 => Just(Op::Settle),
        2 => (0..12_usize).prop_map(Op::Crash),
    ]
}

proptest! {
    #[test]
    fn two_nodes_never_share_a_block_and_blocks_rest_before_they_move(
        ops in prop::collection::vec(any_op(), 1..60),
    ) {
        let mut cluster = Cluster::with_pool("10.244.0.0/28", 30);
        // Who had a block last, and the last time it had a Node.
        let mut last: BTreeMap<Block, (NodeUid, Duration)> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Node { name, generation } => {
                    let uid = format!("u{name}-{generation}");
                    cluster.node(&format!("n{name}"), &uid, &format!("10.224.0.{name}"));
                }
                Op::RemoveNode(name) => cluster.remove_node(&format!("n{name}")),
                Op::Want { name, blocks } => {
                    let name = format!("n{name}");
                    if cluster.networks.contains_key(&NodeName::from_str(&name).unwrap()) {
                        cluster.wants(&name, blocks);
                    }
                }
                Op::RemoveNetwork(name) => cluster.remove_network(&format!("n{name}")),
                Op::Wait(seconds) => {
                    cluster.later(Duration::from_secs(seconds));
                }
                Op::Settle => {
                    cluster.settle();
                }
                Op::Crash(after) => cluster = cluster.crashed(after),
            }
            let mut owners: BTreeMap<Block, NodeUid> = BTreeMap::new();
            for network in cluster.networks.values() {
                for held in &network.blocks {
                    prop_assert_eq!(owners.insert(held.block, network.node_uid.clone()), None);
                }
            }
            let alive: BTreeSet<NodeUid> = cluster.nodes.values().map(|node| node.uid.clone()).collect();
            for (block, owner) in owners {
                if let Some((before, until)) = last.get(&block)
                    && *before != owner
                {
                    prop_assert!(cluster.now >= *until + GRACE, "{block} moved too soon");
                }
                let until = match last.get(&block) {
                    Some((before, until)) if *before == owner && !alive.contains(&owner) => *until,
                    _ => cluster.now,
                };
                last.insert(block, (owner, until));
            }
        }
        cluster.later(GRACE);
        cluster.later(GRACE);
        prop_assert_eq!(cluster.settle(), Vec::<String>::new());
        let listed: BTreeSet<String> = cluster.slices.values().flatten().map(|node| node.uid.clone()).collect();
        let alive: BTreeSet<String> = cluster.nodes.values().map(|node| node.uid.to_string()).collect();
        prop_assert_eq!(listed, alive);
        let waiting = cluster.networks.values().any(|network| network.blocks.is_empty());
        let given: usize = cluster.networks.values().map(|network| network.blocks.len()).sum();
        prop_assert!(!waiting || given == 4);
    }
}
