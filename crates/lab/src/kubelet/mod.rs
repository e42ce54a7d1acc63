//! A simulated kubelet: keeps one node's Node object true and turns the pods bound to it into namespaces, attached
//! by the node's CNI plugins.
//!
//! No image is ever run. What a container declares is taken as follows: its ports are served by the
//! [responder](crate::responder), as are ports that only its probes name; probes are really executed, from the node
//! to the pod, except `exec`, which succeeds, and HTTPS, of which only the connection is tried; init containers
//! succeed at once; environment, volumes, resources and lifecycle hooks are ignored. Pods of Jobs succeed after the
//! time their command says (`sleep N`), or a second; other pods run until they are deleted.

pub mod cni;
mod node_status;
pub mod pod;
mod probe;
mod sandbox;
mod slots;
pub mod status;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use weft_kernel::NetNs;

pub use sandbox::power_off;

use self::cni::Cni;
use self::node_status::NetworkReady;
use self::pod::PodConfig;
use self::sandbox::{Record, Store};
use self::slots::Slots;
use self::worker::{Wish, Worker, delete_object, wished_away, write_status};
use crate::controllers::events::{Recorder, Severity, pod_reference};
use crate::controllers::feed::{Change, feed};
use crate::node::{ClusterHandle, NodeHandle};

/// Sandboxes that are started at the same time on one node.
const PARALLEL_STARTS: usize = 16;
/// How often plugins are told which attachments are alive.
const GC_PERIOD: Duration = Duration::from_secs(300);
/// Between tries to remove what an earlier process left.
const LEFTOVER_PERIOD: Duration = Duration::from_secs(5);

/// What the parts of one kubelet share.
struct Context {
    node: Arc<NodeHandle>,
    client: Client,
    netns: Arc<NetNs>,
    store: Store,
    recorder: Recorder,
    starts: Semaphore,
    network: watch::Receiver<NetworkReady>,
}

/// The pods of one node.
struct Kubelet {
    context: Arc<Context>,
    slots: Arc<Slots>,
    pods: HashMap<String, watch::Sender<Wish>>,
    /// Pods that are back in the API, which was restored, while their ends are still under way.
    returned: HashMap<String, PodConfig>,
    /// Sandboxes of an earlier process whose pods the API has not been asked for yet.
    leftovers: Option<Vec<Record>>,
    workers: JoinSet<String>,
}

