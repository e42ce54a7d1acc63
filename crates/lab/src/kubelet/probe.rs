//! Probes, executed from the node to the pod as the kubelet does.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weft_kernel::NetNs;

use super::pod::{ProbeAction, ProbeConfig, ProbeKind};
use crate::responder::client;

/// A probe that changed its mind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Index of the container.
    pub(super) container: usize,
    /// Which probe.
    pub(super) kind: ProbeKind,
    /// Why it fails; `None` where it succeeds.
    pub(super) failure: Option<String>,
    /// Whether as many tries in a row as its threshold asks for had this outcome.
    pub(super) conclusive: bool,
}

/// Counts tries until a threshold is reached.
#[derive(Debug, Default)]
struct Counter {
    success: Option<bool>,
    in_a_row: u32,
}

/// Probes until dropped; every failure and every change is sent to `verdicts`.
pub(super) async fn run(
    container: usize,
    probe: ProbeConfig,
    netns: Arc<NetNs>,
    address: IpAddr,
    verdicts: mpsc::Sender<Verdict>,
) {
    tokio::time::sleep(probe.initial_delay).await;
    let mut counter = Counter::default();
    let mut concluded = None;
    let mut ticks = tokio::time::interval(probe.period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let failure = once(&probe.action, &netns, address, probe.timeout).await.err();
        let success = failure.is_none();
        let conclusive = counter.count(success, &probe);
        // A liveness or startup failure counts each time the threshold is reached: the container is restarted.
        let repeats = !success && probe.kind != ProbeKind::Readiness;
        let news = !success || (conclusive && concluded != Some(success));
        if news {
            let verdict = Verdict {
                container,
                kind: probe.kind,
                failure,
                conclusive,
            };
            if verdicts.send(verdict).await.is_err() {
                return;
            }
        }
        if conclusive {
            concluded = Some(success);
            if repeats {
                counter = Counter::default();
            }
            if success && probe.kind == ProbeKind::Startup {
                return;
            }
        }
    }
}

async fn once(
    action: &ProbeAction,
    netns: &Arc<NetNs>,
    address: IpAddr,
    timeout: Duration,
) -> Result<(), String> {
    let target = |host: &Option<String>, port: u16| -> Result<SocketAddr, String> {
        let ip = match host {
            Some(host) => host
                .parse()
                .map_err(|_| format!("host {host:?} is no IP address"))?,
            None => address,
        };
        Ok(SocketAddr::new(ip, port))
    };
    match action {
        ProbeAction::Exec => Ok(()),
        ProbeAction::Tcp { host, port } => {
            let to = target(host, *port)?;
            client::connect(netns, to, timeout)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        }
        ProbeAction::Http {
            host,
            port,
            path,
            headers,
        } => {
            let to = target(host, *port)?;
            let answer = client::get(netns, to, path, headers, timeout)
                .await
                .map_err(|error| format!("Get \"http://{to}{path}\": {error}"))?;
            if (200..400).contains(&answer.status.as_u16()) {
                Ok(())
            } else {
                Err(format!(
                    "HTTP probe failed with statuscode: {}",
                    answer.status.as_u16()
                ))
            }
        }
    }
}

// === impl Counter ===

impl Counter {
    /// Counts an outcome; returns whether its threshold is reached.
    fn count(&mut self, success: bool, probe: &ProbeConfig) -> bool {
        self.in_a_row = if self.success == Some(success) {
            self.in_a_row.saturating_add(1)
        } else {
            1
        };
        self.success = Some(success);
        self.in_a_row
            >= if success {
                probe.success_threshold
            } else {
                probe.failure_threshold
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(success_threshold: u32, failure_threshold: u32) -> ProbeConfig {
        ProbeConfig {
            kind: ProbeKind::Readiness,
            action: ProbeAction::Exec,
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            success_threshold,
            failure_threshold,
        }
    }

    #[test]
    fn only_tries_in_a_row_reach_a_threshold() {
        let probe = probe(1, 3);
        let mut counter = Counter::default();
        let tries = [false, false, true, false, false, false, false, true];
        let reached: Vec<bool> = tries
            .iter()
            .map(|success| counter.count(*success, &probe))
            .collect();
        assert_eq!(reached, [false, false, true, false, false, true, true, true]);
    }
}
