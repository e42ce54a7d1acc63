//! Events as `kubectl describe` and `kubectl get events` show them: repeated ones counted, not multiplied.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;

/// How many recent events are remembered to be counted instead of repeated.
const REMEMBERED: usize = 1024;

/// Whether an event tells of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing to worry about.
    Normal,
    /// Somebody may want to act.
    Warning,
}

/// Records the events of one component.
pub struct Recorder {
    client: Client,
    component: String,
    host: Option<String>,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    counts: HashMap<Identity, (String, i32)>,
    order: VecDeque<Identity>,
    serial: u64,
}

/// What makes two events the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    name: String,
    severity: Severity,
    reason: String,
    message: String,
}

// === impl Recorder ===

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("component", &self.component)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder for `component`; `host` is the node it speaks for, where it is a node's.
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        Self {
            client,
            component: component.to_owned(),
            host: host.map(str::to_owned),
            recent: Mutex::default(),
        }
    }

    /// Records an event about `object`. An API that refuses it is logged and otherwise ignored: events are
    /// best-effort in Kubernetes too.
    pub async fn record(&self, object: &ObjectReference, severity: Severity, reason: &str, message: &str) {
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let identity = Identity {
            uid: object.uid.clone().unwrap_or_default(),
            name: object.name.clone().unwrap_or_default(),
            severity,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let now = Timestamp::now();
        let (name, count) = self.count(&identity, now);
        if count > 1 {
            let patch = json!({ "count": count, "lastTimestamp": Time(now) });
            match events
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::debug!(%error, reason, message, "event not recorded");
                    return;
                }
            }
        }
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: object.clone(),
            type_: Some(format!("{severity:?}")),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            count: Some(count),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            event_time: None::<MicroTime>,
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: self.host.clone(),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone().unwrap_or_default()),
            ..Event::default()
        };
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            tracing::debug!(%error, reason, message, "event not recorded");
        }
    }

    /// Name under which the event is stored, and how often it has happened with this time.
    fn count(&self, identity: &Identity, now: Timestamp) -> (String, i32) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, count)) = recent.counts.get_mut(identity) {
            *count += 1;
            return (name.clone(), *count);
        }
        recent.serial += 1;
        let stamp = u64::try_from(now.as_microsecond())
            .unwrap_or(0)
            .wrapping_mul(1000)
            .wrapping_add(recent.serial % 1000);
        let name = format!("{}.{stamp:016x}", identity.name);
        recent.counts.insert(identity.clone(), (name.clone(), 1));
        recent.order.push_back(identity.clone());
        if recent.order.len() > REMEMBERED
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.counts.remove(&oldest);
        }
        (name, 1)
    }
}

/// A reference to `object` for an event.
pub fn reference<K>(object: &K) -> ObjectReference
where
    K: Resource<DynamicType = ()>,
{
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: object.meta().name.clone(),
        namespace: object.meta().namespace.clone(),
        uid: object.meta().uid.clone(),
        ..ObjectReference::default()
    }
}

/// A reference to a pod for an event.
pub fn pod_reference(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// A reference to a node for an event. As from a real kubelet, the UID is the node's name.
pub fn node_reference(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}
