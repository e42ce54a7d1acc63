//! What is known of a cluster between two commands: its configuration, its nodes, where its files are.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use weft_model::TransportChoice;

/// Directory of all clusters' state.
pub const ROOT: &str = "/run/weft/kube";

/// Directory of what nodes store: images, pods' files, logs. On disk, for it is more than a `/run` in memory takes.
pub const DATA: &str = "/var/lib/weft-kube";

/// Beginning of the names of all network namespaces and cgroups.
pub const PREFIX: &str = "wk-";

/// Name of the control plane's machine, also as a node.
pub const CONTROL_PLANE: &str = "cp";

/// What a cluster was made with, and of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its settings.
    pub config: Config,
    /// The nodes' subnet, which the VNet's other clusters share.
    pub subnet: Ipv4Net,
    /// Address of the control plane in the VNet.
    pub api_address: Ipv4Addr,
    /// Its nodes for pods, by the order in which they joined.
    pub nodes: Vec<Node>,
}

/// Settings of a cluster, the flags of `up`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The virtual network.
    pub vnet: String,
    /// Who implements Services.
    pub proxy: Proxy,
    /// The pods' network.
    pub cni: Cni,
    /// Who gives a node its pod addresses.
    pub ipam: Ipam,
    /// How Weft's packets get to other nodes.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Range of the pods.
    pub pod_cidr: Ipv4Net,
    /// Range of the Services.
    pub service_cidr: Ipv4Net,
    /// Whether CoreDNS runs.
    pub dns: bool,
    /// Programs and images.
    pub cache: PathBuf,
    /// Archive of Weft's image.
    pub weft_image: Option<PathBuf>,
    /// Weft's manifests.
    pub weft_manifests: Option<PathBuf>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address in the VNet.
    pub address: Ipv4Addr,
}

/// Who implements Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Proxy {
    /// kube-proxy with nftables
    Nftables,
    /// kube-proxy with iptables
    Iptables,
    /// Nobody
    None,
}

/// The pods' network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// Weft, installed by its manifests
    Weft,
    /// The reference plugins bridge, host-local and portmap, with a route to every node (as kubenet has it)
    Bridge,
    /// None: nodes stay NotReady
    None,
}

/// Who gives a node its pod addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Ipam {
    /// Weft's operator, from pools
    Pool,
    /// kube-controller-manager, in Node.spec.podCIDRs
    Node,
}

/// Keeps other commands from giving out names and addresses meanwhile.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

// === impl Cluster ===

impl Cluster {
    /// The cluster of that name.
    ///
    /// # Errors
    /// There is none, or what was written down of it can't be read.
    pub fn load(name: &str) -> Result<Self> {
        check_name(name)?;
        let path = dir(name).join("cluster.json");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there is no cluster {name:?}\n  next: cargo xtask kube list")
            }
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Writes it down, all or nothing.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn save(&self) -> Result<()> {
        let path = self.dir().join("cluster.json");
        let draft = path.with_extension("draft");
        fs::create_dir_all(self.dir())
            .and_then(|()| fs::write(&draft, format!("{:#}\n", serde_json::to_value(self)?)))
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// All clusters that can be read, by name.
    pub fn all() -> Vec<Self> {
        let mut names: Vec<String> = fs::read_dir(ROOT)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names.iter().filter_map(|name| Self::load(name).ok()).collect()
    }

    /// Directory of its state.
    pub fn dir(&self) -> PathBuf {
        dir(&self.name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// Where its certificates are.
    pub fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }

    /// Where the API answers.
    pub fn server(&self) -> String {
        format!("https://{}:6443", self.api_address)
    }

    /// Network namespace of the control plane.
    pub fn control_plane_netns(&self) -> String {
        self.node_netns(CONTROL_PLANE)
    }

    /// Network namespace of a node.
    pub fn node_netns(&self, node: &str) -> String {
        format!("{PREFIX}{}-{node}", self.name)
    }

    /// Directory of what a node stores.
    pub fn node_data(&self, node: &str) -> PathBuf {
        data(&self.name).join(node)
    }

    /// The control plane's machine as a node, tainted as kubeadm does it: so the API server reaches pods. With the
    /// reference plugins it is none, and has routes instead.
    pub fn control_plane(&self) -> Option<Node> {
        (self.config.cni != Cni::Bridge).then(|| Node {
            name: CONTROL_PLANE.to_owned(),
            address: self.api_address,
        })
    }

    /// All nodes, the control plane's after those for pods.
    pub fn members(&self) -> Vec<Node> {
        self.nodes.iter().cloned().chain(self.control_plane()).collect()
    }

    /// The node for pods of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!(
                "cluster {} has no node {name:?}, only {}",
                self.name,
                names.join(", ")
            )
        })
    }

    /// Address of the DNS Service: the tenth of the range, as kubeadm has it.
    pub fn dns_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.config.service_cidr.network()) + 10)
    }
}

// === impl Lock ===

impl Lock {
    /// Waits for it.
    ///
    /// # Errors
    /// The root directory can't be written.
    pub fn acquire() -> Result<Self> {
        let path = Path::new(ROOT).join(".lock");
        fs::create_dir_all(ROOT).with_context(|| format!("create {ROOT}"))?;
        let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .with_context(|| format!("lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// A cluster's directory.
pub fn dir(cluster: &str) -> PathBuf {
    Path::new(ROOT).join(cluster)
}

/// The directory of what a cluster's nodes store.
pub fn data(cluster: &str) -> PathBuf {
    Path::new(DATA).join(cluster)
}

/// Clusters and VNets have names without a dash, so that no namespace of one looks like another's.
///
/// # Errors
/// What a name may be.
pub fn check_name(name: &str) -> Result<()> {
    let fine = (1..=20).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !fine {
        bail!("{name:?} can't be a name: 1 to 20 small letters and digits, a letter first");
    }
    Ok(())
}
