use futures::channel::mpsc;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::index::{Pace, Taints};
use crate::lease::Note;
use crate::lease::tests::{api, candidate};
use crate::read::SlimNode;

const PACES: Pace = Pace {
    grace: Duration::from_secs(30),
    slices: Duration::ZERO,
    counts: Duration::ZERO,
    unready: Duration::ZERO,
};

#[tokio::test(start_paused = true)]
async fn updates_that_follow_each_other_come_in_one_burst_and_one_alone_at_once() {
    let (sender, receiver) = mpsc::unbounded();
    let started = Instant::now();
    tokio::spawn(async move {
        for update in 0..50 {
            sleep(Duration::from_millis(10)).await;
            sender.unbounded_send(update).unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        sender.unbounded_send(50).unwrap();
    });
    let bursts = bursts(receiver, PACE).map(|burst| (started.elapsed().as_millis(), burst));
    let bursts: Vec<(u128, Vec<u32>)> = bursts.collect().await;
    assert_eq!(bursts.first(), Some(&(10, vec![0])));
    assert_eq!(bursts.last(), Some(&(1500, vec![50])));
    let apart = bursts.windows(2).all(|two| two[0].0 + 100 <= two[1].0);
    assert!(apart && bursts.len() == 7, "{bursts:?}");
    let updates: Vec<u32> = bursts.into_iter().flat_map(|(_, burst)| burst).collect();
    assert_eq!(updates, Vec::from_iter(0..51));
}

/// The state of who leads `client`'s cluster, which knows it to be one node and one pool.
async fn state(client: &Client) -> State {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in weft_api::crds() {
        definitions
            .create(&PostParams::default(), &definition)
            .await
            .unwrap();
        let (name, established) = (definition.name_any(), conditions::is_crd_established());
        await_condition(definitions.clone(), &name, established)
            .await
            .unwrap();
    }
    let pool = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "PodPool", "metadata": {"name": "default"},
        "spec": {"cidrs": ["10.244.0.0/16"]}});
    let pool = create::<PodPool>(client, pool).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"taints": [
        {"key": "theirs", "effect": "NoExecute"}, {"key": "weft.dev/agent-not-ready", "effect": "NoSchedule"}]}});
    create::<Node>(client, node).await;
    let node = Api::<SlimNode>::all(client.clone()).get("n1").await.unwrap();
    let leadership = Arc::new(candidate(client, "first", false).acquire(|_| {}).await);
    let metrics = Arc::new(Metrics::new());
    let writer = Writer::new(
        client.clone(),
        "first",
        Arc::clone(&leadership),
        Arc::clone(&metrics),
    );
    let index = Index::new(PACES, Vec::new(), &Note::default());
    let mut state = State::new(index, writer, leadership, metrics);
    state.apply(Update::Pool(Event::Apply(pool)));
    state.apply(Update::Node(Event::Apply(node)));
    for source in Source::ALL {
        state.index.listed(source);
    }
    state
}

async fn create<K>(client: &Client, object: Value) -> K
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + serde::Serialize,
    K: Resource<Scope = kube::core::ClusterResourceScope>,
{
    let object = serde_json::from_value(object).unwrap();
    let api: Api<K> = Api::all(client.clone());
    api.create(&PostParams::default(), &object).await.unwrap()
}

async fn networks(client: &Client) -> usize {
    let networks: Api<NodeNetwork> = Api::all(client.clone());
    networks.list(&ListParams::default()).await.unwrap().items.len()
}

#[tokio::test]
async fn who_was_replaced_without_knowing_grants_nothing() {
    let (_server, client) = api().await;
    let mut state = state(&client).await;
    let second = candidate(&client, "second", true).acquire(|_| {}).await;
    assert!(state.leadership.leads(), "by its own clock it does");
    state.work().await;
    assert_eq!(networks(&client).await, 0);
    assert_eq!(second.noted().await, Note::default());
}

#[tokio::test]
async fn who_leads_grants() {
    let (_server, client) = api().await;
    state(&client).await.work().await;
    assert_eq!(networks(&client).await, 1);
}

#[tokio::test]
async fn a_taint_that_was_set_meanwhile_is_not_taken_for_ours() {
    let (_server, client) = api().await;
    let mut state = state(&client).await;
    let nodes: Api<SlimNode> = Api::all(client.clone());
    let shifted = json!({"spec": {"taints": [{"key": "weft.dev/agent-not-ready", "effect": "NoSchedule"},
        {"key": "theirs", "effect": "NoExecute"}]}});
    let patched = nodes
        .patch("n1", &PatchParams::default(), &Patch::Merge(shifted))
        .await
        .unwrap();
    let remove = |ours| Action::SetTaint {
        name: "n1".parse().unwrap(),
        on: false,
        taints: Taints {
            count: 2,
            ours: Some(ours),
        },
    };
    let failed = state.write(vec![remove(1)]).await;
    assert!(failed.len() == 1 && failed[0].1.is_conflict(), "{failed:?}");
    state.apply(Update::Node(Event::Apply(patched)));
    let failed = state.write(vec![remove(0)]).await;
    assert!(failed.is_empty(), "{failed:?}");
    let keys = async || -> Vec<String> {
        let node = Api::<Node>::all(client.clone()).get("n1").await.unwrap();
        let taints = node.spec.unwrap().taints.unwrap_or_default();
        taints.into_iter().map(|taint| taint.key).collect()
    };
    assert_eq!(keys().await, ["theirs"]);
    let set = Action::SetTaint {
        name: "n1".parse().unwrap(),
        on: true,
        taints: Taints { count: 1, ours: None },
    };
    let failed = state.write(vec![set]).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(keys().await, ["theirs", "weft.dev/agent-not-ready"]);
}
