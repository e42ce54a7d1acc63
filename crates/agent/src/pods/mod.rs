//! What the plugin asks for: ADD, DEL, CHECK, GC and STATUS as transactions over ledger and kernel.
//!
//! The order is what makes every crash harmless: an attachment is made in the kernel marked as unfinished while it is
//! written to disk, loses the mark when both are done, and then the runtime hears of it. What bears the mark when an
//! agent starts was never answered and is removed, before an address is given to anybody. DEL goes the other way round:
//! first the kernel forgets, then the ledger.

mod pass;
mod wait;
mod words;

use self::wait::{Busy, Granted};
use crate::audit::Desk;
use crate::node::Readiness;
use crate::probe::Probe;
use crate::serve::Handler;
use crate::steps::{Step, Steps};
use crate::wiring::{Attachment, Difference, GATEWAY, PodKernel, host_name};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use weft_cni::intent::Intents;
use weft_cni::protocol::{Add, Attached, Check, Command, Gc, PodAddress, Reply, Request};
use weft_cni::spec::{Failure, code};
use weft_ipam::ledger::{Details, Entry, Ledger, LedgerError, NetnsId, PodRef};
use weft_kernel::NetNs;
use weft_model::{AttachmentKey, Block, NodeName, UserError, codes};

/// How long an ADD waits for the operator to grant another block. Longer than an operator needs, shorter than the
/// plugin's patience.
const BLOCK_WAIT: Duration = Duration::from_secs(10);

/// Serves the plugin for one node.
pub struct Pods<K> {
    node: NodeName,
    ledger: Ledger,
    kernel: K,
    intents: Intents,
    readiness: watch::Receiver<Readiness>,
    /// Signalled when the node got blocks.
    granted: Granted,
    /// Tells the status writer that addresses were taken or given back.
    changed: Notify,
    /// Pods the node may run; `u32::MAX` where nothing limits them.
    max_pods: AtomicU32,
    /// Blocks that are not the node's any more, and go as soon as their last address is free.
    lingering: Mutex<Vec<Block>>,
    /// ADD and DEL share it; GC excludes them (CNI specification 1.1, section "GC"), and so does repair.
    exclusive: RwLock<()>,
    busy: Busy,
    /// Whether a pass has seen what an earlier agent left.
    adopted: AtomicBool,
    /// Attachments whose namespace is gone, and since when that is known.
    gone: Mutex<BTreeMap<AttachmentKey, Instant>>,
    desk: Desk,
}

/// The plugin behind a request.
struct Caller<'a> {
    /// The network's name in its CNI configuration.
    network: &'a str,
    patience: Duration,
    gone: &'a dyn Fn() -> bool,
    steps: &'a Steps,
}

/// Why an ADD did not succeed at once.
enum Refused {
    /// Another block would help.
    NoAddress(Failure),
    Failed(Failure),
}

// === impl Pods ===

