//! A scheduler with the filters of the real one that concern a network lab, and one score: the node with the fewest
//! pods.

pub mod fit;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::fit::{Choice, Usage, place};
use crate::controllers::cache::Cache;
use crate::controllers::events::{Recorder, Severity, pod_reference};
use crate::controllers::facts::{NodeFacts, PodFacts};
use crate::controllers::feed::{Change, feed};
use crate::node::ClusterHandle;

/// Bindings written at the same time.
const PARALLEL_BINDS: usize = 16;
/// Pause after a binding the server refused, before its pod is considered again.
const RETRY: Duration = Duration::from_secs(1);

/// The cluster as the scheduler sees it.
#[derive(Debug, Default)]
struct State {
    nodes: Cache<NodeFacts>,
    pods: Cache<PodFacts>,
    /// Node chosen for a pod whose binding the watch hasn't shown yet, by the pod's UID.
    assumed: HashMap<String, String>,
    /// Message of the PodScheduled condition last written for a waiting pod, by the pod's UID.
    told: HashMap<String, String>,
    /// Pods, by UID, whose binding was refused just now.
    refused: HashSet<String>,
    listed: (bool, bool),
}

struct Scheduler {
    client: Client,
    recorder: Recorder,
    state: Mutex<State>,
    wake: Notify,
}

/// What to do about one waiting pod.
enum Decision {
    Bind(Arc<PodFacts>, String),
    /// No node fits, for the reason given, which the pod's condition doesn't say yet.
    Tell(Arc<PodFacts>, String),
}

/// Schedules pods until the cluster ends.
pub async fn run(cluster: ClusterHandle) {
    run_with(cluster.client.clone(), cluster.stop.clone()).await;
}

/// Schedules the pods of the cluster that `client` speaks to until `stop`.
pub async fn run_with(client: Client, stop: CancellationToken) {
    let scheduler = Arc::new(Scheduler {
        recorder: Recorder::new(client.clone(), "default-scheduler", None),
        client: client.clone(),
        state: Mutex::default(),
        wake: Notify::new(),
    });
    let (for_nodes, for_pods) = (Arc::clone(&scheduler), Arc::clone(&scheduler));
    let nodes = feed(
        Api::<Node>::all(client.clone()),
        watcher::Config::default(),
        stop.clone(),
        |node| NodeFacts::of(&node),
        move |change| for_nodes.node_changed(change),
    );
    let pods = feed(
        Api::<Pod>::all(client),
        watcher::Config::default(),
        stop.clone(),
        |pod| PodFacts::of(&pod),
        move |change| for_pods.pod_changed(change),
    );
    tokio::select! {
        () = stop.cancelled() => {}
        _ = futures::future::join(nodes, pods) => {}
        () = scheduler.work() => {}
    }
}

// === impl Scheduler ===

