//! Tells people what was done: in the log, and by an Event where somebody has to act.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::index::{Action, Held};

/// How long recording an Event may take.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Teller {
    recorder: Recorder,
}

// === impl Teller ===

impl Teller {
    pub(crate) fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter {
            controller: "weft-operator".to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Logs what was done and records an Event where somebody has to act.
    pub(crate) async fn tell(&self, action: &Action) {
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
                if condition.status == "False" {
                    tracing::warn!(node = %name, reason = condition.reason, "{}", condition.message);
                    let node = reference("v1", "Node", name.as_str(), uid.as_str());
                    self.record(&node, &condition.reason, &condition.message).await;
                }
            }
            Action::SetNodeCondition { name, uid, condition } => {
                if condition.status == "True" {
                    tracing::warn!(node = %name, "the node is not ready: {}", condition.message);
                    let node = reference("v1", "Node", name.as_str(), uid.as_str());
                    self.record(&node, &condition.reason, &condition.message).await;
                } else {
                    tracing::info!(node = %name, "the node is ready");
                }
            }
            Action::SetTaint { name, on, .. } => {
                let done = if *on { "set" } else { "removed" };
                tracing::info!(node = %name, "{done} taint {}", crate::write::TAINT);
            }
            Action::SetPoolStatus { pool, uid, news, .. } => {
                let version = format!("{}/{}", weft_api::GROUP, weft_api::VERSION);
                let reference = reference(&version, "PodPool", pool, uid);
                for condition in news {
                    let bad = if condition.type_ == "Ready" {
                        "False"
                    } else {
                        "True"
                    };
                    if condition.status == bad {
                        tracing::warn!(
                            pool,
                            condition = condition.type_,
                            reason = condition.reason,
                            "{}",
                            condition.message
                        );
                        let reason = match condition.type_.as_str() {
                            // The condition's reason says how low.
                            "CapacityLow" | "Overlapping" => &condition.type_,
                            _ => &condition.reason,
                        };
                        self.record(&reference, reason, &condition.message).await;
                    } else if condition.type_ == "Ready" {
                        tracing::info!(pool, reason = condition.reason, "{}", condition.message);
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

fn reference(api_version: &str, kind: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

fn list(blocks: &[Held]) -> String {
    let blocks: Vec<String> = blocks
        .iter()
        .map(|held| {
            let retiring = if held.retiring { " (retiring)" } else { "" };
            format!("{}{retiring}", held.block)
        })
        .collect();
    blocks.join(",")
}
