//! What the controllers know of the cluster, and which of them a change concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::cache::{Applied, Cache};
use super::endpoints::{SERVICE_NAME, selects};
use super::facts::{Key, NodeFacts, Owner, PodFacts};
use super::feed::Change;

/// An object to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Target {
    Deployment(Key),
    ReplicaSet(Key),
    StatefulSet(Key),
    DaemonSet(Key),
    Job(Key),
    Service(Key),
}

/// The cluster as the controllers know it. Owned objects are found by the UID of their owner.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) deployments: Cache<Deployment>,
    pub(super) replica_sets: Cache<ReplicaSet>,
    pub(super) stateful_sets: Cache<StatefulSet>,
    pub(super) daemon_sets: Cache<DaemonSet>,
    pub(super) jobs: Cache<Job>,
    pub(super) services: Cache<Service>,
    pub(super) slices: Cache<EndpointSlice>,
    pub(super) endpoints: Cache<Endpoints>,
    pub(super) nodes: Cache<NodeFacts>,
    pods: Cache<PodFacts>,
    owned: HashMap<String, BTreeSet<Key>>,
}

// === impl Store ===

impl Store {
    /// The pods that the object of that UID controls.
    pub(super) fn owned_pods(&self, uid: &str) -> Vec<Arc<PodFacts>> {
        self.owned
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|key| self.pods.get(key))
            .cloned()
            .collect()
    }

    /// The ReplicaSets that a Deployment controls.
    pub(super) fn owned_sets(&self, deployment: &Deployment) -> Vec<Arc<ReplicaSet>> {
        let key = Key::of(&deployment.metadata);
        self.replica_sets
            .in_namespace(&key.namespace)
            .filter(|set| {
                Owner::of(&set.metadata)
                    .is_some_and(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref())
            })
            .cloned()
            .collect()
    }

    /// The pods that a Service selects.
    pub(super) fn selected_pods(&self, service: &Service) -> Vec<Arc<PodFacts>> {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        self.pods
            .in_namespace(namespace)
            .filter(|pod| selects(service, pod))
            .cloned()
            .collect()
    }

    /// The slices of the Service of that key.
    pub(super) fn slices_of(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        self.slices
            .in_namespace(&service.namespace)
            .filter(|slice| service_of(slice) == Some(&service.name))
            .cloned()
            .collect()
    }

    /// Takes notice of a change of pods.
    pub(super) fn pods_changed(&mut self, change: Change<PodFacts>) -> BTreeSet<Target> {
        let mut targets = BTreeSet::new();
        match change {
            Change::Applied(pod) => self.pod_applied(pod, &mut targets),
            Change::Deleted(pod) => {
                if let Some(known) = self.pods.delete(&pod.key, &pod.uid) {
                    self.pod_gone(&known, &mut targets);
                }
            }
            Change::Listed(pods) => {
                let before: BTreeMap<Key, Arc<PodFacts>> = self
                    .pods
                    .values()
                    .map(|pod| (pod.key.clone(), Arc::clone(pod)))
                    .collect();
                let listed = pods.clone();
                for gone in self.pods.reset(pods) {
                    self.pod_gone(&gone, &mut targets);
                }
                for pod in listed {
                    if let Some(known) = self.pods.get(&pod.key).cloned() {
                        self.pod_known(&known, before.get(&pod.key), &mut targets);
                    }
                }
            }
        }
        targets
    }

    fn pod_applied(&mut self, pod: PodFacts, targets: &mut BTreeSet<Target>) {
        let key = pod.key.clone();
        if let Applied::Stored(before) = self.pods.apply(pod)
            && let Some(known) = self.pods.get(&key).cloned()
        {
            if let Some(before) = before.as_ref().filter(|before| before.uid != known.uid) {
                self.pod_gone(before, targets);
            }
            self.pod_known(&known, before.as_ref(), targets);
        }
    }

    fn pod_known(
        &mut self,
        pod: &Arc<PodFacts>,
        before: Option<&Arc<PodFacts>>,
        targets: &mut BTreeSet<Target>,
    ) {
        if let Some(owner) = &pod.owner {
            self.owned
                .entry(owner.uid.clone())
                .or_default()
                .insert(pod.key.clone());
        }
        targets.extend(owner_of(pod));
        for service in self.services.in_namespace(&pod.key.namespace) {
            if selects(service, pod) || before.is_some_and(|before| selects(service, before)) {
                targets.insert(Target::Service(Key::of(&service.metadata)));
            }
        }
    }

    fn pod_gone(&mut self, pod: &Arc<PodFacts>, targets: &mut BTreeSet<Target>) {
        if let Some(owner) = &pod.owner
            && let Some(owned) = self.owned.get_mut(&owner.uid)
        {
            owned.remove(&pod.key);
            if owned.is_empty() {
                self.owned.remove(&owner.uid);
            }
        }
        targets.extend(owner_of(pod));
        for service in self.services.in_namespace(&pod.key.namespace) {
            if selects(service, pod) {
                targets.insert(Target::Service(Key::of(&service.metadata)));
            }
        }
    }

    /// Every DaemonSet: what a change of a node concerns.
    pub(super) fn all_daemon_sets(&self) -> BTreeSet<Target> {
        self.daemon_sets
            .values()
            .map(|set| Target::DaemonSet(Key::of(&set.metadata)))
            .collect()
    }
}

