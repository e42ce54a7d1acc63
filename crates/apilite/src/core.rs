//! What all requests share, and its making.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::faults::Faults;
use crate::registry::Registry;
use crate::server::ApiServer;
use crate::services::Pools;
use crate::store::Store;

/// Judges an object of a custom type beyond its schema: from kind and object to the field and what is wrong with it.
pub type Admission = fn(kind: &str, object: &Value) -> Option<(String, String)>;

/// Settings of an [`ApiServer`].
#[derive(Clone, Debug)]
pub struct Builder {
    service_cidr: (Ipv4Addr, u8),
    watch_window: usize,
    bookmark_interval: Duration,
    admission: Option<Admission>,
}

/// Why a server can't be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The service CIDR isn't a canonical IPv4 network of /8 to /30.
    #[error("service CIDR {cidr:?}: {why}")]
    ServiceCidr {
        /// What was given.
        cidr: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Background tasks need a runtime.
    #[error("starting the server: no tokio runtime is running on this thread")]
    NoRuntime,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) faults: Faults,
    pub(crate) bookmark_interval: Duration,
    pub(crate) admission: Option<Admission>,
    pub(crate) pools: Pools,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

// === impl Builder ===

impl Default for Builder {
    fn default() -> Self {
        Self {
            service_cidr: (Ipv4Addr::new(10, 0, 0, 0), 16),
            watch_window: 4096,
            bookmark_interval: Duration::from_secs(30),
            admission: None,
        }
    }
}

impl Builder {
    /// IPv4 network that Services get their cluster addresses from, `10.0.0.0/16` unless set.
    ///
    /// # Errors
    /// Not `a.b.c.d/n` with 8 ≤ n ≤ 30, or host bits set.
    pub fn service_cidr(mut self, cidr: &str) -> Result<Self, BuildError> {
        let error = |why| BuildError::ServiceCidr {
            cidr: cidr.to_owned(),
            why,
        };
        let (address, length) = cidr.split_once('/').ok_or_else(|| error("no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| error("not an IPv4 network"))?;
        let length: u8 = length.parse().map_err(|_| error("not a prefix length"))?;
        if !(8..=30).contains(&length) {
            return Err(error("the prefix length must be between 8 and 30"));
        }
        if address.to_bits() & (u32::MAX >> length) != 0 {
            return Err(error("host bits are set"));
        }
        self.service_cidr = (address, length);
        Ok(self)
    }

    /// How many changes of each resource stay available to watches and to lists of past revisions (4096
    /// unless set, at least 1). Older ones are answered 410 Expired.
    pub fn watch_window(mut self, changes: usize) -> Self {
        self.watch_window = changes.max(1);
        self
    }

    /// How often idle watches get a bookmark if they asked for them (30 s unless set).
    pub fn bookmark_interval(mut self, interval: Duration) -> Self {
        self.bookmark_interval = interval;
        self
    }

    /// Who judges objects of custom types after their schema, where a real server evaluates CEL rules.
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = Some(admission);
        self
    }

    /// Starts the server: the default namespaces exist, nothing listens yet.
    ///
    /// # Errors
    /// [`BuildError::NoRuntime`] outside a tokio runtime.
    pub fn start(self) -> Result<ApiServer, BuildError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let core = Arc::new(Core {
            store: Store::new(self.watch_window),
            registry: Registry::new(),
            faults: Faults::new(),
            bookmark_interval: self.bookmark_interval,
            admission: self.admission,
            pools: Pools::new(self.service_cidr),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        Ok(ApiServer::new(core))
    }
}
