//! The operator against a Kubernetes API: what it writes, and what it leaves alone.

use std::fmt::Debug;
use std::net::TcpListener;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use weft_api::{NodeNetwork, NodeSlice, PodPool};
use weft_apilite::ApiServer;
use weft_operator::{Args, Operator};

/// How long anything may take; reached only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    server: ApiServer,
    client: Client,
    operator: JoinHandle<()>,
}

// === impl Cluster ===

impl Cluster {
    async fn start(pool: Value) -> Self {
        let server = ApiServer::builder().start().unwrap();
        let address = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in weft_api::crds() {
            definitions
                .create(&PostParams::default(), &definition)
                .await
                .unwrap();
            let established = conditions::is_crd_established();
            wait(definitions.clone(), &definition.name_any(), established).await;
        }
        let pools: Api<PodPool> = Api::all(client.clone());
        let pool = json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "PodPool",
            "metadata": {"name": "default"},
            "spec": pool,
        });
        pools
            .create(&PostParams::default(), &serde_json::from_value(pool).unwrap())
            .await
            .unwrap();
        let operator = operator(&client);
        Self {
            server,
            client,
            operator,
        }
    }

    async fn restart_operator(&mut self) {
        self.operator.abort();
        assert!((&mut self.operator).await.unwrap_err().is_cancelled());
        self.operator = operator(&self.client);
    }

    async fn add_node(&self, name: &str, address: &str) -> Node {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        nodes
            .create(&PostParams::default(), &serde_json::from_value(node).unwrap())
            .await
            .unwrap();
        let addresses = json!([
            {"type": "Hostname", "address": name},
            {"type": "InternalIP", "address": address},
        ]);
        let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
        nodes
            .patch_status(name, &PatchParams::default(), &status)
            .await
            .unwrap()
    }

    async fn want(&self, node: &str, blocks: u32) {
        let status = Patch::Merge(json!({"status": {"wantedBlocks": blocks}}));
        self.networks()
            .patch_status(node, &PatchParams::default(), &status)
            .await
            .unwrap();
    }

    async fn delete_node(&self, name: &str) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn networks(&self) -> Api<NodeNetwork> {
        Api::all(self.client.clone())
    }

    fn pools(&self) -> Api<PodPool> {
        Api::all(self.client.clone())
    }

    async fn network(&self, name: &str, holds: impl Fn(&NodeNetwork) -> bool) -> NodeNetwork {
        wait(self.networks(), name, move |network: Option<&NodeNetwork>| {
            network.is_some_and(&holds)
        })
        .await
    }

    /// Waits until the slice lists exactly these nodes and blocks.
    async fn slice(&self, name: &str, expected: &[(&str, &str)]) -> NodeSlice {
        let slices: Api<NodeSlice> = Api::all(self.client.clone());
        wait(slices, name, |slice: Option<&NodeSlice>| {
            slice.is_some_and(|slice| {
                let listed: Vec<(String, String)> = slice
                    .spec
                    .nodes
                    .iter()
                    .map(|node| (node.name.clone(), node.blocks.join(",")))
                    .collect();
                let listed: Vec<(&str, &str)> = listed
                    .iter()
                    .map(|(name, blocks)| (name.as_str(), blocks.as_str()))
                    .collect();
                listed == expected
            })
        })
        .await
    }
}

fn operator(client: &Client) -> JoinHandle<()> {
    // Takes the Lease from the one that was killed, whose time would have to run out.
    start(client, false)
}

fn start(client: &Client, leader_elect: bool) -> JoinHandle<()> {
    let args = Args {
        kubeconfig: None,
        block_return_grace: Duration::from_secs(1),
        agent_pods: false,
        service_cidrs: vec![],
        leader_elect,
        lease_namespace: "kube-system".to_owned(),
        metrics_address: "127.0.0.1:0".parse().unwrap(),
    };
    let operator = Operator::new(client.clone(), &args);
    tokio::spawn(async move { operator.serve().await })
}

async fn wait<K>(api: Api<K>, name: &str, condition: impl kube::runtime::wait::Condition<K>) -> K
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + DeserializeOwned + 'static,
{
    let met = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition)).await;
    match met {
        Ok(object) => object.unwrap().unwrap(),
        Err(_) => panic!("{} {name} stays {:#?}", K::kind(&()), api.get_opt(name).await),
    }
}

fn blocks(network: &NodeNetwork) -> Vec<&str> {
    network
        .spec
        .blocks
        .iter()
        .map(|block| block.cidr.as_str())
        .collect()
}

fn granted(network: &NodeNetwork) -> bool {
    !network.spec.blocks.is_empty()
}

