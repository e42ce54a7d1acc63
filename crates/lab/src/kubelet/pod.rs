//! What the kubelet needs of a Pod, taken from it once.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use crate::controllers::facts::{Owner, Phase, milli, sidecars, timestamp};

/// How long a Job's pod runs that doesn't say `sleep N`.
const JOB_RUNS: Duration = Duration::from_secs(1);

/// A pod as the kubelet runs it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodConfig {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Whether the pod lives in the node's network namespace.
    pub host_network: bool,
    /// How long it runs before it ends by itself; `None` for ever. Only pods of Jobs end.
    pub runs_for: Option<Duration>,
    /// Containers, sidecars among them.
    pub containers: Vec<ContainerConfig>,
    /// Init containers that end before the others start: (name, image).
    pub init_containers: Vec<(String, String)>,
    /// What CNI plugins with these capabilities are given.
    pub capability_args: Map<String, Value>,
    /// Time of creation.
    pub created: Timestamp,
    /// Phase in the API when the kubelet first saw the pod.
    pub phase: Phase,
    /// Whether deletion was asked for when the kubelet first saw the pod.
    pub deleting: bool,
    /// Since when the pod runs, where an earlier kubelet process said so.
    pub start_time: Option<Timestamp>,
}

/// A container: no image is ever run, only its ports and probes count.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerConfig {
    /// Name.
    pub name: String,
    /// Image, only shown.
    pub image: String,
    /// Whether it is an init container that keeps running.
    pub sidecar: bool,
    /// Ports to serve: those declared, and those that a probe expects an answer from.
    pub ports: Vec<Port>,
    /// Startup, readiness and liveness probe.
    pub probes: Vec<ProbeConfig>,
}

/// A port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Number, 1 to 65535.
    pub number: u16,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, one-to-one style.
    Sctp,
}

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the other two back until it succeeds.
    Startup,
    /// Whether the container is Ready.
    Readiness,
    /// Whether the container is to be restarted.
    Liveness,
}

