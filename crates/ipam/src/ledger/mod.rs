//! Which pod has which address of this node's blocks, on disk.
//!
//! One file, one writer: a thread makes what the steps of all callers that wait
//! have changed durable with one commit. A method returns when what it changed
//! has reached the disk, so that an ADD is answered with an address that will
//! be remembered by whatever starts after a kill -9 or a power cut. What changes
//! nothing on the disk waits for nobody's write. A reservation is not written:
//! one write is enough for an ADD, which begins with [`Ledger::record`] and goes
//! on while the pod's interface is made.
//!
//! Every address of a block is an ordinary pod address, the first and the last
//! one too: a pod's address is a routed /32, there is no subnet that could have
//! a network or a broadcast address. A /26 therefore serves 64 pods.
//!
//! Addresses are given out in order and, once each has been used, the one that
//! was released first comes first; never sooner than [`COOLING`] after its
//! release.

#[cfg(any(test, feature = "disk"))]
pub mod disk;
mod error;
mod record;
mod state;
mod store;
mod writer;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use weft_model::{AttachmentKey, Block};

use self::state::Now;
use self::store::{Open, Store, open_file};
use self::writer::{Writer, Written};
use crate::clock::Clock;

pub use error::LedgerError;
pub use record::{Attachment, Details, Entry, NetnsId, PodRef, Quarantined, Released};

/// How long a released address rests before another pod gets it: longer than
/// the 120 s for which conntrack keeps a half-open TCP connection
/// (`nf_conntrack_tcp_timeout_syn_sent`), so that no late packet of the last
/// owner's connections reaches the next owner.
pub const COOLING: Duration = Duration::from_secs(130);

/// The ledger of one node. Every method but [`record`](Ledger::record) blocks
/// until the disk has what it changed; call it from threads that may wait.
#[derive(Debug)]
pub struct Ledger {
    writer: Writer,
}

/// The record of a reservation, on its way to the disk. One that is dropped may
/// have got there; the reservation stays what it is until it is released.
#[derive(Debug)]
#[must_use]
pub struct Recording<'a> {
    ledger: &'a Ledger,
    key: AttachmentKey,
    written: Written,
}

/// What opening a ledger found that its caller has to deal with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Reservations that never became active, of a version that wrote them down.
    /// They are undone: their addresses cool. The kernel may still hold parts of them.
    pub undone: Vec<Attachment>,
    /// Active attachments of another boot. Their namespaces are gone for sure;
    /// they stay until released, because only the runtime knows that it will
    /// not ask for them again.
    pub other_boot: Vec<Attachment>,
    /// Addresses nobody gets.
    pub quarantined: Vec<(Ipv4Addr, Quarantined)>,
}

/// What [`Ledger::set_blocks`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockChange {
    /// Blocks that did not serve new pods before.
    pub added: Vec<Block>,
    /// Blocks that left, nothing of them being in use.
    pub removed: Vec<Block>,
    /// Blocks that are not the node's any more but have addresses in use,
    /// cooling or quarantined. No new pod gets an address of them.
    pub lingering: Vec<Block>,
}

/// An attachment that was found where it is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// (container ID, interface name)
    pub key: AttachmentKey,
    /// An address that is its own by what was found.
    pub address: Ipv4Addr,
    /// The host's end of the pod's veth pair.
    pub host_if_name: String,
}

/// The addresses of all blocks, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Block by block, in the order they were granted, retiring ones last.
    pub blocks: Vec<BlockStats>,
}

/// The addresses of one block, counted. The five counts add up to its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStats {
    /// The block.
    pub block: Block,
    /// Whether it is about to leave the node and serves no new pods.
    pub retiring: bool,
    /// Never given out, or released at least [`COOLING`] ago.
    pub free: u32,
    /// Of ADDs under way.
    pub reserved: u32,
    /// Of pods.
    pub active: u32,
    /// Released less than [`COOLING`] ago.
    pub cooling: u32,
    /// Given to nobody.
    pub quarantined: u32,
}

// === impl Ledger ===

