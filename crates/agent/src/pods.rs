//! What the plugin asks for: ADD, DEL, CHECK, GC and STATUS as transactions over ledger and kernel.
//!
//! The order is what makes every crash harmless: an address is reserved on disk before anything of it is in the
//! kernel, and becomes active on disk before the runtime hears of it. DEL goes the other way round: first the kernel
//! forgets, then the ledger.

use crate::node::Readiness;
use crate::serve::Handler;
use crate::wiring::{Attachment, Difference, GATEWAY, PodKernel, WiringError, host_name};
use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use weft_cni::intent::Intents;
use weft_cni::protocol::{Add, Attached, Check, Command, Gc, PodAddress, Reply, Request};
use weft_cni::spec::Failure;
use weft_cni::spec::code;
use weft_ipam::ledger::{COOLING, Details, Entry, Ledger, LedgerError, NetnsId, PodRef, Stats};
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
    /// ADD and DEL share it; GC excludes them (CNI specification 1.1, section "GC"), and so does repair.
    exclusive: RwLock<()>,
    busy: Busy,
}

/// A counter that waiting threads watch.
#[derive(Debug, Default)]
struct Granted {
    generation: Mutex<u64>,
    moved: Condvar,
}

/// Attachments that a request is at work on. A runtime that lost patience sends DEL while ADD still runs.
#[derive(Debug, Default)]
struct Busy {
    keys: Mutex<BTreeSet<AttachmentKey>>,
    freed: Condvar,
}

/// Why an ADD did not succeed at once.
enum Refused {
    /// Another block would help.
    NoAddress(Failure),
    Failed(Failure),
}

struct Hold<'a> {
    busy: &'a Busy,
    key: AttachmentKey,
}

// === impl Pods ===

