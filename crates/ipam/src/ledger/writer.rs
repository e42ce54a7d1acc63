//! The one thread that owns the ledger: steps of many callers, one commit.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::thread::{self, JoinHandle};

use super::error::LedgerError;
use super::record::Attachment;
use super::state::{Now, State};
use super::store::{Open, Store};
use crate::clock::Clock;

/// How many steps share a commit at most: bounds how long the first waits.
const MAX_BATCH: usize = 1024;

/// A caller's step. Runs on the writer's thread, on the state or on the reason
/// why there is none; what it returns is run once the batch is durable or lost.
type Step = Box<dyn FnOnce(Result<(&mut State, &Now), LedgerError>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), LedgerError>) + Send>;

#[derive(Debug)]
pub(super) struct Writer {
    steps: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

struct Request(Step);

struct Worker {
    clock: Arc<dyn Clock>,
    ledger: Backing,
    /// Reservations to be taken over by the state that is read next: the file does not have them.
    in_flight: Vec<Attachment>,
}

enum Backing {
    Open(Store, Box<State>),
    /// The file could not be opened again after a failed write; the next step tries.
    Lost(PathBuf, Open),
    /// Only while one becomes the other.
    Moving,
}

// === impl Writer ===

impl Writer {
    pub(super) fn start(clock: Arc<dyn Clock>, store: Store, state: State) -> std::io::Result<Self> {
        let (steps, requests) = std::sync::mpsc::channel();
        let mut worker = Worker {
            clock,
            ledger: Backing::Open(store, Box::new(state)),
            in_flight: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || worker.run(&requests))?;
        Ok(Self {
            steps: Some(steps),
            thread: Some(thread),
        })
    }

    /// Runs `step` on the writer's thread; returns when what it changed, and
    /// all that it has seen, is durable.
    pub(super) fn call<T, F>(&self, step: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&mut State, &Now) -> Result<T, LedgerError> + Send + 'static,
    {
        let (reply, answer) = sync_channel(1);
        let step: Step = Box::new(move |ledger| {
            let outcome = ledger.and_then(|(state, now)| step(state, now));
            Box::new(move |written| {
                // A caller that is gone has no use for the answer.
                let _ = reply.send(written.and(outcome));
            })
        });
        self.steps
            .as_ref()
            .and_then(|steps| steps.send(Request(step)).ok())
            .ok_or(LedgerError::Closed)?;
        answer.recv().map_err(|_| LedgerError::Closed)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.steps.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Worker ===

impl Worker {
    fn run(&mut self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut batch = vec![first];
            batch.extend(requests.try_iter().take(MAX_BATCH - 1));
            self.serve(batch);
        }
    }

    fn serve(&mut self, batch: Vec<Request>) {
        let now = Now {
            moment: self.clock.now(),
            wall: self.clock.wall(),
        };
        let (store, state) = match self.opened() {
            Ok(opened) => opened,
            Err(error) => {
                for Request(step) in batch {
                    step(Err(error.clone()))(Err(error.clone()));
                }
                return;
            }
        };
        state.begin();
        let answers: Vec<Answer> = batch
            .into_iter()
            .map(|Request(step)| step(Ok((state, &now))))
            .collect();
        let changes = state.take_changes();
        let written = changes.map_or(Ok(()), |changes| store.write(state, &changes));
        if written.is_err() {
            self.in_flight = state.in_flight();
            self.reopen();
        }
        for answer in answers {
            answer(written.clone());
        }
    }

    /// The ledger, opened again if it has to be.
    fn opened(&mut self) -> Result<(&Store, &mut State), LedgerError> {
        if let Backing::Lost(..) = self.ledger
            && let Some(error) = self.reopen()
        {
            return Err(error);
        }
        let Backing::Open(store, state) = &mut self.ledger else {
            return Err(LedgerError::Closed);
        };
        Ok((store, state))
    }

    fn reopen(&mut self) -> Option<LedgerError> {
        let reopened = match std::mem::replace(&mut self.ledger, Backing::Moving) {
            Backing::Open(store, _) => store.reopen(),
            Backing::Lost(path, open) => Store::try_open(path, open),
            Backing::Moving => return Some(LedgerError::Closed),
        };
        match reopened {
            Ok((store, mut state)) => {
                for owner in self.in_flight.drain(..) {
                    state.keep_reserved(owner);
                }
                self.ledger = Backing::Open(store, Box::new(state));
                None
            }
            Err((error, path, open)) => {
                self.ledger = Backing::Lost(path, open);
                Some(error)
            }
        }
    }
}
