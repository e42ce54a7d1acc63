//! PodPools: which are fit to give out blocks, and to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use weft_api::{AddressCounts, Ipam, PodPoolStatus, PoolRanges};
use weft_ipam::{BlockAllocator, Exhausted, PoolConfig};
use weft_model::{Block, BlockSize, NodeName, NodeUid, PodCidr, first_overlap};

use super::{Held, Node, Shortage};

/// What a PodPool object says that matters here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pool {
    /// The object's UID.
    pub(crate) uid: String,
    /// Who was here first keeps ranges that a later pool overlaps.
    pub(crate) created: Timestamp,
    /// The ranges, or what is wrong with the specification.
    pub(crate) ranges: Result<PoolRanges, String>,
    /// Which nodes get blocks; `None` for all.
    pub(crate) selector: Option<Selector>,
    pub(crate) status: Option<PodPoolStatus>,
}

/// The numbers of a pool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PoolFigures {
    pub(crate) pool: String,
    pub(crate) ipam: Ipam,
    /// Blocks in all, without retiring ranges.
    pub(crate) capacity: u32,
    pub(crate) allocated: u32,
    /// Those of `allocated` that their nodes shall give up.
    pub(crate) retiring: u32,
    pub(crate) addresses: AddressCounts,
    /// The types of the pool's conditions and whether they are true.
    pub(crate) conditions: Vec<(String, bool)>,
}

#[derive(Debug)]
pub(super) struct Pools {
    /// Those of the command line.
    fixed_service_cidrs: Vec<Ipv4Net>,
    /// Those of ServiceCIDR objects, by name.
    service_cidrs: BTreeMap<String, Vec<Ipv4Net>>,
    pub(super) pools: BTreeMap<String, Pool>,
    /// What keeps pools from giving out blocks.
    pub(super) unfit: BTreeMap<String, Unfit>,
    /// The pools, those that select nodes first: what is meant for few goes first.
    order: Vec<String>,
    /// Pools that had nothing for a node that asked.
    pub(super) exhausted: BTreeMap<String, Exhausted>,
    pub(super) figures: Vec<PoolFigures>,
    /// When the status of each pool was written last.
    pub(super) written: BTreeMap<String, Duration>,
}

/// Why a pool gives out nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) reason: &'static str,
    /// With what the pool overlaps, if that is the reason.
    pub(super) overlaps: Option<&'static str>,
    pub(super) message: String,
}

// === impl Pools ===

impl Pools {
    pub(super) fn new(service_cidrs: Vec<Ipv4Net>) -> Self {
        Self {
            fixed_service_cidrs: service_cidrs,
            service_cidrs: BTreeMap::new(),
            pools: BTreeMap::new(),
            unfit: BTreeMap::new(),
            order: Vec::new(),
            exhausted: BTreeMap::new(),
            figures: Vec::new(),
            written: BTreeMap::new(),
        }
    }

    pub(super) fn set(&mut self, name: &str, pool: Option<Pool>, allocator: &mut BlockAllocator) -> bool {
        match pool.as_ref().map(|pool| &pool.ranges) {
            Some(Ok(ranges)) => {
                allocator.set_pool(
                    name,
                    config(
                        ranges,
                        ranges.cidrs.iter().copied().filter(|cidr| gives(ranges, *cidr)),
                    ),
                );
            }
            // A pool that became invalid keeps its counts, and gives out nothing.
            Some(Err(_)) => {}
            None => {
                allocator.remove_pool(name);
                self.written.remove(name);
            }
        }
        super::set(&mut self.pools, &name.to_owned(), pool)
    }

    pub(super) fn set_service_cidrs(&mut self, name: &str, cidrs: Option<Vec<Ipv4Net>>) -> bool {
        super::set(&mut self.service_cidrs, &name.to_owned(), cidrs)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.pools.keys().map(String::as_str)
    }

    pub(super) fn service_names(&self) -> impl Iterator<Item = &str> {
        self.service_cidrs.keys().map(String::as_str)
    }

    pub(super) fn figures(&self) -> &[PoolFigures] {
        &self.figures
    }

    /// Finds out which pools may give out blocks now.
    pub(super) fn begin_grants(&mut self, node_addresses: &BTreeMap<Ipv4Addr, BTreeSet<NodeName>>) {
        self.exhausted.clear();
        self.order = self.pools.keys().cloned().collect();
        self.order.sort_by_key(|name| self.pools[name].selector.is_none());
        self.unfit = self.find_unfit(node_addresses);
    }

    /// The pool whose blocks this operator gives out that a block lies in.
    pub(super) fn giving(&self, block: Block) -> Option<&str> {
        let gives = |pool: &Pool| {
            let ranges = pool.ranges.as_ref().ok();
            ranges.is_some_and(|ranges| ranges.ipam != Ipam::Node && lies_in(&ranges.cidrs, block))
        };
        let mut pools = self.pools.iter();
        pools.find(|(_, pool)| gives(pool)).map(|(name, _)| name.as_str())
    }

