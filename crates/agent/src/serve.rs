//! The socket that the CNI plugin calls.

use crate::metrics::Metrics;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use weft_cni::protocol::{self, Command, Reply, Request};
use weft_cni::spec::{Failure, code};
use weft_model::{UserError, codes};

/// A plugin sends its request in one piece; one that takes longer than this is stuck.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries out what a plugin asks for.
pub trait Handler: Send + Sync + 'static {
    /// `netns` is there for ADD and CHECK. `gone` tells whether the plugin has given up: it left an intent for its
    /// DEL then, and told the runtime that its ADD failed, so that neither may be carried out any more.
    fn handle(&self, request: &Request, netns: Option<OwnedFd>, gone: &dyn Fn() -> bool) -> Reply;

    /// The plugin went away before it heard that `request` succeeded, so the runtime takes it for failed.
    fn abandoned(&self, request: &Request);
}

/// Accepts plugins until the process ends, one thread each: requests are short and rarely more than a few at once.
pub fn run(listener: &UnixListener, handler: &Arc<impl Handler>, metrics: &Arc<Metrics>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Out of descriptors is the usual cause; accepting again at once would spin.
                tracing::error!(%error, "cannot accept a plugin's connection");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (handler, metrics) = (Arc::clone(handler), Arc::clone(metrics));
        let spawned = thread::Builder::new()
            .name("cni".into())
            .spawn(move || serve(&stream, handler.as_ref(), &metrics));
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread for a plugin's request");
        }
    }
}

fn serve(stream: &UnixStream, handler: &impl Handler, metrics: &Metrics) {
    if let Err(error) = protocol::authorize(stream) {
        tracing::warn!(%error, "refused a connection to the agent's socket");
        return;
    }
    let (request, netns) = match protocol::read_request(stream, REQUEST_TIMEOUT) {
        Ok(request) => request,
        Err(error) => {
            tracing::warn!(%error, "could not read a plugin's request");
            let failure = Failure::new(
                code::DECODE,
                &UserError::new(
                    codes::CNI_PROTOCOL,
                    error.to_string(),
                    "compare weft-cni VERSION with weft version",
                ),
            );
            let _ = protocol::write_reply(stream, &Reply::Failed(failure), REPLY_TIMEOUT);
            return;
        }
    };
    let started = Instant::now();
    let op = request.command.name();
    // A bug in one request must not take the agent, and with it everybody else's requests, down.
    let reply = catch_unwind(AssertUnwindSafe(|| {
        handler.handle(&request, netns, &|| protocol::is_abandoned(stream))
    }))
    .unwrap_or_else(|_| {
        Reply::Failed(Failure::new(
            code::INTERNAL,
            &UserError::new(
                codes::RECONCILE,
                format!("{op} ended in a defect of the agent"),
                "see the agent's log",
            ),
        ))
    });
    let answer = match &reply {
        Reply::Failed(failure) => failure.code,
        Reply::Added(_) | Reply::Done | Reply::Audited(_) => 0,
    };
    let took = started.elapsed();
    metrics.request(op, answer, took);
    let key = request.command.key().map(ToString::to_string).unwrap_or_default();
    let took_ms = took.as_secs_f64() * 1e3;
    match &reply {
        // Asked every few seconds; what changes in the answer is logged where it changes.
        _ if matches!(request.command, Command::Status | Command::Audit) => {
            tracing::debug!(op, code = answer, took_ms, "CNI request");
        }
        Reply::Failed(failure) => {
            tracing::warn!(
                op,
                attachment = key,
                code = answer,
                took_ms,
                error = failure.msg,
                "CNI request failed"
            );
        }
        Reply::Added(_) | Reply::Done | Reply::Audited(_) => {
            tracing::info!(op, attachment = key, took_ms, "CNI request served");
        }
    }
    if let Err(error) = protocol::write_reply(stream, &reply, REPLY_TIMEOUT) {
        tracing::warn!(op, attachment = key, %error, "the plugin left before it heard the answer");
        if answer == 0 {
            handler.abandoned(&request);
        }
    }
}
