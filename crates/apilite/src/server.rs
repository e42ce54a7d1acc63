//! Listeners, connections, and the handle callers hold.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::core::{Builder, Core};
use crate::faults::Faults;
use crate::store::RevisionError;

/// Body of every answer; watches stream, the rest is at hand.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A running in-memory API. Clones are handles of the same server; when the last one is dropped, it
/// stops as with [`ApiServer::shutdown`], without waiting.
#[derive(Clone, Debug)]
pub struct ApiServer {
    core: Arc<Core>,
    _stop: Arc<DropGuard>,
}

/// Why the past can't be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewindError {
    /// Compaction, or the watch window, has taken it.
    #[error("history reaches back to resource version {oldest} only")]
    Compacted {
        /// The oldest one that can be restored.
        oldest: u64,
    },
    /// It has not been reached.
    #[error("the newest resource version is {current}")]
    Future {
        /// The newest one.
        current: u64,
    },
}

// === impl ApiServer ===

impl ApiServer {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let stop = Arc::new(core.closing.clone().drop_guard());
        core.start_housekeeping();
        Self { core, _stop: stop }
    }

    /// Settings to start from.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Serves HTTP on a listener, besides those already served; returns its address. The listener may
    /// belong to another network namespace than the caller's.
    ///
    /// # Errors
    /// The listener can't be made non-blocking or registered with the runtime.
    pub fn serve(&self, listener: std::net::TcpListener) -> std::io::Result<SocketAddr> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(accept(core, listener));
        Ok(address)
    }

    /// Answers one request in process, as if it had come over a connection.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        crate::http::answer(&self.core, request).await
    }

    /// Faults that tests switch on.
    pub fn faults(&self) -> &Faults {
        &self.core.faults
    }

    /// Forgets all history, as etcd's compaction does: watches and lists from a revision before now are
    /// answered 410 Expired. Running watches that are up to date go on.
    pub fn compact(&self) {
        self.core.store.compact();
    }

    /// Puts every object back to what it was at an earlier resource version, and forgets all history, as a restored
    /// backup does. Types that were defined since stay known.
    ///
    /// # Errors
    /// History does not reach back so far, or `revision` never was. Nothing has changed then.
    pub fn rewind(&self, revision: u64) -> Result<(), RewindError> {
        self.core.rewind(revision)?;
        self.core.faults.expire_watches();
        Ok(())
    }

    /// The newest resource version.
    pub fn revision(&self) -> u64 {
        self.core.store.revision()
    }

    /// Stops listening, ends all watches, lets requests under way finish, and waits for that.
    pub async fn shutdown(&self) {
        self.core.closing.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }
}

async fn accept(core: Arc<Core>, listener: tokio::net::TcpListener) {
    let closing: CancellationToken = core.closing.clone();
    loop {
        let stream = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: others have to be closed first.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        core.tasks.spawn(connection(Arc::clone(&core), stream));
    }
}

async fn connection(core: Arc<Core>, stream: tokio::net::TcpStream) {
    let closing = core.closing.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let core = Arc::clone(&core);
        async move { Ok::<_, Infallible>(crate::http::answer(&core, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut asked_to_close = false;
    loop {
        tokio::select! {
            done = connection.as_mut() => {
                if let Err(error) = done {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = closing.cancelled(), if !asked_to_close => {
                asked_to_close = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

// === impl RewindError ===

impl From<RevisionError> for RewindError {
    fn from(error: RevisionError) -> Self {
        match error {
            RevisionError::Compacted { oldest } => Self::Compacted { oldest },
            RevisionError::Future { current } => Self::Future { current },
        }
    }
}