/// A probe with its port resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeConfig {
    /// What it decides.
    pub kind: ProbeKind,
    /// What it does.
    pub action: ProbeAction,
    /// Before the first try.
    pub initial_delay: Duration,
    /// Between tries.
    pub period: Duration,
    /// For one try.
    pub timeout: Duration,
    /// Successes in a row that turn it to success.
    pub success_threshold: u32,
    /// Failures in a row that turn it to failure.
    pub failure_threshold: u32,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeAction {
    /// GET, success is a status from 200 to 399.
    Http {
        /// Address other than the pod's own.
        host: Option<String>,
        /// Port.
        port: u16,
        /// Path with its leading slash.
        path: String,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// Connect, success is a connection.
    Tcp {
        /// Address other than the pod's own.
        host: Option<String>,
        /// Port.
        port: u16,
    },
    /// A command in the container. There is none in the lab: it always succeeds.
    Exec,
}

// === impl PodConfig ===

impl PodConfig {
    /// What matters of a pod.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let is_job = Owner::of(meta).is_some_and(|owner| owner.kind == "Job");
        let sidecars: Vec<ContainerConfig> = sidecars(&spec).map(|c| ContainerConfig::of(c, true)).collect();
        let containers: Vec<ContainerConfig> = spec
            .containers
            .iter()
            .map(|c| ContainerConfig::of(c, false))
            .chain(sidecars)
            .collect();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            host_network: spec.host_network == Some(true),
            runs_for: is_job.then(|| {
                spec.containers
                    .iter()
                    .filter_map(sleeps)
                    .max()
                    .unwrap_or(JOB_RUNS)
            }),
            init_containers: spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() != Some("Always"))
                .map(|container| {
                    (
                        container.name.clone(),
                        container.image.clone().unwrap_or_default(),
                    )
                })
                .collect(),
            capability_args: capability_args(&spec.containers, meta.annotations.as_ref()),
            containers,
            created: timestamp(meta.creation_timestamp.as_ref()),
            phase: Phase::parse(pod.status.as_ref().and_then(|status| status.phase.as_deref())),
            deleting: meta.deletion_timestamp.is_some(),
            start_time: pod
                .status
                .as_ref()
                .and_then(|status| status.start_time.as_ref())
                .map(|time| time.0),
        }
    }

    /// Every port to be served, each once.
    pub fn ports(&self) -> Vec<Port> {
        let mut ports: Vec<Port> = self
            .containers
            .iter()
            .flat_map(|container| container.ports.iter().copied())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// How long a container's command sleeps, where it says so: `sleep 30`, `sh -c "…; sleep 2m"`.
fn sleeps(container: &Container) -> Option<Duration> {
    let words: Vec<String> = container
        .command
        .iter()
        .chain(&container.args)
        .flatten()
        .flat_map(|word| word.split([' ', ';', '&', '\n', '\t']))
        .map(str::to_owned)
        .collect();
    let mut total = None;
    for pair in words.windows(2) {
        if pair[0] == "sleep" || pair[0].ends_with("/sleep") {
            let number = pair[1].trim_end_matches(['s', 'm', 'h']);
            let factor = match pair[1].strip_prefix(number) {
                Some("m") => 60.0,
                Some("h") => 3600.0,
                _ => 1.0,
            };
            if let Ok(seconds) = number.parse::<f64>()
                && let Ok(sleep) = Duration::try_from_secs_f64(seconds * factor)
            {
                total = Some(total.unwrap_or(Duration::ZERO) + sleep);
            }
        }
    }
    total
}

/// `runtimeConfig` for the capabilities that the kubelet and containerd know: `portMappings` and `bandwidth`.
fn capability_args(
    containers: &[Container],
    annotations: Option<&BTreeMap<String, String>>,
) -> Map<String, Value> {
    let mappings: Vec<Value> = containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| port.host_port.is_some_and(|port| port > 0))
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect();
    let mut args = Map::new();
    if !mappings.is_empty() {
        args.insert("portMappings".to_owned(), Value::Array(mappings));
    }
    let rate = |direction: &str| {
        let quantity = annotations?.get(&format!("kubernetes.io/{direction}-bandwidth"))?;
        Some(milli(quantity)? / 1000)
    };
    let mut bandwidth = Map::new();
    for direction in ["ingress", "egress"] {
        if let Some(rate) = rate(direction) {
            bandwidth.insert(format!("{direction}Rate"), json!(rate));
            // containerd's default: a burst of the largest signed 32-bit number of bits.
            bandwidth.insert(format!("{direction}Burst"), json!(i32::MAX));
        }
    }
    if !bandwidth.is_empty() {
        args.insert("bandwidth".to_owned(), Value::Object(bandwidth));
    }
    args
}

// === impl ContainerConfig ===

impl ContainerConfig {
    fn of(container: &Container, sidecar: bool) -> Self {
        let probes: Vec<ProbeConfig> = [
            (ProbeKind::Startup, &container.startup_probe),
            (ProbeKind::Readiness, &container.readiness_probe),
            (ProbeKind::Liveness, &container.liveness_probe),
        ]
        .into_iter()
        .filter_map(|(kind, probe)| ProbeConfig::of(kind, probe.as_ref()?, container))
        .collect();
        let declared = container.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                number: u16::try_from(port.container_port).ok().filter(|port| *port > 0)?,
            })
        });
        let probed = probes.iter().filter_map(|probe| match &probe.action {
            ProbeAction::Http { host: None, port, .. } | ProbeAction::Tcp { host: None, port } => {
                Some(Port {
                    protocol: Protocol::Tcp,
                    number: *port,
                })
            }
            _ => None,
        });
        let mut ports: Vec<Port> = declared.chain(probed).collect();
        ports.sort_unstable();
        ports.dedup();
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            sidecar,
            ports,
            probes,
        }
    }

    /// Whether the container has a probe of that kind.
    pub fn has(&self, kind: ProbeKind) -> bool {
        self.probes.iter().any(|probe| probe.kind == kind)
    }
}

// === impl ProbeConfig ===

