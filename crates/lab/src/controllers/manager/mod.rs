//! The I/O of all controllers: watches in, writes out.

mod reconcile;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cache::{Applied, Cache, Entry};
use super::events::Recorder;
use super::facts::{Key, NodeFacts, PodFacts};
use super::feed::{Change, feed};
use super::queue::WorkQueue;
use super::store::{Store, Target, targets_of_set, targets_of_slice};
use crate::node::ClusterHandle;

/// Objects worked on at the same time.
const WORKERS: usize = 8;
type Outcome = Result<(), kube::Error>;

/// What the workers share.
struct Manager {
    client: Client,
    recorders: BTreeMap<&'static str, Recorder>,
    store: Mutex<Store>,
    queue: WorkQueue<Target>,
    /// Kinds whose first listing has not arrived yet.
    missing: watch::Sender<BTreeSet<&'static str>>,
}

/// Runs all controllers until the cluster ends.
pub async fn run(cluster: ClusterHandle) {
    run_with(cluster.client.clone(), cluster.stop.clone()).await;
}

/// Runs all controllers on the cluster that `client` speaks to, until `stop`.
pub async fn run_with(client: Client, stop: CancellationToken) {
    let kinds = [
        "Deployment",
        "ReplicaSet",
        "StatefulSet",
        "DaemonSet",
        "Job",
        "Service",
        "EndpointSlice",
        "Endpoints",
        "Pod",
        "Node",
    ];
    let components = [
        "deployment-controller",
        "replicaset-controller",
        "statefulset-controller",
        "daemonset-controller",
        "job-controller",
    ];
    let recorder = |component| (component, Recorder::new(client.clone(), component, None));
    let manager = Arc::new(Manager {
        recorders: components.map(recorder).into(),
        client,
        store: Mutex::default(),
        queue: WorkQueue::default(),
        missing: watch::Sender::new(kinds.into()),
    });
    let own = |wrap: fn(Key) -> Target| move |meta: &ObjectMeta| vec![wrap(Key::of(meta))];
    let watches: Vec<BoxFuture<'_, ()>> = vec![
        manager.watch(
            &stop,
            |store| &mut store.deployments,
            by_meta(own(Target::Deployment)),
        ),
        manager.watch(&stop, |store| &mut store.replica_sets, targets_of_set),
        manager.watch(
            &stop,
            |store| &mut store.stateful_sets,
            by_meta(own(Target::StatefulSet)),
        ),
        manager.watch(
            &stop,
            |store| &mut store.daemon_sets,
            by_meta(own(Target::DaemonSet)),
        ),
        manager.watch(&stop, |store| &mut store.jobs, by_meta(own(Target::Job))),
        manager.watch(&stop, |store| &mut store.services, by_meta(own(Target::Service))),
        manager.watch(&stop, |store| &mut store.slices, targets_of_slice),
        manager.watch(&stop, |store| &mut store.endpoints, by_meta(own(Target::Service))),
        manager.watch_pods(&stop),
        manager.watch_nodes(&stop),
    ];
    tokio::select! {
        () = stop.cancelled() => {}
        _ = join_all(watches) => {}
        () = manager.work() => {}
    }
}

fn by_meta<K: Metadata<Ty = ObjectMeta>>(
    targets: impl Fn(&ObjectMeta) -> Vec<Target>,
) -> impl Fn(&K) -> Vec<Target> {
    move |object| targets(object.metadata())
}

// === impl Manager ===

