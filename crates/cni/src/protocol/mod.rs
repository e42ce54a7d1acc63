//! What plugin and agent say to each other over the agent's unix socket.
//!
//! One connection carries one [`Request`] and one [`Reply`]. Each is a frame:
//! the four bytes `weft`, the [`VERSION`] (16 bits, big endian), two zero bytes,
//! the length of the body (32 bits, big endian, at most [`MAX_FRAME`]), then the
//! body in JSON. A request about a live sandbox carries the descriptor of its
//! network namespace as `SCM_RIGHTS` with the frame's first byte.
//!
//! The plugin on disk and the running agent are replaced at different moments.
//! New fields are therefore optional and unknown ones ignored; [`VERSION`] moves
//! only when that can't be kept up, and the frame and [`Failure`] never change,
//! so that two unlike versions can still tell each other so.
//!
//! # Serving
//!
//! ```no_run
//! # fn handle(_: &weft_cni::protocol::Request) -> weft_cni::protocol::Reply { weft_cni::protocol::Reply::Done }
//! use std::time::{Duration, SystemTime};
//! use weft_cni::protocol::{self, ProtocolError};
//!
//! let listener = protocol::bind("/run/weft/agent.sock".as_ref())?;
//! for stream in listener.incoming() {
//!     let stream = stream?;
//!     std::thread::spawn(move || -> Result<(), ProtocolError> {
//!         protocol::authorize(&stream)?;
//!         let (request, _netns) = protocol::read_request(&stream, Duration::from_secs(5))?;
//!         protocol::write_reply(&stream, &handle(&request), Duration::from_secs(5))
//!     });
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Whatever a handler did for an ADD has to be undone if [`write_reply`] fails or
//! [`is_abandoned`] holds: the plugin has then told the runtime that the ADD failed.

mod client;
mod frame;
mod server;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_model::audit::NodeAudit;
use weft_model::{AttachmentKey, Mac};

pub use client::call;
pub(crate) use server::make_private_dir;
pub use server::{authorize, bind, is_abandoned, read_request, write_reply};

use crate::spec::AddResult;
pub use crate::spec::Failure;

/// The version of the requests and replies in a frame.
pub const VERSION: u16 = 1;

/// The longest body of a frame, in bytes. A GC that lists 10,000 attachments
/// takes about 1 MiB.
pub const MAX_FRAME: u32 = 4 << 20;

/// One CNI call, as the agent gets to see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The network's name in the CNI configuration.
    pub network: String,
    /// How long the plugin goes on waiting for the reply, in milliseconds from
    /// the moment it sent the request.
    pub wait_ms: u64,
    /// When the plugin did what, for the agent to tell where the time goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Times>,
    /// What is asked for.
    pub command: Command,
}

/// Moments of the plugin, in nanoseconds since 1970 by the wall clock, which is the same in all containers of a machine.
/// It may be set meanwhile: good for measuring, not for deciding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// It began to run.
    pub started_ns: u64,
    /// It asked for the connection.
    pub sent_ns: u64,
}

/// What the runtime asked the plugin for, or a person the agent. VERSION never leaves the plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// Attach a sandbox. Comes with the descriptor of its namespace.
    Add(Add),
    /// Compare a sandbox with what ADD made of it. Comes with the descriptor.
    Check(Check),
    /// Detach a sandbox; one that isn't attached is a success.
    Del(Del),
    /// Remove the attachments that are not valid any more.
    Gc(Gc),
    /// Say whether an ADD would succeed.
    Status,
    /// Compare the node with what it should be. Asked by `weft audit`, never by a runtime.
    Audit,
}

/// See [`Command::Add`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Add {
    /// Names the attachment, in every later call too.
    pub key: AttachmentKey,
    /// Where the descriptor was opened.
    pub netns: Netns,
    /// The pod, as far as the runtime named it.
    #[serde(default)]
    pub pod: Pod,
    /// The configuration's `runtimeConfig`, as the runtime filled it in.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub runtime_config: Map<String, Value>,
    /// The result of the plugins before this one in the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<AddResult>,
}

/// See [`Command::Check`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Names the attachment.
    pub key: AttachmentKey,
    /// Where the descriptor was opened.
    pub netns: Netns,
    /// The pod, as far as the runtime named it.
    #[serde(default)]
    pub pod: Pod,
    /// The result of the ADD's whole chain. What later plugins added to it or
    /// changed in it is none of our business.
    pub prev_result: AddResult,
}

/// See [`Command::Del`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Del {
    /// Names the attachment.
    pub key: AttachmentKey,
    /// The pod, as far as the runtime named it. For logs: a DEL is answered by
    /// its key alone.
    #[serde(default)]
    pub pod: Pod,
}

