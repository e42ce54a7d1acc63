//! Does the index's writes, many at a time, and tells about those that concern people.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use weft_api::{NodeBlock, NodeNetwork, NodeNetworkSpec, NodeSlice, NodeSliceSpec, PodPool};

use crate::index::{Action, Held, Taints};
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::read::SlimNode;
use crate::slices::SliceChange;
use crate::tell::Teller;

/// The taint that keeps pods off a node whose agent can't serve them.
pub(crate) const TAINT: &str = "weft.dev/agent-not-ready";

/// Writes under way at a time.
const PARALLEL: usize = 16;

/// How long one write may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The object as it is after a write.
pub(crate) enum Answer {
    Network(NodeNetwork),
    Pool(PodPool),
    Slice(NodeSlice),
    Node(SlimNode),
    Deleted,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("not tried, because the API server is away")]
    Away,
    #[error("not tried, because another operator may lead")]
    NotLeading,
}

/// An action, and the version of the object it was planned with.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) action: Action,
    pub(crate) version: Option<String>,
}

pub(crate) struct Writer {
    networks: Api<NodeNetwork>,
    pools: Api<PodPool>,
    slices: Api<NodeSlice>,
    nodes: Api<SlimNode>,
    leadership: Arc<Leadership>,
    teller: Teller,
    metrics: Arc<Metrics>,
}

// === impl WriteError ===

impl WriteError {
    /// Somebody else wrote meanwhile; the watch tells what.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422))
    }

    fn kind(&self) -> &'static str {
        match self {
            _ if self.is_conflict() => "conflict",
            Self::Api(kube::Error::Api(_)) => "refused",
            Self::Api(_) | Self::Timeout => "failed",
            Self::Away | Self::NotLeading => "skipped",
        }
    }
}

// === impl Writer ===

