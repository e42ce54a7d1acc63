//! What is waited for: definitions, operator and agents.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, ListParams};
use kube::{Client, ResourceExt};
use weft_model::UserError;

use super::cluster::{list, refused};
use super::objects::NAMESPACE;

/// Why objects of a definition can't be made yet.
pub(super) async fn definition(client: &Client, object: &DynamicObject) -> Result<Option<String>, UserError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = object.name_any();
    let found = api
        .get(&name)
        .await
        .map_err(|error| refused(&format!("get {name}"), &error))?;
    let conditions = found
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let established = conditions
        .iter()
        .any(|condition| condition.type_ == "Established" && condition.status == "True");
    Ok((!established).then(|| format!("the API server takes up {name}")))
}

/// Why the installation does not serve yet.
pub(super) async fn rollout(client: &Client) -> Result<Option<String>, UserError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let operator = deployments
        .get("weft-operator")
        .await
        .map_err(|error| refused("get Deployment weft-operator", &error))?;
    let status = operator.status.clone().unwrap_or_default();
    // The other replicas stand by, and may have no node to stand on.
    let leads = status.observed_generation >= operator.metadata.generation
        && status.updated_replicas.unwrap_or(0) > 0
        && status.available_replicas.unwrap_or(0) > 0;
    if !leads {
        let why = trouble(client, "operator").await?;
        return Ok(Some(format!("no operator is available{why}")));
    }
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let agents = sets
        .get("weft-agent")
        .await
        .map_err(|error| refused("get DaemonSet weft-agent", &error))?;
    let status = agents.status.clone().unwrap_or_default();
    let wanted = status.desired_number_scheduled;
    if status.observed_generation < agents.metadata.generation {
        return Ok(Some("the agents' DaemonSet is taken up".into()));
    }
    let ready = status
        .number_ready
        .min(status.updated_number_scheduled.unwrap_or(0));
    if ready >= wanted {
        return Ok(None);
    }
    let why = trouble(client, "agent").await?;
    Ok(Some(format!("{ready} of {wanted} agents are ready{why}")))
}

/// `: weft-agent-x on node-1: ImagePullBackOff, …` of the first pod that is in trouble, or nothing.
async fn trouble(client: &Client, component: &str) -> Result<String, UserError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let labels = format!("app.kubernetes.io/name=weft,app.kubernetes.io/component={component}");
    let pods = list(pods, "pods", &ListParams::default().labels(&labels)).await?;
    Ok(pods.iter().find_map(describe).unwrap_or_default())
}

fn describe(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses);
    let why = containers.flatten().find_map(waits_for).or_else(|| {
        let conditions = status.conditions.iter().flatten();
        conditions
            .filter(|condition| condition.status != "True" && condition.type_ == "PodScheduled")
            .find_map(|condition| condition.message.clone())
    })?;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let node = node.map(|node| format!(" on {node}")).unwrap_or_default();
    Some(format!(": {}{node}: {why}", pod.name_any()))
}

/// Why a container does not run, if it is more than that it starts.
fn waits_for(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    if ["ContainerCreating", "PodInitializing"].contains(&reason) {
        return None;
    }
    let ended = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let message = ended
        .and_then(|ended| ended.message.clone())
        .or_else(|| waiting.message.clone())
        .unwrap_or_default();
    Some(
        format!("{} {reason} {}", container.name, message.trim())
            .trim_end()
            .to_owned(),
    )
}
