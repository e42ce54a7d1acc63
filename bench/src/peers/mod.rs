//! Other projects' networks, run for real: their agents on two nodes, pods attached by their plugins.

mod cilium;
mod etcd;
mod flannel;
mod ptp;

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::cni::{self, Amount, Latency, Network, Pod};
use crate::competitor::{self, Competitor, Path};
use crate::left::Books;
use crate::netns::{Namespace, Place, Underlay};
use crate::process::Process;
use crate::{interrupt, modules, print};

/// Nodes of each.
pub(crate) const NODES: usize = 2;
/// Pods on the first of them.
pub(crate) const PODS: usize = 2;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// The plugin ptp, and routes from node to node: no overlay
    Ptp,
    /// flanneld with VXLAN, and the plugin bridge as its own meta-plugin sets it up
    Flannel,
    /// cilium-agent and cilium-cni with VXLAN
    Cilium,
}

/// A peer, up.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Declared first, so that its pods' processes end before the nodes.
    pub(crate) competitor: Competitor,
    name: String,
    attach: Attach,
    /// Name and process ID of its first node's agent, where it has one.
    pub(crate) agent: Option<(String, u32)>,
}

/// How pods are attached on a node.
#[derive(Debug, Clone)]
struct Attach {
    node: Place,
    conf: PathBuf,
    plugins: PathBuf,
    books: Books,
}

/// Two nodes with what attaches pods to them.
struct Nodes {
    name: &'static str,
    about: String,
    nodes: [Namespace; 2],
    attach: [Attach; 2],
    /// Numbers its pods.
    slot: usize,
    /// A node's each; they end before what follows.
    agents: Vec<Process>,
    /// What else has to end before the nodes go.
    kept: Vec<Box<dyn Debug>>,
}

/// Builds and starts what is wanted.
pub(crate) fn start(
    kinds: &[Kind],
    cache: &FilePath,
    out: &FilePath,
    underlay: &Underlay,
) -> Result<Vec<Peer>> {
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    modules::require_go()?;
    if kinds.contains(&Kind::Cilium) {
        // Known before minutes of building.
        cilium::clang()?;
    }
    std::fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    let mut peers = Vec::new();
    for kind in kinds {
        interrupt::check()?;
        print::note(&format!("starting {kind:?}"));
        let nodes = match kind {
            Kind::Ptp => ptp::start(cache, out, underlay)?,
            Kind::Flannel => flannel::start(cache, out, underlay)?,
            Kind::Cilium => cilium::start(cache, out, underlay)?,
        };
        peers.push(nodes.populate(underlay)?);
    }
    Ok(peers)
}

// === impl Peer ===

impl Peer {
    /// ADD and DEL on its first node.
    pub(crate) fn latency(&self, amount: &Amount) -> Result<Latency> {
        let Attach {
            node,
            conf,
            plugins,
            books,
        } = &self.attach;
        cni::measure(node, conf, plugins, &self.name, books, amount)
    }
}

// === impl Nodes ===

impl Nodes {
    /// Two pods on the first node, one on the second.
    fn populate(self, underlay: &Underlay) -> Result<Peer> {
        let attached = |number: usize, node: usize| -> Result<(Pod, Ipv4Addr)> {
            let Attach {
                node, conf, plugins, ..
            } = &self.attach[node];
            let mut pod = Pod::create(1_000_000 + 10 * self.slot + number)?;
            Network::read(conf, plugins, node.clone())?
                .add(&mut pod)
                .with_context(|| format!("attach a pod by {}", self.name))?;
            let address = pod
                .result
                .as_ref()
                .and_then(address)
                .context("a result without address")?;
            Ok((pod, address))
        };
        let (client, _) = attached(1, 0)?;
        let (neighbour, near) = attached(2, 0)?;
        let (remote, far) = attached(3, 1)?;
        let place = |pod: &Pod| Place::named(&pod.netns);
        let path = |server: &Pod, address: Ipv4Addr| Path {
            client: place(&client),
            server: place(server),
            address,
        };
        let competitor = Competitor {
            name: self.name,
            about: self.about.clone(),
            cross: path(&remote, far),
            same: path(&neighbour, near),
            outside: competitor::outside(underlay, place(&client))?,
            crowded: None,
            uplinks: underlay.uplinks(&self.nodes)?,
            kept: Vec::new(),
        };
        let [attach, _] = self.attach;
        let mut kept: Vec<Box<dyn Debug>> = vec![Box::new([client, neighbour, remote])];
        let agent = self.agents.first().map(|agent| (self.about.clone(), agent.id()));
        kept.push(Box::new(self.agents));
        kept.extend(self.kept);
        kept.push(Box::new(self.nodes));
        Ok(Peer {
            competitor: Competitor { kept, ..competitor },
            name: self.about,
            attach,
            agent,
        })
    }
}

/// Both nodes' ways to attach.
fn two(attach: Vec<Attach>) -> Result<[Attach; 2]> {
    <[Attach; 2]>::try_from(attach).map_err(|attach| anyhow!("{} nodes instead of two", attach.len()))
}

/// The first address of a CNI result.
fn address(result: &Value) -> Option<Ipv4Addr> {
    let text = result["ips"][0]["address"].as_str()?;
    text.split('/').next()?.parse().ok()
}

/// Writes a configuration list of one plugin.
fn write_conf(path: &FilePath, name: &str, plugin: &Value) -> Result<()> {
    let conf = serde_json::json!({"cniVersion": "1.0.0", "name": name, "plugins": [plugin]});
    std::fs::write(path, conf.to_string()).with_context(|| format!("write {}", path.display()))
}

/// An empty directory.
fn fresh(path: &FilePath) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_result_has_no_length() {
        let result = serde_json::json!({"ips": [{"address": "10.1.2.3/24"}]});
        assert_eq!(address(&result), Some(Ipv4Addr::new(10, 1, 2, 3)));
        assert_eq!(address(&serde_json::json!({"ips": []})), None);
    }
}
