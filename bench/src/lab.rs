//! Weft's side of the measurements: a lab cluster, driven by the `weft` command as a user would.

mod footprint;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::agents::Recipe;
use crate::api::ClusterApi;
use crate::cni::{self, Amount, Latency, Network};
use crate::competitor::{Competitor, Path, Uplink};
use crate::interrupt;
use crate::left::Books;
use crate::maps::{Blocks, Maps};
use crate::netns::{self, OUTSIDE, Place};

/// Longest time for pods to run.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest time for agents to say by which way they send.
const SETTLED: Duration = Duration::from_secs(10);
/// Where the lab keeps its clusters.
const STATE: &str = "/run/weft/lab";
/// What each process of a lab cluster has in its environment, with the cluster's name.
const CLUSTER_ENV: &str = "WEFT_LAB_CLUSTER";
/// Room for 8,192 blocks of /24.
const PODS: &str = "10.96.0.0/11";

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

/// How a node says that it sends to others.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// Absent before its agent has said anything.
    pub(crate) transport: Option<Transport>,
    /// Why, for people.
    pub(crate) reason: String,
}

// === impl Lab ===

impl Lab {
    /// Makes a cluster. Its VNet has the cluster's name, so that it meets no other.
    ///
    /// # Errors
    /// A node does not send by the transport that was asked for, and its figures would have the wrong name.
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
                .args(["--pod-cidr", PODS, "--transport", transport.word()]),
        )?;
        lab.verify_transport()?;
        Ok(lab)
    }

    fn verify_transport(&self) -> Result<()> {
        let api = self.api()?;
        let start = Instant::now();
        loop {
            interrupt::check()?;
            match unlike(self.transport, &api.transports()?) {
                None => return Ok(()),
                Some(text) if start.elapsed() > SETTLED => bail!(
                    "cluster {} would not be what its figures are called: {text}\n  next: mend that, or measure \
                     with --transports {}",
                    self.name,
                    self.transport.other().word()
                ),
                Some(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn api(&self) -> Result<ClusterApi> {
        let status = self.status()?;
        let kubeconfig = status["kubeconfig"].as_str();
        ClusterApi::connect(FilePath::new(kubeconfig.context("a cluster without kubeconfig")?))
    }

    /// Makes Nodes without machines until the cluster has `known`, and waits until the agents' maps hold them all.
    pub(crate) fn crowd(&self, known: u32) -> Result<()> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().context("a cluster without nodes")?;
        let own = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let blocks = self.api()?.crowd(known.saturating_sub(own), known as usize)?;
        for index in 0..nodes.len() {
            let maps = Maps::open(&self.recipe(&status, index)?.argument("--pin-dir")?)?;
            wait_full(&maps, address(&status, index)?, &blocks)?;
        }
        Ok(())
    }

    /// How the agent of a node was started.
    fn recipe(&self, status: &Value, index: usize) -> Result<Recipe> {
        let node = &status["nodes"][index];
        let pid = agent_pid(status, index)?;
        let netns = node["netns"].as_str().context("a node without namespace")?;
        Recipe::of(pid, netns.to_owned(), (CLUSTER_ENV, self.name.clone()))
    }

    /// What it is called in reports.
    fn label(&self) -> &'static str {
        match self.transport {
            Transport::Device => "weft-device",
            Transport::Direct => "weft-direct",
        }
    }

    /// A part of the cluster's VNet: `internet` is the host beyond its router, `switch` what the nodes hang on.
    fn vnet(&self, part: &str) -> Place {
        let weft = self.weft.to_string_lossy().into_owned();
        let words = ["lab", "vnet-exec", &self.name, "--on", part, "--"].map(str::to_owned);
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

    /// The way between pods of two nodes alone.
    pub(crate) fn cross(&self) -> Result<Path> {
        let competitor = self.competitor()?;
        Ok(competitor.cross)
    }

    /// Pods on one node and on two.
    pub(crate) fn competitor(&self) -> Result<Competitor> {
        let status = self.status()?;
        let pods = [("client", 0), ("neighbour", 0), ("remote", 1)];
        let manifests = pods.map(|(name, index)| Ok(bare_pod(name, field(&status, index, "name")?)));
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
            .map(|index| uplink(Place::named(field(&status, index, "netns")?), self.vnet("switch")))
            .collect();
        Ok(Competitor {
            name: self.label(),
            about: "pods of a lab cluster, by the real agent, plugin and eBPF programs".into(),
            cross: path("remote")?,
            same: path("neighbour")?,
            outside: Path {
                client: self.pod("client"),
                server: self.vnet("internet"),
                address: OUTSIDE,
            },
            crowded: None,
            uplinks: uplinks?,
            kept: Vec::new(),
        })
    }

    /// The configuration of this cluster's first node, and the directory of its plugins.
    fn configuration(&self, status: &Value) -> Result<(PathBuf, PathBuf)> {
        let conf = find(
            &FilePath::new(STATE).join(&self.name),
            field(status, 0, "name")?,
            "10-weft.conflist",
        )?
        .context("no 10-weft.conflist in the node's directory")?;
        let node = conf.ancestors().nth(2);
        let plugins = node.context("a configuration outside cni/net.d")?.join("bin");
        Ok((conf, plugins))
    }

    /// ADD and DEL through this cluster's first node, whose state is in memory.
    pub(crate) fn latency(&self, amount: &Amount) -> Result<Latency> {
        let status = self.status()?;
        let recipe = self.recipe(&status, 0)?;
        self.measure(&status, &recipe, self.label(), amount)
    }

    /// The same with the state of the node below `disk`.
    pub(crate) fn latency_on(&self, disk: &FilePath, amount: &Amount) -> Result<Latency> {
        let state = disk.join(&self.name);
        std::fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
        let status = self.status()?;
        let recipe = self.recipe(&status, 0)?.with_argument("--state-dir", &state)?;
        let (conf, plugins) = self.configuration(&status)?;
        let network = Network::read(&conf, &plugins, Place(Vec::new()))?;
        let measured = self.without_agent(field(&status, 0, "name")?, || {
            let (mut agent, _) = recipe.start(&network, &self.scratch)?;
            let measured = self.measure(&status, &recipe, &format!("{} on a disk", self.label()), amount);
            agent.stop()?;
            measured
        });
        std::fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
        measured
    }

    fn measure(&self, status: &Value, agent: &Recipe, name: &str, amount: &Amount) -> Result<Latency> {
        let (conf, plugins) = self.configuration(status)?;
        let node = Place::named(field(status, 0, "netns")?);
        let books = Books::Pins(agent.argument("--pin-dir")?);
        cni::measure(&node, &conf, &plugins, name, &books, amount)
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

    fn other(self) -> Self {
        match self {
            Self::Device => Self::Direct,
            Self::Direct => Self::Device,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = netns::run(Command::new(&self.weft).args(["lab", "delete", &self.name]));
    }
}

/// Which node does not send as it should, or has not said so yet.
fn unlike(wanted: Transport, ways: &BTreeMap<String, Way>) -> Option<String> {
    if ways.is_empty() {
        return Some("no node says how it sends".into());
    }
    ways.iter().find_map(|(node, way)| match way.transport {
        Some(transport) if transport == wanted => None,
        Some(transport) => Some(format!(
            "{node} sends by {} instead of {}: {}",
            transport.word(),
            wanted.word(),
            way.reason
        )),
        None => Some(format!("{node} does not say how it sends")),
    })
}

fn field<'a>(status: &'a Value, index: usize, name: &str) -> Result<&'a str> {
    let value = status["nodes"][index][name].as_str();
    value.with_context(|| format!("node {index} has no {name} in the lab's status"))
}

fn address(status: &Value, index: usize) -> Result<Ipv4Addr> {
    let text = field(status, index, "address")?;
    text.parse().with_context(|| format!("parse address {text}"))
}

fn agent_pid(status: &Value, index: usize) -> Result<u32> {
    let pid = status["nodes"][index]["agentPid"].as_u64();
    let pid = pid.with_context(|| format!("node {index} has no agent"))?;
    u32::try_from(pid).context("a process ID")
}

/// Waits until an agent's maps hold just what is published.
fn wait_full(maps: &Maps, own: Ipv4Addr, blocks: &Blocks) -> Result<()> {
    let start = Instant::now();
    while let Err(error) = maps.verify(own, blocks) {
        interrupt::check()?;
        if start.elapsed() > PATIENCE {
            return Err(error.context(format!("after {PATIENCE:?}, the maps of node {own}")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn bare_pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  nodeName: {node}\n  containers:\n  \
         - name: bench\n    image: bench\n"
    )
}

/// The link of the default route.
fn uplink(node: Place, switch: Place) -> Result<Uplink> {
    let text = netns::read(
        node.command("ip")
            .args(["-json", "-4", "route", "show", "default"]),
    )?;
    let routes: Value = serde_json::from_str(&text).context("parse the output of ip")?;
    let link = routes[0]["dev"]
        .as_str()
        .context("a node without default route")?;
    Uplink::find(node, link, switch)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_sends_another_way_is_named_with_its_reason() {
        let way = |transport, reason: &str| Way {
            transport,
            reason: reason.into(),
        };
        let ways = |second: Way| {
            let first = ("node-1".to_owned(), way(Some(Transport::Direct), ""));
            BTreeMap::from([first, ("node-2".to_owned(), second)])
        };
        let of = |second| unlike(Transport::Direct, &ways(second));
        assert_eq!(of(way(Some(Transport::Direct), "")), None);
        assert_eq!(
            of(way(Some(Transport::Device), "VLANs")).unwrap(),
            "node-2 sends by device instead of direct: VLANs"
        );
        assert_eq!(of(way(None, "")).unwrap(), "node-2 does not say how it sends");
        assert!(unlike(Transport::Direct, &BTreeMap::new()).is_some());
    }
}
