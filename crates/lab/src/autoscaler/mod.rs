//! A cluster autoscaler: nodes for pods that find no room, and none for nobody.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::plan::{Plan, View};
use crate::controllers::cache::Cache;
use crate::controllers::events::{Recorder, Severity, node_reference, pod_reference};
use crate::controllers::facts::{NodeFacts, PodFacts};
use crate::controllers::feed::{Change, feed};
use crate::node::{ClusterHandle, NodeRange};

/// Name of the one group of nodes, as events give it.
const GROUP: &str = "default";
/// How long changes are gathered before a decision, so that a burst of pods is one decision.
const GATHER: Duration = Duration::from_millis(150);
/// How often nodes are looked at that become idle by the passing of time alone.
const TICK: Duration = Duration::from_secs(1);
/// Pause after a node could not be added or removed.
const RETRY: Duration = Duration::from_secs(5);

/// How the autoscaler decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Bounds of the number of nodes.
    #[serde(flatten)]
    pub range: NodeRange,
    /// How long a node must be without pods, DaemonSets' aside, before it goes.
    #[serde(rename = "scaleDownUnneededMs", with = "milliseconds")]
    pub idle: Duration,
}

/// What can add and remove nodes.
pub trait NodeGroup: Send + Sync {
    /// Adds `count` nodes; ends when they are Ready.
    fn scale_up(&self, count: usize) -> BoxFuture<'_, Result<(), String>>;
    /// Removes the node of that name.
    fn scale_down(&self, node: String) -> BoxFuture<'_, Result<(), String>>;
}

struct Autoscaler<'a, G> {
    group: &'a G,
    config: Config,
    recorder: Recorder,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    nodes: Cache<NodeFacts>,
    pods: Cache<PodFacts>,
    listed: (bool, bool),
    /// Nodes asked for that are not registered yet are this number less those that are.
    target: Option<usize>,
    /// Nodes being removed.
    going: Vec<String>,
    idle_since: HashMap<String, Instant>,
    /// Pods, by UID, that were told what became of their wish.
    told: HashMap<String, String>,
}

enum Done {
    Up(Result<(), String>),
    Down(String, Result<(), String>),
}

// === impl Config ===

impl Config {
    /// Default of [`idle`](Self::idle): real autoscalers wait ten minutes, somebody at a lab doesn't.
    pub const IDLE: Duration = Duration::from_secs(20);
}

// === impl NodeGroup ===

impl NodeGroup for ClusterHandle {
    fn scale_up(&self, count: usize) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let nodes = (0..count).map(|_| ClusterHandle::scale_up(self));
            let outcomes = futures::future::join_all(nodes).await;
            outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))
        })
    }

    fn scale_down(&self, node: String) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { ClusterHandle::scale_down(self, &node).await })
    }
}

/// Runs the autoscaler of a cluster until it ends; returns at once where the cluster has none.
pub async fn run(cluster: ClusterHandle) {
    if let Some(config) = cluster.autoscaler {
        run_with(cluster.client.clone(), &cluster, config, cluster.stop.clone()).await;
    }
}

/// Runs an autoscaler on the cluster that `client` speaks to, until `stop`.
pub async fn run_with(client: Client, group: &impl NodeGroup, config: Config, stop: CancellationToken) {
    let autoscaler = Autoscaler {
        group,
        config,
        recorder: Recorder::new(client.clone(), "cluster-autoscaler", None),
        state: Mutex::default(),
        wake: Notify::new(),
    };
    let autoscaler = &autoscaler;
    let nodes = feed(
        Api::<Node>::all(client.clone()),
        watcher::Config::default(),
        stop.clone(),
        |node| NodeFacts::of(&node),
        |change| autoscaler.node_changed(change),
    );
    let pods = feed(
        Api::<Pod>::all(client),
        watcher::Config::default(),
        stop.clone(),
        |pod| PodFacts::of(&pod),
        |change| autoscaler.pod_changed(change),
    );
    tokio::select! {
        () = stop.cancelled() => {}
        _ = futures::future::join(nodes, pods) => {}
        () = autoscaler.work() => {}
    }
}

// === impl Autoscaler ===

