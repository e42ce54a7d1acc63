//! The I/O of all controllers: watches in, writes out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::{self, FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Endpoints, Node, ObjectReference, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, NamespaceResourceScope};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cache::{Applied, Cache, Entry};
use super::events::{Recorder, Severity, reference};
use super::facts::{Key, NodeFacts, PodFacts};
use super::feed::{Change, feed};
use super::queue::WorkQueue;
use super::store::{Store, Target, targets_of_set, targets_of_slice};
use super::{daemonset, deployment, endpoints, job, replicaset, statefulset};
use crate::node::ClusterHandle;

/// Objects worked on at the same time.
const WORKERS: usize = 8;
/// Writes under way at the same time for one object.
const PARALLEL_WRITES: usize = 16;

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

    async fn reconcile(&self, target: &Target) -> Outcome {
        let again = match target {
            Target::Deployment(key) => self.deployment(key).await?,
            Target::ReplicaSet(key) => self.replica_set(key).await?,
            Target::StatefulSet(key) => self.stateful_set(key).await?,
            Target::DaemonSet(key) => self.daemon_set(key).await?,
            Target::Job(key) => self.job(key).await?,
            Target::Service(key) => self.service(key).await?,
        };
        if let Some(again) = again {
            self.queue.add_after(target.clone(), again);
        }
        Ok(())
    }

    async fn deployment(&self, key: &Key) -> Result<Option<Duration>, kube::Error> {
        let (deployment, plan) = {
            let store = self.lock();
            let Some(deployment) = store.deployments.get(key).cloned() else {
                return Ok(None);
            };
            let sets = store.owned_sets(&deployment);
            let pods: Vec<_> = sets
                .iter()
                .flat_map(|set| store.owned_pods(set.metadata.uid.as_deref().unwrap_or_default()))
                .collect();
            let plan = deployment::plan(&deployment, &sets, &pods, Timestamp::now());
            (deployment, plan)
        };
        let object = reference(&*deployment);
        if let Some(set) = plan.create {
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
            let created = self
                .api::<ReplicaSet>(key)
                .create(&PostParams::default(), &set)
                .await?;
            let name = created.metadata.name.clone().unwrap_or_default();
            self.lock().replica_sets.apply(created);
            if replicas > 0 {
                self.scaled(&object, &name, 0, replicas).await;
            }
        }
        for (set, annotations) in plan.annotate {
            let patch = json!({ "metadata": { "annotations": annotations } });
            self.patch(&set, &patch, |store| &mut store.replica_sets).await?;
        }
        for (set, replicas) in plan.scale {
            let before = self
                .lock()
                .replica_sets
                .get(&set)
                .and_then(|set| set.spec.as_ref()?.replicas)
                .unwrap_or(0);
            let patch = json!({ "spec": { "replicas": replicas } });
            self.patch(&set, &patch, |store| &mut store.replica_sets).await?;
            self.scaled(&object, &set.name, before, replicas).await;
        }
        if let Some(revision) = plan.revision {
            let patch = json!({ "metadata": { "annotations": { (deployment::REVISION): revision } } });
            self.patch(key, &patch, |store| &mut store.deployments).await?;
        }
        for set in plan.delete {
            self.delete::<ReplicaSet>(&set).await?;
        }
        if let Some(status) = plan.status {
            self.patch_status(key, &status, |store| &mut store.deployments)
                .await?;
        }
        Ok(plan.again)
    }

    async fn scaled(&self, object: &ObjectReference, set: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.record(
            "deployment-controller",
            object,
            Severity::Normal,
            "ScalingReplicaSet",
            &message,
        )
        .await;
    }

    async fn replica_set(&self, key: &Key) -> Result<Option<Duration>, kube::Error> {
        let (set, plan) = {
            let store = self.lock();
            let Some(set) = store.replica_sets.get(key).cloned() else {
                return Ok(None);
            };
            let pods = store.owned_pods(set.metadata.uid.as_deref().unwrap_or_default());
            let plan = replicaset::plan(&set, &pods, Timestamp::now());
            (set, plan)
        };
        let object = reference(&*set);
        let template = set
            .spec
            .as_ref()
            .and_then(|spec| spec.template.clone())
            .unwrap_or_default();
        let owner = super::facts::controller_reference(&*set);
        let pod = super::template::pod(
            &template,
            owner,
            &format!("{}-", key.name),
            None,
            super::facts::Labels::new(),
        );
        let pods = vec![pod; plan.create];
        let outcome = self
            .create_pods(key, pods, "replicaset-controller", &object)
            .await;
        let deleted = self
            .delete_pods(plan.delete, "replicaset-controller", &object)
            .await;
        if let Some(status) = plan.status {
            self.patch_status(key, &status, |store| &mut store.replica_sets)
                .await?;
        }
        outcome.and(deleted)?;
        Ok(plan.again)
    }

    async fn stateful_set(&self, key: &Key) -> Result<Option<Duration>, kube::Error> {
        let (set, plan) = {
            let store = self.lock();
            let Some(set) = store.stateful_sets.get(key).cloned() else {
                return Ok(None);
            };
            let pods = store.owned_pods(set.metadata.uid.as_deref().unwrap_or_default());
            let plan = statefulset::plan(&set, &pods, Timestamp::now());
            (set, plan)
        };
        let object = reference(&*set);
        let outcome = self
            .create_pods(key, plan.create, "statefulset-controller", &object)
            .await;
        let deleted = self
            .delete_pods(plan.delete, "statefulset-controller", &object)
            .await;
        if let Some(status) = plan.status {
            self.patch_status(key, &status, |store| &mut store.stateful_sets)
                .await?;
        }
        outcome.and(deleted)?;
        Ok(plan.again)
    }

    async fn daemon_set(&self, key: &Key) -> Result<Option<Duration>, kube::Error> {
        let (set, plan) = {
            let store = self.lock();
            let Some(set) = store.daemon_sets.get(key).cloned() else {
                return Ok(None);
            };
            let pods = store.owned_pods(set.metadata.uid.as_deref().unwrap_or_default());
            let nodes: Vec<_> = store.nodes.values().cloned().collect();
            let plan = daemonset::plan(&set, &nodes, &pods, Timestamp::now());
            (set, plan)
        };
        let object = reference(&*set);
        let outcome = self
            .create_pods(key, plan.create, "daemonset-controller", &object)
            .await;
        let deleted = self
            .delete_pods(plan.delete, "daemonset-controller", &object)
            .await;
        if let Some(status) = plan.status {
            self.patch_status(key, &status, |store| &mut store.daemon_sets)
                .await?;
        }
        outcome.and(deleted)?;
        Ok(plan.again)
    }

    async fn job(&self, key: &Key) -> Result<Option<Duration>, kube::Error> {
        let (job, plan) = {
            let store = self.lock();
            let Some(job) = store.jobs.get(key).cloned() else {
                return Ok(None);
            };
            let pods = store.owned_pods(job.metadata.uid.as_deref().unwrap_or_default());
            let plan = job::plan(&job, &pods, Timestamp::now());
            (job, plan)
        };
        if plan.expire {
            self.delete::<Job>(key).await?;
            return Ok(None);
        }
        let object = reference(&*job);
        let outcome = self
            .create_pods(key, plan.create, "job-controller", &object)
            .await;
        let deleted = self.delete_pods(plan.delete, "job-controller", &object).await;
        if let Some(status) = plan.status {
            let completed = status.completion_time.is_some();
            self.patch_status(key, &status, |store| &mut store.jobs).await?;
            if completed {
                self.record(
                    "job-controller",
                    &object,
                    Severity::Normal,
                    "Completed",
                    "Job completed",
                )
                .await;
            }
        }
        outcome.and(deleted)?;
        Ok(plan.again)
    }

    async fn service(&self, key: &Key) -> Result<Option<Duration>, kube::Error> {
        let (service, plan, known) = {
            let store = self.lock();
            let slices = store.slices_of(key);
            let known = store.endpoints.get(key).cloned();
            let service = store.services.get(key).cloned();
            let plan = service.as_ref().map(|service| {
                let pods = store.selected_pods(service);
                let subsets = known
                    .as_ref()
                    .map(|known| known.subsets.clone().unwrap_or_default());
                endpoints::plan(service, &pods, &slices, subsets.as_deref())
            });
            (service, plan, known)
        };
        let (Some(service), Some(plan)) = (service, plan) else {
            // Slices have an owner and go with it; Endpoints go by their name.
            if known.is_some() {
                self.delete::<Endpoints>(key).await?;
            }
            return Ok(None);
        };
        for slice in plan.create {
            let created = self
                .api::<EndpointSlice>(key)
                .create(&PostParams::default(), &slice)
                .await?;
            self.lock().slices.apply(created);
        }
        for slice in plan.replace {
            let name = slice.metadata.name.clone().unwrap_or_default();
            let replaced = self
                .api::<EndpointSlice>(key)
                .replace(&name, &PostParams::default(), &slice)
                .await?;
            self.lock().slices.apply(replaced);
        }
        for slice in plan.delete {
            self.delete::<EndpointSlice>(&slice).await?;
        }
        if let Some(subsets) = plan.subsets {
            let mut object = endpoints::endpoints(&service, subsets);
            let api = self.api::<Endpoints>(key);
            let written = match &known {
                Some(known) => {
                    object
                        .metadata
                        .resource_version
                        .clone_from(&known.metadata.resource_version);
                    api.replace(&key.name, &PostParams::default(), &object).await?
                }
                None => api.create(&PostParams::default(), &object).await?,
            };
            self.lock().endpoints.apply(written);
        }
        Ok(None)
    }

    async fn create_pods(
        &self,
        key: &Key,
        pods: Vec<Pod>,
        component: &str,
        owner: &ObjectReference,
    ) -> Outcome {
        let api = self.api::<Pod>(key);
        let api = &api;
        let mut writes = stream::iter(pods)
            .map(|pod| async move {
                match api.create(&PostParams::default(), &pod).await {
                    Ok(created) => {
                        let facts = PodFacts::of(&created);
                        let message = format!("Created pod: {}", facts.key.name);
                        let concerned = self.lock().pods_changed(Change::Applied(facts));
                        self.look_at(concerned);
                        self.record(component, owner, Severity::Normal, "SuccessfulCreate", &message)
                            .await;
                        Ok(())
                    }
                    Err(error) => {
                        let message = format!("Error creating: {error}");
                        self.record(component, owner, Severity::Warning, "FailedCreate", &message)
                            .await;
                        Err(error)
                    }
                }
            })
            .buffer_unordered(PARALLEL_WRITES);
        let mut outcome = Ok(());
        while let Some(write) = writes.next().await {
            outcome = outcome.and(write);
        }
        outcome
    }

    async fn delete_pods(&self, pods: Vec<Key>, component: &str, owner: &ObjectReference) -> Outcome {
        let mut writes = stream::iter(pods)
            .map(|key| async move {
                match self
                    .api::<Pod>(&key)
                    .delete(&key.name, &DeleteParams::default())
                    .await
                {
                    Ok(deleted) => {
                        if let Some(pod) = deleted.left() {
                            let concerned = self.lock().pods_changed(Change::Applied(PodFacts::of(&pod)));
                            self.look_at(concerned);
                        }
                        let message = format!("Deleted pod: {}", key.name);
                        self.record(component, owner, Severity::Normal, "SuccessfulDelete", &message)
                            .await;
                        Ok(())
                    }
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(PARALLEL_WRITES);
        let mut outcome = Ok(());
        while let Some(write) = writes.next().await {
            outcome = outcome.and(write);
        }
        outcome
    }

    async fn patch<K>(&self, key: &Key, patch: &Value, cache: fn(&mut Store) -> &mut Cache<K>) -> Outcome
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Metadata<Ty = ObjectMeta>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let patched = self
            .api::<K>(key)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        self.keep(patched, cache)
    }

    async fn patch_status<K, S>(
        &self,
        key: &Key,
        status: &S,
        cache: fn(&mut Store) -> &mut Cache<K>,
    ) -> Outcome
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Metadata<Ty = ObjectMeta>
            + Clone
            + DeserializeOwned
            + Debug,
        S: Serialize + Debug,
    {
        let patch = json!({ "status": status });
        let patched = self
            .api::<K>(key)
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        self.keep(patched, cache)
    }

    /// Keeps what a write returned; that the object is gone is no failure.
    fn keep<K>(&self, written: Result<K, kube::Error>, cache: fn(&mut Store) -> &mut Cache<K>) -> Outcome
    where
        K: Metadata<Ty = ObjectMeta>,
    {
        match written {
            Ok(mut object) => {
                object.metadata_mut().managed_fields = None;
                cache(&mut self.lock()).apply(object);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete<K>(&self, key: &Key) -> Outcome
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match self.api::<K>(key).delete(&key.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn api<K>(&self, key: &Key) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    async fn record(
        &self,
        component: &str,
        object: &ObjectReference,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        if let Some(recorder) = self.recorders.get(component) {
            recorder.record(object, severity, reason, message).await;
        }
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