impl Ledger {
    /// Opens the ledger at `path`, or makes it with its directory, and undoes
    /// what a process that ended at any moment left half done.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`], [`LedgerError::Untrusted`],
    /// [`LedgerError::InUse`], [`LedgerError::Version`], [`LedgerError::Io`]:
    /// in none of these cases is the file changed.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), LedgerError> {
        let file = path.to_owned();
        Self::open_with(path, clock, Box::new(move || open_file(&file)))
    }

    /// Puts a new ledger in the place of a damaged one, which is kept beside it; returns where.
    ///
    /// The new one has the attachments that were found. An address that two of them have is quarantined. All other
    /// addresses of the blocks cool: who had them last, and until when, nobody knows any more. Whatever ends this at any
    /// moment leaves the damaged ledger in its place, or the new one, whole.
    ///
    /// # Errors
    /// [`LedgerError::OverlappingBlocks`], and failures to write: the damaged ledger is where it was.
    pub fn rebuild(
        path: &Path,
        clock: Arc<dyn Clock>,
        serving: Vec<Block>,
        retiring: Vec<Block>,
        found: Vec<Found>,
    ) -> Result<PathBuf, LedgerError> {
        let draft = path.with_extension("rebuilt");
        store::clear(&draft)?;
        let (ledger, _) = Self::open(&draft, clock)?;
        ledger
            .writer
            .call(move |state, now| state.rebuild(&serving, &retiring, found, now))?;
        drop(ledger);
        store::replace_damaged(path, &draft)
    }

    /// Opens the ledger on a disk in memory.
    ///
    /// # Errors
    /// As for [`Ledger::open`].
    #[cfg(any(test, feature = "disk"))]
    pub fn open_on(disk: &disk::Disk, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), LedgerError> {
        let (path, disk) = (Path::new("disk"), disk.clone());
        Self::open_with(
            path,
            clock,
            Box::new(move || store::open_backend(path, disk.clone())),
        )
    }

    fn open_with(path: &Path, clock: Arc<dyn Clock>, open: Open) -> Result<(Self, Recovery), LedgerError> {
        let (store, mut state) = Store::open(path, open)?;
        let now = Now {
            moment: clock.now(),
            wall: clock.wall(),
        };
        let recovery = state.recover(&now);
        if state.due() > 0 {
            store.write(&state.take_changes())?;
        }
        let writer = Writer::start(clock, store, state).map_err(|cause| LedgerError::Io {
            operation: "starting the thread of ledger",
            path: path.to_owned(),
            cause: Arc::new(cause),
        })?;
        Ok((Self { writer }, recovery))
    }

    /// Sets the blocks the node holds: those that serve new pods, and those
    /// that retire, whose pods live on while nobody gets an address of them any
    /// more. They are remembered, so that a node can start without the API
    /// server.
    ///
    /// A block that is missing leaves at once if none of its addresses is in
    /// use or cooling; otherwise it retires too, and leaves with a later call.
    ///
    /// # Errors
    /// [`LedgerError::OverlappingBlocks`], and failures to write.
    pub fn set_blocks(&self, serving: Vec<Block>, retiring: Vec<Block>) -> Result<BlockChange, LedgerError> {
        self.writer
            .call(move |state, now| state.set_blocks(&serving, &retiring, now))
    }

    /// The blocks that serve new pods, in the order they were granted.
    ///
    /// # Errors
    /// Failures to reach the file.
    pub fn blocks(&self) -> Result<Vec<Block>, LedgerError> {
        self.writer.call(|state, _| {
            let serving = state.blocks().iter().filter(|held| !held.retiring);
            Ok(serving.map(|held| held.block).collect())
        })
    }

    /// Gives an address to an ADD that begins: nobody else gets it until it is
    /// given back, or this process ends. Then it is as if it had never been,
    /// unless [`record`](Self::record) has begun, so that whatever is made of it
    /// has to be removed before the next `reserve`.
    ///
    /// # Errors
    /// [`LedgerError::Exists`] if the key has one already,
    /// [`LedgerError::NoBlock`], [`LedgerError::Full`], and failures to reach
    /// the file.
    pub fn reserve(&self, key: AttachmentKey, details: Details) -> Result<Ipv4Addr, LedgerError> {
        self.writer
            .call(move |state, now| state.reserve(key, details, now))
    }

    /// Begins to write that the attachment of a reservation is active, and does
    /// not wait for it. For everybody but whoever opens the ledger next it is a
    /// reservation still, until [`Recording::activate`].
    ///
    /// # Errors
    /// [`LedgerError::NotFound`], [`LedgerError::NotReserved`], and failures to
    /// reach the file.
    pub fn record(&self, key: &AttachmentKey) -> Result<Recording<'_>, LedgerError> {
        let ((), written) = self.writer.begin(|state, _| state.record(key))?;
        Ok(Recording {
            ledger: self,
            key: key.clone(),
            written,
        })
    }

    /// Ends an attachment. The address of an active one cools; that of one which is reserved, and so was never answered
    /// with, is free as soon as the disk has no record of it, so that an ADD that fails again and again does not use up
    /// the node's addresses. `None` if there is no such attachment: a DEL that is late or repeated finds
    /// nothing and touches nobody else's address.
    ///
    /// # Errors
    /// Failures to write, after which what the disk has of the attachment still exists.
    pub fn release(&self, key: &AttachmentKey) -> Result<Option<Attachment>, LedgerError> {
        self.writer.call(|state, now| Ok(state.release(key, now)))
    }

    /// Ends every attachment that is not `valid`, but for those whose ADD is
    /// still under way, and returns them.
    ///
    /// # Errors
    /// Failures to write, after which all of them still exist.
    pub fn gc(&self, valid: HashSet<AttachmentKey>) -> Result<Vec<Attachment>, LedgerError> {
        self.writer.call(move |state, now| Ok(state.gc(&valid, now)))
    }

    /// Keeps an address from everybody because something else than its owner
    /// claims it. Its owner, if any, keeps its record.
    ///
    /// # Errors
    /// [`LedgerError::ForeignAddress`] outside of the node's blocks, and
    /// failures to write.
    pub fn quarantine(&self, address: Ipv4Addr, reason: impl Into<String>) -> Result<(), LedgerError> {
        let reason = reason.into();
        self.writer
            .call(move |state, _| state.quarantine(address, reason))
    }

    /// Ends a quarantine: the address is its owner's again or, if it has none,
    /// cools. False if there was none.
    ///
    /// # Errors
    /// Failures to write.
    pub fn pardon(&self, address: Ipv4Addr) -> Result<bool, LedgerError> {
        self.writer.call(move |state, now| Ok(state.pardon(address, now)))
    }

    /// The entry of the address that `key` has.
    ///
    /// # Errors
    /// Failures to reach the file.
    pub fn get(&self, key: &AttachmentKey) -> Result<Option<(Ipv4Addr, Entry)>, LedgerError> {
        self.writer
            .call(|state, _| Ok(state.get(key).map(|(address, entry)| (address, entry.clone()))))
    }

    /// All addresses that were ever given out, in order.
    ///
    /// # Errors
    /// Failures to reach the file.
    pub fn list(&self) -> Result<Vec<(Ipv4Addr, Entry)>, LedgerError> {
        self.writer.call(|state, _| {
            let entries = state.entries().iter();
            Ok(entries
                .map(|(address, entry)| (*address, entry.clone()))
                .collect())
        })
    }

    /// The addresses of all blocks, counted.
    ///
    /// # Errors
    /// Failures to reach the file.
    pub fn stats(&self) -> Result<Stats, LedgerError> {
        self.writer.call(|state, now| Ok(state.stats(now)))
    }
}

