//! Writes what the node has to say about itself: the status of its NodeNetwork.

use crate::configuration;
use crate::keep::Findings;
use crate::metrics::Metrics;
use crate::node::{Readiness, Selection};
use crate::pods::Pods;
use crate::watch::View;
use crate::wiring::PodKernel;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use weft_api::{AddressCounts, BlockUse, NodeNetwork, NodeNetworkStatus, Transport};
use weft_ipam::ledger::{BlockStats, Stats};
use weft_kernel::bpf;
use weft_model::NodeName;

/// Writes that are not urgent are this far apart, so that a node which starts 250 pods does not write 250 times.
const PACE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// Addresses become free by the mere passing of time.
const REFRESH: Duration = Duration::from_secs(30);

/// Where the node's words come from.
#[derive(Debug)]
pub struct Sources {
    pub view: watch::Receiver<View>,
    pub readiness: watch::Receiver<Readiness>,
    pub findings: watch::Receiver<Findings>,
    /// What the API said of this when it was listed last.
    pub listed: watch::Receiver<Option<NodeNetworkStatus>>,
    /// That the ledger was damaged and made anew, in words.
    pub damage: Option<String>,
}

/// What is written; compared so that nothing is written twice.
#[derive(Clone, Debug, PartialEq)]
struct Report {
    wanted: u32,
    addresses: AddressCounts,
    blocks: Vec<BlockUse>,
    mtu: Option<u32>,
    transport: Option<Transport>,
    conditions: Vec<Said>,
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// Since when each condition has its status.
#[derive(Debug, Default)]
struct Since(BTreeMap<&'static str, (&'static str, Timestamp)>);

/// Writes until the process ends.
pub async fn run<K: PodKernel>(
    client: Client,
    node: NodeName,
    pods: Arc<Pods<K>>,
    metrics: Arc<Metrics>,
    sources: Sources,
) {
    let Sources {
        view,
        mut readiness,
        mut findings,
        mut listed,
        damage,
    } = sources;
    let api: Api<NodeNetwork> = Api::all(client);
    let mut written: Option<Report> = None;
    let mut since = Since::default();
    let mut not_before = Instant::now();
    loop {
        // An API that was restored to an older state says again what was true then.
        if listed.has_changed().unwrap_or(false)
            && let Some(status) = &*listed.borrow_and_update()
            && !written.as_ref().is_none_or(|report| report.is_told_by(status))
        {
            written = None;
        }
        let mut wake = Instant::now() + REFRESH;
        let ready = readiness.borrow_and_update().clone();
        let Findings {
            configuration,
            overlap,
            selection,
        } = findings.borrow_and_update().clone();
        let reader = Arc::clone(&pods);
        if let Ok(Ok(stats)) = tokio::task::spawn_blocking(move || reader.ledger().stats()).await {
            publish(&metrics, &stats);
            let max_pods = view
                .borrow()
                .desired
                .as_ref()
                .and_then(|desired| desired.max_pods);
            let report = Report {
                wanted: stats.wanted_blocks(max_pods),
                addresses: counts(&stats),
                blocks: stats.blocks.iter().map(block_use).collect(),
                mtu: match ready {
                    Readiness::Ready { mtu } => Some(mtu),
                    Readiness::Waiting { .. } | Readiness::Broken { .. } => None,
                },
                transport: selection.as_ref().map(transport),
                conditions: [
                    Some(readiness_said(ready)),
                    overlap.map(routes_said),
                    selection.as_ref().map(transport_said),
                    configuration_said(configuration),
                    damage.clone().map(ledger_said),
                ]
                .into_iter()
                .flatten()
                .collect(),
            };
            // Which blocks retire is awaited too.
            let urgent = |report: &Report| {
                let retiring = report.blocks.iter().map(|block| block.retiring);
                (
                    report.wanted,
                    report.mtu,
                    report.transport,
                    retiring.collect::<Vec<_>>(),
                    report.conditions.clone(),
                )
            };
            let news = written.as_ref().map(|before| urgent(before) != urgent(&report));
            since.note(&report.conditions);
            if written.as_ref() == Some(&report) {
                // Nothing to say.
            } else if news == Some(false) && Instant::now() < not_before {
                wake = not_before;
            } else {
                not_before = Instant::now() + PACE;
                match write(&api, &node, &report, &since).await {
                    Ok(()) => written = Some(report),
                    Err(error) => {
                        // The object is made by the operator and may not be there yet.
                        tracing::debug!(%error, "could not write the status of the NodeNetwork, trying again");
                        wake = Instant::now() + RETRY;
                    }
                }
            }
        }
        tokio::select! {
            () = pods.changed() => {}
            () = tokio::time::sleep_until(wake) => {}
            changed = readiness.changed() => if changed.is_err() { return },
            changed = findings.changed() => if changed.is_err() { return },
            // It ends with the watch, and so does the agent.
            Ok(()) = listed.changed() => listed.mark_changed(),
        }
    }
}

async fn write(
    api: &Api<NodeNetwork>,
    node: &NodeName,
    report: &Report,
    since: &Since,
) -> Result<(), kube::Error> {
    let conditions = report.conditions.iter().map(|said| Condition {
        type_: said.type_.into(),
        status: said.status.into(),
        reason: said.reason.into(),
        message: said.message.clone(),
        last_transition_time: Time(since.of(said)),
        observed_generation: None,
    });
    let status = NodeNetworkStatus {
        wanted_blocks: Some(report.wanted),
        addresses: Some(report.addresses),
        blocks: report.blocks.clone(),
        transport: report.transport,
        mtu: report.mtu,
        conditions: conditions.collect(),
        ..NodeNetworkStatus::default()
    };
    // A merge leaves `allocation` to the operator, who writes it.
    let mut status = json!(status);
    if report.mtu.is_none() {
        // What is left out of a merge stays as it was.
        status["mtu"] = Value::Null;
    }
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(node.as_str(), &PatchParams::default(), &patch)
        .await
        .map(drop)
}

