//! Steps of many callers on one state, and the one thread that writes what they change.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::error::LedgerError;
use super::record::Attachment;
use super::state::{Now, State};
use super::store::{Open, Store};
use crate::clock::Clock;

/// Runs steps, each on its caller's thread and by itself. Nobody waits for the disk but those whose step changed what
/// is on it, and all of them that wait when a write begins share it.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Something that is on its way to the disk.
#[derive(Debug)]
pub(super) struct Written(Option<Receiver<Result<(), LedgerError>>>);

/// Whoever takes both locks takes the file's first.
struct Shared {
    clock: Arc<dyn Clock>,
    desk: Mutex<Desk>,
    file: Mutex<Backing>,
    /// That somebody waits for a write, or that the ledger closes.
    work: Condvar,
}

struct Desk {
    /// Absent while the file could not be opened again after a failed write.
    state: Option<Box<State>>,
    /// Reservations to be taken over by the state that is read next: the file does not have them.
    in_flight: Vec<Attachment>,
    waiting: Vec<SyncSender<Result<(), LedgerError>>>,
    closed: bool,
}

enum Backing {
    Open(Store),
    /// The file could not be opened again after a failed write; the next step tries.
    Lost(PathBuf, Open),
    /// Only while one becomes the other.
    Moving,
}

// === impl Writer ===

impl Writer {
    pub(super) fn start(clock: Arc<dyn Clock>, store: Store, state: State) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            clock,
            desk: Mutex::new(Desk {
                state: Some(Box::new(state)),
                in_flight: Vec::new(),
                waiting: Vec::new(),
                closed: false,
            }),
            file: Mutex::new(Backing::Open(store)),
            work: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || own.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Runs `step`; returns when what it changed is durable.
    pub(super) fn call<T>(
        &self,
        step: impl FnOnce(&mut State, &Now) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let (outcome, written) = self.begin(step)?;
        written.wait()?;
        Ok(outcome)
    }

    /// Runs `step`, and has what it changed written.
    pub(super) fn begin<T>(
        &self,
        step: impl FnOnce(&mut State, &Now) -> Result<T, LedgerError>,
    ) -> Result<(T, Written), LedgerError> {
        let now = Now {
            moment: self.shared.clock.now(),
            wall: self.shared.clock.wall(),
        };
        let mut desk = self.shared.opened()?;
        let Desk {
            state: Some(state),
            waiting,
            ..
        } = &mut *desk
        else {
            return Err(LedgerError::Closed);
        };
        let before = state.due();
        let outcome = step(state, &now)?;
        if state.due() == before {
            return Ok((outcome, Written(None)));
        }
        let (done, written) = sync_channel(1);
        waiting.push(done);
        self.shared.work.notify_one();
        Ok((outcome, Written(Some(written))))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.shared.desk).closed = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Written ===

impl Written {
    /// Waits until it is there.
    pub(super) fn wait(self) -> Result<(), LedgerError> {
        let Some(written) = self.0 else { return Ok(()) };
        written.recv().map_err(|_| LedgerError::Closed)?
    }
}

// === impl Shared ===

impl Shared {
    /// Writes until the ledger closes and nobody waits.
    fn run(&self) {
        let mut desk = lock(&self.desk);
        loop {
            let waiting = std::mem::take(&mut desk.waiting);
            if waiting.is_empty() {
                if desk.closed {
                    return;
                }
                desk = self.work.wait(desk).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let changes = desk.state.as_mut().map(|state| state.take_changes());
            drop(desk);
            let mut file = lock(&self.file);
            let written = match (&*file, &changes) {
                (Backing::Open(store), Some(changes)) => store.write(changes),
                _ => Err(LedgerError::Closed),
            };
            desk = lock(&self.desk);
            match (&written, changes) {
                (Ok(()), Some(changes)) => {
                    if let Some(state) = &mut desk.state {
                        state.written(&changes);
                    }
                    drop(file);
                    answer(waiting, &written);
                }
                _ => {
                    // What came meanwhile was built on what is lost.
                    let all = waiting.into_iter().chain(std::mem::take(&mut desk.waiting));
                    if let Some(state) = desk.state.take() {
                        desk.in_flight = state.in_flight();
                    }
                    // Its error is told to whoever comes next and finds the ledger closed still.
                    let _ = reopen(&mut file, &mut desk);
                    drop(file);
                    answer(all, &written);
                }
            }
        }
    }

    /// The state, read again if it has to be.
    fn opened(&self) -> Result<MutexGuard<'_, Desk>, LedgerError> {
        let desk = lock(&self.desk);
        if desk.state.is_some() {
            return Ok(desk);
        }
        drop(desk);
        let mut file = lock(&self.file);
        let mut desk = lock(&self.desk);
        if desk.state.is_none() {
            reopen(&mut file, &mut desk)?;
        }
        Ok(desk)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

// === private ===

fn answer(
    waiting: impl IntoIterator<Item = SyncSender<Result<(), LedgerError>>>,
    written: &Result<(), LedgerError>,
) {
    for caller in waiting {
        // A caller that is gone has no use for the answer.
        let _ = caller.send(written.clone());
    }
}

fn reopen(file: &mut Backing, desk: &mut Desk) -> Result<(), LedgerError> {
    let reopened = match std::mem::replace(file, Backing::Moving) {
        Backing::Open(store) => store.reopen(),
        Backing::Lost(path, open) => Store::try_open(path, open),
        Backing::Moving => return Err(LedgerError::Closed),
    };
    match reopened {
        Ok((store, mut state)) => {
            for owner in desk.in_flight.drain(..) {
                state.keep_reserved(owner);
            }
            *file = Backing::Open(store);
            desk.state = Some(Box::new(state));
            Ok(())
        }
        Err((error, path, open)) => {
            *file = Backing::Lost(path, open);
            Err(error)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
