//! The socket that the CNI plugin calls.

use crate::metrics::Metrics;
use crate::steps::{Step, Steps};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use weft_cni::protocol::{self, Command, Reply, Request, Times};
use weft_cni::spec::{Failure, code};
use weft_model::{UserError, codes};

/// A plugin sends its request in one piece; one that takes longer than this is stuck.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// A request that takes longer than this is worth a warning that says where the time went.
const SLOW: Duration = Duration::from_secs(1);
/// The longest that a request is believed to have been on its way.
const MAX_TRAVEL: Duration = Duration::from_secs(60);

/// Carries out what a plugin asks for.
pub trait Handler: Send + Sync + 'static {
    /// `netns` is there for ADD and CHECK. `gone` tells whether the plugin has given up: it left an intent for its
    /// DEL then, and told the runtime that its ADD failed, so that neither may be carried out any more.
    /// Says in `steps` where the time goes.
    fn handle(
        &self,
        request: &Request,
        netns: Option<OwnedFd>,
        gone: &dyn Fn() -> bool,
        steps: &Steps,
    ) -> Reply;

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
        let steps = Steps::begin();
        let spawned = thread::Builder::new()
            .name("cni".into())
            .spawn(move || serve(&stream, handler.as_ref(), &metrics, steps));
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread for a plugin's request");
        }
    }
}

fn serve(stream: &UnixStream, handler: &impl Handler, metrics: &Metrics, steps: Steps) {
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
    received(&steps, request.times);
    let op = request.command.name();
    // A bug in one request must not take the agent, and with it everybody else's requests, down.
    let reply = catch_unwind(AssertUnwindSafe(|| {
        handler.handle(&request, netns, &|| protocol::is_abandoned(stream), &steps)
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
    steps.done(Step::Rest);
    let answer = code_of(&reply);
    // Whoever waits for the answer gets it before it is told of.
    let heard = protocol::write_reply(stream, &reply, REPLY_TIMEOUT);
    steps.done(Step::Answer);
    log(&request, &reply, &steps);
    metrics.request(op, answer, steps);
    if let Err(error) = heard {
        let attachment = request.command.key().map(ToString::to_string);
        tracing::warn!(op, attachment, %error, "the plugin left before it heard the answer");
        if answer == 0 {
            handler.abandoned(&request);
        }
    }
}

/// Ends the step of receiving. Where the plugin says when it sent the request, what went before is told too.
fn received(steps: &Steps, times: Option<Times>) {
    let since = |earlier: u64, later: u64| {
        let between = Duration::from_nanos(later.checked_sub(earlier)?);
        // More means that the clock was set.
        (between < MAX_TRAVEL).then_some(between)
    };
    let told = times.and_then(|times| {
        Some((
            since(times.started_ns, times.sent_ns)?,
            since(times.sent_ns, Times::now_ns())?,
        ))
    });
    match told {
        Some((plugin, travel)) => {
            steps.note(Step::Plugin, plugin);
            steps.restart();
            steps.note(Step::Receive, travel);
        }
        None => steps.done(Step::Receive),
    }
}

fn log(request: &Request, reply: &Reply, steps: &Steps) {
    let op = request.command.name();
    let attachment = request.command.key().map(ToString::to_string);
    let took = steps.total();
    let took_ms = took.as_secs_f64() * 1e3;
    match reply {
        Reply::Failed(failure) if !is_asked_often(&request.command) => {
            tracing::warn!(op, attachment, code = failure.code, took_ms, %steps, error = failure.msg, "CNI request failed");
        }
        _ if is_asked_often(&request.command) => {
            let code = code_of(reply);
            tracing::debug!(op, code, took_ms, %steps, "CNI request");
        }
        _ if took >= SLOW => {
            tracing::warn!(op, attachment, took_ms, %steps, "CNI request served, but slowly");
        }
        _ => tracing::info!(op, attachment, took_ms, %steps, "CNI request served"),
    }
}

/// Every few seconds; what changes in the answer is logged where it changes.
fn is_asked_often(command: &Command) -> bool {
    matches!(command, Command::Status | Command::Audit)
}

fn code_of(reply: &Reply) -> u32 {
    match reply {
        Reply::Failed(failure) => failure.code,
        Reply::Added(_) | Reply::Done | Reply::Audited(_) => 0,
    }
}
