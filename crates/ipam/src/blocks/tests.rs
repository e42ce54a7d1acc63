use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weft_model::parse_cidr;

use super::*;

fn config(cidrs: &[&str], size: u8, excluded: &[&str]) -> PoolConfig {
    PoolConfig {
        cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        block_size: BlockSize::new(size).unwrap(),
        excluded: excluded.iter().map(|cidr| parse_cidr(cidr).unwrap()).collect(),
    }
}

fn allocator(cidrs: &[&str], size: u8, excluded: &[&str]) -> BlockAllocator {
    let mut allocator = BlockAllocator::new();
    allocator.set_pool("default", config(cidrs, size, excluded));
    allocator
}

fn node(number: usize) -> NodeUid {
    format!("uid-{number}").parse().unwrap()
}

fn block(cidr: &str) -> Block {
    cidr.parse().unwrap()
}

fn take(allocator: &mut BlockAllocator, number: usize) -> String {
    allocator
        .allocate("default", &node(number))
        .map_or_else(|error| error.to_string(), |block| block.to_string())
}

#[test]
fn blocks_come_in_order_across_ranges_that_need_not_touch() {
    let mut allocator = allocator(&["10.244.4.0/23", "10.9.0.0/24"], 24, &[]);
    let given: Vec<String> = (0..4).map(|number| take(&mut allocator, number)).collect();
    assert_eq!(
        given,
        [
            "10.244.4.0/24",
            "10.244.5.0/24",
            "10.9.0.0/24",
            "pool default has no free /24 block: 3 of 3 given out",
        ]
    );
}

#[test]
fn a_block_that_came_back_is_used_last_and_the_oldest_first() {
    let mut allocator = allocator(&["10.244.0.0/22"], 24, &[]);
    for number in 0..3 {
        take(&mut allocator, number);
    }
    assert!(allocator.release(block("10.244.1.0/24"), &node(1)));
    assert!(allocator.release(block("10.244.0.0/24"), &node(0)));
    let given: Vec<String> = (3..6).map(|number| take(&mut allocator, number)).collect();
    assert_eq!(given, ["10.244.3.0/24", "10.244.1.0/24", "10.244.0.0/24"]);
    assert_eq!(
        allocator.usage("default"),
        PoolUsage {
            capacity: 4,
            allocated: 4
        }
    );
}

#[test]
fn only_its_owner_gives_a_block_back() {
    let mut allocator = allocator(&["10.244.0.0/24"], 24, &[]);
    take(&mut allocator, 0);
    assert!(!allocator.release(block("10.244.0.0/24"), &node(1)));
    assert!(!allocator.release(block("10.244.1.0/24"), &node(0)));
    assert!(allocator.release(block("10.244.0.0/24"), &node(0)));
    assert!(!allocator.release(block("10.244.0.0/24"), &node(0)));
}

#[test]
fn blocks_found_at_a_restart_are_honoured_and_the_next_is_behind_them() {
    for pool_first in [true, false] {
        let mut allocator = BlockAllocator::new();
        let pool = config(&["10.244.0.0/22"], 24, &[]);
        if pool_first {
            allocator.set_pool("default", pool.clone());
        }
        allocator.claim("default", block("10.244.1.0/24"), &node(0));
        allocator.claim("default", block("10.244.1.0/24"), &node(0));
        allocator.set_pool("default", pool);
        assert_eq!(allocator.usage("default").allocated, 1);
        let given: Vec<String> = (1..5).map(|number| take(&mut allocator, number)).collect();
        assert_eq!(
            given,
            [
                "10.244.2.0/24",
                "10.244.3.0/24",
                "10.244.0.0/24",
                "pool default has no free /24 block: 4 of 4 given out",
            ]
        );
    }
}

#[test]
fn a_pool_grows_live_and_changes_its_block_size_around_what_is_given_out() {
    let mut allocator = allocator(&["10.244.0.0/24"], 24, &[]);
    take(&mut allocator, 0);
    assert!(allocator.allocate("default", &node(1)).is_err());
    allocator.set_pool("default", config(&["10.244.0.0/24", "10.99.0.0/24"], 25, &[]));
    assert_eq!(take(&mut allocator, 1), "10.99.0.0/25");
    assert_eq!(take(&mut allocator, 2), "10.99.0.128/25");
    assert!(allocator.allocate("default", &node(3)).is_err());
    assert!(allocator.release(block("10.244.0.0/24"), &node(0)));
    assert_eq!(take(&mut allocator, 3), "10.244.0.0/25");
    assert_eq!(take(&mut allocator, 4), "10.244.0.128/25");
}

