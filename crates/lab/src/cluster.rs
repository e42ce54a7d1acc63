//! What the `weft lab` commands do: check, start a daemon, ask it, remove.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use weft_kernel::NetNs;
use weft_kernel::process::{Enter, enter};
use weft_model::{TransportChoice, UserError, codes};

use crate::config::{ClusterConfig, ClusterRequest};
use crate::control::{Conversation, Event, Request};
use crate::daemon::LISTENING;
use crate::faults::FaultRequest;
use crate::machine::{Programs, kernel_error};
use crate::preflight;
use crate::remove::{Removed, remove};
use crate::report::written_down;
use crate::state::{ClusterDir, RootLock, cluster_names, exists, unusable, vnet_subnet};
use crate::status::{ClusterStatus, Phase};
use crate::supervise::CLUSTER_ENV;

/// How long a cluster may take to be there.
const CREATE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the number of nodes may take to change.
const SCALE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a daemon may take to say how its cluster is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks everything that can be checked before anything is made: the request, the name, privileges, the kernel.
///
/// # Errors
/// The first thing that stands in the way.
pub fn check(request: &ClusterRequest) -> Result<ClusterConfig, UserError> {
    let config = ClusterConfig::check(request, vnet_subnet)?;
    if cluster_names().contains(&config.name) {
        return Err(exists(&config.name));
    }
    require_root()?;
    preflight::check()?;
    Programs::find()?;
    Ok(config)
}

/// Makes a cluster and waits until all its nodes are Ready. What was made when it fails, or when the caller drops
/// the future, is left for [`delete`].
///
/// # Errors
/// The name was taken meanwhile, or a step failed.
pub async fn create(config: ClusterConfig, on_event: impl FnMut(Event)) -> Result<ClusterStatus, UserError> {
    let dir = ClusterDir::new(&config.name)?;
    RootLock::acquire()?.claim(&dir, config)?;
    let mut daemon = spawn_daemon(&dir)?;
    wait_listening(&mut daemon, &dir)?;
    let conversation = Conversation::open(dir.name(), &dir.control_socket(), &Request::Watch).await?;
    conversation
        .finish(CREATE_TIMEOUT, on_event)
        .await
        .map_err(|error| {
            if error.code() == codes::LAB_DAEMON_GONE {
                with_log(&error, &dir)
            } else {
                error
            }
        })
}

/// Removes a cluster, whatever state it is in, and all that belongs to it.
///
/// # Errors
/// There is none of that name, or something could not be removed.
pub fn delete(name: &str) -> Result<Removed, UserError> {
    require_root()?;
    remove(&ClusterDir::new(name)?)
}

/// How a cluster is; one whose daemon does not answer is [`Phase::Unreachable`].
///
/// # Errors
/// There is none of that name.
pub async fn status(name: &str) -> Result<ClusterStatus, UserError> {
    let dir = ClusterDir::new(name)?;
    let state = dir.load()?;
    let asked = match Conversation::open(name, &dir.control_socket(), &Request::Status).await {
        Ok(conversation) => conversation.finish(STATUS_TIMEOUT, |_| {}).await,
        Err(error) => Err(error),
    };
    Ok(asked.unwrap_or_else(|error| {
        let mut status = written_down(&dir, &state);
        status.phase = Phase::Unreachable;
        status.problems.push(error.message().to_owned());
        status
    }))
}

/// All clusters of this machine, by name. Half-made ones without a state are left out.
pub async fn list() -> Vec<ClusterStatus> {
    let mut found = Vec::new();
    for name in cluster_names() {
        if let Ok(status) = status(&name).await {
            found.push(status);
        }
    }
    found
}

/// Changes the number of nodes.
///
/// # Errors
/// The number is out of bounds, or a node could not be added or removed.
pub async fn scale(name: &str, count: u32, on_event: impl FnMut(Event)) -> Result<ClusterStatus, UserError> {
    ask(name, &Request::Scale { count }, SCALE_TIMEOUT, on_event).await
}

/// Breaks or mends something.
///
/// # Errors
/// There is no such node, or the fault could not be injected.
pub async fn fault(
    name: &str,
    request: FaultRequest,
    on_event: impl FnMut(Event),
) -> Result<ClusterStatus, UserError> {
    ask(name, &Request::Fault(request), SCALE_TIMEOUT, on_event).await
}

/// Has agents of a cluster get packets to other nodes in that way from now on.
///
/// # Errors
/// There is no such node, or an agent can't be started again.
pub async fn transport(
    name: &str,
    transport: TransportChoice,
    nodes: Vec<String>,
    on_event: impl FnMut(Event),
) -> Result<ClusterStatus, UserError> {
    let request = Request::Transport { transport, nodes };
    ask(name, &request, SCALE_TIMEOUT, on_event).await
}

/// Refuses to go on without the privileges that namespaces need.
///
/// # Errors
/// The caller is not root.
pub fn require_root() -> Result<(), UserError> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(());
    }
    Err(UserError::new(
        codes::NOT_ROOT,
        format!(
            "running as uid {}: making network namespaces needs root",
            uid.as_raw()
        ),
        format!("sudo {}", std::env::args().collect::<Vec<_>>().join(" ")),
    ))
}

async fn ask(
    name: &str,
    request: &Request,
    allowed: Duration,
    on_event: impl FnMut(Event),
) -> Result<ClusterStatus, UserError> {
    let dir = ClusterDir::new(name)?;
    dir.load()?;
    Conversation::open(name, &dir.control_socket(), request)
        .await?
        .finish(allowed, on_event)
        .await
}

/// Starts the daemon in a session of its own, so that the terminal's signals do not reach it.
fn spawn_daemon(dir: &ClusterDir) -> Result<Child, UserError> {
    let program =
        std::env::current_exe().map_err(|error| unusable("find", Path::new("/proc/self/exe"), &error))?;
    let log_path = dir.daemon_log();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|error| unusable("write", &log_path, &error))?;
    let mut command = Command::new(&program);
    command
        .args(["lab", "daemon", dir.name()])
        .env(CLUSTER_ENV, dir.name())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    NetNs::current()
        .and_then(|here| {
            enter(
                &mut command,
                &here,
                Enter {
                    new_session: true,
                    ..Enter::default()
                },
            )
        })
        .map_err(|error| kernel_error("the daemon", &error, "weft lab list"))?;
    command
        .spawn()
        .map_err(|error| unusable("start", &program, &error))
}

/// Waits for the daemon's word that its socket is there.
fn wait_listening(daemon: &mut Child, dir: &ClusterDir) -> Result<(), UserError> {
    let mut line = String::new();
    if let Some(stdout) = daemon.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    if line.trim_end() == LISTENING {
        return Ok(());
    }
    let ended = UserError::new(
        codes::LAB_START_FAILED,
        format!("the daemon of cluster {} ended at once", dir.name()),
        format!("weft lab create {}", dir.name()),
    );
    Err(with_log(&ended, dir))
}

/// The same error with the last words of the daemon, which are about to be removed with its log.
fn with_log(error: &UserError, dir: &ClusterDir) -> UserError {
    let last_words = tail(&dir.daemon_log()).unwrap_or_default();
    if last_words.is_empty() {
        return error.clone();
    }
    UserError::new(
        error.code(),
        format!("{}; its last words: {last_words}", error.message()),
        error.next(),
    )
}

fn tail(path: &Path) -> io::Result<String> {
    const LENGTH: u64 = 600;
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LENGTH)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().replace('\n', " | "))
}