/// Runs the kubelet of `node` until the node or the cluster ends; then the namespaces of its pods are gone.
///
/// # Errors
/// The node's network namespace does not exist.
pub async fn run(cluster: ClusterHandle, node: Arc<NodeHandle>) -> Result<(), weft_kernel::Error> {
    let netns = Arc::new(NetNs::named(&node.netns_name)?);
    let cni = Cni::new(&node.dir, Arc::clone(&netns));
    let (network_sender, network) = watch::channel(NetworkReady::Unknown);
    let context = Arc::new(Context {
        store: Store::new(&node.dir, cluster.netns_prefix(), cni),
        recorder: Recorder::new(cluster.client.clone(), "kubelet", Some(&node.name)),
        client: cluster.client.clone(),
        netns,
        starts: Semaphore::new(PARALLEL_STARTS),
        network,
        node,
    });
    let stop = context.node.stop.clone();
    let mut kubelet = Kubelet::new(Arc::clone(&context));
    let (changes_sender, mut changes) = mpsc::unbounded_channel();
    let pods = feed(
        Api::<Pod>::all(context.client.clone()),
        watcher::Config::default().fields(&format!("spec.nodeName={}", context.node.name)),
        stop.clone(),
        |pod| PodConfig::of(&pod),
        move |change| drop(changes_sender.send(change)),
    );
    let work = async {
        loop {
            tokio::select! {
                Some(change) = changes.recv() => kubelet.apply(change),
                Some(ended) = kubelet.workers.join_next() => kubelet.ended(ended),
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = cluster.stop.cancelled() => {}
        () = pods => {}
        () = work => {}
        () = node_status::keep(Arc::clone(&context), network_sender) => {}
        () = collect_garbage(&context) => {}
    }
    kubelet.workers.shutdown().await;
    if let Err(error) = context.store.power_off().await {
        tracing::warn!(node = %context.node.name, %error, "a pod's namespace is left over");
    }
    Ok(())
}

async fn collect_garbage(context: &Context) {
    let mut network = context.network.clone();
    loop {
        if network
            .wait_for(|network| *network == NetworkReady::Yes)
            .await
            .is_err()
        {
            return std::future::pending().await;
        }
        if let Err(error) = context.store.collect_garbage().await {
            tracing::debug!(node = %context.node.name, %error, "CNI GC failed");
        }
        tokio::time::sleep(GC_PERIOD).await;
    }
}

// === impl Kubelet ===

impl Kubelet {
    fn new(context: Arc<Context>) -> Self {
        Self {
            slots: Slots::new(context.node.max_pods),
            leftovers: Some(context.store.leftovers()),
            context,
            pods: HashMap::new(),
            returned: HashMap::new(),
            workers: JoinSet::new(),
        }
    }

    fn apply(&mut self, change: Change<PodConfig>) {
        match change {
            Change::Applied(pod) => self.want(pod, &mut Vec::new()),
            Change::Deleted(pod) => self.vanish(&pod.uid),
            Change::Listed(mut pods) => {
                let mut leftovers = self.leftovers.take().unwrap_or_default();
                // Those that run already come first, then the older ones.
                pods.sort_by_key(|pod| (pod.start_time.is_none(), pod.created, pod.uid.clone()));
                let listed: Vec<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
                for pod in pods {
                    self.want(pod, &mut leftovers);
                }
                let vanished: Vec<String> = self
                    .pods
                    .keys()
                    .filter(|uid| !listed.contains(uid))
                    .cloned()
                    .collect();
                for uid in vanished {
                    self.vanish(&uid);
                }
                for record in leftovers {
                    self.remove_leftover(record);
                }
            }
        }
    }

    /// Takes notice of a pod: one that is known can only be asked to stop, nothing else of it changes.
    fn want(&mut self, pod: PodConfig, leftovers: &mut Vec<Record>) {
        let wish = if pod.deleting { Wish::Stop } else { Wish::Run };
        if let Some(known) = self.pods.get(&pod.uid) {
            if *known.borrow() == Wish::Vanish {
                self.returned.insert(pod.uid.clone(), pod);
                return;
            }
            known.send_if_modified(|before| {
                let changed = *before == Wish::Run && wish == Wish::Stop;
                if changed {
                    *before = wish;
                }
                changed
            });
            return;
        }
        let (sender, receiver) = watch::channel(wish);
        self.pods.insert(pod.uid.clone(), sender);
        let context = Arc::clone(&self.context);
        let uid = pod.uid.clone();
        if pod.phase.is_terminal() {
            self.workers.spawn(async move {
                rest(&context, &pod, receiver).await;
                uid
            });
            return;
        }
        let left = leftovers.iter().position(|record| record.pod_uid == pod.uid);
        let adopted = left.and_then(|index| {
            let sandbox = context.store.adopt(&leftovers[index])?;
            leftovers.remove(index);
            Some(sandbox)
        });
        let slot = match self.slots.take() {
            Ok(slot) => slot,
            Err(_) if adopted.is_some() => self.slots.take_anyway(),
            Err(used) => {
                let message = status::out_of_pods(used, self.slots.capacity());
                self.workers.spawn(async move {
                    refuse(&context, &pod, "OutOfpods", &message).await;
                    rest(&context, &pod, receiver).await;
                    uid
                });
                return;
            }
        };
        let worker = Worker {
            context,
            pod,
            wish: receiver,
            adopted,
            slot,
        };
        self.workers.spawn(async move {
            worker.run().await;
            uid
        });
    }

    fn vanish(&mut self, uid: &str) {
        self.returned.remove(uid);
        if let Some(pod) = self.pods.get(uid) {
            pod.send_replace(Wish::Vanish);
        }
    }

    fn remove_leftover(&mut self, record: Record) {
        let context = Arc::clone(&self.context);
        self.workers.spawn(async move {
            while let Err(error) = context.store.remove(&record).await {
                tracing::warn!(pod = %record.pod_name, %error, "sandbox of an earlier process not removed yet");
                tokio::time::sleep(LEFTOVER_PERIOD).await;
            }
            String::new()
        });
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.pods.remove(&uid);
                if let Some(pod) = self.returned.remove(&uid) {
                    self.want(pod, &mut Vec::new());
                }
            }
            Err(error) => tracing::error!(node = %self.context.node.name, %error, "a pod's task panicked"),
        }
    }
}

/// Refuses a pod for good.
async fn refuse(context: &Context, pod: &PodConfig, reason: &str, message: &str) {
    let object = pod_reference(&pod.namespace, &pod.name, &pod.uid);
    context
        .recorder
        .record(&object, Severity::Warning, reason, message)
        .await;
    write_status(
        context,
        pod,
        &status::refused(reason, message, jiff::Timestamp::now()),
    )
    .await;
}

/// Waits with a pod that has ended until it is deleted.
async fn rest(context: &Context, pod: &PodConfig, mut wish: watch::Receiver<Wish>) {
    wished_away(&mut wish).await;
    let wish = *wish.borrow();
    delete_object(context, pod, wish).await;
}
