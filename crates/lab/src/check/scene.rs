//! Where the checks take place: two nodes, their probe pods, the hosts around them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use weft_abi::DropReason;
use weft_kernel::NetNs;
use weft_kernel::bpf::Counters;
use weft_kernel::rtnl::Rtnl;
use weft_model::{Mac, UserError, codes};

use super::Trouble;
use crate::daemon::api_error;
use crate::exec::{self, VnetPlace};
use crate::machine::kernel_error;
use crate::state::{ClusterDir, clusters};
use crate::status::{ClusterStatus, NodeStatus};

/// Namespace of the probe pods.
const NAMESPACE: &str = "weft-check";

/// How long the probe pods may take to run, and to be gone.
const PODS_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks at them.
const POLL: Duration = Duration::from_millis(25);

/// Everything the checks need, ready to use.
#[derive(Clone)]
pub(super) struct Scene {
    pub(super) cluster: Arc<ClusterStatus>,
    /// Two pods on the first node.
    pub(super) a: Probe,
    pub(super) a2: Probe,
    /// A pod on the second node, where there is one.
    pub(super) b: Option<Probe>,
    /// "The VM next door".
    pub(super) host: Machine,
    /// Beyond the VNet's router.
    pub(super) internet: Machine,
    /// Another cluster in the same VNet, where there is one.
    pub(super) neighbour: Option<Neighbour>,
}

/// Another cluster in the same VNet.
#[derive(Clone)]
pub(super) struct Neighbour {
    pub(super) cluster: String,
    pub(super) node: Machine,
    /// One of its running pods, where it has any.
    pub(super) pod: Option<Machine>,
}

/// A probe pod and its node.
#[derive(Clone)]
pub(super) struct Probe {
    pub(super) pod: Machine,
    pub(super) node: Node,
}

/// Something with a network namespace and an address.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) netns: Arc<NetNs>,
    pub(super) address: Ipv4Addr,
}

/// A node as a machine, with its datapath's counters.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) status: NodeStatus,
    pub(super) dir: PathBuf,
    pub(super) counters: Arc<Counters>,
    /// What the counters stood at before the first check.
    pub(super) before: Arc<Drops>,
}

/// Packets dropped so far, by reason.
pub(super) type Drops = std::collections::BTreeMap<DropReason, u64>;

/// One end of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) index: u32,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
}

// === impl Scene ===

impl Scene {
    /// Makes the probe pods and waits until they run.
    pub(super) async fn set(name: &str, cluster: &ClusterStatus) -> Result<Self, UserError> {
        let ready: Vec<&NodeStatus> = cluster
            .nodes
            .iter()
            .filter(|node| node.ready && node.schedulable)
            .take(2)
            .collect();
        let Some(first) = ready.first() else {
            return Err(UserError::new(
                codes::CHECK_FAILED,
                format!("cluster {name} has no node that is Ready"),
                format!("weft lab status {name}"),
            ));
        };
        let client = exec::client(name)?;
        remove_pods(&client).await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = Namespace {
            metadata: kube::core::ObjectMeta {
                name: Some(NAMESPACE.to_owned()),
                ..Default::default()
            },
            ..Namespace::default()
        };
        let failed = |error: kube::Error| api_error("making the probe pods", &error);
        match namespaces.create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            outcome => drop(outcome.map_err(failed)?),
        }
        let mut wanted = vec![("a", first.name.as_str()), ("a2", first.name.as_str())];
        wanted.extend(ready.get(1).map(|second| ("b", second.name.as_str())));
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        for (pod, node) in &wanted {
            let pod = probe_pod(pod, node).map_err(|error| {
                UserError::new(codes::INVALID_OBJECT, error.to_string(), "weft lab check --list")
            })?;
            pods.create(&PostParams::default(), &pod).await.map_err(failed)?;
        }
        wait_running(name, &pods, wanted.len()).await?;

