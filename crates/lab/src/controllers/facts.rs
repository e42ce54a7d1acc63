//! What the control loops remember of a Pod or a Node: a few fields each, never the whole object.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

/// The controller of an object: the owner reference whose `controller` is true.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Kind of the owner, such as `ReplicaSet`.
    pub kind: String,
    /// Name of the owner, in the namespace of the object.
    pub name: String,
    /// UID of the owner.
    pub uid: String,
}

/// `status.phase` of a Pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepted, not yet running; also what a Pod without a status is in.
    #[default]
    Pending,
    /// Bound to a node, containers started.
    Running,
    /// All containers ended well, for good.
    Succeeded,
    /// Ended badly, or refused by the kubelet.
    Failed,
    /// The node can't be asked.
    Unknown,
}

/// A Pod as the control loops see it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    /// Namespace and name.
    pub key: Key,
    /// UID.
    pub uid: String,
    /// `resourceVersion` as a number; 0 where it is none.
    pub version: u64,
    /// Labels.
    pub labels: Labels,
    /// Controller of the pod.
    pub owner: Option<Owner>,
    /// Node that the pod is bound to.
    pub node: Option<String>,
    /// Phase.
    pub phase: Phase,
    /// Since when the Ready condition is True; `None` where it isn't.
    pub ready_since: Option<Timestamp>,
    /// Whether deletion was asked for.
    pub deleting: bool,
    /// Time of creation.
    pub created: Timestamp,
    /// Addresses, the primary one first.
    pub ips: Vec<String>,
    /// Declared container ports that have a name: (name, protocol, number).
    pub named_ports: Vec<(String, String, i32)>,
    /// `spec.hostname` and `spec.subdomain`, where both are set.
    pub host_in_subdomain: Option<(String, String)>,
    /// Message of the PodScheduled condition, where it is False for `Unschedulable`.
    pub unschedulable: Option<String>,
    /// What restricts the choice of a node.
    pub placement: Placement,
}

/// What restricts the choice of a node for a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Whether anything holds the pod back: scheduling gates, or another scheduler's name.
    pub not_ours: bool,
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// Required node affinity; the terms are alternatives. `None` where there is no such requirement.
    pub node_affinity: Option<Vec<NodeSelectorTerm>>,
    /// Required pod affinity; all terms must hold.
    pub pod_affinity: Vec<PodAffinityTerm>,
    /// Required pod anti-affinity; no term may match.
    pub pod_anti_affinity: Vec<PodAffinityTerm>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node that the pod occupies: (protocol, number).
    pub host_ports: Vec<(String, i32)>,
    /// Largest sum of requests per resource, in thousandths.
    pub requests: BTreeMap<String, i64>,
    /// Priority; higher goes first.
    pub priority: i32,
}

/// A Node as the control loops see it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Name; the namespace is empty.
    pub key: Key,
    /// UID.
    pub uid: String,
    /// `resourceVersion` as a number; 0 where it is none.
    pub version: u64,
    /// Labels.
    pub labels: Labels,
    /// Taints.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// Status of the Ready condition.
    pub ready: Option<bool>,
    /// Allocatable resources, in thousandths.
    pub allocatable: BTreeMap<String, i64>,
    /// Whether the node is being deleted.
    pub deleting: bool,
    /// Time of creation.
    pub created: Timestamp,
}

// === impl Key ===

impl Key {
    /// A key of a namespaced object.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key in an object's metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

// === impl Owner ===

impl Owner {
    /// The controlling owner in an object's metadata.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        meta.owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| Self {
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            })
    }
}

/// The reference that makes `owner` the controller of an object.
pub fn controller_reference<K>(owner: &K) -> OwnerReference
where
    K: kube::Resource<DynamicType = ()>,
{
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

// === impl Phase ===

impl Phase {
    /// The phase of that name; anything unheard of is Pending.
    pub fn parse(name: Option<&str>) -> Self {
        match name {
            Some("Running") => Self::Running,
            Some("Succeeded") => Self::Succeeded,
            Some("Failed") => Self::Failed,
            Some("Unknown") => Self::Unknown,
            _ => Self::Pending,
        }
    }

    /// Whether the pod has ended for good.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

// === impl PodFacts ===

impl PodFacts {
    /// What is worth remembering of a pod.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let condition = |name: &str| {
            status
                .and_then(|status| status.conditions.as_ref())
                .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == name))
        };
        let created = timestamp(pod.metadata.creation_timestamp.as_ref());
        Self {
            key: Key::of(&pod.metadata),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            version: version(&pod.metadata),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            owner: Owner::of(&pod.metadata),
            node: spec
                .and_then(|spec| spec.node_name.clone())
                .filter(|node| !node.is_empty()),
            phase: Phase::parse(status.and_then(|status| status.phase.as_deref())),
            ready_since: condition("Ready")
                .filter(|ready| ready.status == "True")
                .map(|ready| ready.last_transition_time.as_ref().map_or(created, |time| time.0)),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            created,
            ips: status
                .and_then(|status| status.pod_ips.as_ref())
                .map(|ips| ips.iter().map(|ip| ip.ip.clone()).collect())
                .unwrap_or_default(),
            named_ports: spec.map(named_ports).unwrap_or_default(),
            host_in_subdomain: spec.and_then(|spec| spec.hostname.clone().zip(spec.subdomain.clone())),
            unschedulable: condition("PodScheduled")
                .filter(|scheduled| {
                    scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable")
                })
                .map(|scheduled| scheduled.message.clone().unwrap_or_default()),
            placement: spec.map(Placement::of).unwrap_or_default(),
        }
    }

    /// Whether the pod counts for its controller: neither ended nor being deleted.
    pub fn is_active(&self) -> bool {
        !self.deleting && !self.phase.is_terminal()
    }

    /// Whether the pod is ready and has been for `min_ready_seconds`.
    pub fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.ready_since
            .is_some_and(|since| now.as_second() - since.as_second() >= i64::from(min_ready_seconds))
    }

    /// Whether the pod takes part of a node's room.
    pub fn occupies(&self) -> bool {
        !self.phase.is_terminal()
    }

    /// Whether the pod waits for a node that this cluster's scheduler should choose.
    pub fn awaits_node(&self) -> bool {
        self.node.is_none() && self.is_active() && !self.placement.not_ours
    }
}