impl Scheduler {
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
            match change {
                Change::Applied(pod) => {
                    if pod.node.is_some() {
                        state.forget(&pod.uid);
                    }
                    state.pods.apply(pod);
                }
                Change::Deleted(pod) => {
                    state.forget(&pod.uid);
                    state.pods.delete(&pod.key, &pod.uid);
                }
                Change::Listed(pods) => {
                    state.pods.reset(pods);
                    let bound: Vec<String> = state
                        .pods
                        .values()
                        .filter(|pod| pod.node.is_some())
                        .map(|pod| pod.uid.clone())
                        .collect();
                    for uid in bound {
                        state.forget(&uid);
                    }
                    state.listed.1 = true;
                }
            }
        }
        self.wake.notify_one();
    }

    /// Decides on all waiting pods whenever something changed.
    async fn work(&self) {
        let mut doing = FuturesUnordered::new();
        let mut decisions = std::collections::VecDeque::new();
        loop {
            while doing.len() < PARALLEL_BINDS
                && let Some(decision) = decisions.pop_front()
            {
                doing.push(self.carry_out(decision));
            }
            tokio::select! {
                Some(()) = doing.next() => continue,
                () = self.wake.notified(), if decisions.is_empty() => {}
            }
            decisions.extend(self.lock().decide());
        }
    }

    async fn carry_out(&self, decision: Decision) {
        match decision {
            Decision::Bind(pod, node) => self.bind(&pod, &node).await,
            Decision::Tell(pod, message) => self.tell(&pod, &message).await,
        }
    }

    async fn bind(&self, pod: &PodFacts, node: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.key.name.clone()),
                namespace: Some(pod.key.namespace.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let bound: Result<Value, kube::Error> = pods
            .create_subresource("binding", &pod.key.name, &PostParams::default(), &binding)
            .await;
        let object = pod_reference(&pod.key.namespace, &pod.key.name, &pod.uid);
        match bound {
            Ok(_) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.recorder
                    .record(&object, Severity::Normal, "Scheduled", &message)
                    .await;
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                let message = format!("binding rejected: {error}");
                self.recorder
                    .record(&object, Severity::Warning, "FailedScheduling", &message)
                    .await;
                self.lock().refuse(&pod.uid);
                tokio::time::sleep(RETRY).await;
                self.lock().refused.remove(&pod.uid);
                self.wake.notify_one();
            }
        }
    }

    async fn tell(&self, pod: &PodFacts, message: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": Time(Timestamp::now()),
        });
        // A pod without a node has no other conditions: nobody else writes its status yet.
        let patch = json!({ "metadata": { "uid": pod.uid }, "status": { "conditions": [condition] } });
        if let Err(error) = pods
            .patch_status(&pod.key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            tracing::debug!(pod = %pod.key, %error, "PodScheduled condition not written");
        }
        let object = pod_reference(&pod.key.namespace, &pod.key.name, &pod.uid);
        self.recorder
            .record(&object, Severity::Warning, "FailedScheduling", message)
            .await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Decides on every waiting pod, in the order of priority and age, and assumes what it decides.
    fn decide(&mut self) -> Vec<Decision> {
        if self.listed != (true, true) {
            return Vec::new();
        }
        let mut waiting: Vec<Arc<PodFacts>> = self
            .pods
            .values()
            .filter(|pod| {
                pod.awaits_node() && !self.assumed.contains_key(&pod.uid) && !self.refused.contains(&pod.uid)
            })
            .cloned()
            .collect();
        if waiting.is_empty() {
            return Vec::new();
        }
        waiting.sort_by(|a, b| {
            b.placement
                .priority
                .cmp(&a.placement.priority)
                .then(a.created.cmp(&b.created))
                .then(a.version.cmp(&b.version))
        });
        let nodes: Vec<Arc<NodeFacts>> = self.nodes.values().cloned().collect();
        let mut usage = Usage::of(&nodes, self.pods.values(), &self.assumed);
        let mut decisions = Vec::new();
        for pod in waiting {
            match place(&pod, &nodes, &usage) {
                Choice::Node(index) => {
                    let node = nodes[index].key.name.clone();
                    usage.add(index, &pod);
                    self.assumed.insert(pod.uid.clone(), node.clone());
                    decisions.push(Decision::Bind(pod, node));
                }
                Choice::None(why) => {
                    let message = why.to_string();
                    let told = self.told.get(&pod.uid).or(pod.unschedulable.as_ref());
                    if told != Some(&message) {
                        self.told.insert(pod.uid.clone(), message.clone());
                        decisions.push(Decision::Tell(pod, message));
                    }
                }
            }
        }
        decisions
    }

    /// Forgets what was noted of a pod that waits no longer.
    fn forget(&mut self, uid: &str) {
        self.assumed.remove(uid);
        self.told.remove(uid);
    }

    fn refuse(&mut self, uid: &str) {
        self.assumed.remove(uid);
        self.refused.insert(uid.to_owned());
    }
}

#[cfg(test)]
mod tests;
