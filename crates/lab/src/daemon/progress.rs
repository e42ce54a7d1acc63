//! The steps of bringing a cluster up.

use std::time::Instant;

use tokio::sync::{mpsc, watch};
use weft_model::UserError;

use super::{lost, millis};
use crate::control::{Event, Step};

/// The steps of bringing the cluster up, for whoever asks, whenever.
#[derive(Debug, Default)]
pub(super) struct Progress {
    log: watch::Sender<ProgressLog>,
}

#[derive(Clone, Debug, Default)]
struct ProgressLog {
    steps: Vec<Step>,
    outcome: Option<Result<(), UserError>>,
}

// === impl Progress ===

impl Progress {
    pub(super) fn begin(&self, what: &'static str, detail: String) -> OpenStep<'_> {
        let step = Step {
            what: what.to_owned(),
            detail,
            done_ms: None,
        };
        self.log.send_modify(|log| log.steps.push(step));
        OpenStep {
            progress: self,
            began: Instant::now(),
        }
    }

    /// What came of it; `None` while it goes on.
    pub(super) fn outcome(&self) -> Option<Result<(), UserError>> {
        self.log.borrow().outcome.clone()
    }

    /// Says that no step follows.
    pub(super) fn finish(&self, outcome: Result<(), UserError>) {
        self.log.send_modify(|log| log.outcome = Some(outcome));
    }

    /// Tells all steps, those to come too, and returns the outcome.
    pub(super) async fn tell(&self, events: &mpsc::UnboundedSender<Event>) -> Result<(), UserError> {
        let mut log = self.log.subscribe();
        let mut told: Vec<Step> = Vec::new();
        loop {
            let now = log.borrow_and_update().clone();
            for (at, step) in now.steps.iter().enumerate() {
                if told.get(at) != Some(step) {
                    let _ = events.send(Event::Step(step.clone()));
                }
            }
            told = now.steps;
            if let Some(outcome) = now.outcome {
                return outcome;
            }
            if log.changed().await.is_err() {
                return Err(lost("the cluster's progress"));
            }
        }
    }
}

/// The step that is under way.
pub(super) struct OpenStep<'a> {
    progress: &'a Progress,
    began: Instant,
}

// === impl OpenStep ===

impl OpenStep<'_> {
    pub(super) fn detail(&self, detail: String) {
        self.change(|step| step.detail = detail);
    }

    pub(super) fn end(self) {
        let done = millis(self.began);
        self.change(|step| step.done_ms = Some(done));
    }

    fn change(&self, change: impl FnOnce(&mut Step)) {
        self.progress.log.send_modify(|log| {
            if let Some(step) = log.steps.last_mut() {
                change(step);
            }
        });
    }
}
