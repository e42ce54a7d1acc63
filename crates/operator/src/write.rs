//! Does the index's writes, many at a time, and tells about those that concern people.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::json;
use weft_api::{NodeBlock, NodeNetwork, NodeNetworkSpec, NodeSlice, NodeSliceSpec, PodPool};

use crate::index::{Action, Held};
use crate::slices::SliceChange;

/// Writes under way at a time.
const PARALLEL: usize = 16;

/// How long one write may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The object as it is after a write.
pub(crate) enum Answer {
    Network(NodeNetwork),
    Pool(PodPool),
    Slice(NodeSlice),
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
}

pub(crate) struct Writer {
    networks: Api<NodeNetwork>,
    pools: Api<PodPool>,
    slices: Api<NodeSlice>,
    recorder: Recorder,
}

// === impl Writer ===

impl Writer {
    pub(crate) fn new(client: Client) -> Self {
        let reporter = Reporter {
            controller: "weft-operator".to_owned(),
            instance: None,
        };
        Self {
            networks: Api::all(client.clone()),
            pools: Api::all(client.clone()),
            slices: Api::all(client.clone()),
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Does all of `actions`, in no order. Once the API server is found to be
    /// away, the rest is not tried.
    pub(crate) async fn write(&self, actions: Vec<Action>) -> Vec<(Action, Result<Answer, WriteError>)> {
        let away = AtomicBool::new(false);
        stream::iter(actions)
            .map(async |action| {
                if away.load(Ordering::Relaxed) {
                    return (action, Err(WriteError::Away));
                }
                let answer = match tokio::time::timeout(TIMEOUT, self.write_one(&action)).await {
                    Ok(answer) => answer.map_err(WriteError::Api),
                    Err(_) => Err(WriteError::Timeout),
                };
                match &answer {
                    Ok(_) => self.tell(&action).await,
                    Err(WriteError::Api(kube::Error::Api(_))) => {}
                    Err(_) => away.store(true, Ordering::Relaxed),
                }
                (action, answer)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await
    }

    async fn write_one(&self, action: &Action) -> Result<Answer, kube::Error> {
        let post = PostParams::default();
        let patch = PatchParams::default();
        match action {
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
                // node's object of the same name.
                let spec = json!({ "spec": { "nodeUID": uid, "blocks": node_blocks(blocks) } });
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
                .patch(name, &patch, &Patch::Merge(json!({ "nodes": nodes })))
                .await
                .map(Answer::Slice),
            Action::Slice(SliceChange::Delete(name)) => {
                gone(self.slices.delete(name, &DeleteParams::default()).await)
            }
        }
    }

    /// Logs what was done and records an Event where somebody has to act.
    async fn tell(&self, action: &Action) {
        match action {
            Action::CreateNetwork { name, uid, blocks } => {
                tracing::info!(node = %name, %uid, blocks = %list(blocks), "created NodeNetwork");
            }
            Action::SetBlocks { name, blocks, .. } => {
                tracing::info!(node = %name, blocks = %list(blocks), "granted blocks");
            }
            Action::DeleteNetwork { name, .. } => {
                tracing::info!(node = %name, "deleted NodeNetwork");
            }
            Action::SetAllocation { name, uid, condition } => {
                let node = ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Node".to_owned()),
                    name: Some(name.to_string()),
                    uid: Some(uid.to_string()),
                    ..ObjectReference::default()
                };
                if condition.status == "False" {
                    tracing::warn!(node = %name, reason = condition.reason, "{}", condition.message);
                    self.record(&node, &condition.reason, &condition.message).await;
                }
            }
            Action::SetPoolStatus { pool, uid, status } => {
                let reference = ObjectReference {
                    api_version: Some(format!("{}/{}", weft_api::GROUP, weft_api::VERSION)),
                    kind: Some("PodPool".to_owned()),
                    name: Some(pool.clone()),
                    uid: Some(uid.clone()),
                    ..ObjectReference::default()
                };
                for condition in &status.conditions {
                    let bad = if condition.type_ == "Ready" {
                        "False"
                    } else {
                        "True"
                    };
                    if condition.status == bad {
                        tracing::warn!(pool, reason = condition.reason, "{}", condition.message);
                        self.record(&reference, &condition.reason, &condition.message)
                            .await;
                    }
                }
            }
            Action::Slice(change) => tracing::debug!(slice = change.name(), "wrote NodeSlice"),
        }
    }

    async fn record(&self, regarding: &ObjectReference, reason: &str, note: &str) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "AllocateBlocks".to_owned(),
            secondary: None,
        };
        let published = tokio::time::timeout(TIMEOUT, self.recorder.publish(&event, regarding)).await;
        if let Ok(Err(error)) = published {
            tracing::debug!(%error, "could not record an Event");
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

fn list(blocks: &[Held]) -> String {
    let blocks: Vec<String> = blocks.iter().map(|held| held.block.to_string()).collect();
    blocks.join(",")
}
