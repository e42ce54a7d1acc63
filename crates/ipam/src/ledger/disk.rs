//! A disk in memory for tests: it remembers every write, so that its power can be cut at any of them afterwards, and
//! dies where it is told to.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use redb::StorageBackend;

use super::store::{initialise, open_backend};

/// What reached the disk, in order.
#[derive(Clone, Debug)]
enum Io {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// The disk. Its clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<DiskInner>);

#[derive(Debug, Default)]
struct DiskInner {
    log: Mutex<Vec<Io>>,
    contents: Mutex<Vec<u8>>,
    /// The number of the next sync that fails.
    failing: Mutex<Option<usize>>,
    gate: Mutex<bool>,
    opened: Condvar,
    syncs: AtomicUsize,
    fuse: Fuse,
}

/// The steps that are left until a process dies: once it is blown, nothing has an effect any more.
#[derive(Clone, Debug)]
pub struct Fuse(Arc<AtomicI64>);

// === impl Fuse ===

impl Fuse {
    /// Lets so many steps pass from now on.
    pub fn set(&self, steps: i64) {
        self.0.store(steps, Ordering::SeqCst);
    }

    /// Whether the fuse is blown.
    pub fn is_blown(&self) -> bool {
        self.0.load(Ordering::SeqCst) <= 0
    }

    /// Takes a step.
    ///
    /// # Errors
    /// If the fuse is blown.
    pub fn step(&self) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            Ok(())
        } else {
            Err(io::Error::other("the process is dead"))
        }
    }
}

impl Default for Fuse {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(i64::MAX)))
    }
}

// === impl Disk ===

impl Disk {
    /// A disk that holds this, all of it synced.
    pub fn with(contents: Vec<u8>) -> Self {
        Self::fused(contents, Fuse::default())
    }

    /// As [`Disk::with`], for a process that dies with the fuse.
    pub fn fused(contents: Vec<u8>, fuse: Fuse) -> Self {
        Self(Arc::new(DiskInner {
            contents: Mutex::new(contents),
            fuse,
            ..DiskInner::default()
        }))
    }

    /// A disk with an empty ledger.
    pub fn formatted() -> Self {
        let disk = Self::default();
        let database = open_backend(Path::new("disk"), disk.clone()).expect("memory does not fail");
        initialise(&database).expect("memory does not fail");
        drop(database);
        Self::with(disk.contents())
    }

    /// What a process reads that was not hit by the power cut: everything written.
    pub fn contents(&self) -> Vec<u8> {
        lock(&self.0.contents).clone()
    }

    /// How many writes, changes of length and syncs there were.
    pub fn steps(&self) -> usize {
        lock(&self.0.log).len()
    }

    /// How many syncs there were, failed ones included.
    pub fn syncs(&self) -> usize {
        self.0.syncs.load(Ordering::SeqCst)
    }

    /// Has the next sync fail as on a full disk.
    pub fn fail_next_sync(&self) {
        *lock(&self.0.failing) = Some(0);
    }

    /// Has syncs wait, or those that wait go on.
    pub fn hold_syncs(&self, hold: bool) {
        *lock(&self.0.gate) = hold;
        self.0.opened.notify_all();
    }

    /// The disk as it is when power is cut after `steps`: `before`, everything up to the last sync, and of the sectors
    /// written since then those that `kept` says.
    pub fn cut(&self, before: &[u8], steps: usize, mut kept: impl FnMut() -> bool) -> Self {
        const SECTOR: usize = 512;
        let log = lock(&self.0.log);
        let synced = log[..steps]
            .iter()
            .rposition(|io| matches!(io, Io::Sync))
            .map_or(0, |at| at + 1);
        let mut contents = before.to_vec();
        for (at, io) in log[..steps].iter().enumerate() {
            match io {
                Io::SetLen(len) if at < synced || kept() => contents.resize(size(*len), 0),
                Io::Write(offset, data) => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        let start = size(*offset) + index * SECTOR;
                        let end = start + sector.len();
                        if at < synced || kept() {
                            // A file system may have kept the data but not the length.
                            if contents.len() < end {
                                contents.resize(end, 0);
                            }
                            contents[start..end].copy_from_slice(sector);
                        }
                    }
                }
                Io::SetLen(_) | Io::Sync => {}
            }
        }
        Self::with(contents)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(lock(&self.0.contents).len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let contents = lock(&self.0.contents);
        let start = size(offset);
        let from = contents
            .get(start..start + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.fuse.step()?;
        lock(&self.0.log).push(Io::SetLen(len));
        lock(&self.0.contents).resize(size(len), 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut gate = lock(&self.0.gate);
        while *gate {
            gate = self.0.opened.wait(gate).expect("no test panics with it");
        }
        self.0.fuse.step()?;
        let count = self.0.syncs.fetch_add(1, Ordering::SeqCst);
        let mut failing = lock(&self.0.failing);
        if failing.is_some_and(|failing| failing <= count) {
            *failing = None;
            return Err(io::ErrorKind::StorageFull.into());
        }
        lock(&self.0.log).push(Io::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.fuse.step()?;
        let mut contents = lock(&self.0.contents);
        let start = size(offset);
        contents[start..start + data.len()].copy_from_slice(data);
        lock(&self.0.log).push(Io::Write(offset, data.to_vec()));
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no test panics with it")
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("it is in memory")
}