#[test]
fn no_block_touches_an_excluded_range() {
    let mut allocator = allocator(
        &["10.244.0.0/21"],
        24,
        &[
            "10.244.0.0/25",
            "10.244.3.7/32",
            "10.244.4.0/23",
            "10.244.3.200/29",
        ],
    );
    let given: Vec<String> = (0..5).map(|number| take(&mut allocator, number)).collect();
    assert_eq!(
        given,
        [
            "10.244.1.0/24",
            "10.244.2.0/24",
            "10.244.6.0/24",
            "10.244.7.0/24",
            "pool default has no free /24 block: 4 of 4 given out",
        ]
    );
}

#[test]
fn two_nodes_with_shared_addresses_are_both_named_and_nobody_gets_them() {
    let mut allocator = allocator(&["10.244.0.0/23"], 24, &[]);
    allocator.claim("default", block("10.244.0.0/24"), &node(0));
    allocator.claim("default", block("10.244.0.64/26"), &node(1));
    allocator.claim("default", block("10.244.0.0/24"), &node(2));
    let conflicts: Vec<String> = allocator.conflicts().iter().map(Conflict::to_string).collect();
    assert_eq!(
        conflicts,
        [
            "node uid-0 holds 10.244.0.0/24 and node uid-2 holds 10.244.0.0/24",
            "node uid-0 holds 10.244.0.0/24 and node uid-1 holds 10.244.0.64/26",
            "node uid-2 holds 10.244.0.0/24 and node uid-1 holds 10.244.0.64/26",
        ]
    );
    assert!(allocator.release(block("10.244.0.0/24"), &node(0)));
    assert_eq!(take(&mut allocator, 3), "10.244.1.0/24");
    assert!(allocator.allocate("default", &node(4)).is_err());
}

#[test]
fn an_exhausted_pool_says_what_to_do() {
    let error = allocator(&["10.244.0.0/24"], 24, &["10.244.0.0/24"])
        .allocate("default", &node(0))
        .unwrap_err();
    assert_eq!(
        UserError::from(error).to_string(),
        "error[WEFT-1303]: pool default has no free /24 block: 0 of 0 given out\n  \
         next: kubectl edit podpool default and append a range to spec.cidrs"
    );
}

#[test]
fn five_thousand_nodes_get_their_blocks_and_give_them_back() {
    for (cidr, size) in [("10.0.0.0/11", 24), ("10.0.0.0/13", 26)] {
        let mut allocator = allocator(&[cidr], size, &[]);
        let mut seen = BTreeSet::new();
        for round in 0..3 {
            let blocks: Vec<Block> = (0..5000)
                .map(|number| allocator.allocate("default", &node(number)).unwrap())
                .collect();
            if round == 0 {
                seen.extend(blocks.iter().copied());
                assert_eq!(seen.len(), 5000);
            }
            for (number, block) in blocks.into_iter().enumerate() {
                assert!(allocator.release(block, &node(number)));
            }
        }
        assert_eq!(
            allocator.usage("default"),
            PoolUsage {
                capacity: 8192,
                allocated: 0
            }
        );
    }
}

#[derive(Clone, Debug)]
enum Op {
    Allocate { pool: usize, node: usize },
    Release { at: prop::sample::Index },
    Claim { pool: usize, node: usize, block: Block },
    Configure { pool: usize, config: PoolConfig },
}

/// Blocks within 10.244.0.0/22, so that they meet.
fn any_block() -> impl Strategy<Value = Block> + Clone {
    (0_u32..1024, 24_u8..=28).prop_map(|(offset, size)| {
        let base = u32::from_be_bytes([10, 244, 0, 0]);
        Block::containing((base + offset).into(), BlockSize::new(size).unwrap())
    })
}

fn any_config() -> impl Strategy<Value = PoolConfig> {
    let net = any_block().prop_map(Block::net);
    (
        prop::collection::vec(net.clone(), 1..3),
        24_u8..=28,
        prop::collection::vec(net, 0..3),
    )
        .prop_map(|(cidrs, size, excluded)| PoolConfig {
            cidrs: cidrs.into_iter().map(|net| PodCidr::new(net).unwrap()).collect(),
            block_size: BlockSize::new(size).unwrap(),
            excluded,
        })
}

fn any_op() -> impl Strategy<Value = Op> {
    let (pool, node) = (0..2_usize, 0..6_usize);
    prop_oneof![
        10 => (pool.clone(), node.clone()).prop_map(|(pool, node)| Op::Allocate { pool, node }),
        6 => any::<prop::sample::Index>().prop_map(|at| Op::Release { at }),
        2 => (pool.clone(), node, any_block())
            .prop_map(|(pool, node, block)| Op::Claim { pool, node, block }),
        1 => (pool, any_config()).prop_map(|(pool, config)| Op::Configure { pool, config }),
    ]
}