impl Writer {
    pub(crate) fn new(
        client: Client,
        identity: &str,
        leadership: Arc<Leadership>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            networks: Api::all(client.clone()),
            pools: Api::all(client.clone()),
            slices: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            leadership,
            teller: Teller::new(client, identity),
            metrics,
        }
    }

    /// Does all of `writes`, in no order. Once the API server is found to be
    /// away, or the Lease lost, the rest is not tried.
    pub(crate) async fn write(&self, writes: Vec<Write>) -> Vec<(Write, Result<Answer, WriteError>)> {
        let away = AtomicBool::new(false);
        stream::iter(writes)
            .map(async |write| {
                let answer = if away.load(Ordering::Relaxed) {
                    Err(WriteError::Away)
                } else if self.leadership.leads() {
                    match tokio::time::timeout(TIMEOUT, self.write_one(&write)).await {
                        Ok(answer) => answer.map_err(WriteError::Api),
                        Err(_) => Err(WriteError::Timeout),
                    }
                } else {
                    Err(WriteError::NotLeading)
                };
                let result = match &answer {
                    Ok(_) => "done",
                    Err(error) => error.kind(),
                };
                self.metrics.wrote(&write.action, result);
                match &answer {
                    Ok(_) => self.teller.tell(&write.action).await,
                    Err(WriteError::Api(kube::Error::Api(_))) => {}
                    Err(_) => away.store(true, Ordering::Relaxed),
                }
                (write, answer)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await
    }

    async fn write_one(&self, write: &Write) -> Result<Answer, kube::Error> {
        let post = PostParams::default();
        let patch = PatchParams::default();
        let version = write.version.as_deref();
        match &write.action {
            Action::CreateNetwork { name, uid, blocks } => {
                let spec = NodeNetworkSpec {
                    node_uid: uid.to_string(),
                    blocks: node_blocks(blocks),
                };
                let network = NodeNetwork::new(name.as_str(), spec);
                self.networks.create(&post, &network).await.map(Answer::Network)
            }
            Action::SetBlocks { name, uid, blocks } => {
                // The UID, which never changes, keeps the patch from another
                // node's object of the same name, and the version keeps what a
                // later leader wrote.
                let spec = json!({
                    "metadata": { "resourceVersion": version },
                    "spec": { "nodeUID": uid, "blocks": node_blocks(blocks) },
                });
                self.networks
                    .patch(name.as_str(), &patch, &Patch::Merge(spec))
                    .await
                    .map(Answer::Network)
            }
            Action::DeleteNetwork { name, object_uid } => {
                let preconditions = Preconditions {
                    uid: Some(object_uid.clone()),
                    resource_version: None,
                };
                let params = DeleteParams::default().preconditions(preconditions);
                gone(self.networks.delete(name.as_str(), &params).await)
            }
            Action::SetAllocation { name, condition, .. } => {
                let status = json!({ "status": { "allocation": condition } });
                self.networks
                    .patch_status(name.as_str(), &patch, &Patch::Merge(status))
                    .await
                    .map(Answer::Network)
            }
            Action::SetPoolStatus { pool, status, .. } => {
                let status = json!({ "status": status });
                self.pools
                    .patch_status(pool, &patch, &Patch::Merge(status))
                    .await
                    .map(Answer::Pool)
            }
            Action::Slice(SliceChange::Create(name, nodes)) => {
                let slice = NodeSlice::new(name, NodeSliceSpec { nodes: nodes.clone() });
                self.slices.create(&post, &slice).await.map(Answer::Slice)
            }
            Action::Slice(SliceChange::Set(name, nodes)) => self
                .slices
                .patch(
                    name,
                    &patch,
                    &Patch::Merge(json!({ "metadata": { "resourceVersion": version }, "nodes": nodes })),
                )
                .await
                .map(Answer::Slice),
            Action::Slice(SliceChange::Delete(name)) => {
                let preconditions = Preconditions {
                    uid: None,
                    resource_version: write.version.clone(),
                };
                let params = DeleteParams::default().preconditions(preconditions);
                match self.slices.delete(name, &params).await {
                    Ok(_) => Ok(Answer::Deleted),
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(Answer::Deleted),
                    Err(error) => Err(error),
                }
            }
            Action::SetNodeCondition { name, uid, condition } => {
                let mut condition = json!(condition);
                condition["lastHeartbeatTime"] = json!(Time(Timestamp::now()));
                let status = json!({
                    "metadata": { "uid": uid },
                    "status": { "conditions": [condition] },
                });
                self.nodes
                    .patch_status(name.as_str(), &patch, &Patch::Strategic(status))
                    .await
                    .map(Answer::Node)
            }
            Action::SetTaint { name, on, taints } => {
                let operations = taint(version, *on, *taints);
                let operations: json_patch::Patch =
                    serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
                self.nodes
                    .patch(name.as_str(), &patch, &Patch::Json::<()>(operations))
                    .await
                    .map(Answer::Node)
            }
        }
    }
}

/// A deletion is done if the object is gone, or another has taken its name.
fn gone<T>(outcome: Result<T, kube::Error>) -> Result<Answer, kube::Error> {
    match outcome {
        Ok(_) => Ok(Answer::Deleted),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Answer::Deleted),
        Err(error) => Err(error),
    }
}

fn node_blocks(blocks: &[Held]) -> Vec<NodeBlock> {
    blocks.iter().map(NodeBlock::from).collect()
}

/// The JSON patch that puts our taint on or takes it off. Others' taints are
/// safe, because it holds for the version of the Node it was made for only.
fn taint(version: Option<&str>, on: bool, taints: Taints) -> Value {
    let test = json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version });
    let taint = json!({ "key": TAINT, "effect": "NoSchedule" });
    let change = match taints.ours {
        Some(at) if !on => json!({ "op": "remove", "path": format!("/spec/taints/{at}") }),
        _ if taints.count > 0 => json!({ "op": "add", "path": "/spec/taints/-", "value": taint }),
        _ => json!({ "op": "add", "path": "/spec/taints", "value": [taint] }),
    };
    json!([test, change])
}
