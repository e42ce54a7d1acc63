//! What the parts of a lab cluster know of one another: the cluster, its nodes, and a stop signal.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::autoscaler;

/// Where `ip netns` keeps named network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// A running cluster, as its scheduler, controllers, kubelets and autoscaler see it.
///
/// Cheap to clone; all clones speak of the same cluster.
#[derive(Clone)]
pub struct ClusterHandle {
    /// Name of the cluster, a DNS label.
    pub name: String,
    /// Client of the cluster's API.
    pub client: kube::Client,
    /// The cluster's directory, `/run/weft/lab/<cluster>`.
    pub dir: PathBuf,
    /// How the autoscaler decides; `None` where it is off.
    pub autoscaler: Option<autoscaler::Config>,
    /// Cancelled when the cluster ends. Tasks then return; they need not undo what they did in the kernel, for
    /// every namespace of the cluster is removed.
    pub stop: CancellationToken,
    nodes: watch::Receiver<Vec<Arc<NodeHandle>>>,
    scale: mpsc::Sender<ScaleRequest>,
}

/// One node of a lab cluster, as the simulated kubelet and the fault injectors see it.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    /// Name of the Node object.
    pub name: String,
    /// UID of the Node object.
    pub uid: String,
    /// Name of the node's network namespace under [`NETNS_DIR`].
    pub netns_name: String,
    /// The node's address in the virtual network.
    pub address: NodeAddress,
    /// The node's directory: `cni/net.d/10-weft.conflist`, `cni/bin/weft-cni`, `agent.sock`.
    pub dir: PathBuf,
    /// Largest number of pods that kubelet takes.
    pub max_pods: u32,
    /// Cancelled when the node leaves the cluster, also when the whole cluster ends.
    pub stop: CancellationToken,
}

/// A node's address in the virtual network, which can change while the node runs. Clones change with it.
#[derive(Clone, Debug)]
pub struct NodeAddress(Arc<AtomicU32>);

/// Inclusive bounds of the number of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeRange {
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
}

/// A wish to add or remove a node, answered when it is done.
#[derive(Debug)]
pub enum ScaleRequest {
    /// Add one node and wait until it is Ready.
    Up {
        /// Receives the new node, or a sentence that says why there is none.
        reply: oneshot::Sender<Result<Arc<NodeHandle>, String>>,
    },
    /// Remove one node: cordon, evict its pods, delete the Node object, remove the namespace.
    Down {
        /// Name of the node.
        node: String,
        /// Receives the end of the removal, or a sentence that says why it failed.
        reply: oneshot::Sender<Result<(), String>>,
    },
}

// === impl ClusterHandle ===

impl ClusterHandle {
    /// A handle on a cluster whose nodes are published in `nodes` and whose owner answers `scale`.
    pub fn new(
        name: String,
        client: kube::Client,
        dir: PathBuf,
        autoscaler: Option<autoscaler::Config>,
        stop: CancellationToken,
        nodes: watch::Receiver<Vec<Arc<NodeHandle>>>,
        scale: mpsc::Sender<ScaleRequest>,
    ) -> Self {
        Self {
            name,
            client,
            dir,
            autoscaler,
            stop,
            nodes,
            scale,
        }
    }

    /// The nodes at this moment, in the order in which they joined.
    pub fn nodes(&self) -> Vec<Arc<NodeHandle>> {
        self.nodes.borrow().clone()
    }

    /// The nodes as they come and go.
    pub fn watch_nodes(&self) -> watch::Receiver<Vec<Arc<NodeHandle>>> {
        self.nodes.clone()
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<Arc<NodeHandle>> {
        self.nodes.borrow().iter().find(|node| node.name == name).cloned()
    }

    /// Prefix of the names of every namespace that belongs to this cluster. No other cluster's namespace has it:
    /// a cluster's name is a DNS label and so has no dot.
    pub fn netns_prefix(&self) -> String {
        netns_prefix(&self.name)
    }

    /// Adds one node and returns it when it is Ready.
    ///
    /// # Errors
    /// A sentence for people, where no node could be added.
    pub async fn scale_up(&self) -> Result<Arc<NodeHandle>, String> {
        self.request(|reply| ScaleRequest::Up { reply }).await
    }

    /// Removes the node of that name, its pods first.
    ///
    /// # Errors
    /// A sentence for people, where the node could not be removed.
    pub async fn scale_down(&self, node: &str) -> Result<(), String> {
        let node = node.to_owned();
        self.request(|reply| ScaleRequest::Down { node, reply }).await
    }

    async fn request<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, String>>) -> ScaleRequest,
    ) -> Result<T, String> {
        let ended = || format!("cluster {} is ending", self.name);
        let (reply, answer) = oneshot::channel();
        self.scale.send(make(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

impl fmt::Debug for ClusterHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterHandle")
            .field("name", &self.name)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

// === impl NodeHandle ===

impl NodeHandle {
    /// The unix socket on which the node's agent serves the plugin.
    pub fn agent_socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// The network configuration list that a runtime on this node reads.
    pub fn conflist(&self) -> PathBuf {
        self.dir.join("cni/net.d/10-weft.conflist")
    }

    /// The directory of plugins that a runtime on this node uses (`CNI_PATH`).
    pub fn cni_bin(&self) -> PathBuf {
        self.dir.join("cni/bin")
    }

    /// The node's network namespace as a file.
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.netns_name)
    }
}

// === impl NodeAddress ===

impl NodeAddress {
    /// The address at this moment.
    pub fn get(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn set(&self, address: Ipv4Addr) {
        self.0.store(address.to_bits(), Ordering::Relaxed);
    }
}

impl From<Ipv4Addr> for NodeAddress {
    fn from(address: Ipv4Addr) -> Self {
        Self(Arc::new(AtomicU32::new(address.to_bits())))
    }
}

/// Prefix of the names of every namespace of the cluster `name`: nodes are `<prefix><node>`, pods
/// `<prefix>pod.<…>`.
pub fn netns_prefix(name: &str) -> String {
    format!("weft-{name}.")
}
