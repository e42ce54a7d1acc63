//! Writes what the node has to say about itself: the status of its NodeNetwork.

use crate::metrics::Metrics;
use crate::node::Readiness;
use crate::pods::Pods;
use crate::watch::View;
use crate::wiring::PodKernel;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use weft_api::{AddressCounts, NodeNetwork, NodeNetworkStatus, Transport};
use weft_ipam::ledger::Stats;
use weft_model::NodeName;

/// Writes that are not urgent are this far apart, so that a node which starts 250 pods does not write 250 times.
const PACE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
/// Addresses become free by the mere passing of time.
const REFRESH: Duration = Duration::from_secs(30);

/// What is written; compared so that nothing is written twice.
#[derive(Clone, Debug, PartialEq)]
struct Report {
    wanted: u32,
    addresses: AddressCounts,
    readiness: Readiness,
}

/// Writes until the process ends.
pub async fn run<K: PodKernel>(
    client: Client,
    node: NodeName,
    pods: Arc<Pods<K>>,
    metrics: Arc<Metrics>,
    view: watch::Receiver<View>,
    mut readiness: watch::Receiver<Readiness>,
) {
    let api: Api<NodeNetwork> = Api::all(client);
    let mut written: Option<Report> = None;
    let mut since = Timestamp::now();
    let mut not_before = Instant::now();
    loop {
        let mut wake = Instant::now() + REFRESH;
        let ready = readiness.borrow_and_update().clone();
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
                readiness: ready,
            };
            let news = written.as_ref().map(|before| {
                if before.readiness != report.readiness {
                    since = Timestamp::now();
                }
                (before.wanted, &before.readiness) != (report.wanted, &report.readiness)
            });
            if written.as_ref() == Some(&report) {
                // Nothing to say.
            } else if news == Some(false) && Instant::now() < not_before {
                wake = not_before;
            } else {
                not_before = Instant::now() + PACE;
                match write(&api, &node, &report, since).await {
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
        }
    }
}

async fn write(
    api: &Api<NodeNetwork>,
    node: &NodeName,
    report: &Report,
    since: Timestamp,
) -> Result<(), kube::Error> {
    let (status, reason, message, mtu) = match &report.readiness {
        Readiness::Ready { mtu } => (
            "True",
            "Serving",
            "the node serves new pods".to_owned(),
            Some(*mtu),
        ),
        Readiness::Waiting { why } => ("False", "Waiting", format!("waiting for {why}"), None),
        Readiness::Broken { why } => ("False", "NetworkNotInOrder", why.clone(), None),
    };
    let condition = Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: Time(since),
        observed_generation: None,
    };
    let status = NodeNetworkStatus {
        wanted_blocks: Some(report.wanted),
        addresses: Some(report.addresses),
        transport: Some(Transport::Device),
        mtu,
        conditions: vec![condition],
        ..NodeNetworkStatus::default()
    };
    // A merge leaves `allocation` to the operator, who writes it.
    let mut status = json!(status);
    if mtu.is_none() {
        // What is left out of a merge stays as it was.
        status["mtu"] = Value::Null;
    }
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(node.as_str(), &PatchParams::default(), &patch)
        .await
        .map(drop)
}

fn counts(stats: &Stats) -> AddressCounts {
    AddressCounts {
        capacity: stats.capacity(),
        used: stats.used(),
        cooling: stats.cooling(),
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