/// Every block a pool could give out now, found by trying them all.
fn allocatable(config: &PoolConfig, given: &[(Block, usize, usize)]) -> BTreeSet<Block> {
    let overlaps = |a: Ipv4Net, b: Ipv4Net| a.contains(&b) || b.contains(&a);
    config
        .cidrs
        .iter()
        .filter(|cidr| cidr.blocks(config.block_size) > 0)
        .flat_map(|cidr| cidr.net().subnets(config.block_size.prefix_len()).unwrap())
        .filter(|net| !config.excluded.iter().any(|out| overlaps(*out, *net)))
        .filter(|net| !given.iter().any(|(block, ..)| overlaps(block.net(), *net)))
        .map(|net| Block::new(net).unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_is_given_is_free_and_nothing_free_is_refused(
        first in any_config(),
        second in any_config(),
        ops in prop::collection::vec(any_op(), 1..80),
    ) {
        let names = ["a", "b"];
        let mut allocator = BlockAllocator::new();
        let mut configs = [first, second];
        for (name, config) in names.iter().zip(&configs) {
            allocator.set_pool(name, config.clone());
        }
        // (block, owner, pool)
        let mut given: Vec<(Block, usize, usize)> = Vec::new();
        for op in ops {
            match op {
                Op::Allocate { pool, node: number } => {
                    let free = allocatable(&configs[pool], &given);
                    match allocator.allocate(names[pool], &node(number)) {
                        Ok(block) => {
                            prop_assert!(free.contains(&block), "{block} is not free");
                            given.push((block, number, pool));
                        }
                        Err(error) => {
                            prop_assert_eq!(free, BTreeSet::new());
                            prop_assert_eq!(error.usage, allocator.usage(names[pool]));
                        }
                    }
                }
                Op::Release { at } if !given.is_empty() => {
                    let (block, number, _) = given.swap_remove(at.index(given.len()));
                    prop_assert!(allocator.release(block, &node(number)));
                }
                Op::Release { .. } => {}
                Op::Claim { pool, node: number, block } => {
                    allocator.claim(names[pool], block, &node(number));
                    if !given.iter().any(|(held, owner, _)| (*held, *owner) == (block, number)) {
                        given.push((block, number, pool));
                    }
                }
                Op::Configure { pool, config } => {
                    allocator.set_pool(names[pool], config.clone());
                    configs[pool] = config;
                }
            }
            for (index, name) in names.iter().enumerate() {
                let of_pool = given.iter().filter(|(.., pool)| *pool == index).count();
                prop_assert_eq!(allocator.usage(name).allocated as usize, of_pool);
            }
            let mut pairs = 0;
            for (at, (block, ..)) in given.iter().enumerate() {
                pairs += given[..at].iter().filter(|(other, ..)| other.overlaps(*block)).count();
            }
            prop_assert_eq!(allocator.conflicts().len(), pairs);
        }
        for (name, config) in names.iter().zip(&configs) {
            let apart = config.cidrs.windows(2).all(|pair| {
                !pair[0].net().contains(&pair[1].net()) && !pair[1].net().contains(&pair[0].net())
            });
            if apart {
                prop_assert_eq!(
                    allocator.usage(name).capacity as usize,
                    allocatable(config, &[]).len()
                );
            }
        }
    }

    #[test]
    fn a_block_is_used_again_after_all_that_are_unused_or_were_returned_before_it(
        ops in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..120),
    ) {
        let mut allocator = allocator(&["10.244.0.0/26", "10.9.0.0/27"], 29, &["10.244.0.16/28"]);
        let mut given: Vec<Block> = Vec::new();
        let mut returned: BTreeMap<Block, usize> = BTreeMap::new();
        for (time, (allocate, at)) in ops.into_iter().enumerate() {
            if allocate {
                let Ok(block) = allocator.allocate("default", &node(0)) else {
                    prop_assert_eq!(given.len(), 10);
                    continue;
                };
                match returned.remove(&block) {
                    None => {}
                    Some(since) => {
                        prop_assert_eq!(given.len() + returned.len() + 1, 10, "{} too soon", block);
                        prop_assert!(returned.values().all(|other| *other > since));
                    }
                }
                given.push(block);
            } else if !given.is_empty() {
                let block = given.swap_remove(at.index(given.len()));
                prop_assert!(allocator.release(block, &node(0)));
                returned.insert(block, time);
            }
        }
    }
}