impl<K: PodKernel> Pods<K> {
    pub fn new(
        node: NodeName,
        ledger: Ledger,
        kernel: K,
        intents: Intents,
        readiness: watch::Receiver<Readiness>,
    ) -> Self {
        Self {
            node,
            ledger,
            kernel,
            intents,
            readiness,
            granted: Granted::default(),
            changed: Notify::new(),
            exclusive: RwLock::default(),
            busy: Busy::default(),
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Completes when addresses were taken or given back since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Gives the ledger the blocks of this node, and word of new ones to ADDs that wait.
    pub fn set_blocks(&self, blocks: &[Block]) {
        match self.ledger.set_blocks(blocks.to_vec()) {
            Ok(change) => {
                for block in &change.retiring {
                    tracing::warn!(%block, "a block that has to leave still has addresses in use");
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

    /// Puts the kernel's side of all attachments right, with no request under way.
    pub fn repair(&self, mtu: u32) -> usize {
        let _alone = self.exclusive.write().unwrap_or_else(PoisonError::into_inner);
        let attachments = match self.attachments() {
            Ok(attachments) => attachments,
            Err(failure) => {
                tracing::error!(
                    error = failure.msg,
                    "cannot read the ledger to compare it with the kernel"
                );
                return 0;
            }
        };
        self.kernel.repair(&attachments, mtu).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot put the kernel's side of the pods right");
            0
        })
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
            match self.del(&intent.key) {
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

    /// ADD, waiting for another block while there is no address.
    fn add(&self, add: &Add, netns: OwnedFd, patience: Duration) -> Result<Attached, Failure> {
        let netns = NetNs::from_fd(netns).map_err(|error| {
            let next = "the runtime should create the sandbox anew";
            Failure::new(
                code::NETNS,
                &UserError::new(codes::CNI_NETNS, error.to_string(), next),
            )
        })?;
        let deadline = Instant::now() + patience.min(BLOCK_WAIT);
        loop {
            let generation = self.granted.generation();
            match self.add_now(add, &netns) {
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

    fn add_now(&self, add: &Add, netns: &NetNs) -> Result<Attached, Refused> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let _hold = self.busy.hold(&add.key);
        if self.intents.contains(&add.key) {
            self.del_held(&add.key)?;
        }
        let mtu = self.ready_mtu()?;
        let details = Details {
            pod: PodRef {
                namespace: add.pod.namespace.clone(),
                name: add.pod.name.clone(),
                uid: add.pod.uid.clone(),
            },
            netns: NetnsId {
                dev: add.netns.dev,
                ino: add.netns.ino,
            },
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
        let made = self
            .kernel
            .attach(&attachment, netns, mtu)
            .map_err(|error| self.wiring_failure(&error));
        let made = made.and_then(|()| {
            self.ledger
                .activate(&add.key)
                .map_err(|error| self.ledger_failure(error))
        });
        if let Err(failure) = made {
            self.undo(&attachment);
            return Err(failure.into());
        }
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

    fn del(&self, key: &AttachmentKey) -> Result<(), Failure> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let _hold = self.busy.hold(key);
        self.del_held(key)
    }

    fn del_held(&self, key: &AttachmentKey) -> Result<(), Failure> {
        if let Some(attachment) = self.attachment(key)? {
            self.kernel
                .detach(&attachment)
                .map_err(|error| self.wiring_failure(&error))?;
            self.ledger
                .release(key)
                .map_err(|error| self.ledger_failure(error))?;
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
    fn gc(&self, gc: &Gc) -> Result<(), Failure> {
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
        for Attachment { key, .. } in self.attachments()? {
            let stays = match &valid {
                Some(valid) => valid.contains(&key),
                None => live.contains(&key),
            };
            if stays {
                continue;
            }
            tracing::info!(attachment = %key, "GC removes an attachment that is not valid any more");
            if let Err(failure) = self.del_held(&key) {
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
        if stats.free() > 0 {
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

    /// Everything the ledger has, under way or active.
    fn attachments(&self) -> Result<Vec<Attachment>, Failure> {
        let entries = self.ledger.list().map_err(|error| self.ledger_failure(error))?;
        let owned = |(address, entry): (_, Entry)| match entry {
            Entry::Reserved(owner) | Entry::Active(owner) => Some(Attachment {
                key: owner.key,
                address,
            }),
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

    fn no_block(&self) -> UserError {
        UserError::new(
            codes::NO_BLOCK,
            format!("node {} has no block of pod addresses yet", self.node),
            "kubectl get podpools,nodenetworks",
        )
    }

    fn full(&self, stats: &Stats) -> UserError {
        UserError::new(
            codes::NODE_FULL,
            format!(
                "node {} has no free pod address: of {} in {} block(s), {} are in use and {} cool down for at most {} s",
                self.node,
                stats.capacity(),
                stats.serving().count(),
                stats.used(),
                stats.cooling(),
                COOLING.as_secs(),
            ),
            "kubectl get podpools,nodenetworks",
        )
    }

    fn ledger_failure(&self, error: LedgerError) -> Failure {
        match error {
            LedgerError::NoBlock => Failure::new(code::TRY_AGAIN, &self.no_block()),
            LedgerError::Full { .. } => {
                let error = self
                    .ledger
                    .stats()
                    .map_or_else(|_| UserError::from(error), |stats| self.full(&stats));
                Failure::new(code::TRY_AGAIN, &error)
            }
            LedgerError::Exists { .. } => Failure::new(code::ENVIRONMENT, &error.into()),
            _ => Failure::new(code::IO, &error.into()),
        }
    }

    fn wiring_failure(&self, error: &WiringError) -> Failure {
        let (cni, code, next) = match error {
            WiringError::InterfaceExists { .. } => (
                code::ENVIRONMENT,
                codes::INTERFACE_EXISTS,
                "send DEL for the sandbox, then ADD again",
            ),
            WiringError::HostNameTaken { .. } => (
                code::TRY_AGAIN,
                codes::INTERFACE_CONFLICT,
                "the runtime may try again with another sandbox",
            ),
            WiringError::Kernel(_) => (code::TRY_AGAIN, codes::NETLINK, "see the agent's log"),
        };
        Failure::new(
            cni,
            &UserError::new(code, format!("on {}: {error}", self.node), next),
        )
    }
}

/// CNI leaves the numbers from 100 on to plugins.
const CHECK_FAILED: u32 = 100;

impl<K: PodKernel> Handler for Pods<K> {
    fn handle(&self, request: &Request, netns: Option<OwnedFd>) -> Reply {
        let patience = Duration::from_millis(request.wait_ms).saturating_sub(Duration::from_secs(2));
        let done = |outcome: Result<(), Failure>| outcome.map(|()| Reply::Done);
        let outcome = match (&request.command, netns) {
            (Command::Add(add), Some(netns)) => self.add(add, netns, patience).map(Reply::Added),
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
            (Command::Del(del), _) => done(self.del(&del.key)),
            (Command::Gc(gc), _) => done(self.gc(gc)),
            (Command::Status, _) => done(self.status()),
        };
        outcome.unwrap_or_else(Reply::Failed)
    }

    fn abandoned(&self, request: &Request) {
        if let Command::Add(add) = &request.command
            && let Err(failure) = self.del(&add.key)
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

// === impl Granted ===

impl Granted {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generation(&self) -> u64 {
        *self.lock()
    }

    fn signal(&self) {
        *self.lock() += 1;
        self.moved.notify_all();
    }

    /// Whether the generation moved on before `deadline`.
    fn wait_beyond(&self, generation: u64, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let (current, _) = self
            .moved
            .wait_timeout_while(self.lock(), left, |current| *current == generation)
            .unwrap_or_else(PoisonError::into_inner);
        *current != generation
    }
}

// === impl Busy ===

impl Busy {
    /// Waits until no other request works on `key`.
    fn hold(&self, key: &AttachmentKey) -> Hold<'_> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self
            .freed
            .wait_while(keys, |keys| keys.contains(key))
            .unwrap_or_else(PoisonError::into_inner);
        keys.insert(key.clone());
        Hold {
            busy: self,
            key: key.clone(),
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.busy
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
        self.busy.freed.notify_all();
    }
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