/// See [`Command::Gc`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    /// The attachments that the runtime calls valid.
    ///
    /// `Some` of an empty list says that none is. `None` says that the runtime
    /// gave no list (`cnitool gc`): then only attachments whose namespace is
    /// gone may be removed.
    pub valid: Option<Vec<AttachmentKey>>,
}

/// A network namespace as the runtime named it. Which one it is, is said by the
/// descriptor; the path may stand for another namespace by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// `CNI_NETNS`.
    pub path: PathBuf,
    /// Device number of the nsfs file.
    pub dev: u64,
    /// Inode number of the nsfs file; with `dev` it identifies the namespace
    /// for as long as that lives (`namespaces(7)`).
    pub ino: u64,
}

/// What Kubernetes runtimes say about a pod in `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `K8S_POD_UID`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infra_container_id: Option<String>,
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// An ADD succeeded.
    Added(Attached),
    /// Any other command succeeded.
    Done,
    /// What an audit found.
    Audited(NodeAudit),
    /// The command failed.
    Failed(Failure),
}

/// What an ADD made. The plugin makes the CNI result from it, in the version
/// that the runtime speaks and merged with the result of earlier plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Name of the host's end of the veth pair.
    pub host_if_name: String,
    /// Ethernet address of the host's end.
    pub host_mac: Mac,
    /// Ethernet address of the pod's end. (Its name is the key's.)
    pub pod_mac: Mac,
    /// MTU of both ends and of the pod's default routes, in bytes.
    pub mtu: u32,
    /// The pod's addresses, at most one of each family.
    pub addresses: Vec<PodAddress>,
}

/// One address of a pod, a /32 or /128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// The address.
    pub address: IpAddr,
    /// Where the default route of its family points.
    pub gateway: IpAddr,
}

/// Why plugin and agent did not understand each other.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Nobody listens at the socket, or it does not exist.
    #[error("connect to the agent's socket {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The time for the whole exchange is over.
    #[error("{operation}: no answer in {} s", waited.as_secs_f32())]
    TimedOut {
        /// What was being waited for.
        operation: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The peer closed the connection in the middle, or before saying anything.
    #[error("{operation}: the connection ended after {got} of {want} bytes")]
    Closed {
        /// What was being done.
        operation: &'static str,
        /// Bytes received of this part.
        got: usize,
        /// Bytes this part should have.
        want: usize,
    },
    /// The operating system refused.
    #[error("{operation}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The bytes are no frame.
    #[error("the peer's message starts with {0:02x?} and not with \"weft\"")]
    Magic([u8; 4]),
    /// The frame is of another version.
    #[error("the peer speaks version {0} of the plugin protocol, this side version {VERSION}")]
    Version(u16),
    /// The frame's body is longer than [`MAX_FRAME`].
    #[error("a message of {0} bytes is longer than the {MAX_FRAME} bytes allowed")]
    TooLong(usize),
    /// The frame's body is not what was expected.
    #[error("decode the peer's message: {0}")]
    Body(#[from] serde_json::Error),
    /// A request that needs a namespace came without a descriptor.
    #[error("the request came without the descriptor of a network namespace")]
    NetnsMissing,
    /// The peer is neither root nor the user this process runs as.
    #[error("the peer runs as user {uid} (process {pid}), only root may use this socket")]
    Peer {
        /// The peer's user.
        uid: u32,
        /// The peer's process.
        pid: i32,
    },
}

// === impl Times ===

impl Times {
    /// The clock's reading.
    pub fn now_ns() -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

// === impl Command ===

impl Command {
    /// The CNI command's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Check(_) => "CHECK",
            Self::Del(_) => "DEL",
            Self::Gc(_) => "GC",
            Self::Status => "STATUS",
            Self::Audit => "AUDIT",
        }
    }

    /// The attachment that the command is about; the others are about all.
    pub fn key(&self) -> Option<&AttachmentKey> {
        match self {
            Self::Add(add) => Some(&add.key),
            Self::Check(check) => Some(&check.key),
            Self::Del(del) => Some(&del.key),
            Self::Gc(_) | Self::Status | Self::Audit => None,
        }
    }

    fn needs_netns(&self) -> bool {
        matches!(self, Self::Add(_) | Self::Check(_))
    }
}

// === impl ProtocolError ===

impl ProtocolError {
    /// Whether the request has certainly not reached an agent.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

/// A descriptor to pass along with a request.
type Passed<'fd> = Option<BorrowedFd<'fd>>;

#[cfg(test)]
mod tests;
