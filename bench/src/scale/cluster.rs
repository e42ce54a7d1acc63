//! One control plane with the operator, and questions about what is in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weft_api::{NodeNetwork, NodeSlice};

use super::agent::{Traffic, traffic};
use super::objects::{create, node_name};
use super::plane::{self, ControlPlane, Programs};
use super::requests::{self, Audit, Counts};
use super::wait_for;
use crate::maps::{self, Blocks};
use crate::netns::{Namespace, Place};
use crate::process::{Process, Usage};

/// Longest time for the operator to hand out all blocks.
const PATIENCE: Duration = Duration::from_secs(600);
/// The operator has settled when it has not worked for so long.
const QUIET: Duration = Duration::from_secs(2);

/// What a cluster is made of, apart from its nodes.
pub(super) struct Setting<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) programs: &'a Programs,
    pub(super) weft: PathBuf,
    pub(super) plane: &'a Namespace,
    pub(super) operator: &'a Namespace,
    pub(super) address: std::net::Ipv4Addr,
}

/// A control plane, and the operator while it runs.
pub(super) struct Cluster<'a> {
    pub(super) setting: &'a Setting<'a>,
    /// Ends before what it talks to.
    pub(super) operator: Option<Process>,
    pub(super) plane: ControlPlane,
    pub(super) client: Client,
    pub(super) audit: Audit,
}

/// How the operator gave blocks to nodes that were there when it started.
#[derive(Debug, Serialize)]
pub(super) struct HandOut {
    pub(super) pool: String,
    pub(super) nodes: u32,
    /// From the operator's start until each node had its block in a NodeNetwork.
    pub(super) blocks_seconds: f64,
    /// Until every node stood in a NodeSlice with its block.
    pub(super) slices_seconds: f64,
    /// Until the operator rested.
    pub(super) settled_seconds: f64,
    pub(super) requests: BTreeMap<String, u64>,
    pub(super) usage: Usage,
    pub(super) traffic: Traffic,
}

/// How many objects of a kind there are and how large they are.
#[derive(Debug, Serialize)]
pub(super) struct Stored {
    pub(super) kind: String,
    pub(super) objects: u64,
    /// Bytes of all values in etcd.
    pub(super) bytes: u64,
    /// The largest value, bytes.
    pub(super) largest: u64,
}

// === impl Cluster ===

impl<'a> Cluster<'a> {
    /// Starts a control plane with one pool. `name` tells its files from those of the others.
    pub(super) fn start(
        setting: &'a Setting<'a>,
        name: &str,
        dir: &std::path::Path,
        pool: (&str, u8),
    ) -> Result<Self> {
        let plane = ControlPlane::start(
            setting.programs,
            setting.plane.place(),
            setting.address,
            &dir.join(name),
        )?;
        let client = plane.client(setting.runtime)?;
        let audit = Audit::at(plane.audit_log());
        let cluster = Self {
            setting,
            plane,
            client,
            operator: None,
            audit,
        };
        setting.runtime.block_on(cluster.prepare(pool))?;
        Ok(cluster)
    }

