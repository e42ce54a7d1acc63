//! What the `weft` command and a cluster's daemon say to each other over the daemon's socket: one request line,
//! then event lines until the last, each a JSON object.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use weft_model::{Code, TransportChoice, UserError, codes};

use crate::faults::FaultRequest;
use crate::status::ClusterStatus;

/// What is asked of a daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Tell the steps of bringing the cluster up, past and future, until all nodes are Ready.
    Watch,
    /// The cluster as it is now.
    Status,
    /// Have that many nodes.
    Scale {
        /// The number of nodes there shall be.
        count: u32,
    },
    /// Break or mend something.
    Fault(FaultRequest),
    /// Start agents again with another transport.
    Transport {
        /// What they are told.
        transport: TransportChoice,
        /// On which nodes; all, where none is named.
        nodes: Vec<String>,
    },
}

/// What a daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A step has begun or ended.
    Step(Step),
    /// Something worth a line.
    Note {
        /// The line.
        text: String,
    },
    /// The last event: the request was carried out.
    Done {
        /// The cluster afterwards.
        status: Box<ClusterStatus>,
    },
    /// The last event: it was not.
    Failed(Failure),
}

/// A step of a long action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is done, in words; with `done` the same words again.
    pub what: String,
    /// What came of it so far, such as an address or `1/2`.
    pub detail: String,
    /// How long it took, in milliseconds, once it has ended.
    pub done_ms: Option<u64>,
}

/// A [`UserError`] on its way between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    code: String,
    message: String,
    next: String,
}

/// The client's end of a conversation.
#[derive(Debug)]
pub struct Conversation {
    cluster: String,
    events: BufReader<UnixStream>,
}

// === impl Failure ===

impl From<&UserError> for Failure {
    fn from(error: &UserError) -> Self {
        Self {
            code: error.code().to_string(),
            message: error.message().to_owned(),
            next: error.next().to_owned(),
        }
    }
}

impl From<Failure> for UserError {
    fn from(failure: Failure) -> Self {
        let code = failure.code.parse::<Code>().unwrap_or(codes::LAB_START_FAILED);
        UserError::new(code, failure.message, failure.next)
    }
}

// === impl Conversation ===

impl Conversation {
    /// Asks the daemon of the cluster behind `socket`.
    ///
    /// # Errors
    /// Nothing listens there.
    pub async fn open(cluster: &str, socket: &Path, request: &Request) -> Result<Self, UserError> {
        let gone = |error: std::io::Error| gone(cluster, &error);
        let mut stream = UnixStream::connect(socket).await.map_err(gone)?;
        let mut line = serde_json::to_vec(request).map_err(|error| gone(error.into()))?;
        line.push(b'\n');
        stream.write_all(&line).await.map_err(gone)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            events: BufReader::new(stream),
        })
    }

    /// The next event.
    ///
    /// # Errors
    /// The daemon ended before its last event.
    pub async fn next(&mut self) -> Result<Event, UserError> {
        let mut line = String::new();
        match self.events.read_line(&mut line).await {
            Ok(0) => Err(gone(&self.cluster, &"it ended in mid-sentence")),
            Ok(_) => serde_json::from_str(&line).map_err(|error| gone(&self.cluster, &error)),
            Err(error) => Err(gone(&self.cluster, &error)),
        }
    }

    /// The last event's status, each event before it given to `on_event`.
    ///
    /// # Errors
    /// The request was not carried out, or the daemon ended.
    pub async fn finish(
        mut self,
        allowed: Duration,
        mut on_event: impl FnMut(Event),
    ) -> Result<ClusterStatus, UserError> {
        let conversation = async {
            loop {
                match self.next().await? {
                    Event::Done { status } => return Ok(*status),
                    Event::Failed(failure) => return Err(failure.into()),
                    event => on_event(event),
                }
            }
        };
        match tokio::time::timeout(allowed, conversation).await {
            Ok(outcome) => outcome,
            Err(_) => Err(UserError::new(
                codes::LAB_TIMEOUT,
                format!(
                    "cluster {} did not finish within {} s",
                    self.cluster,
                    allowed.as_secs()
                ),
                format!("weft lab status {}", self.cluster),
            )),
        }
    }
}

/// Reads the one request of a connection; `None` where the peer said nothing that makes sense.
pub(crate) async fn read_request(stream: UnixStream) -> Option<(Request, OwnedWriteHalf)> {
    let (read, write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await.ok()?;
    Some((serde_json::from_str(&line).ok()?, write))
}

/// Writes one event; `false` where the peer has gone.
pub(crate) async fn write_event(to: &mut OwnedWriteHalf, event: &Event) -> bool {
    let Ok(mut line) = serde_json::to_vec(event) else {
        return false;
    };
    line.push(b'\n');
    to.write_all(&line).await.is_ok()
}

fn gone(cluster: &str, cause: &dyn std::fmt::Display) -> UserError {
    UserError::new(
        codes::LAB_DAEMON_GONE,
        format!("the daemon of cluster {cluster} does not answer: {cause}"),
        format!("weft lab delete {cluster}"),
    )
}