fn allocation(network: &NodeNetwork) -> &str {
    let condition = network
        .status
        .as_ref()
        .and_then(|status| status.allocation.as_ref());
    condition.map_or("", |condition| condition.reason.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_blocks_until_the_pool_is_dry_and_again_when_it_grows() {
    let cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/28"], "blockSize": 30})).await;
    let node = cluster.add_node("n1", "10.224.0.4").await;
    cluster.add_node("n2", "10.224.0.5").await;
    let network = cluster.network("n1", granted).await;
    assert_eq!(network.spec.node_uid, node.uid().unwrap());
    cluster
        .network("n2", |network| !network.spec.blocks.is_empty())
        .await;

    cluster.want("n1", 4).await;
    let dry = cluster
        .network("n1", |network| allocation(network) == "PoolExhausted")
        .await;
    assert_eq!(blocks(&dry).len(), 3);
    let pool = wait(cluster.pools(), "default", |pool: Option<&PodPool>| {
        pool.and_then(|pool| pool.status.as_ref())
            .is_some_and(|status| status.allocated == 4)
    })
    .await;
    assert_eq!(pool.status.unwrap().capacity, 4);
    let events: Api<Event> = Api::all(cluster.client.clone());
    tokio::time::timeout(PATIENCE, async {
        loop {
            let events = events.list(&ListParams::default()).await.unwrap();
            let on_node = events.iter().any(|event| {
                let regarding = event
                    .regarding
                    .as_ref()
                    .and_then(|regarding| regarding.name.as_deref());
                event.reason.as_deref() == Some("PoolExhausted") && regarding == Some("n1")
            });
            if on_node {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();

    let grown = Patch::Merge(json!({"spec": {"cidrs": ["10.244.0.0/28", "10.99.0.0/30"]}}));
    cluster
        .pools()
        .patch("default", &PatchParams::default(), &grown)
        .await
        .unwrap();
    let granted = cluster
        .network("n1", |network| allocation(network) == "Granted")
        .await;
    assert_eq!(blocks(&granted)[3], "10.99.0.0/30");
    let n1 = blocks(&granted).join(",");
    let n2 = cluster.networks().get("n2").await.unwrap();
    cluster
        .slice("nodes-0", &[("n1", &n1), ("n2", blocks(&n2)[0])])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_starts_leaves_alone_what_is_right() {
    let mut cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/16"]})).await;
    cluster.add_node("n1", "10.224.0.4").await;
    cluster.slice("nodes-0", &[("n1", "10.244.0.0/24")]).await;
    let before = cluster.network("n1", granted).await;
    cluster.restart_operator().await;
    cluster.add_node("n2", "10.224.0.5").await;
    let slice = [("n1", "10.244.0.0/24"), ("n2", "10.244.1.0/24")];
    cluster.slice("nodes-0", &slice).await;
    let after = cluster.networks().get("n1").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_unlisted_at_once_and_its_block_returns_after_the_grace() {
    let cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/24"]})).await;
    cluster.add_node("n1", "10.224.0.4").await;
    cluster.slice("nodes-0", &[("n1", "10.244.0.0/24")]).await;
    cluster.add_node("n2", "10.224.0.5").await;
    cluster
        .slice("nodes-0", &[("n1", "10.244.0.0/24"), ("n2", "")])
        .await;
    cluster.delete_node("n1").await;
    cluster.slice("nodes-0", &[("n2", "10.244.0.0/24")]).await;
    assert_eq!(cluster.networks().get_opt("n1").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_made_again_under_its_name_gets_a_network_of_its_own() {
    let cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/16"]})).await;
    cluster.add_node("n1", "10.224.0.4").await;
    let first = cluster.network("n1", granted).await;
    cluster.delete_node("n1").await;
    let again = cluster.add_node("n1", "10.224.0.4").await;
    let uid = again.uid().unwrap();
    let second = cluster
        .network("n1", |network| network.spec.node_uid == uid)
        .await;
    assert_ne!(second.uid(), first.uid());
    assert_ne!(blocks(&second), blocks(&first));
    cluster.slice("nodes-0", &[("n1", blocks(&second)[0])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_refuses_and_forgets_costs_time_and_nothing_else() {
    let cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/16"]})).await;
    cluster.add_node("n1", "10.224.0.4").await;
    cluster.slice("nodes-0", &[("n1", "10.244.0.0/24")]).await;
    cluster.server.compact();
    cluster.server.faults().expire_watches();
    cluster.add_node("n2", "10.224.0.5").await;
    cluster.server.faults().refuse_requests(true);
    cluster.server.faults().cut_watches();
    tokio::task::yield_now().await;
    cluster.server.faults().refuse_requests(false);
    cluster.add_node("n3", "10.224.0.6").await;
    let slice = [
        ("n1", "10.244.0.0/24"),
        ("n2", "10.244.1.0/24"),
        ("n3", "10.244.2.0/24"),
    ];
    cluster.slice("nodes-0", &slice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_that_loses_the_lease_writes_nothing_more() {
    let mut cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/16"]})).await;
    cluster.add_node("n1", "10.224.0.4").await;
    cluster.slice("nodes-0", &[("n1", "10.244.0.0/24")]).await;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-system");
    let holder = |lease: &Lease| lease.spec.clone().unwrap().holder_identity.unwrap();
    let first = holder(&leases.get("weft-operator").await.unwrap());
    // One that waits does nothing while the first lives, and one that does not ask takes over.
    let waiting = start(&cluster.client, true);
    let second = start(&cluster.client, false);
    wait(leases.clone(), "weft-operator", |lease: Option<&Lease>| {
        lease.is_some_and(|lease| holder(lease) != first)
    })
    .await;
    for node in 2..20 {
        cluster
            .add_node(&format!("n{node}"), &format!("10.224.1.{node}"))
            .await;
    }
    for node in 2..20 {
        cluster.network(&format!("n{node}"), granted).await;
    }
    let networks = cluster.networks().list(&ListParams::default()).await.unwrap();
    let mut given: Vec<&str> = networks.iter().flat_map(blocks).collect();
    let count = given.len();
    given.sort_unstable();
    given.dedup();
    assert_eq!((given.len(), count), (19, 19));
    second.abort();
    waiting.abort();
    cluster.operator.abort();
    assert!((&mut cluster.operator).await.unwrap_err().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_hears_what_its_agent_reports_and_keeps_the_taints_of_others() {
    let cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/16"]})).await;
    cluster.add_node("n1", "10.224.0.4").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let theirs = json!({"key": "dedicated", "value": "db", "effect": "NoExecute"});
    let ours = json!({"key": "weft.dev/agent-not-ready", "effect": "NoSchedule"});
    let taints = Patch::Merge(json!({"spec": {"taints": [theirs, ours]}}));
    nodes.patch("n1", &PatchParams::default(), &taints).await.unwrap();
    let conditions = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady"}]);
    let kubelet = Patch::Strategic(json!({"status": {"conditions": conditions}}));
    nodes
        .patch_status("n1", &PatchParams::default(), &kubelet)
        .await
        .unwrap();
    cluster.network("n1", granted).await;
    let ready = json!({"type": "Ready", "status": "True", "reason": "Serving", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = Patch::Merge(json!({"status": {"conditions": [ready]}}));
    cluster
        .networks()
        .patch_status("n1", &PatchParams::default(), &status)
        .await
        .unwrap();
    let node = wait(nodes, "n1", |node: Option<&Node>| {
        let taints = node.and_then(|node| node.spec.as_ref()?.taints.clone());
        taints.is_some_and(|taints| taints.len() == 1)
    })
    .await;
    let taint = node.spec.unwrap().taints.unwrap().remove(0);
    assert_eq!(
        (taint.key.as_str(), taint.value.as_deref()),
        ("dedicated", Some("db"))
    );
    let conditions: Vec<(String, String)> = (node.status.unwrap().conditions.unwrap().into_iter())
        .map(|condition| (condition.type_, condition.status))
        .collect();
    assert!(
        conditions.contains(&("NetworkUnavailable".to_owned(), "False".to_owned())),
        "{conditions:?}"
    );
    assert!(
        conditions.contains(&("Ready".to_owned(), "True".to_owned())),
        "{conditions:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retiring_range_is_drained() {
    let cluster = Cluster::start(json!({"cidrs": ["10.244.0.0/24", "10.99.0.0/24"]})).await;
    cluster.add_node("n1", "10.224.0.4").await;
    cluster
        .network("n1", |network| blocks(network) == ["10.244.0.0/24"])
        .await;
    let retire = Patch::Merge(json!({"spec": {"retiring": ["10.244.0.0/24"]}}));
    cluster
        .pools()
        .patch("default", &PatchParams::default(), &retire)
        .await
        .unwrap();
    let both = ["10.244.0.0/24", "10.99.0.0/24"];
    let marked = cluster.network("n1", |network| blocks(network) == both).await;
    assert!(marked.spec.blocks[0].retiring && !marked.spec.blocks[1].retiring);
    let empty = json!({"cidr": "10.244.0.0/24", "used": 0, "cooling": 0, "retiring": true});
    let status = Patch::Merge(json!({"status": {"blocks": [empty]}}));
    cluster
        .networks()
        .patch_status("n1", &PatchParams::default(), &status)
        .await
        .unwrap();
    cluster
        .network("n1", |network| blocks(network) == ["10.99.0.0/24"])
        .await;
    wait(cluster.pools(), "default", |pool: Option<&PodPool>| {
        let status = pool.and_then(|pool| pool.status.as_ref());
        status.is_some_and(|status| {
            status
                .ranges
                .iter()
                .any(|range| range.retiring && range.allocated == 0)
        })
    })
    .await;
}
