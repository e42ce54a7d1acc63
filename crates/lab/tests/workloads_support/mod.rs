//! A cluster for tests of workloads: the in-memory API, scheduler and controllers, and nodes whose plugin is a shell
//! script that gives each pod an address on a dummy link.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weft_apilite::ApiServer;
use weft_kernel::NetNs;
use weft_kernel::rtnl::Rtnl;
use weft_lab::autoscaler;
use weft_lab::node::{ClusterHandle, NodeHandle, ScaleRequest};
use weft_lab::{controllers, kubelet, scheduler};

#[path = "../../../kernel/tests/owned/mod.rs"]
mod owned;

/// How long anything may take before a test fails.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What clusters' names, and those of their directories, begin with.
const PREFIX: &str = "wl";

/// A cluster; dropping it removes what it made.
pub struct TestCluster {
    pub handle: ClusterHandle,
    pub dir: PathBuf,
    api: ApiServer,
    nodes: watch::Sender<Vec<Arc<NodeHandle>>>,
    pub scale: Option<mpsc::Receiver<ScaleRequest>>,
    tasks: Vec<JoinHandle<()>>,
}

/// A script that answers as a CNI plugin: it gives the pod the next address, without a link, and notes what it was
/// asked. `fail` in the node's directory makes ADD fail; `unready` makes STATUS fail.
const PLUGIN: &str = r#"#!/bin/sh
cd "$(dirname "$0")/../.."
input=$(cat)
printf '%s %s %s\n' "$CNI_COMMAND" "${CNI_CONTAINERID:--}" "$CNI_ARGS" >>calls
printf '%s\n' "$input" >"last-$CNI_COMMAND"
case $CNI_COMMAND in
ADD)
    if [ -e fail ]; then
        echo '{"cniVersion":"1.1.0","code":11,"msg":"no address left","details":"block 10.99.0.0/24 is full"}'
        exit 1
    fi
    number=$(printf '%d' "0x$(printf %.4s "$CNI_CONTAINERID")")
    echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.99.$((number / 256)).$((number % 256))/32\"}]}"
    ;;
STATUS)
    if [ -e unready ]; then
        echo '{"cniVersion":"1.1.0","code":50,"msg":"the agent does not answer"}'
        exit 1
    fi
    ;;
DEL)
    if [ -e stuck ]; then
        echo '{"cniVersion":"1.1.0","code":11,"msg":"the agent is busy"}'
        exit 1
    fi
    ;;
esac
"#;

/// Removes what tests left that were killed.
fn sweep() {
    for netns in owned::entries(owned::NETNS_DIR) {
        if owned::is_orphan(PREFIX, owned::lab_of(&netns)) {
            owned::remove_netns(&netns);
        }
    }
    let temporary = std::env::temp_dir();
    for name in owned::orphans(PREFIX, &temporary) {
        let _ = fs::remove_dir_all(temporary.join(name));
    }
}

/// Starts a cluster without nodes; `None`, said on standard error, where privileges are missing.
pub async fn cluster(autoscaler: Option<autoscaler::Config>) -> Option<TestCluster> {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    if let Err(error) = NetNs::create() {
        eprintln!("skipped: {error}");
        return None;
    }
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    let name = owned::name(PREFIX, "cluster");
    let dir = std::env::temp_dir().join(&name);
    fs::create_dir_all(&dir).unwrap();
    let api = ApiServer::builder().start().unwrap();
    let address = api
        .serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
        .unwrap();
    let client = Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    let stop = CancellationToken::new();
    let (nodes, watched) = watch::channel(Vec::new());
    let (scale, requests) = mpsc::channel(8);
    let handle = ClusterHandle::new(name, client, dir.clone(), autoscaler, stop, watched, scale);
    let tasks = vec![
        tokio::spawn(scheduler::run(handle.clone())),
        tokio::spawn(controllers::run(handle.clone())),
    ];
    Some(TestCluster {
        handle,
        dir,
        api,
        nodes,
        scale: Some(requests),
        tasks,
    })
}

/// Starts a cluster with `count` nodes that take `max_pods` each.
pub async fn with_nodes(count: usize, max_pods: u32) -> Option<TestCluster> {
    let mut cluster = cluster(None).await?;
    for number in 1..=count {
        cluster.add_node(&format!("node-{number}"), max_pods).await;
    }
    Some(cluster)
}

impl TestCluster {
    pub fn client(&self) -> Client {
        self.handle.client.clone()
    }

    /// Adds a node and waits until it is Ready.
    pub async fn add_node(&mut self, name: &str, max_pods: u32) -> Arc<NodeHandle> {
        let node = self.prepare_node(name, max_pods);
        self.start_kubelet(&node);
        self.node_ready(name, "True").await;
        node
    }

    /// Makes a node's namespace and directory.
    pub fn prepare_node(&self, name: &str, max_pods: u32) -> Arc<NodeHandle> {
        let netns_name = format!("{}{name}", self.handle.netns_prefix());
        let netns = NetNs::create_named(&netns_name).unwrap();
        Rtnl::open_in(&netns).unwrap().set_up("lo", true).unwrap();
        let dir = self.dir.join(name);
        let (conf, bin) = (dir.join("cni/net.d"), dir.join("cni/bin"));
        fs::create_dir_all(&conf).unwrap();
        fs::create_dir_all(&bin).unwrap();
        let list = json!({"cniVersion": "1.1.0", "name": "fake", "plugins": [{"type": "fake", "capabilities": {"portMappings": true}}]});
        fs::write(conf.join("10-fake.conflist"), list.to_string()).unwrap();
        fs::write(dir.join("cni/bin/fake"), PLUGIN).unwrap();
        fs::set_permissions(dir.join("cni/bin/fake"), fs::Permissions::from_mode(0o755)).unwrap();
        Arc::new(NodeHandle {
            name: name.to_owned(),
            uid: String::new(),
            netns_name,
            address: std::net::Ipv4Addr::new(10, 98, 0, 1).into(),
            dir,
            max_pods,
            stop: self.handle.stop.child_token(),
        })
    }

