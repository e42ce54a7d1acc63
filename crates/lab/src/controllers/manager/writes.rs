//! Writing to the API, with the caches kept up to date by what it answers.

use std::fmt::Debug;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, NamespaceResourceScope};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Manager, Outcome};
use crate::controllers::cache::Cache;
use crate::controllers::events::Severity;
use crate::controllers::facts::{Key, PodFacts};
use crate::controllers::feed::Change;
use crate::controllers::store::Store;

/// Writes under way at the same time for one object.
const PARALLEL_WRITES: usize = 16;

// === impl Manager ===

impl Manager {
    pub(super) async fn create_pods(
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

    pub(super) async fn delete_pods(
        &self,
        pods: Vec<Key>,
        component: &str,
        owner: &ObjectReference,
    ) -> Outcome {
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

    pub(super) async fn patch<K>(
        &self,
        key: &Key,
        patch: &Value,
        cache: fn(&mut Store) -> &mut Cache<K>,
    ) -> Outcome
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

    pub(super) async fn patch_status<K, S>(
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

    pub(super) async fn delete<K>(&self, key: &Key) -> Outcome
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

    pub(super) fn api<K>(&self, key: &Key) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    pub(super) async fn record(
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
}
