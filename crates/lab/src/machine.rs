//! A node as hardware: a network namespace on the VNet, a disk, a BPF file system, and what a runtime finds there.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde_json::json;
use uuid::Uuid;
use weft_kernel::{NetNs, mount};
use weft_model::{TransportChoice, UserError, codes};

use crate::config::ClusterConfig;
use crate::kubelet;
use crate::node::netns_prefix;
use crate::state::{ClusterDir, NodeState, unusable};
use crate::supervise::ProcessSpec;
use crate::vnet;

/// A machine's interface to its VNet.
pub(crate) const UPLINK: &str = "eth0";

/// Size in bytes of the disk that the agent's state is on: ledgers and DEL intents take a tenth of it.
const DISK: u64 = 32 << 20;

/// Name of the CNI network.
const NETWORK: &str = "weft";

/// A node's place in the world: its names and paths, whether or not it exists.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
    /// Name of its network namespace.
    pub netns_name: String,
    /// Its address in the VNet.
    pub address: Ipv4Addr,
    /// Its directory.
    pub dir: PathBuf,
}

/// Where programs and files of a cluster are found.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The `weft` program.
    pub weft: PathBuf,
    /// The plugin.
    pub plugin: PathBuf,
}

// === impl Programs ===

impl Programs {
    /// The running program and the plugin beside it.
    ///
    /// # Errors
    /// The plugin isn't there.
    pub(crate) fn find() -> Result<Self, UserError> {
        let weft =
            std::env::current_exe().map_err(|error| unusable("find", Path::new("/proc/self/exe"), &error))?;
        let plugin = weft.with_file_name("weft-cni");
        if !plugin.is_file() {
            return Err(UserError::new(
                codes::LAB_START_FAILED,
                format!(
                    "the plugin {} is missing: it belongs beside {}",
                    plugin.display(),
                    weft.display()
                ),
                "cargo build -p weft -p weft-cni",
            ));
        }
        Ok(Self { weft, plugin })
    }
}

// === impl Machine ===

impl Machine {
    /// The machine of a node.
    pub(crate) fn new(dir: &ClusterDir, node: &NodeState) -> Self {
        Self {
            cluster: dir.name().to_owned(),
            node: node.name.clone(),
            netns_name: format!("{}{}", netns_prefix(dir.name()), node.name),
            address: node.address,
            dir: dir.node(&node.name),
        }
    }

