//! Processes that are started again when they end, as a DaemonSet's pods are.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use weft_kernel::NetNs;
use weft_kernel::process::{Enter, ProcessId, Signal, enter};

/// The environment variable that every process of a cluster has, with the cluster's name: what `lab delete` takes
/// for proof that a process is the cluster's.
pub const CLUSTER_ENV: &str = "WEFT_LAB_CLUSTER";

/// How to start a process of a cluster.
#[derive(Debug)]
pub(crate) struct ProcessSpec {
    /// What to call it in logs.
    pub what: String,
    /// Name of the cluster.
    pub cluster: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it runs; in the daemon's own namespace where absent.
    pub netns: Option<NetNs>,
    /// Takes its standard output and error.
    pub log: PathBuf,
}

/// A process that is kept running until `stop`.
#[derive(Clone, Debug)]
pub(crate) struct Supervised {
    shared: Arc<Shared>,
    now: watch::Receiver<ProcessNow>,
}

/// A supervised process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessNow {
    /// Its identity while it runs.
    pub id: Option<ProcessId>,
    /// How often it was started again.
    pub restarts: u32,
}

#[derive(Debug)]
struct Shared {
    spec: ProcessSpec,
    /// Arguments of the next start.
    args: Mutex<Vec<String>>,
    stop: CancellationToken,
    held: Mutex<Held>,
    hold_changed: Notify,
}

/// Whether a fault keeps the process from being started again.
#[derive(Clone, Copy, Debug)]
enum Held {
    No,
    Until(Instant),
    UntilReleased,
}

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// A process that lived that long starts anew with the shortest backoff.
const LIVED_WELL: Duration = Duration::from_secs(10);

// === impl Supervised ===

impl Supervised {
    /// Starts the process and keeps it running until `stop` is cancelled, which also ends it.
    ///
    /// # Errors
    /// The program can't be started the first time.
    pub(crate) fn start(spec: ProcessSpec, stop: CancellationToken) -> io::Result<Self> {
        let child = spawn(&spec, &spec.args)?;
        let (send, now) = watch::channel(ProcessNow {
            id: identity(&child),
            restarts: 0,
        });
        let shared = Arc::new(Shared {
            args: Mutex::new(spec.args.clone()),
            spec,
            stop,
            held: Mutex::new(Held::No),
            hold_changed: Notify::new(),
        });
        tokio::spawn(keep_running(Arc::clone(&shared), child, send));
        Ok(Self { shared, now })
    }

    /// The process at this moment.
    pub(crate) fn now(&self) -> ProcessNow {
        *self.now.borrow()
    }

    /// The process as it comes and goes.
    pub(crate) fn watch(&self) -> watch::Receiver<ProcessNow> {
        self.now.clone()
    }

    /// Kills the process and keeps it from being started again for `duration`, or until [`release`](Self::release).
    pub(crate) fn kill_and_hold(&self, duration: Option<Duration>) -> io::Result<()> {
        self.set_held(duration.map_or(Held::UntilReleased, |duration| {
            Held::Until(Instant::now() + duration)
        }));
        self.signal(Signal::KILL)
    }

    /// Lets the process be started again.
    pub(crate) fn release(&self) {
        self.set_held(Held::No);
    }

    /// Ends the process and starts it again with other arguments; returns when it runs.
    pub(crate) async fn restart_with(&self, args: Vec<String>) -> io::Result<()> {
        *self.shared.args.lock().unwrap_or_else(PoisonError::into_inner) = args;
        let before = self.now().restarts;
        self.signal(Signal::TERM)?;
        // A process that is stopped for good has no next start, and its sender is gone.
        let _ = self
            .watch()
            .wait_for(|now| now.restarts > before && now.id.is_some())
            .await;
        Ok(())
    }

    /// Sends the process a signal; one that does not run gets none.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        if let Some(id) = self.now().id {
            id.signal(signal)?;
        }
        Ok(())
    }

    /// Waits until the process has ended for good, after `stop`.
    pub(crate) async fn ended(&self) {
        let mut now = self.now.clone();
        // The sender goes with the task that keeps the process running.
        while now.changed().await.is_ok() {}
    }

    fn set_held(&self, held: Held) {
        *self.shared.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        self.shared.hold_changed.notify_one();
    }
}

// === impl Shared ===

impl Shared {
    fn is_held(&self) -> bool {
        !matches!(
            *self.held.lock().unwrap_or_else(PoisonError::into_inner),
            Held::No
        )
    }

    /// Returns when nothing keeps the process from being started.
    async fn released(&self) {
        loop {
            let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
            match held {
                Held::No => return,
                Held::Until(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(left) => {}
                        () = self.hold_changed.notified() => {}
                    }
                }
                Held::UntilReleased => self.hold_changed.notified().await,
            }
        }
    }
}

async fn keep_running(shared: Arc<Shared>, mut child: tokio::process::Child, now: watch::Sender<ProcessNow>) {
    let what = &shared.spec.what;
    let mut backoff = FIRST_BACKOFF;
    loop {
        let started = Instant::now();
        tokio::select! {
            () = shared.stop.cancelled() => {
                end(&mut child).await;
                return;
            }
            outcome = child.wait() => {
                now.send_modify(|now| now.id = None);
                match outcome {
                    Ok(status) => tracing::warn!(process = what, %status, "a process of the cluster ended"),
                    Err(error) => tracing::warn!(process = what, %error, "can't wait for a process"),
                }
            }
        }
        if started.elapsed() >= LIVED_WELL {
            backoff = FIRST_BACKOFF;
        }
        child = loop {
            tokio::select! {
                () = shared.stop.cancelled() => return,
                () = async {
                    // Somebody who held it, or lets it go, wants it back now.
                    if shared.is_held() {
                        backoff = FIRST_BACKOFF;
                    } else {
                        tokio::select! {
                            () = tokio::time::sleep(backoff) => {}
                            () = shared.hold_changed.notified() => {}
                        }
                    }
                    shared.released().await;
                } => {}
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
            let args = shared.args.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match spawn(&shared.spec, &args) {
                Ok(child) => break child,
                Err(error) => tracing::error!(process = what, %error, "can't start a process again"),
            }
        };
        let id = identity(&child);
        now.send_modify(|now| {
            *now = ProcessNow {
                id,
                restarts: now.restarts + 1,
            }
        });
        tracing::info!(process = what, "started a process again");
    }
}

/// Ends a child: at once where it is frozen or slow, for everything it keeps is about to go.
async fn end(child: &mut tokio::process::Child) {
    if let Some(id) = identity(child) {
        let _ = id.signal(Signal::TERM);
        // A stopped process takes the signal only when it goes on.
        let _ = id.signal(Signal::CONT);
    }
    if tokio::time::timeout(Duration::from_millis(500), child.wait())
        .await
        .is_err()
    {
        let _ = child.kill().await;
    }
}

fn identity(child: &tokio::process::Child) -> Option<ProcessId> {
    child.id().and_then(|pid| ProcessId::of(pid).ok())
}

fn spawn(spec: &ProcessSpec, args: &[String]) -> io::Result<tokio::process::Child> {
    let log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
    let mut command = Command::new(&spec.program);
    command
        .args(args)
        .env(CLUSTER_ENV, &spec.cluster)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if let Some(netns) = &spec.netns {
        enter(&mut command, netns, Enter::default())?;
    }
    tokio::process::Command::from(command).spawn()
}
