//! Whole clusters: up, nodes that come and go, status.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::cache::Cache;
use crate::control_plane::{self, ControlPlane, Controllers, Options, Place};
use crate::kubectl::Kubectl;
use crate::progress::Progress;
use crate::state::{self, Cluster, Cni, Config, Ipam, Lock, Node};
use crate::{cni, dns, node, preflight, remove, vnet};

/// How long nodes may take to register, and to be Ready.
const NODES: Duration = Duration::from_secs(180);

/// Label and taint of the control plane's node, as kubeadm gives them.
pub const CONTROL_PLANE_ROLE: &str = "node-role.kubernetes.io/control-plane";

/// Between two looks at the API.
const POLL: Duration = Duration::from_millis(100);

/// Makes a cluster. What was made is removed again when it fails.
///
/// # Errors
/// What went wrong, where, and the log that says more.
pub async fn up(name: &str, config: Config, nodes: usize, keep: bool, progress: Progress) -> Result<Cluster> {
    state::check_name(name)?;
    state::check_name(&config.vnet)?;
    let cache = Cache::open(&config.cache)?;
    preflight::check(nodes)?;
    if state::dir(name).exists() {
        bail!("cluster {name} exists\n  next: cargo xtask kube down {name}");
    }
    preflight::raise_limits()?;
    let made = build(name, config, nodes, &cache, progress).await;
    if made.is_err() && !keep {
        progress.say("it failed: removing what was made (--keep leaves it)");
        remove::remove(name)?;
    }
    made
}

async fn build(
    name: &str,
    config: Config,
    nodes: usize,
    cache: &Cache,
    progress: Progress,
) -> Result<Cluster> {
    let cluster = reserve(name, config, nodes)?;
    let kubectl = Kubectl::new(cache, &cluster);
    let control_plane = ControlPlane::start(cache, options(&cluster)).await?;
    let client = control_plane.client().await?;
    control_plane.detach();
    progress.say("control plane ready");

    let installed = {
        let (cluster, kubectl) = (cluster.clone(), kubectl.clone());
        tokio::task::spawn_blocking(move || install(&cluster, &kubectl))
    };
    let members = cluster.members();
    start_nodes(&cluster, cache, members.clone()).await?;
    installed.await??;
    registered(&cluster, &client, &members).await?;
    if let Some(node) = cluster.control_plane() {
        // Nodes must not give themselves a role.
        kubectl.read(&["label", "node", &node.name, &format!("{CONTROL_PLANE_ROLE}=")])?;
    }
    progress.say(&format!("{} nodes registered", members.len()));
    finish_network(&cluster, &client).await?;
    if cluster.config.cni != Cni::None {
        ready(&cluster, &client, &members).await?;
        progress.say(&format!("{} nodes Ready", members.len()));
    }
    if cluster.config.dns && cluster.config.cni != Cni::None {
        rolled_out(&client, "kube-system", "coredns").await?;
        progress.say("DNS ready");
    }
    Ok(cluster)
}

/// Chooses names and addresses and makes the namespaces of VNet and control plane.
fn reserve(name: &str, config: Config, nodes: usize) -> Result<Cluster> {
    let _lock = Lock::acquire()?;
    let subnet = vnet::subnet_of(&config.vnet)?;
    let mut cluster = Cluster {
        name: name.to_owned(),
        subnet,
        api_address: vnet::free_api_address(&config.vnet, subnet)?,
        nodes: Vec::new(),
        config,
    };
    cluster.save()?;
    keep_program(&cluster)?;
    for _ in 0..nodes {
        add_next(&mut cluster)?;
    }
    vnet::ensure(&cluster.config.vnet, subnet)?;
    let control_plane = cluster.control_plane_netns();
    vnet::connect(&cluster.config.vnet, subnet, &control_plane, cluster.api_address)?;
    Ok(cluster)
}

/// Nodes run this very program, also after it was built anew.
fn keep_program(cluster: &Cluster) -> Result<()> {
    let own = Path::new("/proc/self/exe");
    let kept = node::program(cluster);
    fs::copy(own, &kept).with_context(|| format!("copy this program to {}", kept.display()))?;
    Ok(())
}