    /// Where the agent keeps what survives a reboot.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The node's BPF file system.
    pub(crate) fn bpf_dir(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// What tells one boot of the machine from the next.
    fn boot_id(&self) -> PathBuf {
        self.dir.join("boot_id")
    }

    /// The agent's socket.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// Puts the disk together: the file system of the agent's state, directories, plugin, and network configuration.
    pub(crate) fn install(&self, programs: &Programs) -> Result<(), UserError> {
        fs::create_dir_all(self.state_dir()).map_err(|error| unusable("set up", &self.dir, &error))?;
        mount::tmpfs(&self.state_dir(), DISK).map_err(|error| self.kernel_error(&error))?;
        let write = || -> io::Result<()> {
            for sub in ["cni/net.d", "cni/bin", "state/intents", "bpf"] {
                fs::create_dir_all(self.dir.join(sub))?;
            }
            let plugin = self.dir.join("cni/bin/weft-cni");
            if fs::hard_link(&programs.plugin, &plugin).is_err() {
                fs::copy(&programs.plugin, &plugin)?;
            }
            let conflist = json!({
                "cniVersion": "1.1.0",
                "name": NETWORK,
                "plugins": [{
                    "type": "weft-cni",
                    "socket": self.agent_socket(),
                    "intentDir": self.state_dir().join("intents"),
                }],
            });
            fs::write(
                self.dir.join("cni/net.d/10-weft.conflist"),
                serde_json::to_vec_pretty(&conflist)?,
            )
        };
        write().map_err(|error| unusable("set up", &self.dir, &error))
    }

    /// Switches the machine on: namespace, link, BPF file system.
    pub(crate) fn power_on(&self, config: &ClusterConfig) -> Result<NetNs, UserError> {
        fs::write(self.boot_id(), Uuid::new_v4().to_string())
            .map_err(|error| unusable("write", &self.boot_id(), &error))?;
        let switch_on = || -> weft_kernel::Result<NetNs> {
            let netns = NetNs::create_named(&self.netns_name)?;
            vnet::set_sysctls(&netns, &[("ipv4/ip_forward", "1")])?;
            vnet::connect(&config.vnet, config.subnet, &netns, self.address)?;
            mount::bpffs(&self.bpf_dir())?;
            Ok(netns)
        };
        switch_on().map_err(|error| self.kernel_error(&error))
    }

    /// Gives the machine another address in the VNet.
    pub(crate) fn readdress(
        &self,
        config: &ClusterConfig,
        before: Ipv4Addr,
        after: Ipv4Addr,
    ) -> Result<(), UserError> {
        NetNs::named(&self.netns_name)
            .and_then(|netns| vnet::readdress(&config.vnet, config.subnet, &netns, before, after))
            .map_err(|error| self.kernel_error(&error))
    }

    /// Takes away what a loss of power takes away: namespace, pins, sockets. The disk stays.
    pub(crate) fn power_off(&self) -> Result<(), UserError> {
        let switch_off = || -> weft_kernel::Result<()> {
            mount::unmount(&self.bpf_dir())?;
            NetNs::delete_named(&self.netns_name)?;
            Ok(())
        };
        switch_off().map_err(|error| self.kernel_error(&error))?;
        kubelet::power_off(&self.dir).map_err(|error| unusable("switch off", &self.dir, &error))?;
        match fs::remove_file(self.agent_socket()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(unusable("remove", &self.agent_socket(), &error))
            }
            _ => Ok(()),
        }
    }

    /// Takes the machine away altogether.
    pub(crate) fn scrap(&self) -> Result<(), UserError> {
        self.power_off()?;
        mount::unmount(&self.state_dir()).map_err(|error| self.kernel_error(&error))?;
        fs::remove_dir_all(&self.dir).map_err(|error| unusable("remove", &self.dir, &error))
    }

    /// How to start the node's agent with these arguments.
    pub(crate) fn agent(&self, programs: &Programs, args: Vec<String>, netns: NetNs) -> ProcessSpec {
        ProcessSpec {
            what: format!("agent of {}", self.node),
            cluster: self.cluster.clone(),
            program: programs.weft.clone(),
            args,
            netns: Some(netns),
            log: self.dir.join("agent.log"),
        }
    }

    /// The command line of the node's agent.
    pub(crate) fn agent_args(&self, kubeconfig: &Path, transport: TransportChoice) -> Vec<String> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        vec![
            "agent".into(),
            "--node-name".into(),
            self.node.clone(),
            "--kubeconfig".into(),
            path(kubeconfig.to_owned()),
            "--run-dir".into(),
            path(self.dir.clone()),
            "--state-dir".into(),
            path(self.state_dir()),
            "--pin-dir".into(),
            path(self.bpf_dir()),
            "--uplink".into(),
            UPLINK.into(),
            "--boot-id".into(),
            path(self.boot_id()),
            "--transport".into(),
            transport.to_string(),
        ]
    }

    fn kernel_error(&self, error: &weft_kernel::Error) -> UserError {
        kernel_error(
            &format!("node {}", self.node),
            error,
            &format!("weft lab delete {}", self.cluster),
        )
    }
}

/// The error that the kernel refused something of the lab's.
pub(crate) fn kernel_error(what: &str, error: &weft_kernel::Error, next: &str) -> UserError {
    let code = if error.is_permission_denied() {
        codes::NOT_ROOT
    } else {
        codes::NETLINK
    };
    UserError::new(code, format!("{what}: {error}"), next)
}