    /// Starts the kubelet of a node.
    pub fn start_kubelet(&mut self, node: &Arc<NodeHandle>) {
        self.nodes.send_modify(|nodes| nodes.push(Arc::clone(node)));
        let (handle, node) = (self.handle.clone(), Arc::clone(node));
        self.tasks.push(tokio::spawn(
            async move { kubelet::run(handle, node).await.unwrap() },
        ));
    }

    pub async fn node_ready(&self, name: &str, status: &str) {
        let what = format!("node {name} Ready={status}");
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client());
        until(nodes, &what, |nodes| {
            nodes.iter().any(|node| {
                node.metadata.name.as_deref() == Some(name)
                    && node
                        .status
                        .iter()
                        .flat_map(|status| status.conditions.iter().flatten())
                        .any(|condition| condition.type_ == "Ready" && condition.status == status)
            })
        })
        .await;
    }

    /// Applies an object of any kind.
    pub async fn apply(&self, object: Value) {
        let text = |key: &str| object[key].as_str().unwrap().to_owned();
        let (group_version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = group_version.split_once('/').unwrap_or(("", &group_version));
        let gvk = kube::core::GroupVersionKind::gvk(group, version, &kind);
        let resource = kube::core::ApiResource::from_gvk(&gvk);
        let api: Api<kube::core::DynamicObject> = Api::namespaced_with(self.client(), "default", &resource);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let patch = PatchParams::apply("test").force();
        api.patch(&name, &patch, &Patch::Apply(&object)).await.unwrap();
    }

    pub async fn delete<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client(), "default");
        api.delete(name, &DeleteParams::background()).await.unwrap();
    }

    /// Waits until the pods of the default namespace are as `holds` wants them, and returns them.
    pub async fn pods(&self, what: &str, holds: impl Fn(&[&Pod]) -> bool) -> Vec<Pod> {
        until(Api::namespaced(self.client(), "default"), what, holds).await
    }

    pub async fn no_pods(&self) {
        self.pods("no pods", |pods| pods.is_empty()).await;
    }

    /// Waits for an event and returns its message.
    pub async fn event(&self, reason: &str) -> String {
        self.events(reason).await.swap_remove(0)
    }

    /// Messages of all events with a reason, in no order of time, once there is one.
    pub async fn events(&self, reason: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client(), "default");
        let is = |event: &Event| event.reason.as_deref() == Some(reason);
        let events = until(events, &format!("event {reason}"), |events| {
            events.iter().any(|event| is(event))
        })
        .await;
        let with_reason = events.into_iter().filter(|event| is(event));
        with_reason.map(|event| event.message.unwrap()).collect()
    }

    /// Network namespaces of this cluster's pods.
    pub fn pod_namespaces(&self) -> Vec<String> {
        let prefix = format!("{}pod.", self.handle.netns_prefix());
        NetNs::list_named()
            .unwrap()
            .into_iter()
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }

    /// Ends everything and waits for it.
    pub async fn stop(mut self) {
        self.handle.stop.cancel();
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
        self.api.shutdown().await;
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.handle.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
        for name in NetNs::list_named().unwrap_or_default() {
            if name.starts_with(&self.handle.netns_prefix()) {
                let _ = NetNs::delete_named(&name);
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Waits until the objects that `api` lists are as `holds` wants them.
pub async fn until<K>(api: Api<K>, what: &str, holds: impl Fn(&[&K]) -> bool) -> Vec<K>
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug + Send + 'static,
{
    let mut objects: BTreeMap<String, K> = BTreeMap::new();
    let wait = async {
        let mut complete = false;
        let mut changes = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).default_backoff());
        while let Some(change) = changes.next().await {
            let uid = |object: &K| object.meta().uid.clone().unwrap_or_default();
            match change {
                Ok(watcher::Event::Init) => (objects, complete) = (BTreeMap::new(), false),
                Ok(watcher::Event::InitDone) => complete = true,
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    objects.insert(uid(&object), object);
                }
                Ok(watcher::Event::Delete(object)) => drop(objects.remove(&uid(&object))),
                Err(error) => eprintln!("watch: {error}"),
            }
            let now: Vec<&K> = objects.values().collect();
            if complete && holds(&now) {
                return;
            }
        }
        unreachable!("a watch does not end");
    };
    if tokio::time::timeout(LIMIT, wait).await.is_ok() {
        return objects.into_values().collect();
    }
    let listed = api
        .list(&ListParams::default())
        .await
        .map(|list| list.items)
        .unwrap_or_default();
    let late = listed.iter().filter(|object| {
        let seen = objects.get(object.meta().uid.as_deref().unwrap_or_default());
        seen.and_then(|seen| seen.meta().resource_version.as_ref()) != object.meta().resource_version.as_ref()
    });
    let late = late.count();
    let seen: Vec<&K> = objects.values().take(20).collect();
    panic!(
        "not within {LIMIT:?}: {what}\n{} objects watched, {} listed, {late} of these not seen by the watch\n{}",
        objects.len(),
        listed.len(),
        serde_json::to_string_pretty(&seen).unwrap()
    );
}

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

pub fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

pub fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 80}]}]},
        }},
    })
}