impl ProbeConfig {
    fn of(kind: ProbeKind, probe: &Probe, container: &Container) -> Option<Self> {
        let own_address = |host: Option<&String>| host.filter(|host| !host.is_empty()).cloned();
        let action = if let Some(http) = &probe.http_get {
            let port = resolve(&http.port, container)?;
            let path = http.path.clone().unwrap_or_default();
            if http.scheme.as_deref() == Some("HTTPS") {
                // The responder speaks no TLS; that the port answers is what can be known.
                ProbeAction::Tcp {
                    host: own_address(http.host.as_ref()),
                    port,
                }
            } else {
                ProbeAction::Http {
                    host: own_address(http.host.as_ref()),
                    port,
                    path: if path.starts_with('/') {
                        path
                    } else {
                        format!("/{path}")
                    },
                    headers: http
                        .http_headers
                        .iter()
                        .flatten()
                        .map(|header| (header.name.clone(), header.value.clone()))
                        .collect(),
                }
            }
        } else if let Some(tcp) = &probe.tcp_socket {
            ProbeAction::Tcp {
                host: own_address(tcp.host.as_ref()),
                port: resolve(&tcp.port, container)?,
            }
        } else if let Some(grpc) = &probe.grpc {
            ProbeAction::Tcp {
                host: None,
                port: u16::try_from(grpc.port).ok()?,
            }
        } else {
            ProbeAction::Exec
        };
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            Duration::from_secs(
                value
                    .and_then(|value| u64::try_from(value).ok())
                    .unwrap_or(default)
                    .max(least),
            )
        };
        let times = |value: Option<i32>, default: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .filter(|value| *value > 0)
                .unwrap_or(default)
        };
        Some(Self {
            kind,
            action,
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds.filter(|period| *period > 0), 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            success_threshold: times(probe.success_threshold, 1),
            failure_threshold: times(probe.failure_threshold, 3),
        })
    }
}

fn resolve(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                container
                    .ports
                    .iter()
                    .flatten()
                    .find(|port| port.name.as_ref() == Some(name))?
                    .container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: Value) -> PodConfig {
        PodConfig::of(&serde_json::from_value(yaml).unwrap())
    }

    #[test]
    fn ports_are_those_declared_and_those_probed_each_once() {
        let pod = pod(json!({"spec": {"containers": [
            {"name": "a", "ports": [{"containerPort": 80, "name": "web"}, {"containerPort": 53, "protocol": "UDP"}],
             "readinessProbe": {"httpGet": {"port": "web", "path": "ready"}},
             "livenessProbe": {"tcpSocket": {"port": 8081}}},
            {"name": "b", "ports": [{"containerPort": 80}]},
        ]}}));
        assert_eq!(
            pod.ports(),
            [
                Port {
                    protocol: Protocol::Tcp,
                    number: 80
                },
                Port {
                    protocol: Protocol::Tcp,
                    number: 8081
                },
                Port {
                    protocol: Protocol::Udp,
                    number: 53
                },
            ]
        );
        assert_eq!(
            pod.containers[0].probes[0].action,
            ProbeAction::Http {
                host: None,
                port: 80,
                path: "/ready".into(),
                headers: vec![]
            }
        );
    }

    #[test]
    fn only_pods_of_jobs_end_and_they_honour_sleep() {
        let job = |command: Value| {
            pod(json!({
                "metadata": {"ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]},
                "spec": {"containers": [{"name": "a", "command": command}]},
            }))
            .runs_for
        };
        assert_eq!(job(json!(["sleep", "5"])), Some(Duration::from_secs(5)));
        assert_eq!(
            job(json!(["sh", "-c", "echo a; sleep 2; sleep 1m"])),
            Some(Duration::from_secs(62))
        );
        assert_eq!(job(json!(["perl", "-e", "1"])), Some(JOB_RUNS));
        assert_eq!(
            pod(json!({"spec": {"containers": [{"name": "a", "command": ["sleep", "5"]}]}})).runs_for,
            None
        );
    }

    #[test]
    fn host_ports_and_bandwidth_become_runtime_config() {
        let pod = pod(json!({
            "metadata": {"annotations": {"kubernetes.io/ingress-bandwidth": "1M"}},
            "spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]},
        }));
        assert_eq!(
            Value::Object(pod.capability_args),
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
                "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": i32::MAX},
            })
        );
    }
}
