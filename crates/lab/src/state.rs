//! What is written down about a cluster: one JSON file in its directory, and the lock that orders those who make
//! and remove clusters.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use weft_kernel::mount;
use weft_kernel::process::ProcessId;
use weft_model::{TransportChoice, UserError, codes};

use crate::config::{ClusterConfig, check_name};
use crate::node::NETNS_DIR;
use crate::remove;
use crate::vnet::Subnet;

/// Where all lab clusters of a machine live.
pub const ROOT: &str = "/run/weft/lab";

/// Version of the layout of [`ClusterState`].
const VERSION: u32 = 1;

/// Paths of one cluster. Making one touches nothing.
#[derive(Clone, Debug)]
pub struct ClusterDir {
    name: String,
    path: PathBuf,
}

/// What outlives every process of a cluster. Written by `create` when it claims the name, from then on by the
/// cluster's daemon alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterState {
    version: u32,
    /// Version of the program that made the cluster.
    pub weft_version: String,
    /// What the cluster was made to be.
    pub config: ClusterConfig,
    /// The address of the cluster's API in the VNet.
    pub api_address: Ipv4Addr,
    /// The API's address in the host's namespace, once it is served.
    pub api_on_host: Option<SocketAddr>,
    /// The cluster's daemon, once it runs.
    pub daemon: Option<ProcessId>,
    /// The operator, while it runs.
    pub operator: Option<ProcessId>,
    /// The nodes in the order in which they joined.
    pub nodes: Vec<NodeState>,
    /// Number of the next node; numbers are never used twice.
    pub next_node: u32,
}

/// What is written down about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Name of the node.
    pub name: String,
    /// Its address in the VNet.
    pub address: Ipv4Addr,
    /// How its agent is told to get packets to other nodes.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Its agent, while it runs.
    pub agent: Option<ProcessId>,
}

/// The right to make and remove clusters and their addresses. Held for milliseconds.
#[derive(Debug)]
pub struct RootLock {
    _dir: File,
}

// === impl ClusterDir ===

impl ClusterDir {
    /// The paths of the cluster `name`.
    ///
    /// # Errors
    /// The name is no DNS label, so that no cluster can have it.
    pub fn new(name: &str) -> Result<Self, UserError> {
        check_name("cluster", name)?;
        Ok(Self {
            name: name.to_owned(),
            path: Path::new(ROOT).join(name),
        })
    }

    /// Name of the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The daemon's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("daemon.sock")
    }

    /// What the daemon has to say.
    pub fn daemon_log(&self) -> PathBuf {
        self.path.join("daemon.log")
    }

    /// What the operator has to say.
    pub fn operator_log(&self) -> PathBuf {
        self.path.join("operator.log")
    }

    /// The kubeconfig for clients in the host's namespace.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    /// The kubeconfig for clients in the VNet.
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig.vnet")
    }

    /// The directory of a node.
    pub fn node(&self, node: &str) -> PathBuf {
        self.path.join("nodes").join(node)
    }

    /// Reads what is written down about the cluster.
    ///
    /// # Errors
    /// There is no such cluster, or its file can't be used.
    pub fn load(&self) -> Result<ClusterState, UserError> {
        let path = self.state_file();
        let text = fs::read(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                self.missing()
            } else {
                unusable("read", &path, &error)
            }
        })?;
        let state: ClusterState =
            serde_json::from_slice(&text).map_err(|error| unusable("read", &path, &error))?;
        if state.version != VERSION {
            return Err(unusable(
                "read",
                &path,
                &format!(
                    "it has version {}, this program writes version {VERSION}",
                    state.version
                ),
            ));
        }
        Ok(state)
    }

    /// Replaces what is written down about the cluster, all of it or nothing.
    ///
    /// # Errors
    /// The file system's.
    pub fn store(&self, state: &ClusterState) -> Result<(), UserError> {
        let path = self.state_file();
        let draft = self.path.join("cluster.json.new");
        let write = || -> io::Result<()> {
            fs::write(&draft, serde_json::to_vec_pretty(state)?)?;
            fs::rename(&draft, &path)
        };
        write().map_err(|error| unusable("write", &path, &error))
    }

    /// The error that there is no such cluster.
    pub fn missing(&self) -> UserError {
        let names = cluster_names();
        let next = match names.as_slice() {
            [] => format!("weft lab create {}", self.name),
            names => format!("choose one of {}", names.join(", ")),
        };
        UserError::new(
            codes::NO_SUCH_CLUSTER,
            format!("there is no lab cluster {:?}", self.name),
            next,
        )
    }

    fn state_file(&self) -> PathBuf {
        self.path.join("cluster.json")
    }
}

// === impl ClusterState ===

impl ClusterState {
    /// A cluster of which nothing runs yet.
    pub fn new(config: ClusterConfig, api_address: Ipv4Addr) -> Self {
        Self {
            version: VERSION,
            weft_version: env!("CARGO_PKG_VERSION").to_owned(),
            config,
            api_address,
            api_on_host: None,
            daemon: None,
            operator: None,
            nodes: Vec::new(),
            next_node: 1,
        }
    }

    /// URL of the API for clients in the host's namespace.
    pub fn api_url(&self) -> Option<String> {
        self.api_on_host.map(|api| format!("http://{api}"))
    }

    /// The node of that name.
    ///
    /// # Errors
    /// There is none; the error names those there are.
    pub fn node(&self, name: &str) -> Result<&NodeState, UserError> {
        self.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            UserError::new(
                codes::NO_SUCH_NODE,
                format!("cluster {} has no node {name:?}", self.config.name),
                if names.is_empty() {
                    format!("weft lab scale {} --node-count 2", self.config.name)
                } else {
                    format!("choose one of {}", names.join(", "))
                },
            )
        })
    }
}

