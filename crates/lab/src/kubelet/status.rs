//! The status of a pod as a function of what the kubelet knows of it.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::pod::{PodConfig, ProbeKind};

/// Everything a running pod's status depends on, beside its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// The node's address.
    pub host_ip: IpAddr,
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// ID of the sandbox, 64 hexadecimal digits.
    pub sandbox: String,
    /// When the pod was started.
    pub started: Timestamp,
    /// State of each container, in the order of the configuration.
    pub containers: Vec<ContainerState>,
    /// When the pod's Ready condition last changed, and to what.
    pub ready_changed: Timestamp,
}

/// What probes and restarts made of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerState {
    /// Whether the startup probe has succeeded.
    pub started: bool,
    /// Whether the readiness probe, if any, succeeds.
    pub ready: bool,
    /// How often the liveness probe restarted it.
    pub restarts: i32,
    /// When it was last started.
    pub since: Timestamp,
}

// === impl ContainerState ===

impl ContainerState {
    /// A container just started: ready unless it has a probe that must succeed first.
    pub fn new(has_startup: bool, has_readiness: bool, since: Timestamp) -> Self {
        Self {
            started: !has_startup,
            ready: !has_startup && !has_readiness,
            restarts: 0,
            since,
        }
    }
}

// === impl Running ===

impl Running {
    /// A pod that has just started.
    pub fn new(
        pod: &PodConfig,
        host_ip: IpAddr,
        ips: Vec<IpAddr>,
        sandbox: String,
        started: Timestamp,
    ) -> Self {
        let containers = pod
            .containers
            .iter()
            .map(|c| ContainerState::new(c.has(ProbeKind::Startup), c.has(ProbeKind::Readiness), started))
            .collect();
        Self {
            host_ip,
            ips,
            sandbox,
            started,
            containers,
            ready_changed: started,
        }
    }

    /// Whether all containers are ready.
    pub fn is_ready(&self) -> bool {
        self.containers.iter().all(|container| container.ready)
    }
}

