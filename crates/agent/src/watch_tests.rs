//! What the agent wants while the API server misbehaves.

use super::*;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Config;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use serde_json::{Value, json};
use std::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use weft_apilite::ApiServer;
use weft_model::NodeUid;

/// How long anything may take; reached only when something is wrong.
const LIMIT: Duration = Duration::from_secs(30);

struct Bed {
    server: ApiServer,
    client: Client,
    uid: NodeUid,
    watching: Option<JoinHandle<()>>,
    view: watch::Receiver<View>,
}

// === impl Bed ===

impl Bed {
    /// A cluster of n1, whose agent this is, and n2, without an agent yet.
    async fn new() -> Self {
        let server = ApiServer::builder().start().unwrap();
        let address = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in weft_api::crds() {
            let name = definition.name_any();
            definitions
                .create(&PostParams::default(), &definition)
                .await
                .unwrap();
            let established = await_condition(definitions.clone(), &name, conditions::is_crd_established());
            timeout(LIMIT, established).await.unwrap().unwrap();
        }
        let mut bed = Self {
            server,
            client,
            uid: "none".parse().unwrap(),
            watching: None,
            view: watch::channel(View::default()).1,
        };
        bed.make::<PodPool>(
            "PodPool",
            "default",
            json!({"spec": {"cidrs": ["10.244.0.0/16"]}}),
        )
        .await;
        bed.make_node().await;
        bed.slice("s0", "n2", "10.224.0.5", "10.244.1.0/24").await;
        bed
    }

    async fn make<K>(&self, kind: &str, name: &str, mut object: Value) -> K
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + serde::Serialize + Debug,
    {
        object["apiVersion"] = K::api_version(&()).into();
        object["kind"] = kind.into();
        object["metadata"] = json!({"name": name});
        let patch = Patch::Apply(object);
        Api::<K>::all(self.client.clone())
            .patch(name, &PatchParams::apply("test").force(), &patch)
            .await
            .unwrap()
    }

