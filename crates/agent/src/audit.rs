//! Audits on demand. The thread that keeps the kernel carries them out, before it repairs anything: what is wrong at
//! that moment is named, and nothing is looked at half repaired.

use crate::keep::Wake;
use std::fmt;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use weft_model::audit::NodeAudit;
use weft_model::{UserError, codes};

type Answer = Result<NodeAudit, UserError>;

/// Where audits are asked for and answered.
pub struct Desk {
    waker: Sender<Wake>,
    waiting: Mutex<Vec<SyncSender<Answer>>>,
}

// === impl Desk ===

impl Desk {
    pub fn new(waker: Sender<Wake>) -> Self {
        Self {
            waker,
            waiting: Mutex::default(),
        }
    }

    /// Asks for an audit and waits for it, `patience` at most.
    ///
    /// # Errors
    /// [`codes::AGENT_NOT_READY`] where there is nothing to compare with yet or the keeper is stuck, and what keeps the
    /// kernel from being read.
    pub fn ask(&self, patience: Duration) -> Answer {
        let answer = self.register();
        let late = || {
            UserError::new(
                codes::AGENT_NOT_READY,
                format!(
                    "the agent did not come to an audit in {} s",
                    patience.as_secs_f32()
                ),
                "see the agent's log",
            )
        };
        if self.waker.send(Wake::Audit).is_err() {
            return Err(late());
        }
        answer.recv_timeout(patience).unwrap_or_else(|_| Err(late()))
    }

    fn register(&self) -> Receiver<Answer> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sender);
        receiver
    }

    /// Answers everybody who waits with one audit.
    pub fn answer(&self, audit: impl FnOnce() -> Answer) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if waiting.is_empty() {
            return;
        }
        let answer = audit();
        for asker in waiting {
            // One that lost patience is gone.
            let _ = asker.try_send(answer.clone());
        }
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}
