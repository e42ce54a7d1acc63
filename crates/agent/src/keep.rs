//! The thread that keeps the kernel as desired: at once when the wish changes, soon when somebody else changes the
//! kernel, and from time to time in any case.

use crate::configuration::{self, Configuration};
use crate::node::{NodeNet, OVERLAY, Readiness};
use crate::pods::Pods;
use crate::probe::Probe;
use crate::saved::Saved;
use crate::watch::View;
use crate::wiring::PodKernel;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use weft_kernel::nft::NftMonitor;
use weft_kernel::rtnl::{Change, MAIN_TABLE, Monitor, RTPROT_WEFT, Rtnl};

/// A pass without an occasion, for what no event told.
const FULL_PASS: Duration = Duration::from_secs(30);
/// After a failure, which is usually one of order and passes by itself.
const RETRY: Duration = Duration::from_secs(1);
/// A tool that changes one thing mostly changes more.
const SETTLE: Duration = Duration::from_millis(100);

/// Why the keeper looks at the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The wish changed.
    Wish,
    /// The rules changed: packets may be leaving under a pod's address.
    Rules,
    /// A route changed that is not Weft's.
    Routes,
    /// Something else changed.
    Kernel,
    /// The agent ends.
    Stop,
}

/// What the keeper works on and where it tells what it found.
pub struct Keeper<K> {
    pub net: NodeNet,
    pub pods: Arc<Pods<K>>,
    pub view: watch::Receiver<View>,
    pub saved: Saved,
    pub readiness: watch::Sender<Readiness>,
    /// Kept from the first time on that the node serves; `None` where it is somebody else's business.
    pub configuration: Option<Configuration>,
    pub probe: Probe,
    pub findings: watch::Sender<Findings>,
}

/// What the keeper found beside the readiness of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Whether runtimes call Weft.
    pub configuration: configuration::State,
    /// A route of the node that overlaps the pod CIDRs, in words; `None` before the first look.
    pub overlap: Option<Option<String>>,
}

/// Keeps until it is told to stop or the channel of wakes closes.
pub fn run<K: PodKernel>(keeper: Keeper<K>, wakes: &Receiver<Wake>) {
    let Keeper {
        mut net,
        pods,
        view,
        mut saved,
        readiness,
        mut configuration,
        probe,
        findings,
    } = keeper;
    // By the monotonic clock: a wall clock that is set must neither stop the passes nor crowd them.
    let mut full_at = Instant::now() + FULL_PASS;
    let mut failures = 0;
    let mut adopting = true;
    loop {
        let next = saved.due().map_or(full_at, |due| due.min(full_at));
        let mut occasions = match wakes.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(wake) => vec![wake],
            Err(RecvTimeoutError::Timeout) if Instant::now() < full_at => {
                saved.flush();
                continue;
            }
            Err(RecvTimeoutError::Timeout) => vec![Wake::Kernel],
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if matches!(occasions[..], [Wake::Kernel | Wake::Routes]) {
            thread::sleep(SETTLE);
        }
        occasions.extend(wakes.try_iter());
        if occasions.contains(&Wake::Stop) {
            saved.flush();
            return;
        }
        // However many small things happen, everything is looked at when it is time.
        let only = |kind| Instant::now() < full_at && occasions.iter().all(|wake| *wake == kind);
        if only(Wake::Rules) && net.is_settled() {
            let desired = view.borrow().desired.clone();
            if desired.is_some_and(|desired| net.restore_rules(&desired).is_ok()) {
                continue;
            }
        }
        if only(Wake::Wish) && failures == 0 && matches!(*readiness.borrow(), Readiness::Ready { .. }) {
            let desired = view.borrow().desired.clone();
            match desired.map(|desired| net.update_peers(&desired).map(|done| done.then_some(desired))) {
                Some(Ok(Some(desired))) => {
                    saved.save(&desired);
                    continue;
                }
                Some(Err(error)) => tracing::warn!(%error, "cannot apply a change of other nodes by itself"),
                Some(Ok(None)) | None => {}
            }
        }
        if let Some(desired) = &view.borrow().desired {
            match net.overlapping_route(desired) {
                Ok(overlap) => publish(&findings, |findings| findings.overlap = Some(overlap)),
                Err(error) => tracing::warn!(%error, "cannot read the node's routes"),
            }
        }
        if only(Wake::Routes) && net.is_settled() {
            continue;
        }
        // A plugin that met a busy agent leaves its DEL for later, too.
        if let Err(error) = pods.replay_intents() {
            tracing::error!(%error, "cannot read the DEL intents");
        }
        let View { desired, waiting_for } = view.borrow().clone();
        let Some(desired) = desired else {
            readiness.send_if_modified(|current| replace(current, Readiness::Waiting { why: waiting_for }));
            full_at = Instant::now() + FULL_PASS;
            continue;
        };
        let reconciled = net.reconcile(&desired).and_then(|mtu| {
            pods.set_blocks(&desired.blocks, &desired.retiring, desired.max_pods);
            net.repaired("pod", pods.repair(mtu)?);
            pods.probe(&probe, desired.address, mtu)?;
            Ok(mtu)
        });
        let next = match reconciled {
            Ok(mtu) => {
                if adopting {
                    net.forget_other_versions();
                    adopting = false;
                }
                saved.save(&desired);
                (failures, full_at) = (0, Instant::now() + FULL_PASS);
                Readiness::Ready { mtu }
            }
            Err(error) => {
                tracing::error!(%error, "cannot bring the node's network up to date, trying again");
                (failures, full_at) = (failures + 1, Instant::now() + RETRY);
                if failures == 1 && matches!(*readiness.borrow(), Readiness::Ready { .. }) {
                    // Most failures are of the moment; one alone must not make the whole node not ready.
                    continue;
                }
                Readiness::Broken {
                    why: error.message().to_owned(),
                }
            }
        };
        let serves = matches!(next, Readiness::Ready { .. });
        readiness.send_if_modified(|current| replace(current, next));
        // Who finds the configuration calls at once.
        if let Some(configuration) = configuration.as_mut().filter(|_| serves) {
            let state = configuration.keep().clone();
            publish(&findings, |findings| findings.configuration = state);
        }
    }
}