// === impl Recording ===

impl Recording<'_> {
    /// Makes the attachment active once the disk has it.
    ///
    /// # Errors
    /// Failures to write, after which it is still reserved, and what
    /// [`Ledger::record`] and [`Ledger::reserve`] say if somebody released it.
    pub fn activate(self) -> Result<Attachment, LedgerError> {
        self.written.wait()?;
        let key = &self.key;
        self.ledger.writer.call(|state, _| state.activate(key))
    }
}

// === impl Stats ===

impl Stats {
    /// The blocks that serve new pods.
    pub fn serving(&self) -> impl Iterator<Item = &BlockStats> {
        self.blocks.iter().filter(|block| !block.retiring)
    }

    /// All addresses of the serving blocks.
    pub fn capacity(&self) -> u32 {
        self.serving().map(|block| block.block.size().addresses()).sum()
    }

    /// Addresses a pod could get now.
    pub fn free(&self) -> u32 {
        self.serving().map(|block| block.free).sum()
    }

    /// Reserved and active addresses of the serving blocks.
    pub fn used(&self) -> u32 {
        self.serving().map(|block| block.reserved + block.active).sum()
    }

    /// Cooling addresses of the serving blocks.
    pub fn cooling(&self) -> u32 {
        self.serving().map(|block| block.cooling).sum()
    }

    /// How many blocks the node should ask for, its serving ones included; at
    /// least 1, and never fewer than it has.
    ///
    /// It asks for more while fewer addresses are free than a quarter of its
    /// newest block, or than 8, so that the next block comes before the last is
    /// full. It does not ask for addresses that `max_pods`, the pods the node
    /// may run (`capacity.pods`), leaves no use for.
    pub fn wanted_blocks(&self, max_pods: Option<u32>) -> u32 {
        let Some(newest) = self.serving().last() else {
            return 1;
        };
        let size = newest.block.size().addresses();
        let reserve = (size / 4).max(8);
        let to_come = max_pods.map_or(u32::MAX, |max_pods| {
            let elsewhere: u32 = self
                .blocks
                .iter()
                .filter(|block| block.retiring)
                .map(|block| block.reserved + block.active)
                .sum();
            max_pods.saturating_sub(self.used() + elsewhere)
        });
        let missing = reserve.min(to_come).saturating_sub(self.free());
        let held = u32::try_from(self.serving().count()).unwrap_or(u32::MAX);
        held + missing.div_ceil(size)
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod recording_tests;
#[cfg(test)]
mod tests;