fn add_next(cluster: &mut Cluster) -> Result<Node> {
    let address = vnet::free_node_address(&cluster.config.vnet, cluster.subnet)?;
    let number = (1..)
        .find(|number| {
            cluster
                .nodes
                .iter()
                .all(|node| node.name != format!("node{number}"))
        })
        .context("no number is left")?;
    let node = Node {
        name: format!("node{number}"),
        address,
    };
    cluster.nodes.push(node.clone());
    cluster.save()?;
    Ok(node)
}

fn options(cluster: &Cluster) -> Options {
    let config = &cluster.config;
    let mut args = vec![format!("--service-cluster-ip-range={}", config.service_cidr)];
    // Weft's pools give nodes their addresses; with anything else it is the controller manager.
    if config.cni == Cni::Weft && config.ipam == Ipam::Pool {
        args.push("--allocate-node-cidrs=false".to_owned());
    } else {
        args.push("--allocate-node-cidrs=true".to_owned());
        args.push(format!("--cluster-cidr={}", config.pod_cidr));
    }
    Options {
        dir: cluster.dir(),
        place: Place::Netns(cluster.control_plane_netns(), cluster.api_address),
        service_cidr: config.service_cidr,
        controllers: Controllers::All(args),
        apiserver_args: Vec::new(),
        context: cluster.name.clone(),
    }
}

/// Applies what does not wait for nodes.
fn install(cluster: &Cluster, kubectl: &Kubectl) -> Result<()> {
    if let (Cni::Weft, Some(manifests)) = (cluster.config.cni, &cluster.config.weft_manifests) {
        cni::install_weft(cluster, kubectl, manifests)?;
    }
    if cluster.config.dns {
        let cache = Cache::open(&cluster.config.cache)?;
        let objects = dns::manifests(cluster, cache.image("AGNHOST")?);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        kubectl.apply(&list.to_string())?;
    }
    Ok(())
}

async fn start_nodes(cluster: &Cluster, cache: &Cache, nodes: Vec<Node>) -> Result<()> {
    let shared = Arc::new((cluster.clone(), cache.clone()));
    let mut tasks = tokio::task::JoinSet::new();
    for node in nodes {
        let shared = Arc::clone(&shared);
        tasks.spawn_blocking(move || node::start(&shared.0, &shared.1, &node));
    }
    while let Some(started) = tasks.join_next().await {
        started??;
    }
    Ok(())
}