/// The ReplicaSet and its Deployment.
pub(super) fn targets_of_set(set: &ReplicaSet) -> Vec<Target> {
    let key = Key::of(&set.metadata);
    let deployment = Owner::of(&set.metadata)
        .filter(|owner| owner.kind == "Deployment")
        .map(|owner| Target::Deployment(Key::new(&key.namespace, &owner.name)));
    std::iter::once(Target::ReplicaSet(key))
        .chain(deployment)
        .collect()
}

/// The Service of a slice.
pub(super) fn targets_of_slice(slice: &EndpointSlice) -> Vec<Target> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    service_of(slice)
        .map(|name| Target::Service(Key::new(namespace, name)))
        .into_iter()
        .collect()
}

fn service_of(slice: &EndpointSlice) -> Option<&String> {
    slice.metadata.labels.as_ref()?.get(SERVICE_NAME)
}

fn owner_of(pod: &PodFacts) -> Option<Target> {
    let owner = pod.owner.as_ref()?;
    let key = Key::new(&pod.key.namespace, &owner.name);
    match owner.kind.as_str() {
        "ReplicaSet" => Some(Target::ReplicaSet(key)),
        "StatefulSet" => Some(Target::StatefulSet(key)),
        "DaemonSet" => Some(Target::DaemonSet(key)),
        "Job" => Some(Target::Job(key)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(label: &str, version: u64) -> PodFacts {
        let pod = json!({"metadata": {
            "name": "p", "namespace": "ns", "uid": "p", "resourceVersion": version.to_string(), "labels": {"app": label},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true}],
        }});
        PodFacts::of(&serde_json::from_value(pod).unwrap())
    }

    fn service(name: &str, label: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"selector": {"app": label}},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_concerns_its_owner_and_the_services_that_select_it_or_did() {
        let mut store = Store::default();
        store.services.apply(service("one", "a"));
        store.services.apply(service("two", "b"));
        let set = || Target::ReplicaSet(Key::new("ns", "rs"));
        let of = |name: &str| Target::Service(Key::new("ns", name));

        assert_eq!(
            store.pods_changed(Change::Applied(pod("a", 1))),
            BTreeSet::from([set(), of("one")])
        );
        assert_eq!(
            store.pods_changed(Change::Applied(pod("b", 2))),
            BTreeSet::from([set(), of("one"), of("two")])
        );
        assert_eq!(store.owned_pods("rs").len(), 1);
        assert_eq!(
            store.pods_changed(Change::Listed(vec![])),
            BTreeSet::from([set(), of("two")])
        );
        assert_eq!(store.owned_pods("rs").len(), 0);
    }
}