impl Manager {
    /// Watches a kind of which whole objects are kept, without what the server notes about who wrote what.
    fn watch<'a, K>(
        &'a self,
        stop: &CancellationToken,
        cache: fn(&mut Store) -> &mut Cache<K>,
        targets: impl Fn(&K) -> Vec<Target> + Send + 'a,
    ) -> BoxFuture<'a, ()>
    where
        K: Resource<DynamicType = ()>
            + Metadata<Ty = ObjectMeta>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
    {
        let trim = |mut object: K| {
            Metadata::metadata_mut(&mut object).managed_fields = None;
            object
        };
        let sink = move |change| {
            let mut concerned = BTreeSet::new();
            {
                let mut store = self.lock();
                let cache = cache(&mut store);
                match change {
                    Change::Applied(object) => {
                        // Also where the cache has this version: it may be from the answer to a write of our own,
                        // which nobody was told of.
                        concerned.extend(targets(&object));
                        cache.apply(object);
                    }
                    Change::Deleted(object) => {
                        cache.delete(&Entry::key(&object), Entry::uid(&object));
                        concerned.extend(targets(&object));
                    }
                    Change::Listed(objects) => {
                        concerned.extend(objects.iter().flat_map(&targets));
                        concerned.extend(cache.reset(objects).iter().flat_map(|gone| targets(gone)));
                    }
                }
            }
            self.look_at(concerned);
            self.listed(K::kind(&()).as_ref());
        };
        Box::pin(feed(
            Api::all(self.client.clone()),
            watcher::Config::default(),
            stop.clone(),
            trim,
            sink,
        ))
    }

    fn watch_pods(&self, stop: &CancellationToken) -> BoxFuture<'_, ()> {
        let sink = move |change| {
            let concerned = self.lock().pods_changed(change);
            self.look_at(concerned);
            self.listed("Pod");
        };
        let pods = Api::<Pod>::all(self.client.clone());
        Box::pin(feed(
            pods,
            watcher::Config::default(),
            stop.clone(),
            |pod| PodFacts::of(&pod),
            sink,
        ))
    }

    fn watch_nodes(&self, stop: &CancellationToken) -> BoxFuture<'_, ()> {
        let sink = move |change| {
            let concerned = {
                let mut store = self.lock();
                let relevant = match change {
                    Change::Applied(node) => node_applied(&mut store.nodes, node),
                    Change::Deleted(node) => store.nodes.delete(&node.key, &node.uid).is_some(),
                    Change::Listed(nodes) => {
                        store.nodes.reset(nodes);
                        true
                    }
                };
                if relevant {
                    store.all_daemon_sets()
                } else {
                    BTreeSet::new()
                }
            };
            self.look_at(concerned);
            self.listed("Node");
        };
        let nodes = Api::<Node>::all(self.client.clone());
        Box::pin(feed(
            nodes,
            watcher::Config::default(),
            stop.clone(),
            |node| NodeFacts::of(&node),
            sink,
        ))
    }

    fn look_at(&self, targets: BTreeSet<Target>) {
        for target in targets {
            self.queue.add(target);
        }
    }

    fn listed(&self, kind: &str) {
        self.missing.send_if_modified(|missing| missing.remove(kind));
    }

    /// Works on the queue. Nothing is decided before every kind was listed: what is not known yet isn't missing.
    async fn work(&self) {
        let mut missing = self.missing.subscribe();
        if missing.wait_for(BTreeSet::is_empty).await.is_err() {
            return;
        }
        let mut working = FuturesUnordered::new();
        loop {
            if working.len() >= WORKERS {
                working.next().await;
                continue;
            }
            tokio::select! {
                Some(()) = working.next() => {}
                target = self.queue.next() => working.push(self.work_on(target)),
            }
        }
    }

    async fn work_on(&self, target: Target) {
        let outcome = self.reconcile(&target).await;
        if let Err(error) = &outcome {
            tracing::debug!(?target, %error, "will be tried again");
        }
        self.queue.done(&target, outcome.is_ok());
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores a node; returns whether anything changed that concerns a DaemonSet. Heartbeats don't.
fn node_applied(nodes: &mut Cache<NodeFacts>, node: NodeFacts) -> bool {
    let key = node.key.clone();
    match nodes.apply(node) {
        Applied::Ignored => false,
        Applied::Stored(None) => true,
        Applied::Stored(Some(before)) => nodes.get(&key).is_some_and(|now| {
            (&before.labels, &before.taints, before.deleting, &before.uid)
                != (&now.labels, &now.taints, now.deleting, &now.uid)
        }),
    }
}
