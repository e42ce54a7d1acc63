//! Carrying out the controllers' plans.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Endpoints, ObjectReference};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use serde_json::json;

use super::{Manager, Outcome};
use crate::controllers::events::{Severity, reference};
use crate::controllers::facts::{Key, Labels, controller_reference};
use crate::controllers::store::Target;
use crate::controllers::{daemonset, deployment, endpoints, job, replicaset, statefulset, template};

// === impl Manager ===

impl Manager {
    /// Brings what belongs to an object in line with it.
    pub(super) async fn reconcile(&self, target: &Target) -> Outcome {
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
        let owner = controller_reference(&*set);
        let pod = template::pod(&template, owner, &format!("{}-", key.name), None, Labels::new());
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
}