fn publish(findings: &watch::Sender<Findings>, change: impl FnOnce(&mut Findings)) {
    findings.send_if_modified(|current| {
        let before = current.clone();
        change(current);
        *current != before
    });
}

/// Starts the threads that tell when somebody changes links, routes or rules.
///
/// # Errors
/// The kernel gives no subscription, or no thread can be started.
pub fn watch_kernel(waker: &Sender<Wake>) -> anyhow::Result<()> {
    let mut links = Monitor::open()?;
    let mut rtnl = Rtnl::open()?;
    let events = waker.clone();
    thread::Builder::new().name("watch-links".into()).spawn(move || {
        loop {
            match links.wait() {
                Ok(changes) => {
                    let wake = if changes.iter().any(|change| concerns(change, &mut rtnl)) {
                        Wake::Kernel
                    } else if changes.iter().any(is_foreign_route) {
                        Wake::Routes
                    } else {
                        continue;
                    };
                    if events.send(wake).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "lost the subscription to links and routes for a moment");
                    thread::sleep(RETRY);
                }
            }
        }
    })?;
    let mut rules = NftMonitor::open()?;
    let events = waker.clone();
    thread::Builder::new().name("watch-rules".into()).spawn(move || {
        loop {
            match rules.wait() {
                Ok(_) => {
                    if events.send(Wake::Rules).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "lost the subscription to nftables for a moment");
                    thread::sleep(RETRY);
                }
            }
        }
    })?;
    Ok(())
}

/// Whether a change may be one to put right. Pods that come and go are not.
fn concerns(change: &Change, rtnl: &mut Rtnl) -> bool {
    match change {
        Change::Resync | Change::AddressGone(_) => true,
        // A link that goes takes its neighbours along.
        Change::NeighbourGone(neighbour) => rtnl.link(neighbour.link).is_ok_and(|link| link.is_some()),
        Change::Link(link) => link.name == OVERLAY || !link.name.starts_with(crate::wiring::HOST_PREFIX),
        Change::LinkGone(link) => link.name == OVERLAY,
        Change::RouteGone(route) => route.protocol == RTPROT_WEFT,
        Change::Address(_) | Change::Route(_) | Change::Neighbour(_) => false,
    }
}

fn is_foreign_route(change: &Change) -> bool {
    matches!(change, Change::Route(route) | Change::RouteGone(route)
        if route.protocol != RTPROT_WEFT && route.table == MAIN_TABLE && route.dst.addr().is_ipv4())
}

fn replace(current: &mut Readiness, next: Readiness) -> bool {
    if *current == next {
        return false;
    }
    match &next {
        Readiness::Ready { mtu } => tracing::info!(mtu, "serving new pods"),
        Readiness::Waiting { why } => tracing::info!(why, "waiting"),
        // The error itself is logged at every try.
        Readiness::Broken { .. } => {}
    }
    *current = next;
    true
}