impl<G: NodeGroup> Autoscaler<'_, G> {
    fn node_changed(&self, change: Change<NodeFacts>) {
        {
            let mut state = self.lock();
            state.listed.0 |= state.nodes.take(change);
        }
        self.wake.notify_one();
    }

    fn pod_changed(&self, change: Change<PodFacts>) {
        {
            let mut state = self.lock();
            if let Change::Deleted(pod) = &change {
                state.told.remove(&pod.uid);
            }
            state.listed.1 |= state.pods.take(change);
        }
        self.wake.notify_one();
    }

    async fn work(&self) {
        let mut doing: FuturesUnordered<BoxFuture<'_, Done>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(TICK) => {}
                Some(done) = doing.next() => self.done(done).await,
            }
            let plan = self.lock().plan(self.config, Instant::now());
            self.tell(&plan).await;
            if plan.up > 0 {
                doing.push(Box::pin(
                    async move { Done::Up(self.group.scale_up(plan.up).await) },
                ));
            }
            for node in plan.down {
                doing.push(Box::pin(async move {
                    let outcome = self.group.scale_down(node.clone()).await;
                    Done::Down(node, outcome)
                }));
            }
        }
    }

    async fn tell(&self, plan: &Plan) {
        let max = self.config.range.max;
        let triggered = format!(
            "pod triggered scale-up: [{{{GROUP} {}->{} (max: {max})}}]",
            plan.nodes,
            plan.nodes + plan.up
        );
        for pod in &plan.helped {
            let object = pod_reference(&pod.key.namespace, &pod.key.name, &pod.uid);
            self.recorder
                .record(&object, Severity::Normal, "TriggeredScaleUp", &triggered)
                .await;
        }
        for (pod, why) in &plan.unhelped {
            let message = format!("pod didn't trigger scale-up: {why}");
            if self.lock().told.insert(pod.uid.clone(), message.clone()).as_ref() != Some(&message) {
                let object = pod_reference(&pod.key.namespace, &pod.key.name, &pod.uid);
                self.recorder
                    .record(&object, Severity::Normal, "NotTriggerScaleUp", &message)
                    .await;
            }
        }
        for node in &plan.down {
            let message = "marked the node as toBeDeleted/unschedulable";
            self.recorder
                .record(&node_reference(node), Severity::Normal, "ScaleDown", message)
                .await;
        }
    }

    async fn done(&self, done: Done) {
        match done {
            Done::Up(outcome) => {
                if let Err(error) = outcome {
                    tracing::warn!(error, "no node added");
                    tokio::time::sleep(RETRY).await;
                }
                self.lock().target = None;
            }
            Done::Down(node, outcome) => {
                let object = node_reference(&node);
                match outcome {
                    Ok(()) => {
                        self.recorder
                            .record(
                                &object,
                                Severity::Normal,
                                "ScaleDown",
                                "node removed by cluster autoscaler",
                            )
                            .await;
                    }
                    Err(error) => {
                        let message = format!("failed to delete empty node: {error}");
                        self.recorder
                            .record(&object, Severity::Warning, "ScaleDownFailed", &message)
                            .await;
                        self.lock().idle_since.remove(&node);
                    }
                }
                self.lock().going.retain(|going| *going != node);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Decides, and notes what was decided as under way.
    fn plan(&mut self, config: Config, now: Instant) -> Plan {
        if self.listed != (true, true) {
            return Plan::default();
        }
        let nodes: Vec<Arc<NodeFacts>> = self.nodes.values().cloned().collect();
        let pods: Vec<Arc<PodFacts>> = self.pods.values().cloned().collect();
        let upcoming = self.target.map_or(0, |target| target.saturating_sub(nodes.len()));
        let view = View {
            nodes: &nodes,
            pods: &pods,
            upcoming,
            going: &self.going,
            range: config.range,
        };
        let idle: Vec<String> = view.idle_nodes();
        self.idle_since.retain(|node, _| idle.contains(node));
        for node in idle {
            self.idle_since.entry(node).or_insert(now);
        }
        let mut ripe: Vec<&String> = self
            .idle_since
            .iter()
            .filter(|(_, since)| now - **since >= config.idle)
            .map(|(node, _)| node)
            .collect();
        ripe.sort();
        let mut plan = if self.target.is_none() {
            view.grow()
        } else {
            Plan {
                nodes: nodes.len(),
                ..Plan::default()
            }
        };
        if plan.up > 0 {
            self.target = Some(nodes.len() + plan.up);
        } else if self.target.is_none() {
            plan.down = view.shrink(&ripe);
            self.going.extend(plan.down.iter().cloned());
        }
        plan
    }
}

/// A [`Duration`] as a number of milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests;
