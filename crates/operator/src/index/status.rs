//! The status of PodPools: their numbers, and the conditions that follow from these.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use weft_api::{AddressCounts, Ipam, PodPoolStatus, PoolRange, PoolRanges};
use weft_ipam::{Exhausted, PoolConfig};
use weft_model::NodeUid;

use super::pools::{Pool, PoolFigures, config, counted_size, gives, lies_in};
use super::{Action, Held, Index, Plan, changed_condition};

/// Percent in use at which people are warned, and the percent below which the
/// warning is taken back: a value that swings around one of them warns once.
const LEVELS: [(&str, u64, u64); 2] = [("Above95Percent", 95, 93), ("Above80Percent", 80, 78)];

type Wanted<'a> = (&'a str, (&'a str, &'a str, &'a str));

// === impl Index ===

impl Index {
    pub(super) fn plan_pools(&mut self, now: Duration, wall: Timestamp, plan: &mut Plan) {
        let mut held: BTreeMap<&str, Vec<(&NodeUid, &Held)>> = BTreeMap::new();
        for (uid, blocks) in &self.held {
            for block in blocks {
                held.entry(&block.pool).or_default().push((uid, block));
            }
        }
        let mut addresses: BTreeMap<&str, AddressCounts> = BTreeMap::new();
        for network in self.networks.values() {
            for held in &network.blocks {
                if let Some(block) = network.uses.get(&held.block) {
                    let sum = addresses.entry(&held.pool).or_default();
                    sum.used = sum.used.saturating_add(block.used);
                    sum.cooling = sum.cooling.saturating_add(block.cooling);
                }
            }
        }
        let routes = self.route_overlaps();
        let mut figures = Vec::new();
        for (name, pool) in &self.pools.pools {
            let held = held.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            let mut addresses = addresses.get(name.as_str()).copied().unwrap_or_default();
            let capacity = held.iter().map(|(_, held)| held.block.size().addresses());
            addresses.capacity = capacity.fold(0, u32::saturating_add);
            let route = routes.get(name).map(String::as_str);
            let status = self.pool_status(name, pool, held, addresses, route, wall);
            let retiring = held.iter().filter(|(_, held)| held.retiring).count();
            figures.push(PoolFigures {
                pool: name.clone(),
                ipam: pool.ipam().unwrap_or_default(),
                capacity: status.capacity,
                allocated: status.allocated,
                retiring: u32::try_from(retiring).unwrap_or(u32::MAX),
                addresses,
                conditions: status
                    .conditions
                    .iter()
                    .map(|condition| (condition.type_.clone(), condition.status == "True"))
                    .collect(),
            });
            if pool.status.as_ref() == Some(&status) {
                continue;
            }
            let known = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
            let news: Vec<Condition> = status
                .conditions
                .iter()
                .filter(|condition| is_news(known, condition))
                .cloned()
                .collect();
            // Whatever follows from the specification is written at once.
            let shape = |status: &PodPoolStatus| -> Vec<(String, u32, bool)> {
                let ranges = status.ranges.iter();
                ranges
                    .map(|range| (range.cidr.clone(), range.capacity, range.retiring))
                    .collect()
            };
            let same_shape = pool
                .status
                .as_ref()
                .is_some_and(|known| shape(known) == shape(&status));
            let since = self
                .pools
                .written
                .get(name)
                .map(|written| *written + self.pace.counts);
            match since {
                Some(until) if news.is_empty() && same_shape && now < until => plan.wake_at(until),
                _ => plan.statuses.push(Action::SetPoolStatus {
                    pool: name.clone(),
                    uid: pool.uid.clone(),
                    status,
                    news,
                }),
            }
        }
        self.pools.figures = figures;
    }

    fn pool_status(
        &self,
        name: &str,
        pool: &Pool,
        held: &[(&NodeUid, &Held)],
        addresses: AddressCounts,
        route: Option<&str>,
        wall: Timestamp,
    ) -> PodPoolStatus {
        let present = pool.status.as_ref();
        let allocated = count(held.len());
        let (capacity, ranges) = match &pool.ranges {
            Ok(ranges) => count_ranges(ranges, held),
            // What can't be read is as it was.
            Err(_) => present.map_or((0, Vec::new()), |status| (status.capacity, status.ranges.clone())),
        };
        let unfit = self.pools.unfit.get(name);
        let ready = match (unfit, pool.ipam()) {
            (Some(unfit), _) => ("False", unfit.reason, unfit.message.as_str()),
            (None, Some(Ipam::Node)) => ("True", "NodeIPAM", "nodes use the blocks of their spec.podCIDRs"),
            (None, _) => ("True", "Ready", "the pool gives out blocks"),
        };
        let exhausted = self.pools.exhausted.get(name).map(Exhausted::to_string);
        let exhausted = match &exhausted {
            Some(message) => ("True", "NoFreeBlock", message.as_str()),
            None => ("False", "BlocksFree", "no node waits for a block"),
        };
        let overlaps = unfit.and_then(|unfit| Some((unfit.overlaps?, unfit.message.as_str())));
        let overlapping = match (overlaps, route) {
            (Some((with, message)), _) => ("True", with, message),
            (None, Some(message)) => ("True", "NodeRoute", message),
            (None, None) => ("False", "NoOverlap", "the ranges are apart from all others known"),
        };
        let known = |type_: &str| {
            let known =
                present.and_then(|status| status.conditions.iter().find(|known| known.type_ == type_));
            known.cloned()
        };
        let size = match &pool.ranges {
            Ok(ranges) => {
                u64::from(counted_size(ranges, held.iter().map(|(_, held)| &held.block)).addresses())
            }
            Err(_) => 0,
        };
        let used = u64::from(addresses.used) + u64::from(addresses.cooling);
        // Blocks that are not given out yet can take pods too, but for those that somebody else gives out.
        let all = match pool.ipam() {
            Some(Ipam::Node) => u64::from(addresses.capacity),
            _ => u64::from(capacity) * size,
        };
        let known_level = known("CapacityLow").map(|known| known.reason);
        let level = level(
            known_level.as_deref(),
            percent(u64::from(allocated), u64::from(capacity)).max(percent(used, all)),
        );
        let message = format!("{allocated} of {capacity} blocks given out, {used} of {all} addresses in use");
        let low = match level {
            Some(level) => ("True", level, message.as_str()),
            None => (
                "False",
                "Sufficient",
                "less than 80 % of blocks and addresses are in use",
            ),
        };
        let wanted: [Wanted<'_>; 4] = [
            ("Ready", ready),
            ("Exhausted", exhausted),
            ("Overlapping", overlapping),
            ("CapacityLow", low),
        ];
        let conditions = wanted.into_iter().filter_map(|(type_, wanted)| {
            let known = known(type_);
            changed_condition(known.as_ref(), type_, wanted, wall).or(known)
        });
        PodPoolStatus {
            capacity,
            allocated,
            ranges,
            addresses,
            conditions: conditions.collect(),
        }
    }

    /// The first route in the way of each pool, and how many nodes have one.
    fn route_overlaps(&self) -> BTreeMap<String, String> {
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for (name, node) in &self.nodes {
            let overlap = self
                .network_of(name, node)
                .and_then(|network| network.route_overlap.as_ref());
            let Some(message) = overlap else {
                continue;
            };
            for (pool, _) in self.pools.pools.iter().filter(|(_, pool)| pool.selects(node)) {
                let entry = found.entry(pool.clone());
                entry
                    .and_modify(|(_, more)| *more += 1)
                    .or_insert_with(|| (format!("node {name}: {message}"), 0));
            }
        }
        let sentence = |(message, more)| match more {
            0 => message,
            more => format!("{message} (and {more} more nodes)"),
        };
        found
            .into_iter()
            .map(|(pool, found)| (pool, sentence(found)))
            .collect()
    }
}

/// The blocks of the ranges that give some, and each range's counts.
fn count_ranges(ranges: &PoolRanges, held: &[(&NodeUid, &Held)]) -> (u32, Vec<PoolRange>) {
    let size = counted_size(ranges, held.iter().map(|(_, held)| &held.block));
    let counted: Vec<PoolRange> = ranges
        .cidrs
        .iter()
        .map(|cidr| {
            let capacity = PoolConfig {
                block_size: size,
                ..config(ranges, [*cidr])
            }
            .capacity();
            let allocated = held.iter().filter(|(_, held)| lies_in(&[*cidr], held.block));
            PoolRange {
                cidr: cidr.to_string(),
                capacity,
                allocated: count(allocated.count()),
                retiring: !gives(ranges, *cidr),
            }
        })
        .collect();
    let giving = counted.iter().filter(|range| !range.retiring);
    let capacity = giving.map(|range| range.capacity).fold(0, u32::saturating_add);
    (capacity, counted)
}

/// The level that so much use is at, where it was at `known` before.
fn level(known: Option<&str>, percent: u64) -> Option<&'static str> {
    let known = LEVELS.iter().position(|(level, ..)| known == Some(*level));
    LEVELS.iter().enumerate().find_map(|(at, (level, above, until))| {
        // Who was above 95 % was above 80 % too.
        let was = known.is_some_and(|known| known <= at);
        (percent >= if was { *until } else { *above }).then_some(*level)
    })
}

/// Whether a condition says something else than before, and not only other numbers.
fn is_news(known: &[Condition], condition: &Condition) -> bool {
    let numbers = matches!(condition.type_.as_str(), "CapacityLow" | "Exhausted");
    !known.iter().any(|known| {
        known.type_ == condition.type_
            && known.status == condition.status
            && known.reason == condition.reason
            && (numbers || known.message == condition.message)
    })
}

fn percent(part: u64, whole: u64) -> u64 {
    (part * 100).checked_div(whole).unwrap_or(0)
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}