/// Status of a pod whose sandbox is not there yet.
pub fn creating(pod: &PodConfig, host_ip: IpAddr, now: Timestamp) -> Value {
    let waiting = json!({ "waiting": { "reason": if pod.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" } } });
    let containers: Vec<Value> = pod
        .containers
        .iter()
        .filter(|container| !container.sidecar)
        .map(|container| {
            json!({
                "name": container.name, "image": container.image, "imageID": "", "ready": false, "started": false,
                "restartCount": 0, "state": waiting,
            })
        })
        .collect();
    json!({
        "phase": "Pending",
        "startTime": Time(pod.start_time.unwrap_or(now)),
        "hostIP": host_ip.to_string(),
        "hostIPs": [{ "ip": host_ip.to_string() }],
        "conditions": [
            condition("PodReadyToStartContainers", false, now, None),
            condition("Initialized", pod.init_containers.is_empty(), now, None),
            condition("Ready", false, now, Some(("ContainersNotReady", unready_message(pod.containers.iter().map(|c| c.name.as_str()))))),
            condition("ContainersReady", false, now, Some(("ContainersNotReady", unready_message(pod.containers.iter().map(|c| c.name.as_str()))))),
            condition("PodScheduled", true, pod.created, None),
        ],
        "containerStatuses": containers,
    })
}

/// Status of a running pod.
pub fn running(pod: &PodConfig, state: &Running) -> Value {
    let unready: Vec<&str> = pod
        .containers
        .iter()
        .zip(&state.containers)
        .filter(|(_, state)| !state.ready)
        .map(|(container, _)| container.name.as_str())
        .collect();
    let ready = unready.is_empty();
    let why = (!ready).then(|| ("ContainersNotReady", unready_message(unready.into_iter())));
    let container = |index: usize| {
        let (config, now) = (&pod.containers[index], &state.containers[index]);
        let mut status = json!({
            "name": config.name, "image": config.image, "imageID": config.image,
            "containerID": container_id(&state.sandbox, index),
            "ready": now.ready, "started": now.started, "restartCount": now.restarts,
            "state": { "running": { "startedAt": Time(now.since) } },
        });
        if now.restarts > 0 {
            status["lastState"] = json!({ "terminated": {
                "exitCode": 137, "reason": "Error", "finishedAt": Time(now.since), "containerID": container_id(&state.sandbox, index),
            } });
        }
        status
    };
    let (sidecars, containers): (Vec<usize>, Vec<usize>) =
        (0..pod.containers.len()).partition(|index| pod.containers[*index].sidecar);
    let inits = completed_inits(pod, state)
        .into_iter()
        .chain(sidecars.into_iter().map(container))
        .collect::<Vec<_>>();
    let mut status = addressed(state);
    status["phase"] = json!("Running");
    status["conditions"] = json!([
        condition("PodReadyToStartContainers", true, state.started, None),
        condition("Initialized", true, state.started, None),
        condition("Ready", ready, state.ready_changed, why.clone()),
        condition("ContainersReady", ready, state.ready_changed, why),
        condition("PodScheduled", true, pod.created, None),
    ]);
    status["containerStatuses"] = containers.into_iter().map(container).collect();
    if !inits.is_empty() {
        status["initContainerStatuses"] = Value::Array(inits);
    }
    status
}

/// Status of a pod that ran to its end.
pub fn succeeded(pod: &PodConfig, state: &Running, now: Timestamp) -> Value {
    let completed = || Some(("PodCompleted", String::new()));
    let containers: Vec<Value> = (0..pod.containers.len())
        .filter(|index| !pod.containers[*index].sidecar)
        .map(|index| {
            let id = container_id(&state.sandbox, index);
            json!({
                "name": pod.containers[index].name, "image": pod.containers[index].image,
                "imageID": pod.containers[index].image, "containerID": id, "ready": false, "started": false,
                "restartCount": state.containers[index].restarts,
                "state": { "terminated": {
                    "exitCode": 0, "reason": "Completed", "startedAt": Time(state.containers[index].since),
                    "finishedAt": Time(now), "containerID": id,
                } },
            })
        })
        .collect();
    let mut status = addressed(state);
    status["phase"] = json!("Succeeded");
    status["conditions"] = json!([
        condition("PodReadyToStartContainers", false, now, None),
        condition("Initialized", true, state.started, completed()),
        condition("Ready", false, now, completed()),
        condition("ContainersReady", false, now, completed()),
        condition("PodScheduled", true, pod.created, None),
    ]);
    status["containerStatuses"] = Value::Array(containers);
    status
}

/// Status of a pod that the kubelet refuses.
pub fn refused(reason: &str, message: &str, now: Timestamp) -> Value {
    json!({
        "phase": "Failed",
        "reason": reason,
        "message": format!("Pod was rejected: {message}"),
        "startTime": Time(now),
    })
}

/// Why a node that is full refuses a pod: the reason `OutOfpods`, in the kubelet's words.
pub fn out_of_pods(used: usize, capacity: u32) -> String {
    format!("Node didn't have enough resource: pods, requested: 1, used: {used}, capacity: {capacity}")
}

fn addressed(state: &Running) -> Value {
    let mut status = json!({
        "startTime": Time(state.started),
        "hostIP": state.host_ip.to_string(),
        "hostIPs": [{ "ip": state.host_ip.to_string() }],
    });
    if let Some(first) = state.ips.first() {
        status["podIP"] = json!(first.to_string());
        status["podIPs"] = state
            .ips
            .iter()
            .map(|ip| json!({ "ip": ip.to_string() }))
            .collect();
    }
    status
}

fn completed_inits(pod: &PodConfig, state: &Running) -> Vec<Value> {
    pod.init_containers
        .iter()
        .map(|(name, image)| {
            json!({
                "name": name, "image": image, "imageID": image, "ready": true, "started": false, "restartCount": 0,
                "state": { "terminated": {
                    "exitCode": 0, "reason": "Completed", "startedAt": Time(state.started), "finishedAt": Time(state.started),
                } },
            })
        })
        .collect()
}

fn container_id(sandbox: &str, index: usize) -> String {
    format!("weft://{index:02x}{}", sandbox.get(2..).unwrap_or_default())
}

fn unready_message<'a>(names: impl Iterator<Item = &'a str>) -> String {
    format!(
        "containers with unready status: [{}]",
        names.collect::<Vec<_>>().join(" ")
    )
}

fn condition(kind: &str, status: bool, since: Timestamp, why: Option<(&str, String)>) -> Value {
    let mut condition = json!({
        "type": kind,
        "status": if status { "True" } else { "False" },
        "lastProbeTime": null,
        "lastTransitionTime": Time(since),
    });
    if let Some((reason, message)) = why {
        condition["reason"] = json!(reason);
        if !message.is_empty() {
            condition["message"] = json!(message);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (PodConfig, Running) {
        let pod = PodConfig::of(
            &serde_json::from_value(json!({
                "metadata": {"name": "web", "namespace": "shop", "uid": "u"},
                "spec": {"initContainers": [{"name": "init", "image": "busybox"}], "containers": [
                    {"name": "a", "image": "nginx", "readinessProbe": {"tcpSocket": {"port": 80}}},
                    {"name": "b", "image": "envoy"},
                ]},
            }))
            .unwrap(),
        );
        let time = Timestamp::from_second(1_790_000_000).unwrap();
        let state = Running::new(
            &pod,
            "10.0.0.1".parse().unwrap(),
            vec!["10.244.0.5".parse().unwrap()],
            "0".repeat(64),
            time,
        );
        (pod, state)
    }

    fn conditions(status: &Value) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| (text(&c["type"]), text(&c["status"])))
            .collect()
    }

    #[test]
    fn a_container_with_a_readiness_probe_keeps_the_pod_unready_until_it_succeeds() {
        let (pod, mut state) = example();
        let before = running(&pod, &state);
        assert_eq!(before["phase"], "Running");
        assert_eq!(before["podIPs"], json!([{"ip": "10.244.0.5"}]));
        assert_eq!(
            before["conditions"][2]["message"],
            "containers with unready status: [a]"
        );
        state.containers[0].ready = true;
        let after = running(&pod, &state);
        assert!(conditions(&after).iter().all(|(_, status)| status == "True"));
        assert_eq!(
            after["initContainerStatuses"][0]["state"]["terminated"]["exitCode"],
            0
        );
    }

    #[test]
    fn statuses_are_valid_pod_statuses() {
        let (pod, state) = example();
        let now = state.started;
        let statuses = [
            creating(&pod, state.host_ip, now),
            running(&pod, &state),
            succeeded(&pod, &state, now),
            refused("OutOfpods", &out_of_pods(250, 250), now),
        ];
        let phases: Vec<Option<String>> = statuses
            .into_iter()
            .map(|status| {
                serde_json::from_value::<k8s_openapi::api::core::v1::PodStatus>(status)
                    .unwrap()
                    .phase
            })
            .collect();
        assert_eq!(
            phases,
            ["Pending", "Running", "Succeeded", "Failed"].map(|phase| Some(phase.to_owned()))
        );
    }

    #[test]
    fn a_full_node_refuses_with_its_numbers() {
        let status = refused("OutOfpods", &out_of_pods(250, 250), Timestamp::UNIX_EPOCH);
        assert_eq!(
            status["message"],
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 250, capacity: 250"
        );
    }
}
