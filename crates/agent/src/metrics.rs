//! The agent's metrics, in base units, served as OpenMetrics text.

use crate::steps::Steps;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    pub op: &'static str,
    /// CNI error code, 0 for success.
    pub code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OpLabels {
    pub op: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StepLabels {
    pub op: &'static str,
    pub step: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabels {
    pub state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    pub kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TransportLabels {
    pub transport: &'static str,
}

/// What the kernel counts, read when somebody asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets dropped, by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Packets forwarded, by path.
    pub forwards: Vec<(&'static str, u64)>,
}

/// Every series of the agent.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<OpLabels, Histogram>,
    steps: Family<StepLabels, Histogram>,
    addresses: Family<StateLabels, Gauge>,
    repairs: Family<KindLabels, Counter>,
    peers: Gauge,
    transports: Family<TransportLabels, Gauge>,
}

struct Datapath<F>(F);

// === impl Metrics ===

impl Metrics {
    pub fn new(node: &str, datapath: impl Fn() -> Totals + Send + Sync + 'static) -> Self {
        let mut registry = Registry::with_prefix("weft");
        registry.register(
            "build",
            "Version of the running agent",
            Info::new(vec![
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("node", node.to_owned()),
            ]),
        );
        let requests = Family::default();
        registry.register(
            "cni_requests",
            "CNI requests by operation and CNI error code",
            requests.clone(),
        );
        let durations = Family::<OpLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
        });
        registry.register(
            "cni_request_duration_seconds",
            "Time from the start of the plugin to the reply of the agent",
            durations.clone(),
        );
        let steps = Family::<StepLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_02, 2.0, 18))
        });
        registry.register(
            "cni_step_duration_seconds",
            "Time that each step of a request took",
            steps.clone(),
        );
        let addresses = Family::default();
        registry.register(
            "ipam_addresses",
            "Pod addresses of this node's blocks by state",
            addresses.clone(),
        );
        let repairs = Family::default();
        registry.register(
            "repairs",
            "Differences between wish and kernel that were put right",
            repairs.clone(),
        );
        let peers = Gauge::default();
        registry.register("peers", "Other nodes this node has tunnels to", peers.clone());
        let transports = Family::default();
        registry.register(
            "transport",
            "How packets get to other nodes: 1 for the transport that does it, 0 for the other",
            transports.clone(),
        );
        registry.register_collector(Box::new(Datapath(datapath)));
        Self {
            registry,
            requests,
            durations,
            steps,
            addresses,
            repairs,
            peers,
            transports,
        }
    }

    pub fn request(&self, op: &'static str, code: u32, steps: Steps) {
        self.requests.get_or_create(&RequestLabels { op, code }).inc();
        self.durations
            .get_or_create(&OpLabels { op })
            .observe(steps.total().as_secs_f64());
        for (step, took) in steps.into_all() {
            self.steps
                .get_or_create(&StepLabels {
                    op,
                    step: step.name(),
                })
                .observe(took.as_secs_f64());
        }
    }

    pub fn addresses(&self, state: &'static str, count: u32) {
        self.addresses
            .get_or_create(&StateLabels { state })
            .set(i64::from(count));
    }

    pub fn repaired(&self, kind: &'static str) {
        self.repairs.get_or_create(&KindLabels { kind }).inc();
    }

    pub fn peers(&self, count: usize) {
        self.peers.set(signed(count as u64));
    }

    /// Says that `transport` takes packets to other nodes, and no other.
    pub fn transport(&self, transport: &'static str) {
        for other in ["device", "direct"] {
            self.transports
                .get_or_create(&TransportLabels { transport: other })
                .set(i64::from(other == transport));
        }
    }

    /// The OpenMetrics text of all series.
    ///
    /// # Errors
    /// Only what the formatter returns.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

// === impl Datapath ===

impl<F: Fn() -> Totals + Send + Sync + 'static> Collector for Datapath<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let totals = (self.0)();
        let families = [
            (
                "drops",
                "Packets the datapath dropped, by reason",
                "reason",
                &totals.drops,
            ),
            (
                "forwards",
                "Packets the datapath forwarded, by path",
                "path",
                &totals.forwards,
            ),
        ];
        for (name, help, label, values) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (value, total) in values {
                ConstCounter::new(*total).encode(family.encode_family(&[(label, *value)])?)?;
            }
        }
        Ok(())
    }
}

impl<F> fmt::Debug for Datapath<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Datapath")
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::Step;
    use std::time::Duration;

    #[test]
    fn a_request_counts_by_operation_and_code() {
        let metrics = Metrics::new("n1", Totals::default);
        for code in [0, 11] {
            let steps = Steps::begin();
            steps.note(Step::Reserve, Duration::from_millis(2));
            metrics.request("ADD", code, steps);
        }
        let text = metrics.text().unwrap();
        assert!(
            text.contains("weft_cni_requests_total{op=\"ADD\",code=\"0\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("weft_cni_requests_total{op=\"ADD\",code=\"11\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("weft_cni_request_duration_seconds_count{op=\"ADD\"} 2"),
            "{text}"
        );
        assert!(
            text.contains("weft_cni_step_duration_seconds_sum{op=\"ADD\",step=\"reserve\"} 0.004"),
            "{text}"
        );
    }

    #[test]
    fn totals_of_the_kernel_are_reported_as_counters() {
        let metrics = Metrics::new("n1", || Totals {
            drops: vec![("SourceAddress", 7)],
            forwards: vec![("PodToOverlay", 9)],
        });
        let text = metrics.text().unwrap();
        assert!(
            text.contains("weft_drops_total{reason=\"SourceAddress\"} 7"),
            "{text}"
        );
        assert!(
            text.contains("weft_forwards_total{path=\"PodToOverlay\"} 9"),
            "{text}"
        );
    }
}
