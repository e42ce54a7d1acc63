//! PodPools: which are fit to give out blocks, to whom, and what their status says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use weft_api::{PodPoolStatus, PoolRanges};
use weft_ipam::{BlockAllocator, Exhausted, PoolConfig};
use weft_model::{NodeName, first_overlap};

use super::{Held, Node, Shortage, changed_condition};

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

#[derive(Debug)]
pub(super) struct Pools {
    service_cidrs: Vec<Ipv4Net>,
    pools: BTreeMap<String, Pool>,
    /// What keeps pools from giving out blocks.
    unfit: BTreeMap<String, Unfit>,
    /// The pools, those that select nodes first: what is meant for few goes first.
    order: Vec<String>,
    /// Pools that had nothing for a node that asked.
    exhausted: BTreeMap<String, Exhausted>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Unfit {
    reason: &'static str,
    message: String,
}

// === impl Pools ===

impl Pools {
    pub(super) fn new(service_cidrs: Vec<Ipv4Net>) -> Self {
        Self {
            service_cidrs,
            pools: BTreeMap::new(),
            unfit: BTreeMap::new(),
            order: Vec::new(),
            exhausted: BTreeMap::new(),
        }
    }

    pub(super) fn set(&mut self, name: &str, pool: Option<Pool>, allocator: &mut BlockAllocator) -> bool {
        match pool.as_ref().map(|pool| &pool.ranges) {
            Some(Ok(ranges)) => allocator.set_pool(
                name,
                PoolConfig {
                    cidrs: ranges.cidrs.clone(),
                    block_size: ranges.block_size,
                    excluded: ranges.excluded.clone(),
                },
            ),
            // A pool that became invalid keeps its counts, and gives out nothing.
            Some(Err(_)) => {}
            None => allocator.remove_pool(name),
        }
        super::set(&mut self.pools, &name.to_owned(), pool)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.pools.keys().map(String::as_str)
    }

    /// Finds out which pools may give out blocks now.
    pub(super) fn begin_grants(&mut self, nodes: &BTreeMap<NodeName, Node>) {
        self.exhausted.clear();
        self.order = self.pools.keys().cloned().collect();
        self.order.sort_by_key(|name| self.pools[name].selector.is_none());
        self.unfit = self.find_unfit(nodes);
    }

    /// A block of the first pool that selects the node and has one.
    pub(super) fn allocate(&mut self, node: &Node, allocator: &mut BlockAllocator) -> Result<Held, Shortage> {
        let mut shortages: Vec<Shortage> = Vec::new();
        for name in &self.order {
            let pool = &self.pools[name];
            if !pool
                .selector
                .as_ref()
                .is_none_or(|selector| selector.matches(&node.labels))
            {
                continue;
            }
            if let Some(unfit) = self.unfit.get(name) {
                shortages.push(Shortage {
                    reason: "PoolNotReady",
                    message: format!("pool {name}: {}", unfit.message),
                });
                continue;
            }
            match allocator.allocate(name, &node.uid) {
                Ok(block) => {
                    return Ok(Held {
                        block,
                        pool: name.clone(),
                    });
                }
                Err(exhausted) => {
                    self.exhausted.insert(name.clone(), exhausted.clone());
                    shortages.push(exhausted.into());
                }
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

    /// The statuses that are not what they should be, with the pools' names and UIDs.
    pub(super) fn statuses(
        &self,
        allocator: &BlockAllocator,
        wall: Timestamp,
    ) -> Vec<(String, String, PodPoolStatus)> {
        let mut statuses = Vec::new();
        for (name, pool) in &self.pools {
            let usage = allocator.usage(name);
            let ready = match self.unfit.get(name) {
                Some(unfit) => ("False", unfit.reason, unfit.message.as_str()),
                None => ("True", "Ready", "the pool gives out blocks"),
            };
            let exhausted = self.exhausted.get(name).map(Exhausted::to_string);
            let exhausted = match &exhausted {
                Some(message) => ("True", "NoFreeBlock", message.as_str()),
                None => ("False", "BlocksFree", "no node waits for a block"),
            };
            let present = pool.status.as_ref();
            let conditions: Vec<Condition> = [("Ready", ready), ("Exhausted", exhausted)]
                .into_iter()
                .filter_map(|(type_, wanted)| {
                    let known = present
                        .and_then(|status| status.conditions.iter().find(|known| known.type_ == type_));
                    changed_condition(known, type_, wanted, wall).or_else(|| known.cloned())
                })
                .collect();
            let status = PodPoolStatus {
                capacity: usage.capacity,
                allocated: usage.allocated,
                conditions,
                ..PodPoolStatus::default()
            };
            if present != Some(&status) {
                statuses.push((name.clone(), pool.uid.clone(), status));
            }
        }
        statuses
    }

    fn find_unfit(&self, nodes: &BTreeMap<NodeName, Node>) -> BTreeMap<String, Unfit> {
        let node_addresses: BTreeMap<Ipv4Addr, &NodeName> = nodes
            .iter()
            .flat_map(|(name, node)| node.addresses.iter().map(move |address| (*address, name)))
            .collect();
        let mut by_age: Vec<(&String, &Pool)> = self.pools.iter().collect();
        by_age.sort_by_key(|(name, pool)| (pool.created, *name));
        let mut fit: BTreeSet<&String> = BTreeSet::new();
        let mut unfit = BTreeMap::new();
        for (name, pool) in by_age {
            let found = match &pool.ranges {
                Err(message) => Some(Unfit {
                    reason: "Invalid",
                    message: message.clone(),
                }),
                Ok(ranges) => self.find_overlap(name, ranges, &fit, &node_addresses),
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
        node_addresses: &BTreeMap<Ipv4Addr, &NodeName>,
    ) -> Option<Unfit> {
        let overlap = |message: String| {
            Some(Unfit {
                reason: "Overlap",
                message,
            })
        };
        for cidr in &ranges.cidrs {
            let net = cidr.net();
            if let Some((address, node)) = node_addresses.range(net.network()..=net.broadcast()).next() {
                return overlap(format!("{net} contains {address}, the address of node {node}"));
            }
        }
        let label = |label: String| move |net: Ipv4Net| (label.clone(), net);
        let own = ranges.cidrs.iter().map(|cidr| cidr.net());
        let services = self.service_cidrs.iter().copied();
        let others = fit.iter().filter_map(|other| {
            let ranges = self.pools.get(*other)?.ranges.as_ref().ok()?;
            Some(
                ranges
                    .cidrs
                    .iter()
                    .map(|cidr| cidr.net())
                    .map(label(format!("pool {other}"))),
            )
        });
        let all = own
            .map(label(format!("pool {name}")))
            .chain(services.map(label("service CIDR".to_owned())))
            .chain(others.flatten());
        first_overlap(all).and_then(|found| overlap(found.to_string()))
    }
}
