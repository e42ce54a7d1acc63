//! A lab cluster's Kubernetes API: what its nodes say of themselves, and Nodes beside them that have no machines.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::runtime::Runtime;
use weft_api::NodeNetwork;

use crate::interrupt;
use crate::lab::{Transport, Way};
use crate::maps::{self, Blocks};
use crate::scale::objects::{create_nodes, node_address, relocate};

/// Longest time until all nodes have their block and stand in slices.
const PATIENCE: Duration = Duration::from_secs(180);
/// The first number of a Node without machine: the addresses of those before it are the lab's own.
const FIRST: u32 = 1000;
/// Between a Node's number and that of the address it moves to.
const MOVE: u32 = 10_000;

/// A client, and what drives it.
pub(crate) struct ClusterApi {
    runtime: Runtime,
    client: Client,
}

// === impl ClusterApi ===

impl ClusterApi {
    pub(crate) fn connect(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let kubeconfig = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("read the kubeconfig {}", kubeconfig.display()))?;
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    /// By which way each node says it sends to others, and why.
    pub(crate) fn transports(&self) -> Result<BTreeMap<String, Way>> {
        let networks: Api<NodeNetwork> = Api::all(self.client.clone());
        let list = self
            .runtime
            .block_on(networks.list(&ListParams::default()))
            .context("list NodeNetworks")?;
        let ways = list.into_iter().map(|network| {
            let status = network.status.unwrap_or_default();
            let way = Way {
                transport: status.transport.map(|transport| match transport {
                    weft_api::Transport::Device => Transport::Device,
                    weft_api::Transport::Direct => Transport::Direct,
                }),
                reason: status
                    .conditions
                    .iter()
                    .find(|condition| condition.type_ == "TransportAsRequested")
                    .map_or_else(String::new, |condition| condition.message.clone()),
            };
            (network.metadata.name.unwrap_or_default(), way)
        });
        Ok(ways.collect())
    }

    /// Makes so many Nodes without machines, and waits until `known` nodes in all have their block and are published.
    pub(crate) fn crowd(&self, count: u32, known: usize) -> Result<Blocks> {
        self.runtime
            .block_on(create_nodes(&self.client, FIRST..FIRST + count))
            .context("make Nodes without machines")?;
        self.published(|blocks| blocks.len() == known)
            .with_context(|| format!("wait for the blocks of {known} nodes"))
    }

    /// What is published of all nodes, as soon as it is `whole`.
    fn published(&self, whole: impl Fn(&Blocks) -> bool) -> Result<Blocks> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            // Objects and slices are not written at once, and disagree meanwhile.
            match self.runtime.block_on(maps::published(&self.client)) {
                Ok(blocks) if whole(&blocks) => return Ok(blocks),
                Ok(blocks) if start.elapsed() > PATIENCE => {
                    bail!(
                        "after {PATIENCE:?} only {} nodes are as they should be",
                        blocks.len()
                    )
                }
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(300)),
            }
        }
    }

    /// Gives `per_second` of the `count` Nodes without machines another address, each second, for `time`.
    ///
    /// Returns how many changed and what is published of all nodes afterwards.
    ///
    /// # Errors
    /// The API does not keep up: what was asked for would not be what was measured.
    pub(crate) fn churn(&self, count: u32, per_second: u32, time: Duration) -> Result<(u32, Blocks)> {
        let changes = u32::try_from(time.as_millis()).unwrap_or(u32::MAX) * per_second / 1000;
        ensure!(changes <= count, "{changes} changes of {count} nodes");
        let start = Instant::now();
        self.runtime.block_on(async {
            for (done, number) in (0..changes).zip(FIRST..) {
                interrupt::check()?;
                let due = start + Duration::from_secs(1) * done / per_second;
                tokio::time::sleep_until(due.into()).await;
                relocate(&self.client, number, node_address(number + MOVE)).await?;
            }
            anyhow::Ok(())
        })?;
        let took = start.elapsed();
        ensure!(
            took < time.mul_f64(1.2),
            "{changes} changes took {took:?} instead of {time:?}"
        );
        let moved = moved(FIRST..FIRST + changes);
        let blocks = self
            .published(|blocks| moved.iter().all(|address| blocks.contains_key(address)))
            .context("wait for the nodes' other addresses")?;
        Ok((changes, blocks))
    }
}

fn moved(numbers: Range<u32>) -> Vec<Ipv4Addr> {
    numbers.map(|number| node_address(number + MOVE)).collect()
}
