//! The thread that keeps the kernel as desired: at once when the wish changes, soon when somebody else changes the
//! kernel, and from time to time in any case.

use crate::configuration::{self, Configuration};
use crate::node::{NodeNet, OVERLAY, Readiness, Selection, lock};
use crate::pods::Pods;
use crate::probe::{self, Probe};
use crate::saved::Saved;
use crate::watch::View;
use crate::wiring::{HOST_PREFIX, PodKernel, is_doomed, pod_mac};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use weft_ipam::LedgerError;
use weft_kernel::bpf::{Datapath, Fingerprint};
use weft_kernel::ipsec::{Ipsec, Policies};
use weft_kernel::nft::NftMonitor;
use weft_kernel::rtnl::{Change, Learned, Link, MAIN_TABLE, Monitor, RTPROT_WEFT, Rtnl};
use weft_kernel::sysctl::{self, Key};
use weft_model::audit::{Checked, Finding, FindingKind, NodeAudit, Remedy};
use weft_model::{UserError, codes};

/// A pass without an occasion, for what no event told.
const FULL_PASS: Duration = Duration::from_secs(30);
/// After a failure, which is usually one of order and passes by itself.
const RETRY: Duration = Duration::from_secs(1);
/// A tool that changes one thing mostly changes more.
const SETTLE: Duration = Duration::from_millis(100);
/// ADD and DEL change a pod's interface several times, and are done by then.
const SETTLE_POD: Duration = Duration::from_millis(300);
/// How often the maps are looked at for changes that no event tells of.
const LOOK: Duration = Duration::from_millis(500);