    /// Whether any pool is meant for the node.
    pub(super) fn any_selects(&self, node: &Node) -> bool {
        self.pools.values().any(|pool| pool.selects(node))
    }

    /// Whether kube-controller-manager chooses the blocks of any pool.
    pub(super) fn any_of_node_ipam(&self) -> bool {
        self.pools.values().any(|pool| pool.ipam() == Some(Ipam::Node))
    }

    /// Whether kube-controller-manager chooses the blocks of this pool.
    pub(super) fn is_of_node_ipam(&self, name: &str) -> bool {
        self.pools.get(name).and_then(Pool::ipam) == Some(Ipam::Node)
    }

    /// Those of a node's `spec.podCIDRs` that lie in a pool with `ipam: node`.
    pub(super) fn native_blocks(&self, node: &Node) -> Vec<Block> {
        let covered = |block: &Block| {
            self.pools.values().any(|pool| {
                let ranges = pool.ranges.as_ref().ok();
                ranges.is_some_and(|ranges| ranges.ipam == Ipam::Node && lies_in(&ranges.cidrs, *block))
            })
        };
        let blocks = node.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok());
        blocks.filter(covered).collect()
    }

    /// Whether a node shall give up a block as soon as it has another: its
    /// range is retiring or not the pool's any more, or it is not the one that
    /// kube-controller-manager chose. A pool that is gone or invalid says
    /// nothing about its blocks.
    pub(super) fn is_stale(&self, held: &Held, node: &Node) -> bool {
        let ranges = self
            .pools
            .get(&held.pool)
            .and_then(|pool| pool.ranges.as_ref().ok());
        ranges.is_some_and(|ranges| {
            let cidr = ranges
                .cidrs
                .iter()
                .find(|cidr| cidr.net().contains(&held.block.net()));
            let gives = cidr.is_some_and(|cidr| gives(ranges, *cidr));
            !gives
                || (ranges.ipam == Ipam::Node
                    && !node.pod_cidrs.iter().any(|cidr| cidr.parse() == Ok(held.block)))
        })
    }

    /// A block of the first pool that selects the node and has one. `held` is what the node has already; `names` are
    /// those of all nodes.
    pub(super) fn allocate(
        &mut self,
        node: &Node,
        held: &[Held],
        names: &BTreeMap<NodeUid, NodeName>,
        allocator: &mut BlockAllocator,
    ) -> Result<Held, Shortage> {
        let mut shortages: Vec<Shortage> = Vec::new();
        for name in &self.order {
            let pool = &self.pools[name];
            if !pool.selects(node) {
                continue;
            }
            if let Some(unfit) = self.unfit.get(name) {
                shortages.push(Shortage {
                    reason: "PoolNotReady",
                    message: format!("pool {name}: {}", unfit.message),
                });
                continue;
            }
            let found = match &pool.ranges {
                Ok(ranges) if ranges.ipam == Ipam::Node => {
                    self.pod_cidr(name, ranges, node, held, names, allocator)
                }
                _ => allocator.allocate(name, &node.uid).map_err(|exhausted| {
                    self.exhausted.insert(name.clone(), exhausted.clone());
                    exhausted.into()
                }),
            };
            match found {
                Ok(block) => {
                    return Ok(Held {
                        block,
                        pool: name.clone(),
                        retiring: false,
                    });
                }
                Err(shortage) => shortages.push(shortage),
            }
        }
        Err(match shortages.len() {
            0 => Shortage {
                reason: "NoPool",
                message: "no PodPool selects the node".to_owned(),
            },
            _ => Shortage {
                reason: shortages[0].reason,
                message: shortages
                    .into_iter()
                    .map(|shortage| shortage.message)
                    .collect::<Vec<_>>()
                    .join("; "),
            },
        })
    }

    /// The next of the Node's own ranges, which somebody else chose.
    fn pod_cidr(
        &self,
        name: &str,
        ranges: &PoolRanges,
        node: &Node,
        held: &[Held],
        names: &BTreeMap<NodeUid, NodeName>,
        allocator: &mut BlockAllocator,
    ) -> Result<Block, Shortage> {
        let shortage = |reason, message| Err(Shortage { reason, message });
        for text in &node.pod_cidrs {
            let block = match text.parse::<Block>() {
                Ok(block) => block,
                Err(error) => {
                    return shortage(
                        "PodCIDRUnusable",
                        format!(
                            "pool {name} has ipam node, and spec.podCIDRs of the Node is no block: {error}"
                        ),
                    );
                }
            };
            if held.iter().any(|held| held.block == block) {
                continue;
            }
            if !ranges
                .cidrs
                .iter()
                .any(|cidr| gives(ranges, *cidr) && cidr.net().contains(&block.net()))
            {
                return shortage(
                    "PodCIDROutsidePool",
                    format!(
                        "pool {name} has ipam node, and {block} of the Node's spec.podCIDRs lies outside of its cidrs"
                    ),
                );
            }
            if let Some(other) = allocator.other_owner(block, &node.uid) {
                let owner = match names.get(&other.owner) {
                    Some(name) => format!("node {name}"),
                    None => format!("a node that is gone (UID {})", other.owner),
                };
                return shortage(
                    "DuplicateBlock",
                    format!(
                        "{block} of the Node's spec.podCIDRs overlaps {} of {owner}",
                        other.block
                    ),
                );
            }
            allocator.claim(name, block, &node.uid);
            return Ok(block);
        }
        match node.pod_cidrs.len() {
            0 => shortage(
                "NoPodCIDR",
                format!(
                    "pool {name} has ipam node, and the Node has no IPv4 in spec.podCIDRs: kube-controller-manager gives it one with --allocate-node-cidrs"
                ),
            ),
            count => shortage(
                "PodCIDRsOnly",
                format!("pool {name} has ipam node, and the Node has {count} IPv4 in spec.podCIDRs"),
            ),
        }
    }

    fn find_unfit(&self, node_addresses: &BTreeMap<Ipv4Addr, BTreeSet<NodeName>>) -> BTreeMap<String, Unfit> {
        let mut by_age: Vec<(&String, &Pool)> = self.pools.iter().collect();
        by_age.sort_by_key(|(name, pool)| (pool.created, *name));
        let mut fit: BTreeSet<&String> = BTreeSet::new();
        let mut unfit = BTreeMap::new();
        for (name, pool) in by_age {
            let found = match &pool.ranges {
                Err(message) => Some(Unfit {
                    reason: "Invalid",
                    overlaps: None,
                    message: message.clone(),
                }),
                Ok(ranges) => self.find_overlap(name, ranges, &fit, node_addresses),
            };
            match found {
                Some(found) => {
                    unfit.insert(name.clone(), found);
                }
                None => {
                    fit.insert(name);
                }
            }
        }
        unfit
    }

    fn find_overlap(
        &self,
        name: &str,
        ranges: &PoolRanges,
        fit: &BTreeSet<&String>,
        node_addresses: &BTreeMap<Ipv4Addr, BTreeSet<NodeName>>,
    ) -> Option<Unfit> {
        let overlap = |with: &'static str, message: String| Unfit {
            reason: "Overlap",
            overlaps: Some(with),
            message,
        };
        for cidr in &ranges.cidrs {
            let net = cidr.net();
            let inside = node_addresses.range(net.network()..=net.broadcast()).next();
            if let Some((address, nodes)) = inside
                && let Some(node) = nodes.first()
            {
                let message = format!("{net} contains {address}, the address of node {node}");
                return Some(overlap("NodeAddress", message));
            }
        }
        let label = |label: String| move |net: Ipv4Net| (label.clone(), net);
        let own = || {
            ranges
                .cidrs
                .iter()
                .map(|cidr| cidr.net())
                .map(label(format!("pool {name}")))
        };
        // One by one: those of the cluster may overlap each other, which is not this pool's concern.
        let services = self
            .fixed_service_cidrs
            .iter()
            .chain(self.service_cidrs.values().flatten());
        let services = services.map(|net| ("ServiceCIDR", "service CIDR".to_owned(), *net));
        let others = fit.iter().flat_map(|other| {
            let ranges = self.pools.get(*other).and_then(|pool| pool.ranges.as_ref().ok());
            let cidrs = ranges.into_iter().flat_map(|ranges| &ranges.cidrs);
            cidrs.map(move |cidr| ("Pool", format!("pool {other}"), cidr.net()))
        });
        services.chain(others).find_map(|(with, label, net)| {
            let found = first_overlap(own().chain([(label, net)]))?;
            Some(overlap(with, found.to_string()))
        })
    }
}