        let dir = ClusterDir::new(name)?;
        let node = |status: &NodeStatus| -> Result<Node, UserError> {
            let path = dir.node(&status.name);
            let counters = Counters::open(&path.join("bpf")).map_err(|error| not_there(name, &error))?;
            let before = Arc::new(read_drops(&counters).map_err(|error| not_there(name, &error))?);
            Ok(Node {
                machine: machine(name, &status.name, &status.netns, status.address)?,
                status: status.clone(),
                dir: path,
                counters: Arc::new(counters),
                before,
            })
        };
        let first_node = node(first)?;
        let probe = async |pod: &str, node: Node| -> Result<Probe, UserError> {
            let netns = exec::pod_netns(name, pod, Some(NAMESPACE)).await?;
            let address = address(&pods, pod).await?;
            Ok(Probe {
                pod: machine(name, pod, &netns, address)?,
                node,
            })
        };
        Ok(Self {
            a: probe("a", first_node.clone()).await?,
            a2: probe("a2", first_node).await?,
            b: match ready.get(1) {
                Some(second) => Some(probe("b", node(second)?).await?),
                None => None,
            },
            host: machine(
                name,
                "VNet host",
                &exec::vnet_netns(name, VnetPlace::Host)?,
                cluster.network.host,
            )?,
            internet: machine(
                name,
                "internet",
                &exec::vnet_netns(name, VnetPlace::Internet)?,
                cluster.network.internet,
            )?,
            neighbour: neighbour(name, &cluster.config.vnet).await,
            cluster: Arc::new(cluster.clone()),
        })
    }

    /// The pod on the second node.
    pub(super) fn b(&self) -> Result<&Probe, Trouble> {
        self.b
            .as_ref()
            .ok_or_else(|| Trouble::Skipped("the cluster has one node".to_owned()))
    }

    /// The nodes that the checks use.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.a.node).chain(self.b.as_ref().map(|probe| &probe.node))
    }
}

// === impl Probe ===

impl Probe {
    /// The pod's own end of its link.
    pub(super) fn pod_end(&self) -> Result<End, Trouble> {
        end_of(&self.pod.netns, "eth0")
    }

    /// The node's end of the pod's link.
    pub(super) fn node_end(&self) -> Result<End, Trouble> {
        let peer = Rtnl::open_in(&self.pod.netns)?.get_link("eth0")?.peer;
        let peer = peer.ok_or_else(|| Trouble::Failed("eth0 of the pod has no other end".to_owned()))?;
        let link = Rtnl::open_in(&self.node.machine.netns)?.get_link(peer)?;
        end(&link)
    }
}

// === impl Node ===

impl Node {
    /// Packets its datapath has dropped so far.
    pub(super) fn drops(&self) -> Result<Drops, Trouble> {
        Ok(read_drops(&self.counters)?)
    }
}

/// One end of a link, by the link's name.
pub(super) fn end_of(netns: &NetNs, link: &str) -> Result<End, Trouble> {
    end(&Rtnl::open_in(netns)?.get_link(link)?)
}

/// Takes the probe pods away and waits until they are gone.
///
/// # Errors
/// The cluster does not exist, or its API refuses.
pub async fn clean_up(name: &str) -> Result<(), UserError> {
    let client = exec::client(name)?;
    remove_pods(&client).await?;
    let namespaces: Api<Namespace> = Api::all(client);
    match namespaces.delete(NAMESPACE, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        outcome => outcome
            .map(drop)
            .map_err(|error| api_error("removing the probe pods", &error)),
    }
}

