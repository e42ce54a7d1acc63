//! Waiting for the signals with which people and systems end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};
use weft_model::{UserError, codes};

/// SIGINT, SIGTERM and SIGHUP, watched from the moment this is made.
#[derive(Debug)]
pub(crate) struct Interruption {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

// === impl Interruption ===

impl Interruption {
    pub(crate) fn watch() -> Result<Self, UserError> {
        let watch = |kind| {
            signal(kind).map_err(|error| {
                UserError::new(
                    codes::LAB_STATE,
                    format!("can't watch for signals: {error}"),
                    "try again",
                )
            })
        };
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    /// The name of the first of them that comes.
    pub(crate) async fn comes(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