// === impl Pool ===

impl Pool {
    pub(super) fn selects(&self, node: &Node) -> bool {
        self.selector
            .as_ref()
            .is_none_or(|selector| selector.matches(&node.labels))
    }

    pub(super) fn ipam(&self) -> Option<Ipam> {
        self.ranges.as_ref().ok().map(|ranges| ranges.ipam)
    }
}

/// Whether new blocks are taken from one of a pool's ranges.
pub(super) fn gives(ranges: &PoolRanges, cidr: PodCidr) -> bool {
    !ranges.retiring.contains(&cidr)
}

pub(super) fn lies_in(cidrs: &[PodCidr], block: Block) -> bool {
    cidrs.iter().any(|cidr| cidr.net().contains(&block.net()))
}

/// What the allocator has to know of these ranges of a pool.
pub(super) fn config(ranges: &PoolRanges, cidrs: impl IntoIterator<Item = PodCidr>) -> PoolConfig {
    PoolConfig {
        cidrs: cidrs.into_iter().collect(),
        block_size: ranges.block_size,
        excluded: ranges.excluded.clone(),
    }
}

/// The size in which a pool's blocks are counted: under `ipam: node` that of the blocks it has.
pub(super) fn counted_size<'a>(
    ranges: &PoolRanges,
    mut blocks: impl Iterator<Item = &'a Block>,
) -> BlockSize {
    match ranges.ipam {
        Ipam::Pool => ranges.block_size,
        Ipam::Node => blocks.next().map_or(ranges.block_size, |block| block.size()),
    }
}