async fn remove_pods(client: &Client) -> Result<(), UserError> {
    let failed = |error: kube::Error| api_error("removing the probe pods", &error);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let everything = ListParams::default();
    let began = Instant::now();
    loop {
        let left = pods.list(&everything).await.map_err(failed)?.items;
        if left.is_empty() {
            return Ok(());
        }
        for pod in left
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match pods.delete(name, &DeleteParams::default().grace_period(1)).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                outcome => drop(outcome.map_err(failed)?),
            }
        }
        if began.elapsed() > PODS_TIMEOUT {
            return Err(UserError::new(
                codes::LAB_TIMEOUT,
                format!("{} probe pods do not go away", left.len()),
                format!("kubectl -n {NAMESPACE} describe pods"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn wait_running(cluster: &str, pods: &Api<Pod>, count: usize) -> Result<(), UserError> {
    let began = Instant::now();
    loop {
        let found = pods
            .list(&ListParams::default())
            .await
            .map_err(|error| api_error("waiting for the probe pods", &error))?
            .items;
        let running = found.iter().filter(|pod| is_running(pod)).count();
        if running == count {
            return Ok(());
        }
        if began.elapsed() > PODS_TIMEOUT {
            return Err(UserError::new(
                codes::LAB_TIMEOUT,
                format!(
                    "{running} of {count} probe pods run after {} s",
                    PODS_TIMEOUT.as_secs()
                ),
                format!("KUBECONFIG=$(weft lab kubeconfig {cluster}) kubectl -n {NAMESPACE} describe pods"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn address(pods: &Api<Pod>, name: &str) -> Result<Ipv4Addr, UserError> {
    let pod = pods
        .get(name)
        .await
        .map_err(|error| api_error("reading a probe pod", &error))?;
    let address = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
    address.parse().map_err(|_| {
        UserError::new(
            codes::CHECK_FAILED,
            format!("probe pod {name} has the address {address:?}"),
            format!("kubectl -n {NAMESPACE} describe pod {name}"),
        )
    })
}

/// Another cluster in the VNet, as far as it can be seen.
async fn neighbour(name: &str, vnet: &str) -> Option<Neighbour> {
    let other = clusters()
        .into_iter()
        .find(|state| state.config.vnet == vnet && state.config.name != name)?;
    let cluster = other.config.name.clone();
    let node = other.nodes.first()?;
    let netns = exec::node_netns(&cluster, &node.name).ok()?;
    Some(Neighbour {
        node: machine(&cluster, &node.name, &netns, node.address).ok()?,
        pod: neighbour_pod(&cluster).await,
        cluster,
    })
}

async fn neighbour_pod(cluster: &str) -> Option<Machine> {
    let pods: Api<Pod> = Api::all(exec::client(cluster).ok()?);
    let pods = pods.list(&ListParams::default()).await.ok()?.items;
    let on_host = |pod: &Pod| {
        pod.spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false)
    };
    let pod = pods.iter().find(|pod| is_running(pod) && !on_host(pod))?;
    let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let (name, namespace) = (pod.metadata.name.as_deref()?, pod.metadata.namespace.as_deref()?);
    let netns = exec::pod_netns(cluster, name, Some(namespace)).await.ok()?;
    machine(cluster, name, &netns, address).ok()
}

fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let running = status.and_then(|status| status.phase.as_deref()) == Some("Running");
    running && status.is_some_and(|status| status.pod_ip.is_some())
}

fn probe_pod(name: &str, node: &str) -> serde_json::Result<Pod> {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "weft-lab-check"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "probe", "image": "weft/probe"}],
        },
    }))
}

fn machine(cluster: &str, name: &str, netns: &str, address: Ipv4Addr) -> Result<Machine, UserError> {
    let netns = NetNs::named(netns).map_err(|error| not_there(cluster, &error))?;
    Ok(Machine {
        name: name.to_owned(),
        netns: Arc::new(netns),
        address,
    })
}

fn end(link: &weft_kernel::rtnl::Link) -> Result<End, Trouble> {
    let mac = link
        .mac
        .ok_or_else(|| Trouble::Failed(format!("{} has no Ethernet address", link.name)))?;
    Ok(End {
        index: link.index,
        mac,
        mtu: link.mtu,
    })
}

fn read_drops(counters: &Counters) -> weft_kernel::Result<Drops> {
    let drops = counters.drops()?;
    Ok(drops
        .into_iter()
        .map(|(reason, count)| (reason, count.packets))
        .collect())
}

fn not_there(cluster: &str, error: &weft_kernel::Error) -> UserError {
    kernel_error(
        &format!("cluster {cluster}"),
        error,
        &format!("weft lab status {cluster}"),
    )
}