/// Why the keeper looks at the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The wish changed.
    Wish,
    /// The rules changed: packets may be leaving under a pod's address.
    Rules,
    /// A route changed that is not Weft's.
    Routes,
    /// The pod's interface of this name changed, or is gone. Every ADD and DEL does that too.
    Pod(String),
    /// A map changed, and both this agent and somebody else may have done it.
    Maps,
    /// Something else changed.
    Kernel,
    /// Somebody asked for an audit.
    Audit,
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
    /// How packets get to other nodes; `None` before the first full pass.
    pub selection: Option<Selection>,
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
        let settle = match occasions[..] {
            [Wake::Kernel | Wake::Routes] => SETTLE,
            [Wake::Pod(_)] => SETTLE_POD,
            _ => Duration::ZERO,
        };
        gather(&mut occasions, wakes, settle);
        if occasions.contains(&Wake::Stop) {
            saved.flush();
            return;
        }
        if occasions.contains(&Wake::Audit) {
            let mut clean = true;
            pods.desk().answer(|| {
                let audit = audit(&mut net, &pods, &view.borrow(), &probe);
                clean = audit.as_ref().is_ok_and(|audit| audit.findings.is_empty());
                audit
            });
            occasions.retain(|wake| *wake != Wake::Audit);
            // What an audit finds is put right now, whether or not an event told of it.
            if clean && occasions.is_empty() && Instant::now() < full_at {
                continue;
            }
        }
        // Connections that began under an address which is gone end without a word: those to the API, by which the agent
        // would hear of the new address.
        if occasions.contains(&Wake::Kernel)
            && let Ok(Some(address)) = net.lost_address()
        {
            tracing::warn!(%address, "the node has lost its address: this agent ends, the next one asks the API for the new one");
            saved.flush();
            return;
        }
        // However many small things happen, everything is looked at when it is time.
        let early = Instant::now() < full_at;
        let only = |wanted: fn(&Wake) -> bool| early && occasions.iter().all(wanted);
        if only(|wake| matches!(wake, Wake::Pod(_)))
            && let Readiness::Ready { mtu } = *readiness.borrow()
        {
            let names: BTreeSet<&str> = occasions
                .iter()
                .filter_map(|wake| match wake {
                    Wake::Pod(name) => Some(name.as_str()),
                    _ => None,
                })
                .collect();
            let repaired = pods
                .differ(&names, mtu, |name| net.link(name))
                .and_then(|differ| if differ { pods.repair(mtu) } else { Ok(Vec::new()) });
            match repaired {
                Ok(findings) => {
                    net.repaired(findings);
                    continue;
                }
                Err(error) => tracing::error!(%error, "cannot put a pod's interface right by itself"),
            }
        }
        if only(|wake| *wake == Wake::Maps)
            && net.is_settled()
            && let Readiness::Ready { mtu } = *readiness.borrow()
        {
            let desired = view.borrow().desired.clone();
            let repaired = desired
                .map_or(Ok(()), |desired| net.repair_maps(&desired))
                .and_then(|()| pods.repair_maps(mtu));
            match repaired {
                Ok(findings) => {
                    net.repaired(findings);
                    continue;
                }
                Err(error) => tracing::error!(%error, "cannot put the maps right by themselves"),
            }
        }
        if only(|wake| *wake == Wake::Rules) && net.is_settled() {
            let desired = view.borrow().desired.clone();
            if desired.is_some_and(|desired| net.restore_rules(&desired).is_ok()) {
                continue;
            }
        }
        if only(|wake| *wake == Wake::Wish)
            && failures == 0
            && matches!(*readiness.borrow(), Readiness::Ready { .. })
        {
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
        let mut overlaps = false;
        if let Some(desired) = &view.borrow().desired {
            match net.overlapping_route(desired) {
                Ok(overlap) => {
                    overlaps = overlap.is_some();
                    publish(&findings, |findings| findings.overlap = Some(overlap));
                }
                Err(error) => tracing::warn!(%error, "cannot read the node's routes"),
            }
        }
        // A route of somebody else's for a pod's address has taken the place of Weft's, or one to a node leads elsewhere.
        if only(|wake| *wake == Wake::Routes) && net.is_settled() && !overlaps {
            let desired = view.borrow().desired.clone();
            if !desired.is_some_and(|desired| net.is_underlay_changed(&desired)) {
                continue;
            }
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
            net.repaired(pods.repair(mtu)?);
            pods.probe(&probe, desired.address, mtu)?;
            Ok(mtu)
        });
        let next = match reconciled {
            Ok(mtu) => {
                if adopting {
                    net.forget_other_versions();
                    adopting = false;
                }
                publish(&findings, |findings| {
                    findings.selection = net.selection().cloned();
                });
                saved.save(&desired);
                (failures, full_at) = (0, Instant::now() + FULL_PASS);
                Readiness::Ready { mtu }
            }
            Err(error) => {
                if let Err(LedgerError::Damaged { .. }) = pods.ledger().stats() {
                    tracing::error!("the ledger is damaged: this agent ends, the next one makes it anew");
                    return;
                }
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

/// Waits for more occasions, and no longer than until one comes that does not wait.
fn gather(occasions: &mut Vec<Wake>, wakes: &Receiver<Wake>, settle: Duration) {
    let until = Instant::now() + settle;
    while let Ok(wake) = wakes.recv_timeout(until.saturating_duration_since(Instant::now())) {
        let waits = matches!(wake, Wake::Pod(_) | Wake::Kernel | Wake::Routes | Wake::Maps);
        occasions.push(wake);
        if !waits {
            break;
        }
    }
    occasions.extend(wakes.try_iter());
}

fn publish(findings: &watch::Sender<Findings>, change: impl FnOnce(&mut Findings)) {
    findings.send_if_modified(|current| {
        let before = current.clone();
        change(current);
        *current != before
    });
}

/// Compares everything with what it should be. Changes nothing but for the probe, which comes and goes.
fn audit<K: PodKernel>(
    net: &mut NodeNet,
    pods: &Pods<K>,
    view: &View,
    probe: &Probe,
) -> Result<NodeAudit, UserError> {
    let Some(desired) = &view.desired else {
        return Err(UserError::new(
            codes::AGENT_NOT_READY,
            format!("the agent on {} waits for {}", pods.node(), view.waiting_for),
            "weft status",
        ));
    };
    let (mtu, mut findings) = net.audit(desired)?;
    findings.extend(pods.audit(mtu)?);
    if let Err(error) = pods.probe(probe, desired.address, mtu) {
        findings.push(Finding {
            kind: FindingKind::Packets,
            what: error.message().to_owned(),
            owner: "node".into(),
            remedy: Remedy::Person(format!("weft explain {}", error.code())),
        });
    }
    Ok(NodeAudit {
        node: pods.node().to_string(),
        findings,
        repaired: net.repairs(),
        checked: Checked {
            nodes: desired.nodes.len(),
            prefixes: desired.prefixes.len(),
        },
        held: pods.held()?,
    })
}

/// Starts the threads that tell when somebody changes links, routes, rules or maps.
///
/// # Errors
/// The kernel gives no subscription, or no thread can be started.
pub fn watch_kernel(
    waker: &Sender<Wake>,
    datapath: &Arc<Mutex<Datapath>>,
    maps: Fingerprint,
) -> anyhow::Result<()> {
    let mut links = Monitor::open()?;
    let mut rtnl = Rtnl::open()?;
    let events = waker.clone();
    thread::Builder::new().name("watch-links".into()).spawn(move || {
        loop {
            match links.wait() {
                Ok(changes) => {
                    let mut wakes: Vec<Wake> = Vec::new();
                    for wake in changes.iter().filter_map(|change| occasion(change, &mut rtnl)) {
                        if !wakes.contains(&wake) {
                            wakes.push(wake);
                        }
                    }
                    if wakes.into_iter().any(|wake| events.send(wake).is_err()) {
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
    let (events, datapath) = (waker.clone(), Arc::clone(datapath));
    thread::Builder::new()
        .name("watch-maps".into())
        .spawn(move || watch_maps(&events, &datapath, maps))?;
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

/// Wakes the keeper when maps, links of programs, parameters or IPsec policies change.
fn watch_maps(events: &Sender<Wake>, datapath: &Mutex<Datapath>, mut maps: Fingerprint) {
    // Where it can't be opened, a full pass says so.
    let mut ipsec = Ipsec::open().ok();
    let mut policies: Option<Policies> = None;
    let mut rtnl = Rtnl::open().ok();
    let mut learned: Option<BTreeMap<Ipv4Addr, Learned>> = None;
    loop {
        thread::sleep(LOOK);
        // No event tells of what a router has said.
        let found = rtnl.as_mut().and_then(|rtnl| rtnl.learned().ok());
        if found != learned && events.send(Wake::Routes).is_err() {
            return;
        }
        learned = found;
        let found = ipsec.as_mut().and_then(|ipsec| ipsec.policies().ok());
        if policies.is_some() && found != policies && events.send(Wake::Kernel).is_err() {
            return;
        }
        policies = found;
        let found = {
            let datapath = lock(datapath);
            maps.look(datapath.writes())
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "cannot look at the maps");
                continue;
            }
        };
        // This agent attaches to links that stay at its start only.
        let wake = if parameters_differ() || found.links || found.maps {
            Some(Wake::Kernel)
        } else {
            found.written.then_some(Wake::Maps)
        };
        if wake.is_some_and(|wake| events.send(wake).is_err()) {
            return;
        }
    }
}

/// Whether a parameter of the whole node is not as it has to be. One that can't be read is none that can be set.
fn parameters_differ() -> bool {
    let differs = |key: Result<Key, weft_kernel::Error>, wanted| {
        key.and_then(|key| sysctl::read_current(&key))
            .is_ok_and(|held| held != wanted)
    };
    // Without the device nothing has been set yet.
    let rp_filter = Key::ipv4_conf(OVERLAY, "rp_filter");
    rp_filter
        .as_ref()
        .is_ok_and(|key| sysctl::read_current(key).is_ok())
        && (differs(rp_filter, "2") || differs(Key::new("net/ipv4/ip_forward"), "1"))
}

/// What a change is an occasion for, if for anything.
fn occasion(change: &Change, rtnl: &mut Rtnl) -> Option<Wake> {
    // What goes with an interface that was detached goes for good. So does what is the probe's: it comes and goes with
    // every pass, and would be the occasion for the next one.
    let mut pods = |link: u32| {
        is_there(link, rtnl, |link| {
            is_pods(link) && !is_doomed(link) && link.name != probe::interface()
        })
    };
    let wanted = match change {
        Change::Resync | Change::AddressGone(_) | Change::Address(_) => true,
        // A link that goes takes its neighbours and filters along. Other links' neighbours come and go.
        Change::NeighbourGone(link) => pods(*link),
        Change::FilterGone(link) => rtnl.link(*link).is_ok_and(|link| link.is_some()),
        // A pod's neighbour entries are derived from its address.
        Change::Neighbour(neighbour) => {
            let derived = match neighbour.ip {
                IpAddr::V4(address) => Some(pod_mac(address)),
                IpAddr::V6(_) => None,
            };
            derived.is_some_and(|derived| derived != neighbour.mac) && pods(neighbour.link)
        }
        Change::Link(link) | Change::LinkGone(link) if is_pods(link) => {
            return (link.name != probe::interface()).then(|| Wake::Pod(link.name.clone()));
        }
        Change::Link(_) => true,
        Change::LinkGone(link) => link.name == OVERLAY,
        Change::RouteGone(route) => {
            route.protocol == RTPROT_WEFT
                && route.dst.addr() != IpAddr::V4(probe::ADDRESS)
                && !route.oif.is_some_and(|link| is_there(link, rtnl, is_doomed))
        }
        Change::Route(_) | Change::Rules => false,
    };
    if wanted {
        Some(Wake::Kernel)
    } else {
        is_foreign_route(change).then_some(Wake::Routes)
    }
}

/// Whether there is a link with this index, and it is so.
fn is_there(link: u32, rtnl: &mut Rtnl, is_so: impl FnOnce(&Link) -> bool) -> bool {
    rtnl.link(link)
        .is_ok_and(|link| link.is_some_and(|link| is_so(&link)))
}

fn is_pods(link: &Link) -> bool {
    link.name.starts_with(HOST_PREFIX) && link.name != OVERLAY
}

fn is_foreign_route(change: &Change) -> bool {
    match change {
        Change::Rules => true,
        Change::Route(route) | Change::RouteGone(route) => {
            route.protocol != RTPROT_WEFT && route.table == MAIN_TABLE && route.dst.addr().is_ipv4()
        }
        _ => false,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernel::rtnl::Route;

    #[test]
    fn a_route_that_goes_is_an_occasion_but_for_the_probes() {
        let mut rtnl = Rtnl::open().unwrap();
        let mut gone = |address: Ipv4Addr| {
            let route = Route {
                protocol: RTPROT_WEFT,
                ..Route::link(IpAddr::V4(address), u32::MAX >> 1)
            };
            occasion(&Change::RouteGone(route), &mut rtnl)
        };
        assert_eq!(gone(Ipv4Addr::new(10, 244, 0, 7)), Some(Wake::Kernel));
        assert_eq!(gone(probe::ADDRESS), None);
    }
}