impl<K: PodKernel> Pods<K> {
    pub fn new(
        node: NodeName,
        ledger: Ledger,
        kernel: K,
        intents: Intents,
        readiness: watch::Receiver<Readiness>,
        desk: Desk,
    ) -> Self {
        Self {
            node,
            ledger,
            kernel,
            intents,
            readiness,
            granted: Granted::default(),
            changed: Notify::new(),
            max_pods: AtomicU32::new(u32::MAX),
            lingering: Mutex::default(),
            exclusive: RwLock::default(),
            busy: Busy::default(),
            adopted: AtomicBool::new(false),
            gone: Mutex::default(),
            desk,
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where audits are asked for.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Completes when addresses were taken or given back since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Gives the ledger the blocks of this node, and word of new ones to ADDs that wait.
    pub fn set_blocks(&self, blocks: &[Block], retiring: &[Block], max_pods: Option<u32>) {
        self.max_pods
            .store(max_pods.unwrap_or(u32::MAX), Ordering::Relaxed);
        let serving = blocks
            .iter()
            .copied()
            .filter(|block| !retiring.contains(block))
            .collect();
        match self.ledger.set_blocks(serving, retiring.to_vec()) {
            Ok(change) => {
                let mut lingering = self.lingering.lock().unwrap_or_else(PoisonError::into_inner);
                if *lingering != change.lingering {
                    tracing::warn!(blocks = ?change.lingering, "blocks that left the node still have addresses in use");
                    *lingering = change.lingering;
                }
                if !change.added.is_empty() {
                    tracing::info!(blocks = ?change.added, "the node got blocks");
                    self.granted.signal();
                }
                if !change.added.is_empty() || !change.removed.is_empty() {
                    self.changed.notify_one();
                }
            }
            Err(error) => tracing::error!(%error, "cannot note the node's blocks"),
        }
    }

    /// Has a packet go to a pod's interface and back.
    ///
    /// # Errors
    /// As for [`Probe::run`].
    pub fn probe(&self, probe: &Probe, node: Ipv4Addr, mtu: u32) -> Result<(), UserError> {
        probe.run(&self.kernel, node, mtu)
    }

    /// Carries out what was deleted while no agent listened. Must be done before the first ADD: a container may come
    /// back under the same name.
    ///
    /// # Errors
    /// The directory of intents can't be read. An intent that fails is logged and stays for the next time.
    pub fn replay_intents(&self) -> std::io::Result<()> {
        let pending = self.intents.pending()?;
        for path in &pending.quarantined {
            tracing::error!(path = %path.display(), "set an unreadable DEL intent aside");
        }
        for intent in &pending.intents {
            match self.replay(&intent.key) {
                Ok(()) => {
                    tracing::info!(attachment = %intent.key, "replayed a DEL that came while the agent was away");
                }
                Err(failure) => {
                    tracing::error!(attachment = %intent.key, error = failure.msg, "could not replay a DEL");
                }
            }
        }
        Ok(())
    }

    /// Carries out one intent, unless somebody else did since it was read: an ADD of the same key may have.
    fn replay(&self, key: &AttachmentKey) -> Result<(), Failure> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let _hold = self.busy.hold(key);
        if self.intents.contains(key) {
            self.del_held(key, &Steps::begin())
        } else {
            Ok(())
        }
    }

    /// ADD, waiting for another block while there is no address.
    fn add(&self, add: &Add, netns: OwnedFd, caller: &Caller<'_>) -> Result<Attached, Failure> {
        let netns = NetNs::from_fd(netns).map_err(|error| {
            let next = "the runtime should create the sandbox anew";
            Failure::new(
                code::NETNS,
                &UserError::new(codes::CNI_NETNS, error.to_string(), next),
            )
        })?;
        let deadline = Instant::now() + caller.patience.min(BLOCK_WAIT);
        loop {
            let generation = self.granted.generation();
            match self.add_now(add, &netns, caller) {
                Err(Refused::NoAddress(failure)) => {
                    // The status writer asks the operator for more as soon as it looks.
                    self.changed.notify_one();
                    if !self.granted.wait_beyond(generation, deadline) {
                        return Err(failure);
                    }
                }
                Err(Refused::Failed(failure)) => return Err(failure),
                Ok(attached) => return Ok(attached),
            }
        }
    }

    fn add_now(&self, add: &Add, netns: &NetNs, caller: &Caller<'_>) -> Result<Attached, Refused> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let _hold = self.busy.hold(&add.key);
        caller.still_there()?;
        if self.intents.contains(&add.key) {
            self.del_held(&add.key, caller.steps)?;
        }
        let mtu = self.ready_mtu()?;
        caller.steps.done(Step::Wait);
        let details = Details {
            network: caller.network.to_owned(),
            pod: PodRef {
                namespace: add.pod.namespace.clone(),
                name: add.pod.name.clone(),
                uid: add.pod.uid.clone(),
            },
            netns: NetnsId {
                dev: netns.id().dev,
                ino: netns.id().ino,
            },
            netns_path: Some(add.netns.path.clone()),
            host_if_name: host_name(&add.key),
        };
        let address = self
            .ledger
            .reserve(add.key.clone(), details)
            .map_err(|error| match error {
                LedgerError::NoBlock | LedgerError::Full { .. } => {
                    Refused::NoAddress(self.ledger_failure(error))
                }
                error => Refused::Failed(self.ledger_failure(error)),
            })?;
        let attachment = Attachment {
            key: add.key.clone(),
            address,
        };
        // The disk has it by the time the kernel does, or not much later.
        let recording = self.ledger.record(&add.key).map_err(|error| {
            self.undo(&attachment);
            Refused::Failed(self.ledger_failure(error))
        })?;
        caller.steps.done(Step::Reserve);
        if let Err(error) = self.kernel.attach(&attachment, netns, mtu, caller.steps) {
            self.undo(&attachment);
            return Err(self.wiring_failure(&error).into());
        }
        if let Err(error) = recording.activate() {
            self.undo(&attachment);
            return Err(self.ledger_failure(error).into());
        }
        caller.steps.done(Step::Record);
        if let Err(error) = self.kernel.finish(&attachment) {
            self.undo(&attachment);
            return Err(self.wiring_failure(&error).into());
        }
        caller.steps.done(Step::Finish);
        self.changed.notify_one();
        Ok(Attached {
            host_if_name: attachment.host_name(),
            host_mac: attachment.host_mac(),
            pod_mac: attachment.pod_mac(),
            mtu,
            addresses: vec![PodAddress {
                address: address.into(),
                gateway: GATEWAY.into(),
            }],
        })
    }

    /// Takes a half-made attachment back. What fails here is found again by the next start of the agent.
    fn undo(&self, attachment: &Attachment) {
        if let Err(error) = self.kernel.detach(attachment) {
            tracing::error!(%attachment, %error, "could not take back a failed ADD; its address stays reserved");
            return;
        }
        if let Err(error) = self.ledger.release(&attachment.key) {
            tracing::error!(%attachment, %error, "could not give back the address of a failed ADD");
        }
    }

    fn del(&self, key: &AttachmentKey, caller: &Caller<'_>) -> Result<(), Failure> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let _hold = self.busy.hold(key);
        caller.still_there()?;
        caller.steps.done(Step::Wait);
        self.del_held(key, caller.steps)
    }

    fn del_held(&self, key: &AttachmentKey, steps: &Steps) -> Result<(), Failure> {
        if let Some(attachment) = self.attachment(key)? {
            steps.done(Step::Find);
            self.kernel
                .detach(&attachment)
                .map_err(|error| self.wiring_failure(&error))?;
            steps.done(Step::Cut);
            self.ledger
                .release(key)
                .map_err(|error| self.ledger_failure(error))?;
            steps.done(Step::Record);
            self.changed.notify_one();
        }
        self.intents.remove(key).map_err(|error| {
            let message = format!(
                "remove the DEL intent of {key} in {}: {error}",
                self.intents.directory().display()
            );
            Failure::new(
                code::IO,
                &UserError::new(codes::STATE_DIRECTORY, message, "df -h; mount"),
            )
        })
    }

    fn check(&self, check: &Check, netns: OwnedFd) -> Result<(), Failure> {
        let _hold = self.busy.hold(&check.key);
        let mtu = self.ready_mtu()?;
        let Some(attachment) = self.attachment(&check.key)? else {
            let message = format!("node {} has no attachment {}", self.node, check.key);
            let next = "recreate the pod";
            return Err(Failure::new(
                code::UNKNOWN_CONTAINER,
                &UserError::new(codes::NO_SUCH_ATTACHMENT, message, next),
            ));
        };
        let netns = NetNs::from_fd(netns).map_err(|error| {
            Failure::new(
                code::NETNS,
                &UserError::new(codes::CNI_NETNS, error.to_string(), "recreate the pod"),
            )
        })?;
        let address = attachment.address;
        let mut differences = self
            .kernel
            .check(&attachment, &netns, mtu)
            .map_err(|error| self.wiring_failure(&error))?;
        let told = check
            .prev_result
            .ips
            .iter()
            .any(|ip| ip.address.addr() == std::net::IpAddr::V4(address));
        if !told {
            differences.push(Difference(format!(
                "the runtime's result does not have {address}, which the ledger of {} has for it",
                self.node
            )));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let list: Vec<_> = differences.into_iter().map(|difference| difference.0).collect();
        let message = format!("attachment {attachment} on {}: {}", self.node, list.join("; "));
        let next = "recreate the pod, which sets it up anew";
        Err(Failure::new(
            CHECK_FAILED,
            &UserError::new(codes::CNI_CHECK, message, next),
        ))
    }

    /// Removes every attachment that is not valid, going on after errors.
    fn gc(&self, gc: &Gc, network: &str) -> Result<(), Failure> {
        let _alone = self.exclusive.write().unwrap_or_else(PoisonError::into_inner);
        let valid: Option<BTreeSet<_>> = gc.valid.as_ref().map(|valid| valid.iter().collect());
        // Without a list, what has no interface any more is known to have lost its namespace.
        let live: BTreeSet<_> = self
            .kernel
            .attached()
            .map_err(|error| self.wiring_failure(&error))?
            .into_iter()
            .collect();
        let mut failures = Vec::new();
        for (Attachment { key, .. }, owner) in self.owners()? {
            // The list is of one network's attachments; those of another one served by this agent are not on it.
            let stays = match &valid {
                // Of which network those are that were found when the ledger was made anew, nobody knows.
                Some(valid) => valid.contains(&key) || (owner != network && !owner.is_empty()),
                None => live.contains(&key),
            };
            if stays {
                continue;
            }
            tracing::info!(attachment = %key, "GC removes an attachment that is not valid any more");
            if let Err(failure) = self.del_held(&key, &Steps::begin()) {
                failures.push(failure.msg);
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{} attachment(s) could not be removed: {}",
            failures.len(),
            failures.join("; ")
        );
        Err(Failure::new(
            code::IO,
            &UserError::new(codes::RECONCILE, message, "see the agent's log"),
        ))
    }

    fn status(&self) -> Result<(), Failure> {
        self.ready_mtu().map_err(|failure| {
            let limited = matches!(&*self.readiness.borrow(), Readiness::Broken { .. });
            Failure {
                code: if limited {
                    code::LIMITED_CONNECTIVITY
                } else {
                    code::NOT_AVAILABLE
                },
                ..failure
            }
        })?;
        let stats = self.ledger.stats().map_err(|error| self.ledger_failure(error))?;
        // Runtimes make a node that fails here unready, its running pods too. So it fails only where an ADD that may
        // come can't be served and will not be by waiting: not for a node at its limit of pods, nor while an address
        // cools down.
        let may_come = stats.used() < self.max_pods.load(Ordering::Relaxed);
        if stats.free() + stats.cooling() > 0 || (stats.capacity() > 0 && !may_come) {
            return Ok(());
        }
        let error = if stats.capacity() == 0 {
            self.no_block()
        } else {
            self.full(&stats)
        };
        Err(Failure::new(code::NOT_AVAILABLE, &error))
    }

    fn attachment(&self, key: &AttachmentKey) -> Result<Option<Attachment>, Failure> {
        let entry = self.ledger.get(key).map_err(|error| self.ledger_failure(error))?;
        Ok(entry.map(|(address, _)| Attachment {
            key: key.clone(),
            address,
        }))
    }

    /// Everything the ledger has, under way or active, with the network each belongs to.
    fn owners(&self) -> Result<Vec<(Attachment, String)>, Failure> {
        let entries = self.ledger.list().map_err(|error| self.ledger_failure(error))?;
        let owned = |(address, entry): (_, Entry)| match entry {
            Entry::Reserved(owner) | Entry::Active(owner) => Some((
                Attachment {
                    key: owner.key,
                    address,
                },
                owner.details.network,
            )),
            Entry::Released(_) | Entry::Quarantined(_) => None,
        };
        Ok(entries.into_iter().filter_map(owned).collect())
    }

    /// MTU of new pods, if the node can serve them.
    fn ready_mtu(&self) -> Result<u32, Failure> {
        let (code, message, next) = match &*self.readiness.borrow() {
            Readiness::Ready { mtu } => return Ok(*mtu),
            Readiness::Waiting { why } => (
                codes::AGENT_NOT_READY,
                format!("the agent on {} waits for {why}", self.node),
                "weft status",
            ),
            Readiness::Broken { why } => (
                codes::RECONCILE,
                format!("the network of {} is not in order: {why}", self.node),
                "weft status",
            ),
        };
        Err(Failure::new(
            code::TRY_AGAIN,
            &UserError::new(code, message, next),
        ))
    }
}

/// CNI leaves the numbers from 100 on to plugins.
const CHECK_FAILED: u32 = 100;

impl<K: PodKernel> Handler for Pods<K> {
    fn handle(
        &self,
        request: &Request,
        netns: Option<OwnedFd>,
        gone: &dyn Fn() -> bool,
        steps: &Steps,
    ) -> Reply {
        let caller = Caller {
            network: &request.network,
            patience: Duration::from_millis(request.wait_ms).saturating_sub(Duration::from_secs(2)),
            gone,
            steps,
        };
        let done = |outcome: Result<(), Failure>| outcome.map(|()| Reply::Done);
        let outcome = match (&request.command, netns) {
            (Command::Add(add), Some(netns)) => self.add(add, netns, &caller).map(Reply::Added),
            (Command::Check(check), Some(netns)) => done(self.check(check, netns)),
            (Command::Add(_) | Command::Check(_), None) => {
                let message = "the request came without a network namespace";
                Err(Failure::new(
                    code::NETNS,
                    &UserError::new(
                        codes::CNI_PROTOCOL,
                        message,
                        "weft-cni and weft must be of one version",
                    ),
                ))
            }
            (Command::Del(del), _) => done(self.del(&del.key, &caller)),
            (Command::Gc(gc), _) => done(self.gc(gc, &request.network)),
            (Command::Status, _) => done(self.status()),
            (Command::Audit, _) => self
                .desk
                .ask(caller.patience)
                .map(Reply::Audited)
                .map_err(|error| Failure::new(code::TRY_AGAIN, &error)),
        };
        outcome.unwrap_or_else(Reply::Failed)
    }

    fn abandoned(&self, request: &Request) {
        if let Command::Add(add) = &request.command
            && let Err(failure) = self.del(&add.key, &Caller::nobody(&Steps::begin()))
        {
            tracing::error!(attachment = %add.key, error = failure.msg, "could not take back an ADD nobody waited for");
        }
    }
}

impl<K> fmt::Debug for Pods<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pods")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

// === impl Refused ===

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

// === impl Caller ===

impl<'a> Caller<'a> {
    /// For what has to be done although nobody waits for it.
    fn nobody(steps: &'a Steps) -> Self {
        Self {
            network: "",
            patience: Duration::ZERO,
            gone: &|| false,
            steps,
        }
    }

    /// Fails where the plugin has given up while the request waited for its turn: its DEL has left an intent, its ADD
    /// has failed and may have been followed by anything.
    fn still_there(&self) -> Result<(), Failure> {
        if !(self.gone)() {
            return Ok(());
        }
        let message = "the plugin left before its turn came";
        Err(Failure::new(
            code::TRY_AGAIN,
            &UserError::new(codes::AGENT_NOT_READY, message, "the runtime tries again"),
        ))
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
