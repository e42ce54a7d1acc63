//! Asking the agent, and what to say when it doesn't answer.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use weft_model::{AttachmentKey, UserError, codes};

use super::Call;
use crate::intent::{Intent, Intents};
use crate::protocol::{self, Command, Pod, ProtocolError, Reply, Request, Times};
use crate::spec::{Failure, code};

/// How long the agent may take. A runtime's own patience is usually two minutes.
pub(super) const ADD: Duration = Duration::from_secs(60);
/// Includes the time that a freshly made attachment needs to settle.
pub(super) const CHECK: Duration = Duration::from_secs(10);
pub(super) const GC: Duration = Duration::from_secs(60);
/// A runtime asks every few seconds.
pub(super) const STATUS: Duration = Duration::from_secs(5);
/// Together with [`INTENT`] below the two seconds that a DEL may take.
pub(super) const DEL: Duration = Duration::from_millis(1200);
const INTENT: Duration = Duration::from_millis(500);

// === impl Call ===

impl Call {
    pub(super) fn ask(
        &self,
        command: Command,
        netns: Option<&File>,
        allowed: Duration,
    ) -> Result<Reply, ProtocolError> {
        let allowed = self.conf.timeout.map_or(allowed, |limit| limit.min(allowed));
        let request = Request {
            network: self.conf.name.clone(),
            wait_ms: u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX),
            times: Some(Times {
                started_ns: self.started_ns,
                sent_ns: Times::now_ns(),
            }),
            command,
        };
        protocol::call(&self.conf.socket, &request, netns.map(AsFd::as_fd), allowed)
    }

    /// The failure to report when [`Call::ask`] failed: `passing` if the agent may
    /// well answer the next time.
    pub(super) fn unreachable(&self, error: &ProtocolError, passing: u32) -> Failure {
        let socket = self.conf.socket.display();
        let message = match error {
            ProtocolError::Connect { source, .. } => {
                format!("the node's agent can't be reached: connect to {socket}: {source}")
            }
            ProtocolError::TimedOut { .. } | ProtocolError::Closed { .. } | ProtocolError::Io { .. } => {
                format!("the node's agent at {socket} gave no answer: {error}")
            }
            other => return disagreement(&format!("agent at {socket}: {other}")),
        };
        let next = "pgrep -af 'weft agent' (no line: it is not running on this node)";
        Failure::new(passing, &UserError::new(codes::AGENT_UNREACHABLE, message, next))
    }

    /// Leaves a note for the agent, in half a second or not at all.
    pub(super) fn leave_intent(&mut self, key: AttachmentKey, pod: Pod, why: &str) {
        let intents = Intents::at(&self.conf.intent_dir);
        let intent = Intent {
            key,
            network: self.conf.name.clone(),
            pod,
        };
        let subject = format!("DEL of {}: {why}", intent.key);
        let written = within(INTENT, move || intents.leave(&intent));
        let directory = self.conf.intent_dir.display();
        let lost = match written {
            Some(Ok(())) => {
                self.notes
                    .push(format!("{subject}; left an intent in {directory} for the agent"));
                return;
            }
            Some(Err(error)) => error.to_string(),
            None => format!("the disk did not answer in {} s", INTENT.as_secs_f32()),
        };
        let message = format!("{subject}; no intent could be left in {directory}: {lost}");
        let next = "run the runtime's CNI GC (cnitool gc) once the agent answers";
        self.notes
            .push(UserError::new(codes::CNI_INTENT, message, next).to_string());
    }
}

/// Plugin and agent do not understand each other.
pub(super) fn disagreement(message: &str) -> Failure {
    let next = "CNI_COMMAND= weft-cni; weft --version (both have to be of one release)";
    Failure::new(
        code::INTERNAL,
        &UserError::new(codes::CNI_PROTOCOL, message, next),
    )
}

/// Runs `work` on a thread of its own and stops waiting for it after `allowed`. A system
/// call on a dead disk can't be interrupted; the thread then ends with the process.
pub(super) fn within<T: Send + 'static>(
    allowed: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || sender.send(work())).ok()?;
    receiver.recv_timeout(allowed).ok()
}
