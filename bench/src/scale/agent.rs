//! A real agent in a namespace that has the address of its Node, and what its eBPF maps hold.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::objects::{node_address, node_name};
use super::wait_for;
use crate::maps::{Blocks, Maps};
use crate::netns::{self, Namespace, Place, Underlay};
use crate::process::{Process, Usage};

/// Longest time for an agent's maps to be full.
const PATIENCE: Duration = Duration::from_secs(120);
/// Prefix length of the underlay of all nodes.
pub(super) const UNDERLAY_BITS: u8 = 15;

/// The machine of one Node.
#[derive(Debug)]
pub(super) struct Machine {
    number: u32,
    namespace: Namespace,
    dir: PathBuf,
}

/// An agent that runs.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) process: Process,
    started: Instant,
    pins: PathBuf,
    name: String,
}

/// What went through a machine's uplink, bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Traffic {
    pub(super) received: u64,
    pub(super) sent: u64,
}

// === impl Machine ===

impl Machine {
    /// Makes the machine of the Node with this number. Its files lie below `dir`.
    pub(super) fn create(underlay: &Underlay, number: u32, dir: &Path) -> Result<Self> {
        let namespace = underlay.node(&format!("s{number}"), node_address(number), UNDERLAY_BITS)?;
        let machine = Self {
            number,
            namespace,
            dir: dir.join(node_name(number)),
        };
        let pins = machine.pins();
        fs::create_dir_all(&pins).with_context(|| format!("create {}", pins.display()))?;
        netns::run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&pins))?;
        Ok(machine)
    }

    /// The Node's address.
    pub(super) fn address(&self) -> Ipv4Addr {
        node_address(self.number)
    }

    fn pins(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Starts the agent, as on a node that never had one if `anew`.
    pub(super) fn start(&self, weft: &Path, kubeconfig: &Path, anew: bool) -> Result<Agent> {
        if anew {
            self.clear()?;
        }
        let mut command = self.namespace.place().command(weft);
        command
            .args(["agent", "--node-name", &node_name(self.number), "--kubeconfig"])
            .arg(kubeconfig);
        for (flag, dir) in [("--run-dir", "run"), ("--state-dir", "state")] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            command.arg(flag).arg(dir);
        }
        command.arg("--pin-dir").arg(self.pins().join("weft"));
        let started = Instant::now();
        Ok(Agent {
            process: Process::start("agent", command, &self.dir)?,
            started,
            pins: self.pins().join("weft"),
            name: node_name(self.number),
        })
    }

    /// Takes away what an earlier agent left.
    fn clear(&self) -> Result<()> {
        for dir in ["run", "state", "bpf/weft"] {
            let dir = self.dir.join(dir);
            if dir.exists() {
                fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
            }
        }
        if netns::run(
            self.namespace
                .place()
                .command("ip")
                .args(["link", "show", "weft0"]),
        )
        .is_ok()
        {
            self.namespace.ip(&["link del weft0"])?;
        }
        Ok(())
    }

    /// What went through the uplink until now.
    pub(super) fn traffic(&self) -> Result<Traffic> {
        traffic(&self.namespace.place())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the command has said what it is.
        let _ = netns::run(Command::new("umount").arg(self.pins()));
    }
}

// === impl Traffic ===

impl Traffic {
    /// What came since an earlier reading.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            received: self.received - earlier.received,
            sent: self.sent - earlier.sent,
        }
    }
}

// === impl Agent ===

impl Agent {
    /// Seconds from its start until its maps held every other node and block.
    pub(super) fn wait_full(&mut self, own: Ipv4Addr, blocks: &Blocks) -> Result<f64> {
        let maps = wait_for("the agent's maps", PATIENCE, || Ok(Maps::open(&self.pins).ok()))?;
        for address in blocks.keys().filter(|address| **address != own) {
            // The map of nodes is filled last.
            wait_for(&format!("node {address} in the map"), PATIENCE, || {
                self.process.usage()?;
                Ok(maps.has_node(*address)?.then_some(()))
            })?;
        }
        let full = self.started.elapsed().as_secs_f64();
        maps.verify(own, blocks)
            .with_context(|| format!("the maps of {}", self.name))?;
        Ok(full)
    }

    /// The maps of a running agent.
    pub(super) fn maps(&self) -> Result<Maps> {
        Maps::open(&self.pins)
    }

    /// What it has taken until now.
    pub(super) fn usage(&mut self) -> Result<Usage> {
        self.process.usage()
    }
}

/// What went through `eth0` of a namespace until now.
pub(super) fn traffic(place: &Place) -> Result<Traffic> {
    let text = netns::read(
        place
            .command("ip")
            .args(["-json", "-stats", "link", "show", "eth0"]),
    )?;
    let links: serde_json::Value = serde_json::from_str(&text).context("parse the output of ip")?;
    let bytes = |direction: &str| {
        let bytes = links[0]["stats64"][direction]["bytes"].as_u64();
        bytes.with_context(|| format!("no {direction} bytes of eth0"))
    };
    Ok(Traffic {
        received: bytes("rx")?,
        sent: bytes("tx")?,
    })
}