    async fn prepare(&self, (cidr, block_size): (&str, u8)) -> Result<()> {
        let client = &self.client;
        create(
            client,
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            plane::rights(),
        )
        .await?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "weft-system"}});
        create(client, "/api/v1/namespaces", namespace).await?;
        for crd in weft_api::crds() {
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            create(client, path, serde_json::to_value(&crd)?).await?;
        }
        let pool = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "PodPool", "metadata": {"name": "default"},
            "spec": {"cidrs": [cidr], "blockSize": block_size},
        });
        // The server needs a moment to serve a new kind.
        let start = Instant::now();
        loop {
            match create(client, "/apis/weft.dev/v1alpha1/podpools", pool.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > Duration::from_secs(30) => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.setting.runtime.block_on(future)
    }

    /// A way into the namespace of the operator.
    fn operator_place(&self) -> Place {
        self.setting.operator.place()
    }

    /// Starts the operator.
    pub(super) fn start_operator(&mut self) -> Result<()> {
        let mut command = self.operator_place().command(&self.setting.weft);
        command
            .args(["operator", "--kubeconfig"])
            .arg(self.plane.kubeconfig(plane::OPERATOR)?);
        self.operator = Some(Process::start("operator", command, self.plane.dir())?);
        Ok(())
    }

    /// Ends the operator, or kills it without a chance to leave its Lease to the next.
    pub(super) fn stop_operator(&mut self, crash: bool) -> Result<()> {
        match self.operator.take() {
            Some(mut operator) if crash => operator.crash(),
            Some(mut operator) => operator.stop(),
            None => Ok(()),
        }
    }

    /// What the operator has taken until now.
    pub(super) fn operator_usage(&mut self) -> Result<Usage> {
        self.operator.as_mut().context("no operator runs")?.usage()
    }

    /// Starts the operator and waits until `nodes` nodes have their block, and everybody can know.
    pub(super) fn hand_out(&mut self, pool: &str, nodes: u32) -> Result<HandOut> {
        self.audit.since_last()?;
        let before = traffic(&self.setting.operator.place())?;
        let start = Instant::now();
        self.start_operator()?;
        let (blocks, slices) = self.wait_published(nodes, start)?;
        let mut last = (self.operator_usage()?.cpu_seconds, start.elapsed());
        wait_for("the operator to rest", PATIENCE, || {
            let cpu = self.operator_usage()?.cpu_seconds;
            // A watch and a clock take a tick now and then.
            if cpu > last.0 + 0.021 {
                last = (cpu, start.elapsed());
            }
            Ok((start.elapsed() > last.1 + QUIET).then_some(()))
        })?;
        let mut requests = self.audit.since_last()?;
        Ok(HandOut {
            pool: pool.to_owned(),
            nodes,
            blocks_seconds: blocks.as_secs_f64(),
            slices_seconds: slices.as_secs_f64(),
            settled_seconds: last.1.as_secs_f64(),
            requests: requests.remove(plane::OPERATOR).unwrap_or_default(),
            usage: self.operator_usage()?,
            traffic: traffic(&self.setting.operator.place())?.since(before),
        })
    }

    /// Waits until `nodes` nodes have blocks, and then until all stand in slices. Returns both times since `start`.
    pub(super) fn wait_published(&mut self, nodes: u32, start: Instant) -> Result<(Duration, Duration)> {
        wait_for("all NodeNetworks", PATIENCE, || {
            self.operator_usage()?;
            let one = ListParams::default().limit(1);
            let list = self.block_on(async { Ok(self.api::<NodeNetwork>().list_metadata(&one).await?) })?;
            let more = list.metadata.remaining_item_count.unwrap_or(0);
            let count = list.items.len() as u64 + u64::try_from(more).unwrap_or(0);
            std::thread::sleep(Duration::from_millis(20));
            Ok((count >= u64::from(nodes)).then_some(()))
        })?;
        let blocks = start.elapsed();
        wait_for("all NodeSlices", PATIENCE, || {
            let slices =
                self.block_on(async { Ok(self.api::<NodeSlice>().list(&ListParams::default()).await?) })?;
            let listed = slices.items.iter().flat_map(|slice| &slice.spec.nodes);
            let with_block = listed.filter(|node| !node.blocks.is_empty()).count();
            std::thread::sleep(Duration::from_millis(20));
            Ok((with_block >= nodes as usize).then_some(()))
        })?;
        Ok((blocks, start.elapsed()))
    }

    fn api<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Every node's blocks, as the operator wrote them down for it.
    pub(super) fn blocks(&self) -> Result<Blocks> {
        self.block_on(maps::published(&self.client))
    }

    /// Requests since the last call, by user.
    pub(super) fn requests(&mut self) -> Result<Counts> {
        self.audit.since_last()
    }

    /// A metric of the API server.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        self.block_on(requests::metric(&self.client, name, labels))
    }

    /// The size of an answer of the API server, bytes.
    pub(super) fn answer_size(&self, path: &str) -> Result<u64> {
        self.block_on(async {
            let request = http::Request::get(path).body(Vec::new())?;
            Ok(self.client.request_text(request).await?.len() as u64)
        })
    }

    /// What etcd holds of each kind.
    pub(super) fn stored(&self) -> Result<Vec<Stored>> {
        let etcd = self.block_on(async { ControlPlane::etcd_client() })?;
        let kinds = [
            ("Node", "/registry/minions/"),
            ("Pod", "/registry/pods/"),
            ("NodeNetwork", "/registry/weft.dev/nodenetworks/"),
            ("NodeSlice", "/registry/weft.dev/nodeslices/"),
        ];
        kinds
            .into_iter()
            .map(|(kind, prefix)| self.block_on(stored(&etcd, kind, prefix)))
            .collect()
    }

    /// Bytes of etcd's database that are in use, and of its file.
    pub(super) fn database(&self) -> Result<(f64, f64)> {
        self.block_on(async {
            let etcd = ControlPlane::etcd_client()?;
            let used = requests::metric(&etcd, "etcd_mvcc_db_total_size_in_use_in_bytes", &[]).await?;
            let file = requests::metric(&etcd, "etcd_mvcc_db_total_size_in_bytes", &[]).await?;
            Ok((used, file))
        })
    }

    /// Waits until a node has a block.
    pub(super) fn wait_block(&self, number: u32) -> Result<()> {
        let name = node_name(number);
        wait_for(&format!("the block of {name}"), PATIENCE, || {
            let network = self.block_on(async { Ok(self.api::<NodeNetwork>().get_opt(&name).await?) })?;
            std::thread::sleep(Duration::from_millis(10));
            Ok(network
                .filter(|network| !network.spec.blocks.is_empty())
                .map(drop))
        })
    }
}

/// Counts and measures what is below a prefix, through etcd's JSON gateway.
async fn stored(etcd: &Client, kind: &str, prefix: &str) -> Result<Stored> {
    const PAGE: usize = 2000;
    let mut stored = Stored {
        kind: kind.to_owned(),
        objects: 0,
        bytes: 0,
        largest: 0,
    };
    let mut from = prefix.as_bytes().to_vec();
    // The first key after all that begin with the prefix, which ends in a slash.
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    loop {
        let query = json!({"key": STANDARD.encode(&from), "range_end": STANDARD.encode(&end), "limit": PAGE});
        let request = http::Request::post("/v3/kv/range").body(serde_json::to_vec(&query)?)?;
        let answer: Value = etcd.request(request).await?;
        let empty = Vec::new();
        let pairs = answer["kvs"].as_array().unwrap_or(&empty);
        for pair in pairs {
            let text = pair["value"].as_str().unwrap_or_default();
            let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
            let size = (text.len() / 4 * 3 - padding) as u64;
            stored.objects += 1;
            stored.bytes += size;
            stored.largest = stored.largest.max(size);
        }
        match pairs.last() {
            Some(last) if pairs.len() == PAGE => {
                from = STANDARD.decode(last["key"].as_str().unwrap_or_default())?;
                from.push(0);
            }
            _ => return Ok(stored),
        }
    }
}
