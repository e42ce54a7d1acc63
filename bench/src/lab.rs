//! Weft's side of the measurements: a lab cluster, driven by the `weft` command as a user would.

use std::net::Ipv4Addr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cni::{self, Amount, Latency};
use crate::competitor::{Competitor, Path, Uplink};
use crate::interrupt;
use crate::netns::{self, OUTSIDE, Place};
use crate::report::Footprint;

/// Longest time for pods to run.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the lab keeps its clusters.
const STATE: &str = "/run/weft/lab";

/// A lab cluster of ours, deleted with its owner.
#[derive(Debug)]
pub(crate) struct Lab {
    weft: PathBuf,
    name: String,
    transport: Transport,
    scratch: PathBuf,
}

/// How packets get to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transport {
    /// Through the kernel's VXLAN device
    Device,
    /// Past it
    Direct,
}

// === impl Lab ===

impl Lab {
    /// Makes a cluster. Its VNet has the cluster's name, so that it meets no other.
    pub(crate) fn create(
        weft: &FilePath,
        scratch: &FilePath,
        purpose: &str,
        nodes: usize,
        transport: Transport,
    ) -> Result<Self> {
        let name = format!("bench-{}-{purpose}-{}", std::process::id(), transport.word());
        let lab = Self {
            weft: weft.to_owned(),
            name: name.clone(),
            transport,
            scratch: scratch.to_owned(),
        };
        netns::run(
            Command::new(weft)
                .args(["lab", "create", &name, "--vnet", &name, "--max-pods", "250"])
                .args(["--node-count", &nodes.to_string()])
                .args(["--transport", transport.word()]),
        )?;
        Ok(lab)
    }

    /// What it is called in reports.
    fn label(&self) -> &'static str {
        match self.transport {
            Transport::Device => "weft-device",
            Transport::Direct => "weft-direct",
        }
    }

    /// The host beyond the router of the cluster's VNet.
    fn outside(&self) -> Place {
        let weft = self.weft.to_string_lossy().into_owned();
        let words = ["lab", "vnet-exec", &self.name, "--on", "internet", "--"].map(str::to_owned);
        Place([weft].into_iter().chain(words).collect())
    }

    fn status(&self) -> Result<Value> {
        let text = netns::read(Command::new(&self.weft).args(["lab", "status", &self.name, "-o", "json"]))?;
        serde_json::from_str(&text).context("parse the lab's status")
    }

    fn apply(&self, name: &str, manifest: &str) -> Result<()> {
        let file = self.scratch.join(format!("{name}.yaml"));
        std::fs::write(&file, manifest).with_context(|| format!("write {}", file.display()))?;
        netns::run(
            Command::new(&self.weft)
                .args(["lab", "apply", &self.name, "-f"])
                .arg(&file),
        )
    }

    /// Waits until so many pods run.
    fn running(&self, pods: u64) -> Result<()> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            let status = self.status()?;
            if status["pods"]["running"].as_u64() == Some(pods) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "of {pods} pods {} run after {PATIENCE:?}",
                    status["pods"]["running"]
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pod(&self, name: &str) -> Place {
        let weft = self.weft.to_string_lossy().into_owned();
        Place(
            [
                weft,
                "lab".into(),
                "exec".into(),
                self.name.clone(),
                format!("default/{name}"),
                "--".into(),
            ]
            .to_vec(),
        )
    }

    fn address(&self, pod: &str) -> Result<Ipv4Addr> {
        let text = netns::read(
            self.pod(pod)
                .command("ip")
                .args(["-json", "-4", "address", "show", "dev", "eth0"]),
        )?;
        let links: Value = serde_json::from_str(&text).context("parse the output of ip")?;
        let address = links[0]["addr_info"][0]["local"]
            .as_str()
            .context("a pod without address")?;
        address
            .parse()
            .with_context(|| format!("parse address {address}"))
    }

    /// Pods on one node and on two.
    pub(crate) fn competitor(&self) -> Result<Competitor> {
        let status = self.status()?;
        let node = |index: usize, field: &str| {
            let value = status["nodes"][index][field].as_str().map(str::to_owned);
            value.with_context(|| format!("node {index} has no {field} in the lab's status"))
        };
        let pods = [("client", 0), ("neighbour", 0), ("remote", 1)];
        let manifests = pods.map(|(name, index)| Ok(bare_pod(name, &node(index, "name")?)));
        let manifests: Result<Vec<String>> = manifests.into_iter().collect();
        self.apply("bench-pods", &manifests?.join("---\n"))?;
        self.running(pods.len() as u64)?;

        let path = |server: &str| -> Result<Path> {
            Ok(Path {
                client: self.pod("client"),
                server: self.pod(server),
                address: self.address(server)?,
            })
        };
        let uplinks: Result<Vec<Uplink>> = (0..2)
            .map(|index| uplink(&Place::named(&node(index, "netns")?)))
            .collect();
        Ok(Competitor {
            name: self.label(),
            about: "pods of a lab cluster, by the real agent, plugin and eBPF programs".into(),
            cross: path("remote")?,
            same: path("neighbour")?,
            outside: Path {
                client: self.pod("client"),
                server: self.outside(),
                address: OUTSIDE,
            },
            uplinks: uplinks?,
            kept: Vec::new(),
        })
    }

    /// ADD and DEL through this cluster's first node.
    pub(crate) fn latency(&self, amount: &Amount) -> Result<Latency> {
        let status = self.status()?;
        let field = |name: &str| {
            status["nodes"][0][name]
                .as_str()
                .with_context(|| format!("node without {name}"))
        };
        let conf = find(
            &FilePath::new(STATE).join(&self.name),
            field("name")?,
            "10-weft.conflist",
        )?
        .context("no 10-weft.conflist in the node's directory")?;
        let plugins = conf
            .ancestors()
            .nth(2)
            .context("a configuration outside cni/net.d")?
            .join("bin");
        cni::measure(
            &Place::named(field("netns")?),
            &conf,
            &plugins,
            self.label(),
            amount,
        )
    }

    /// Starts a Deployment of so many pods on a cluster of one node, and looks at what it takes.
    pub(crate) fn footprint(&self, pods: usize) -> Result<Footprint> {
        let plugin = self.weft.with_file_name("weft-cni");
        let image = std::fs::read(&plugin).with_context(|| format!("read {}", plugin.display()))?;
        let start = Instant::now();
        self.apply("fill", &deployment(pods))?;
        self.running(pods as u64)?;
        let pods_up_seconds = start.elapsed().as_secs_f64();
        let pid = self.status()?["nodes"][0]["agentPid"]
            .as_u64()
            .context("a node without agent")?;
        Ok(Footprint {
            plugin_bytes: image.len() as u64,
            plugin_static: !names_interpreter(&image).context("weft-cni is no 64-bit ELF file")?,
            pods,
            pods_up_seconds,
            agent_rss_bytes: resident(pid)?,
        })
    }
}