fn named_ports(spec: &PodSpec) -> Vec<(String, String, i32)> {
    spec.containers
        .iter()
        .chain(sidecars(spec))
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((port.name.clone()?, protocol, port.container_port))
        })
        .collect()
}

/// Init containers that keep running beside the others (`restartPolicy: Always`).
pub fn sidecars(spec: &PodSpec) -> impl Iterator<Item = &k8s_openapi::api::core::v1::Container> {
    spec.init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
}

// === impl Placement ===

impl Placement {
    /// The restrictions in a pod's spec.
    pub fn of(spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref();
        let gated = spec
            .scheduling_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty());
        let foreign = spec
            .scheduler_name
            .as_deref()
            .is_some_and(|name| !name.is_empty() && name != "default-scheduler");
        Self {
            not_ours: gated || foreign,
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: affinity
                .and_then(|affinity| affinity.node_affinity.as_ref())
                .and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|required| required.node_selector_terms.clone()),
            pod_affinity: affinity
                .and_then(|affinity| affinity.pod_affinity.as_ref())
                .and_then(|pod| pod.required_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
            pod_anti_affinity: affinity
                .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
                .and_then(|pod| pod.required_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            host_ports: host_ports(spec),
            requests: requests(spec),
            priority: spec.priority.unwrap_or(0),
        }
    }
}

fn host_ports(spec: &PodSpec) -> Vec<(String, i32)> {
    let host_network = spec.host_network == Some(true);
    spec.containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port
                .host_port
                .or(host_network.then_some(port.container_port))
                .filter(|port| *port > 0)?;
            Some((port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        })
        .collect()
}

fn requests(spec: &PodSpec) -> BTreeMap<String, i64> {
    let mut sum = BTreeMap::new();
    for container in &spec.containers {
        let Some(resources) = &container.resources else {
            continue;
        };
        // A limit without a request is a request too; the API server fills it in.
        let mut wanted = resources.limits.clone().unwrap_or_default();
        wanted.extend(resources.requests.clone().unwrap_or_default());
        for (name, quantity) in wanted {
            if let Some(amount) = milli(&quantity.0) {
                let total: &mut i64 = sum.entry(name).or_default();
                *total = total.saturating_add(amount);
            }
        }
    }
    sum
}

// === impl NodeFacts ===

impl NodeFacts {
    /// What is worth remembering of a node.
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        Self {
            key: Key::of(&node.metadata),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            version: version(&node.metadata),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|spec| spec.unschedulable) == Some(true),
            ready: status
                .and_then(|status| status.conditions.as_ref())
                .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"))
                .map(|ready| ready.status == "True"),
            allocatable: status
                .and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()))
                .map(|resources| {
                    resources
                        .iter()
                        .filter_map(|(name, quantity)| Some((name.clone(), milli(&quantity.0)?)))
                        .collect()
                })
                .unwrap_or_default(),
            deleting: node.metadata.deletion_timestamp.is_some(),
            created: timestamp(node.metadata.creation_timestamp.as_ref()),
        }
    }

    /// How many pods the node takes.
    pub fn max_pods(&self) -> usize {
        self.allocatable
            .get("pods")
            .map_or(0, |milli| usize::try_from(milli / 1000).unwrap_or(0))
    }
}

// === quantities, times, versions ===

/// A Kubernetes quantity in thousandths, rounded down; `None` where it is malformed.
///
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
pub fn milli(quantity: &str) -> Option<i64> {
    let split = quantity.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+'));
    let (number, suffix) = quantity.split_at(split.unwrap_or(quantity.len()));
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        exponent => 10_f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "saturating is what a limit beyond any machine needs"
    )]
    Some((number * factor * 1000.0).floor() as i64)
}

/// The time in a metadata field; the epoch where it is absent.
pub fn timestamp(time: Option<&Time>) -> Timestamp {
    time.map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// `resourceVersion` as a number; 0 where it is none.
pub fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_thousandths() {
        let table = [
            ("250", Some(250_000)),
            ("100m", Some(100)),
            ("1.5", Some(1500)),
            ("64Ki", Some(65_536_000)),
            ("2e3", Some(2_000_000)),
            ("1E", Some(1_000_000_000_000_000_000 * 9)),
            ("", None),
            ("12x", None),
            ("lots", None),
        ];
        for (text, expected) in table {
            let expected = if text == "1E" { Some(i64::MAX) } else { expected };
            assert_eq!(milli(text), expected, "{text}");
        }
    }
}
