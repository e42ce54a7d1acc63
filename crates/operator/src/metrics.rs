//! The operator's metrics, in base units.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use weft_api::Ipam;

use crate::index::{Action, PoolFigures, Source};
use crate::slices::SliceChange;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolState {
    pool: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolMode {
    pool: String,
    ipam: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolCondition {
    pool: String,
    condition: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteResult {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// Every series of the operator.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    blocks: Family<PoolState, Gauge>,
    addresses: Family<PoolState, Gauge>,
    modes: Family<PoolMode, Gauge>,
    conditions: Family<PoolCondition, Gauge>,
    grants: Counter,
    writes: Family<WriteResult, Counter>,
    plans: Histogram,
    leader: Gauge,
    watches: Family<Kind, Gauge>,
    watch_errors: Family<Kind, Counter>,
    /// The pools that have series.
    known: Mutex<Vec<(String, Ipam)>>,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("weft");
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "Version of the running operator", Info::new(version));
        let metrics = Self {
            blocks: Family::default(),
            addresses: Family::default(),
            modes: Family::default(),
            conditions: Family::default(),
            grants: Counter::default(),
            writes: Family::default(),
            plans: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            leader: Gauge::default(),
            watches: Family::default(),
            watch_errors: Family::default(),
            known: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register(
            "pool_blocks",
            "Blocks of a pool: free, allocated, or retiring (allocated, and to be given up)",
            metrics.blocks.clone(),
        );
        registry.register(
            "pool_addresses",
            "Addresses of the blocks that a pool has given to nodes, as the nodes' agents count them",
            metrics.addresses.clone(),
        );
        registry.register(
            "pool_mode",
            "1 for the ipam mode that a pool is in",
            metrics.modes.clone(),
        );
        registry.register(
            "pool_condition",
            "1 where a condition of a pool is True",
            metrics.conditions.clone(),
        );
        registry.register(
            "operator_grants",
            "Writes that gave or took blocks",
            metrics.grants.clone(),
        );
        registry.register(
            "operator_writes",
            "Writes by kind and result",
            metrics.writes.clone(),
        );
        registry.register(
            "operator_plan_duration_seconds",
            "Time to find out what has to be written",
            metrics.plans.clone(),
        );
        registry.register(
            "operator_leader",
            "1 while this operator leads",
            metrics.leader.clone(),
        );
        registry.register(
            "operator_watch_synced",
            "1 where all objects of a kind were listed",
            metrics.watches.clone(),
        );
        registry.register(
            "operator_watch_errors",
            "Lists and watches that failed",
            metrics.watch_errors.clone(),
        );
        Self { registry, ..metrics }
    }

    /// Whether this operator leads. One that does not knows nothing of pools.
    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.clear_pools();
            self.watches.clear();
        }
    }

    pub(crate) fn pools(&self, figures: &[PoolFigures]) {
        let pools: Vec<(String, Ipam)> = figures
            .iter()
            .map(|figures| (figures.pool.clone(), figures.ipam))
            .collect();
        // Not every time: somebody may read meanwhile.
        if *self.known.lock().unwrap_or_else(PoisonError::into_inner) != pools {
            self.clear_pools();
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = pools;
        }
        for figures in figures {
            let pool = || figures.pool.clone();
            let free = figures.capacity.saturating_sub(figures.allocated);
            let lasting = figures.allocated.saturating_sub(figures.retiring);
            let blocks = [
                ("free", free),
                ("allocated", lasting),
                ("retiring", figures.retiring),
            ];
            set(&self.blocks, &pool, &blocks);
            let addresses = figures.addresses;
            let busy = addresses.used.saturating_add(addresses.cooling);
            let free = addresses.capacity.saturating_sub(busy);
            let states = [
                ("free", free),
                ("used", addresses.used),
                ("cooling", addresses.cooling),
            ];
            set(&self.addresses, &pool, &states);
            let ipam = match figures.ipam {
                Ipam::Pool => "pool",
                Ipam::Node => "node",
            };
            self.modes.get_or_create(&PoolMode { pool: pool(), ipam }).set(1);
            for (condition, holds) in &figures.conditions {
                let labels = PoolCondition {
                    pool: pool(),
                    condition: condition.clone(),
                };
                self.conditions.get_or_create(&labels).set(i64::from(*holds));
            }
        }
    }

    pub(crate) fn planned(&self, took: Duration) {
        self.plans.observe(took.as_secs_f64());
    }

    pub(crate) fn wrote(&self, action: &Action, result: &'static str) {
        let kind = match action {
            Action::CreateNetwork { .. } => "create_node_network",
            Action::SetBlocks { .. } => "set_blocks",
            Action::DeleteNetwork { .. } => "delete_node_network",
            Action::SetAllocation { .. } => "set_allocation",
            Action::SetPoolStatus { .. } => "set_pool_status",
            Action::SetNodeCondition { .. } => "set_node_condition",
            Action::SetTaint { .. } => "set_taint",
            Action::Slice(SliceChange::Create(..)) => "create_slice",
            Action::Slice(SliceChange::Set(..)) => "set_slice",
            Action::Slice(SliceChange::Delete(..)) => "delete_slice",
        };
        self.writes.get_or_create(&WriteResult { kind, result }).inc();
        if result == "done" && matches!(action, Action::CreateNetwork { .. } | Action::SetBlocks { .. }) {
            self.grants.inc();
        }
    }

    pub(crate) fn watch_listed(&self, source: Source) {
        self.watches.get_or_create(&Kind { kind: source.kind() }).set(1);
    }

    pub(crate) fn watch_failed(&self, source: Source) {
        self.watch_errors
            .get_or_create(&Kind { kind: source.kind() })
            .inc();
    }

    /// The OpenMetrics text of all series.
    ///
    /// # Errors
    /// Only what the formatter returns.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn clear_pools(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.blocks.clear();
        self.addresses.clear();
        self.modes.clear();
        self.conditions.clear();
    }
}

fn set(family: &Family<PoolState, Gauge>, pool: &impl Fn() -> String, states: &[(&'static str, u32)]) {
    for (state, value) in states {
        let labels = PoolState { pool: pool(), state };
        family.get_or_create(&labels).set(i64::from(*value));
    }
}