fn readiness_said(readiness: Readiness) -> Said {
    let (status, reason, message) = match readiness {
        Readiness::Ready { .. } => ("True", "Serving", "the node serves new pods".to_owned()),
        Readiness::Waiting { why } => ("False", "Waiting", format!("waiting for {why}")),
        Readiness::Broken { why } => ("False", "NetworkNotInOrder", why),
    };
    Said {
        type_: "Ready",
        status,
        reason,
        message,
    }
}

fn routes_said(overlap: Option<String>) -> Said {
    let (status, reason, message) = match overlap {
        None => (
            "True",
            "Clear",
            "no route of the node overlaps the pod CIDRs".to_owned(),
        ),
        Some(overlap) => ("False", "Overlap", overlap),
    };
    Said {
        type_: "RoutesClear",
        status,
        reason,
        message,
    }
}

fn transport(selection: &Selection) -> Transport {
    match selection.transport {
        bpf::Transport::Device => Transport::Device,
        bpf::Transport::Direct(_) => Transport::Direct,
    }
}

fn transport_said(selection: &Selection) -> Said {
    let (reason, message) = selection.why();
    Said {
        type_: "TransportAsRequested",
        status: if selection.refusal().is_none() {
            "True"
        } else {
            "False"
        },
        reason,
        message,
    }
}

/// Said until the agent starts the next time.
fn ledger_said(damage: String) -> Said {
    Said {
        type_: "LedgerIntact",
        status: "False",
        reason: "Rebuilt",
        message: damage,
    }
}

/// Nothing where no configuration is kept: it is not the agent's business then.
fn configuration_said(state: configuration::State) -> Option<Said> {
    use configuration::State;
    let (status, reason, message) = match state {
        State::Absent => return None,
        State::InPlace { missing: None } => ("True", "InPlace", "runtimes call Weft".to_owned()),
        State::InPlace { missing: Some(error) } => {
            ("True", "ChainedPluginMissing", error.message().to_owned())
        }
        State::Shadowed(error) => ("False", "Shadowed", error.message().to_owned()),
        State::Failed(error) => ("False", "NotWritable", error.message().to_owned()),
    };
    Some(Said {
        type_: "RuntimeConfigured",
        status,
        reason,
        message,
    })
}

// === impl Report ===

impl Report {
    /// Whether a status says the same.
    fn is_told_by(&self, status: &NodeNetworkStatus) -> bool {
        status.wanted_blocks == Some(self.wanted)
            && status.addresses == Some(self.addresses)
            && status.blocks == self.blocks
            && status.mtu == self.mtu
            && status.transport == self.transport
            && self.conditions.iter().all(|said| {
                status.conditions.iter().any(|told| {
                    (
                        told.type_.as_str(),
                        told.status.as_str(),
                        told.reason.as_str(),
                        told.message.as_str(),
                    ) == (said.type_, said.status, said.reason, said.message.as_str())
                })
            })
    }
}

// === impl Since ===

impl Since {
    fn note(&mut self, conditions: &[Said]) {
        for said in conditions {
            let held = self
                .0
                .entry(said.type_)
                .or_insert((said.status, Timestamp::now()));
            if held.0 != said.status {
                *held = (said.status, Timestamp::now());
            }
        }
    }

    fn of(&self, said: &Said) -> Timestamp {
        self.0
            .get(said.type_)
            .map_or_else(Timestamp::now, |(_, since)| *since)
    }
}

/// Retiring blocks too: their addresses are pods' still.
fn counts(stats: &Stats) -> AddressCounts {
    let sum = |count: fn(&BlockStats) -> u32| stats.blocks.iter().map(count).sum();
    AddressCounts {
        capacity: sum(|block| block.block.size().addresses()),
        used: sum(|block| block.reserved + block.active),
        cooling: sum(|block| block.cooling),
        quarantined: sum(|block| block.quarantined),
    }
}

fn block_use(stats: &BlockStats) -> BlockUse {
    BlockUse {
        cidr: stats.block.to_string(),
        used: stats.reserved + stats.active,
        cooling: stats.cooling,
        retiring: stats.retiring,
    }
}

fn publish(metrics: &Metrics, stats: &Stats) {
    metrics.addresses("free", stats.free());
    metrics.addresses("used", stats.used());
    metrics.addresses("cooling", stats.cooling());
    metrics.addresses(
        "quarantined",
        stats.blocks.iter().map(|block| block.quarantined).sum(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_a_report_only_if_it_says_all_of_it() {
        let report = Report {
            wanted: 1,
            addresses: AddressCounts::default(),
            blocks: Vec::new(),
            mtu: Some(1450),
            transport: Some(Transport::Direct),
            conditions: Vec::new(),
        };
        let told = NodeNetworkStatus {
            wanted_blocks: Some(1),
            addresses: Some(AddressCounts::default()),
            mtu: Some(1450),
            transport: Some(Transport::Direct),
            ..NodeNetworkStatus::default()
        };
        assert!(report.is_told_by(&told));
        let earlier = NodeNetworkStatus {
            transport: Some(Transport::Device),
            ..told
        };
        assert!(!report.is_told_by(&earlier));
    }
}