/// Configures the reference plugins, which need to know every node's block.
async fn finish_network(cluster: &Cluster, client: &Client) -> Result<()> {
    if cluster.config.cni != Cni::Bridge {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        let objects: Api<NodeObject> = Api::all(client.clone());
        let blocks: Vec<(String, Ipv4Net)> = objects
            .list(&ListParams::default())
            .await?
            .into_iter()
            .filter_map(|node| {
                let block = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
                Some((node.name_any(), block))
            })
            .collect();
        if blocks.len() == cluster.nodes.len() {
            return cni::install_bridge(cluster, &blocks);
        }
        if began.elapsed() > NODES {
            bail!(
                "{} of {} nodes have pod addresses after {} s\n  next: less {}",
                blocks.len(),
                cluster.nodes.len(),
                NODES.as_secs(),
                control_plane::log(&cluster.dir(), "kube-controller-manager").display()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the nodes have registered themselves.
async fn registered(cluster: &Cluster, client: &Client, nodes: &[Node]) -> Result<()> {
    wait(cluster, client, nodes, "registered", |_| true).await
}

/// Waits until the nodes are Ready and free of Weft's taint.
///
/// # Errors
/// One is not, after three minutes: with what its condition says, and the logs to read.
pub async fn ready(cluster: &Cluster, client: &Client, nodes: &[Node]) -> Result<()> {
    wait(cluster, client, nodes, "Ready", is_ready).await
}

async fn wait(
    cluster: &Cluster,
    client: &Client,
    nodes: &[Node],
    what: &str,
    done: fn(&NodeObject) -> bool,
) -> Result<()> {
    let began = Instant::now();
    loop {
        let objects: Api<NodeObject> = Api::all(client.clone());
        let seen = objects.list(&ListParams::default()).await?.items;
        let missing = nodes.iter().find(|node| {
            !seen
                .iter()
                .any(|object| object.name_any() == node.name && done(object))
        });
        let Some(missing) = missing else {
            return Ok(());
        };
        if node::first_process(cluster, &missing.name).is_none() {
            let log = cluster.node_data(&missing.name).join("var/log/init.log");
            bail!(
                "node {} has ended: {}\n  next: less {}",
                missing.name,
                control_plane::last_line(&log),
                log.display()
            );
        }
        if began.elapsed() > NODES {
            let why = seen
                .iter()
                .find(|object| object.name_any() == missing.name)
                .and_then(why_not_ready)
                .unwrap_or_else(|| "the API has no object of it".to_owned());
            bail!(
                "node {} is not {what} after {} s: {why}\n  next: less {}",
                missing.name,
                NODES.as_secs(),
                cluster
                    .node_data(&missing.name)
                    .join("var/log/kubelet.log")
                    .display()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

fn is_ready(node: &NodeObject) -> bool {
    why_not_ready(node).is_none()
}

fn why_not_ready(node: &NodeObject) -> Option<String> {
    let condition = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "Ready");
    match condition {
        Some(condition) if condition.status == "True" => node
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .find(|taint| taint.effect == "NoSchedule" && taint.key != CONTROL_PLANE_ROLE)
            .map(|taint| format!("it has taint {}", taint.key)),
        Some(condition) => Some(condition.message.clone().unwrap_or_default()),
        None => Some("it has no condition Ready".to_owned()),
    }
}

async fn rolled_out(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let began = Instant::now();
    loop {
        let status = deployments.get(name).await?.status.unwrap_or_default();
        if status.available_replicas.unwrap_or(0) > 0 {
            return Ok(());
        }
        if began.elapsed() > NODES {
            bail!(
                "Deployment {namespace}/{name} has no available pod after {} s\n  next: kubectl --namespace {namespace} describe pods",
                NODES.as_secs()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Adds nodes to a cluster and waits until they are Ready.
///
/// # Errors
/// As for [`up`]; nodes that were started stay.
pub async fn add_nodes(name: &str, count: usize, progress: Progress) -> Result<()> {
    let (cluster, new) = {
        let _lock = Lock::acquire()?;
        let mut cluster = Cluster::load(name)?;
        let new = (0..count)
            .map(|_| add_next(&mut cluster))
            .collect::<Result<Vec<_>>>()?;
        (cluster, new)
    };
    let cache = Cache::open(&cluster.config.cache)?;
    let client = control_plane::client(&cluster.kubeconfig()).await?;
    start_nodes(&cluster, &cache, new.clone()).await?;
    registered(&cluster, &client, &new).await?;
    finish_network(&cluster, &client).await?;
    if cluster.config.cni != Cni::None {
        ready(&cluster, &client, &new).await?;
    }
    for node in &new {
        progress.say(&format!("{} ({}) is there", node.name, node.address));
    }
    Ok(())
}

/// Ends a node for good and deletes its object.
///
/// # Errors
/// There is no such node, or it does not end.
pub async fn remove_node(name: &str, node: &str) -> Result<()> {
    let _lock = Lock::acquire()?;
    let mut cluster = Cluster::load(name)?;
    let gone = cluster.node(node)?.clone();
    node::stop(&cluster, &gone)?;
    let client = control_plane::client(&cluster.kubeconfig()).await?;
    let objects: Api<NodeObject> = Api::all(client);
    match objects.delete(node, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        outcome => {
            outcome.with_context(|| format!("delete the object of node {node}"))?;
        }
    }
    let data = cluster.node_data(node);
    fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
    cluster.nodes.retain(|other| other.name != node);
    cluster.save()
}

/// Cuts a node's power and starts it again.
///
/// # Errors
/// There is no such node, or it does not end or start.
pub fn reboot_node(name: &str, node: &str) -> Result<()> {
    let cluster = Cluster::load(name)?;
    let cache = Cache::open(&cluster.config.cache)?;
    node::reboot(&cluster, &cache, cluster.node(node)?)
}