// === impl Transport ===

impl Transport {
    fn word(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Direct => "direct",
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = netns::run(Command::new(&self.weft).args(["lab", "delete", &self.name]));
    }
}

fn bare_pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  nodeName: {node}\n  containers:\n  \
         - name: bench\n    image: bench\n"
    )
}

fn deployment(replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: fill\nspec:\n  replicas: {replicas}\n  \
         selector:\n    matchLabels: {{app: fill}}\n  template:\n    metadata:\n      labels: {{app: fill}}\n    \
         spec:\n      containers:\n      - name: fill\n        image: fill\n"
    )
}

/// The link of the default route.
fn uplink(node: &Place) -> Result<Uplink> {
    let text = netns::read(
        node.command("ip")
            .args(["-json", "-4", "route", "show", "default"]),
    )?;
    let routes: Value = serde_json::from_str(&text).context("parse the output of ip")?;
    let link = routes[0]["dev"]
        .as_str()
        .context("a node without default route")?
        .to_owned();
    Ok(Uplink {
        node: node.clone(),
        link,
    })
}

/// The file called `name` below `dir` whose path names the node.
fn find(dir: &FilePath, node: &str, name: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path, node, name)? {
                return Ok(Some(found));
            }
        } else if path.ends_with(name) && path.iter().any(|part| part == node) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Resident memory of a process, bytes.
fn resident(pid: u64) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's status")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kib: u64 = line
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .context("parse VmRSS")?;
    Ok(kib << 10)
}

/// Whether an ELF file asks for a dynamic linker (a program header PT_INTERP; System V ABI, chapter 5).
fn names_interpreter(image: &[u8]) -> Option<bool> {
    const CLASS_64: u8 = 2;
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if !image.starts_with(b"\x7fELF") || *image.get(4)? != CLASS_64 {
        return None;
    }
    let table = u64::from_le_bytes(image.get(32..40)?.try_into().ok()?) as usize;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    let kinds: Option<Vec<u32>> = (0..count).map(|index| word(table + index * size)).collect();
    Some(kinds?.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_of_this_target_is_recognised() {
        let image = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(
            names_interpreter(&image),
            Some(!cfg!(target_feature = "crt-static"))
        );
        assert_eq!(names_interpreter(b"#!/bin/sh"), None);
    }
}