// === impl RootLock ===

impl RootLock {
    /// Waits for the lock; makes the root directory where it is missing.
    ///
    /// # Errors
    /// The file system's.
    pub fn acquire() -> Result<Self, UserError> {
        let root = Path::new(ROOT);
        let lock = || -> io::Result<File> {
            loop {
                fs::create_dir_all(root)?;
                let dir = File::open(root)?;
                rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
                // Whoever held the lock before may have removed the directory as its last act.
                match fs::metadata(root) {
                    Ok(now) if now.ino() == dir.metadata()?.ino() => return Ok(dir),
                    _ => {}
                }
            }
        };
        lock()
            .map(|dir| Self { _dir: dir })
            .map_err(|error| unusable("lock", root, &error))
    }

    /// States of all clusters whose file can be read.
    pub fn clusters(&self) -> Vec<ClusterState> {
        clusters()
    }

    /// Removes what was made for the first cluster, where none is left. The lock ends with its directory.
    ///
    /// # Errors
    /// The kernel's or the file system's.
    pub fn release_root(self) -> Result<(), UserError> {
        if !cluster_names().is_empty() {
            return Ok(());
        }
        remove::release_netns_dir(&netns_marker())?;
        for dir in remove::root_dirs() {
            // Something else may live there, such as an agent's socket.
            let _ = fs::remove_dir(dir);
        }
        Ok(())
    }

    /// Claims the cluster's name, and an API address in its VNet, by writing its file.
    ///
    /// # Errors
    /// The name is taken, or the VNet has no address left.
    pub fn claim(&self, dir: &ClusterDir, config: ClusterConfig) -> Result<ClusterState, UserError> {
        let taken = used_addresses(&self.clusters(), &config.vnet);
        let Some(api_address) = config
            .subnet
            .api_addresses()
            .find(|address| !taken.contains(address))
        else {
            return Err(UserError::new(
                codes::VNET_FULL,
                format!(
                    "VNet {} has as many clusters as it has room for API addresses",
                    config.vnet
                ),
                "choose another --vnet",
            ));
        };
        fs::create_dir(dir.path()).map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                exists(dir.name())
            } else {
                unusable("create", dir.path(), &error)
            }
        })?;
        if !mount::is_mount_point(Path::new(NETNS_DIR)).unwrap_or(false) {
            let marker = netns_marker();
            fs::write(&marker, "").map_err(|error| unusable("write", &marker, &error))?;
        }
        let state = ClusterState::new(config, api_address);
        dir.store(&state)?;
        Ok(state)
    }

    /// An address for a node that nobody has in the cluster's VNet.
    ///
    /// # Errors
    /// There is none left.
    pub fn free_address(&self, state: &ClusterState) -> Result<Ipv4Addr, UserError> {
        let mut taken = used_addresses(&self.clusters(), &state.config.vnet);
        taken.extend(state.nodes.iter().map(|node| node.address));
        let subnet = state.config.subnet;
        let free = subnet.node_addresses().find(|address| !taken.contains(address));
        free.ok_or_else(|| {
            UserError::new(
                codes::VNET_FULL,
                format!("VNet subnet {} has no free address for a node", subnet.net()),
                "remove nodes or clusters from the VNet",
            )
        })
    }

    /// Gives the next node of a cluster its name and its address, and writes both down.
    ///
    /// # Errors
    /// The VNet has no address left.
    pub fn add_node(&self, dir: &ClusterDir, state: &mut ClusterState) -> Result<NodeState, UserError> {
        let address = self.free_address(state)?;
        let node = NodeState {
            name: format!("node-{}", state.next_node),
            address,
            transport: state.config.transport,
            agent: None,
        };
        state.next_node += 1;
        state.nodes.push(node.clone());
        dir.store(state)?;
        Ok(node)
    }
}

/// Present where the lab was the first to use named namespaces on this machine.
fn netns_marker() -> PathBuf {
    Path::new(ROOT).join(".netns-mount")
}

/// The error that a cluster of this name exists.
pub fn exists(name: &str) -> UserError {
    UserError::new(
        codes::CLUSTER_EXISTS,
        format!("lab cluster {name:?} exists already"),
        format!("weft lab status {name}, or weft lab delete {name}"),
    )
}

/// Names of all clusters of this machine, sorted, also of half-made ones.
pub fn cluster_names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Vec::new();
    };
    let names: BTreeSet<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| check_name("cluster", name).is_ok())
        .collect();
    names.into_iter().collect()
}

/// States of all clusters whose file can be read.
pub fn clusters() -> Vec<ClusterState> {
    cluster_names()
        .iter()
        .filter_map(|name| ClusterDir::new(name).ok()?.load().ok())
        .collect()
}

/// The subnet of a VNet, where a cluster uses it.
pub fn vnet_subnet(vnet: &str) -> Option<Subnet> {
    clusters()
        .into_iter()
        .find(|state| state.config.vnet == vnet)
        .map(|state| state.config.subnet)
}

fn used_addresses(clusters: &[ClusterState], vnet: &str) -> BTreeSet<Ipv4Addr> {
    clusters
        .iter()
        .filter(|state| state.config.vnet == vnet)
        .flat_map(|state| {
            state
                .nodes
                .iter()
                .map(|node| node.address)
                .chain(std::iter::once(state.api_address))
        })
        .collect()
}

/// The error that a file of the lab can't be used.
pub(crate) fn unusable(operation: &str, path: &Path, cause: &dyn std::fmt::Display) -> UserError {
    UserError::new(
        codes::LAB_STATE,
        format!("can't {operation} {}: {cause}", path.display()),
        format!(
            "look at {}; weft lab delete removes what is left of a cluster",
            path.display()
        ),
    )
}