    /// Makes n1 and gives it a block.
    async fn make_node(&mut self) {
        let node: KubeNode = self.make("Node", "n1", json!({})).await;
        self.uid = node.metadata.uid.unwrap().parse().unwrap();
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.224.0.4"}]}});
        Api::<KubeNode>::all(self.client.clone())
            .patch_status("n1", &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
        let block = json!({"cidr": "10.244.0.0/24", "pool": "default"});
        let grant = json!({"spec": {"nodeUID": self.uid, "blocks": [block]}});
        self.make::<NodeNetwork>("NodeNetwork", "n1", grant).await;
    }

    async fn slice(&self, slice: &str, node: &str, address: &str, block: &str) {
        let nodes =
            json!({"nodes": [{"name": node, "uid": node, "addresses": [address], "blocks": [block]}]});
        self.make::<NodeSlice>("NodeSlice", slice, nodes).await;
    }

    async fn delete<K>(&self, name: &str)
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::all(self.client.clone());
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Starts an agent's watch, after an earlier one that left `saved`.
    fn start(&mut self, saved: Option<Arc<Desired>>) {
        if let Some(earlier) = self.watching.take() {
            earlier.abort();
        }
        let (view, watched) = watch::channel(View::default());
        self.view = watched;
        let name = "n1".parse().unwrap();
        self.watching = Some(tokio::spawn(run(
            self.client.clone(),
            name,
            saved,
            view,
            watch::Sender::new(None),
        )));
    }

    async fn until(&mut self, holds: impl Fn(&Desired) -> bool) -> Arc<Desired> {
        let wanted = self
            .view
            .wait_for(|view| view.desired.as_deref().is_some_and(&holds));
        let view = timeout(LIMIT, wanted)
            .await
            .expect("the wish never came")
            .unwrap();
        view.desired.clone().unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

fn reaches(address: &str) -> impl Fn(&Desired) -> bool {
    let address = address.parse().unwrap();
    move |desired| desired.nodes.contains(&address)
}

#[tokio::test]
async fn an_api_that_is_away_changes_nothing_and_is_caught_up_with() {
    let mut bed = Bed::new().await;
    bed.start(None);
    let before = bed.until(reaches("10.224.0.5")).await;

    bed.server.faults().refuse_requests(true);
    bed.server.faults().cut_watches();
    assert!(timeout(Duration::from_secs(1), bed.view.changed()).await.is_err());
    assert_eq!(bed.view.borrow().desired, Some(before));

    bed.server.faults().refuse_requests(false);
    bed.slice("s1", "n3", "10.224.0.6", "10.244.2.0/24").await;
    bed.until(reaches("10.224.0.6")).await;
}

#[tokio::test]
async fn what_went_while_the_history_was_compacted_gives_way_to_whoever_comes() {
    let mut bed = Bed::new().await;
    bed.slice("s1", "n3", "10.224.0.6", "10.244.2.0/24").await;
    bed.start(None);
    bed.until(reaches("10.224.0.6")).await;

    // While the watches wait after a refusal, the slice goes, and the history that tells of it.
    bed.server.faults().refuse_requests(true);
    bed.server.faults().cut_watches();
    tokio::time::sleep(Duration::from_millis(100)).await;
    bed.server.faults().refuse_requests(false);
    bed.delete::<NodeSlice>("s0").await;
    bed.slice("s2", "n4", "10.224.0.7", "10.244.1.0/24").await;
    bed.server.compact();
    let after = bed.until(reaches("10.224.0.7")).await;
    assert!(!reaches("10.224.0.5")(&after) && reaches("10.224.0.6")(&after));
    assert_eq!(after.blocks.len(), 1);
}

#[tokio::test]
async fn a_slice_that_is_gone_is_forgotten_after_its_time() {
    let mut state = State {
        index: Index::new("n1".parse().unwrap()),
        seen: BTreeSet::new(),
        conflicts: Vec::new(),
        saved: None,
        silent: false,
        compiled: false,
        forget_at: BTreeMap::new(),
    };
    let (now, moment) = (Instant::now(), Duration::from_millis(1));
    let lost = |state: &State| state.index.lost_slices().count();
    for _ in 0..2 {
        state.index.set_slice("s0", vec![]);
        state.index.lose_slice("s0");
        state.forget_lost(now);
        state.forget_lost(now + LOST - moment);
        assert_eq!(lost(&state), 1);
        state.index.set_slice("s0", vec![]);
        state.forget_lost(now + LOST - moment);
        state.index.lose_slice("s0");
        state.forget_lost(now + LOST);
        assert_eq!(lost(&state), 1, "its time began anew");
        state.forget_lost(now + 2 * LOST);
        assert_eq!(lost(&state), 0);
    }
}

#[tokio::test]
async fn the_saved_wish_stands_in_for_an_api_that_does_not_answer() {
    let mut bed = Bed::new().await;
    bed.start(None);
    let saved = bed.until(reaches("10.224.0.5")).await;

    bed.server.faults().refuse_requests(true);
    bed.start(Some(Arc::clone(&saved)));
    assert_eq!(bed.until(|_| true).await, saved);
    bed.server.faults().refuse_requests(false);
    bed.slice("s1", "n3", "10.224.0.6", "10.244.2.0/24").await;
    bed.until(reaches("10.224.0.6")).await;
}

#[tokio::test]
async fn an_earlier_nodes_wish_is_not_used_for_another_node_of_its_name() {
    let mut bed = Bed::new().await;
    bed.start(None);
    let saved = bed.until(reaches("10.224.0.5")).await;
    let earlier = bed.uid.clone();
    bed.delete::<KubeNode>("n1").await;
    bed.make_node().await;
    assert_ne!(bed.uid, earlier);
    // Everything but the slices can be read.
    bed.delete::<CustomResourceDefinition>("nodeslices.weft.dev")
        .await;

    let told = saved.node_uid.clone();
    bed.start(Some(saved));
    let waits = bed
        .view
        .wait_for(|view| view.waiting_for == "NodeSlices from the Kubernetes API");
    let view = timeout(LIMIT, waits).await.unwrap().unwrap().clone();
    assert_eq!((view.desired, told), (None, earlier));
}
