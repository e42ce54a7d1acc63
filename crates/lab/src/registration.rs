//! The Node objects of a lab: registered, kept true, and deleted as kubelet and a cloud's node controller would.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::sync::watch;
use weft_model::{UserError, codes};

use crate::daemon::api_error;
use crate::machine::Machine;
use crate::node::ClusterHandle;
use crate::node_object;

/// Between two looks at the pods of a node that is drained.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// What the API said last of the node of a name, by its UID: whether it is Ready, and why not.
pub(crate) type Readiness = BTreeMap<String, (String, Result<(), String>)>;

/// Speaks to the API about nodes.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    cluster: ClusterHandle,
}

// === impl Registration ===

impl Registration {
    pub(crate) fn new(cluster: ClusterHandle) -> Self {
        Self { cluster }
    }

    /// Creates the Node of a machine, not Ready yet, unless it is there; returns its UID.
    pub(crate) async fn register(&self, machine: &Machine, max_pods: u32) -> Result<String, UserError> {
        let mut node = node_object::registered(&machine.node, machine.address, max_pods);
        node.spec = Some(NodeSpec {
            provider_id: Some(format!("weft-lab://{}/{}", machine.cluster, machine.node)),
            ..NodeSpec::default()
        });
        let failed = |error: kube::Error| api_error(&format!("registering node {}", machine.node), &error);
        let created = match self.nodes().create(&PostParams::default(), &node).await {
            // Its kubelet was faster.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                self.nodes().get(&machine.node).await
            }
            created => created,
        };
        let created = created.map_err(failed)?;
        created.metadata.uid.ok_or_else(|| {
            UserError::new(
                codes::API_REJECTED,
                format!("the API gave node {} no UID", machine.node),
                "weft lab list",
            )
        })
    }

    /// Tells `ready` of every node whether it is Ready and why not, until the cluster ends.
    pub(crate) async fn follow(self, ready: watch::Sender<Readiness>) {
        let changes = watcher(self.nodes(), watcher::Config::default())
            .default_backoff()
            .touched_objects();
        let mut changes = pin!(changes);
        loop {
            let change = tokio::select! {
                () = self.cluster.stop.cancelled() => return,
                change = changes.next() => change,
            };
            match change {
                Some(Ok(node)) => ready.send_modify(|known| {
                    let name = node.metadata.name.clone().unwrap_or_default();
                    if node.metadata.deletion_timestamp.is_some() {
                        known.remove(&name);
                    } else {
                        let uid = node.metadata.uid.clone().unwrap_or_default();
                        known.insert(name, (uid, readiness(&node)));
                    }
                }),
                Some(Err(error)) => tracing::debug!(%error, "watching nodes"),
                None => return,
            }
        }
    }

    /// Cordons a node and waits until its pods have ended; DaemonSets' pods stay.
    pub(crate) async fn drain(&self, node: &str, allowed: Duration) -> Result<(), UserError> {
        let failed = |error: kube::Error| api_error(&format!("draining node {node}"), &error);
        let cordon = json!({"spec": {"unschedulable": true}});
        self.nodes()
            .patch(node, &PatchParams::default(), &Patch::Merge(cordon))
            .await
            .map_err(failed)?;
        let emptied = async {
            loop {
                let left: Vec<Pod> = self
                    .pods_on(node)
                    .await?
                    .into_iter()
                    .filter(|pod| !of_daemon_set(pod))
                    .collect();
                if left.is_empty() {
                    return Ok(());
                }
                for pod in left
                    .iter()
                    .filter(|pod| pod.metadata.deletion_timestamp.is_none())
                {
                    self.delete_pod(pod, &DeleteParams::default()).await?;
                }
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        match tokio::time::timeout(allowed, emptied).await {
            Ok(emptied) => emptied.map_err(failed),
            // Their grace is over: they end with the machine.
            Err(_) => Ok(()),
        }
    }

    /// Deletes a Node and what pods it still has, at once.
    pub(crate) async fn delete(&self, node: &str) -> Result<(), UserError> {
        let failed = |error: kube::Error| api_error(&format!("deleting node {node}"), &error);
        for pod in self.pods_on(node).await.map_err(failed)? {
            let at_once = DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            };
            self.delete_pod(&pod, &at_once).await.map_err(failed)?;
        }
        match self.nodes().delete(node, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(failed(error)),
            Ok(_) => Ok(()),
        }
    }

    async fn delete_pod(&self, pod: &Pod, params: &DeleteParams) -> kube::Result<()> {
        let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else {
            return Ok(());
        };
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), namespace);
        match pods.delete(name, params).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    async fn pods_on(&self, node: &str) -> kube::Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::all(self.cluster.client.clone());
        let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        Ok(pods.list(&of_node).await?.items)
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.cluster.client.clone())
    }
}

fn of_daemon_set(pod: &Pod) -> bool {
    pod.metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.kind == "DaemonSet")
}

/// Whether a Node is Ready; why not.
pub(crate) fn readiness(node: &Node) -> Result<(), String> {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    match conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
    {
        Some(ready) if ready.status == "True" => Ok(()),
        Some(ready) => Err(ready.message.clone().unwrap_or_default()),
        None => Err("kubelet has not reported yet".to_owned()),
    }
}
