//! Which node a pod goes to, and in which words none is found.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::controllers::facts::{Labels, NodeFacts, PodFacts};

/// The node for a pod, by its index, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Index of the node.
    Node(usize),
    /// Nowhere.
    None(Unschedulable),
}

/// Why no node takes a pod; its text is the real scheduler's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable {
    nodes: usize,
    reasons: BTreeMap<Misfit, usize>,
}

/// Why one node doesn't take a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misfit {
    /// The node is cordoned.
    Unschedulable,
    /// A taint of that key and value is not tolerated.
    Taint(String, String),
    /// Node selector or affinity doesn't match.
    Affinity,
    /// The node has as many pods as it takes.
    TooManyPods,
    /// The node never has that much of the resource.
    Insufficient(String),
    /// A port of the node that the pod wants is taken.
    HostPorts,
    /// The pod refuses the company it would have there, or that company refuses it.
    PodAntiAffinity,
    /// The company that the pod wants isn't there.
    PodAffinity,
}

/// What is on each node.
#[derive(Debug)]
pub struct Usage {
    pods: Vec<Vec<Arc<PodFacts>>>,
}

// === impl Usage ===

impl Usage {
    /// What `pods` make of `nodes`; `assumed` names the node of pods, by UID, that don't say it themselves yet.
    pub fn of<'a>(
        nodes: &[Arc<NodeFacts>],
        pods: impl Iterator<Item = &'a Arc<PodFacts>>,
        assumed: &HashMap<String, String>,
    ) -> Self {
        let index: HashMap<&str, usize> = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (node.key.name.as_str(), index))
            .collect();
        let mut usage = Self {
            pods: vec![Vec::new(); nodes.len()],
        };
        for pod in pods.filter(|pod| pod.occupies()) {
            let node = pod.node.as_ref().or_else(|| assumed.get(&pod.uid));
            if let Some(index) = node.and_then(|node| index.get(node.as_str())) {
                usage.pods[*index].push(Arc::clone(pod));
            }
        }
        usage
    }

    /// Counts one more pod on the node of that index.
    pub fn add(&mut self, node: usize, pod: &Arc<PodFacts>) {
        self.pods[node].push(Arc::clone(pod));
    }

    /// Counts a further node without pods, the last one from now on.
    pub fn add_node(&mut self) {
        self.pods.push(Vec::new());
    }

    /// Takes back the last [`add_node`](Self::add_node).
    pub fn remove_node(&mut self) {
        self.pods.pop();
    }

    /// The pods on the node of that index.
    pub fn on(&self, node: usize) -> &[Arc<PodFacts>] {
        &self.pods[node]
    }
}

/// Chooses the fitting node with the fewest pods; of those the first.
pub fn place(pod: &PodFacts, nodes: &[Arc<NodeFacts>], usage: &Usage) -> Choice {
    let mut best: Option<(usize, usize)> = None;
    let mut reasons: BTreeMap<Misfit, usize> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        match fits(pod, index, nodes, usage) {
            Ok(()) => {
                let count = usage.on(index).len();
                if best.is_none_or(|(_, fewest)| count < fewest) {
                    best = Some((index, count));
                }
            }
            Err(misfits) => {
                // A node on its way out is like one that is gone.
                if node.deleting {
                    continue;
                }
                for misfit in misfits {
                    *reasons.entry(misfit).or_default() += 1;
                }
            }
        }
    }
    match best {
        Some((index, _)) => Choice::Node(index),
        None => Choice::None(Unschedulable {
            nodes: nodes.len(),
            reasons,
        }),
    }
}

/// Whether a pod fits on a node. As in the real scheduler the first filter that fails ends the search, and only the
/// resources filter names several reasons.
///
/// # Errors
/// Why it doesn't.
pub fn fits(
    pod: &PodFacts,
    index: usize,
    nodes: &[Arc<NodeFacts>],
    usage: &Usage,
) -> Result<(), Vec<Misfit>> {
    let node = &nodes[index];
    let wants = &pod.placement;
    if node.unschedulable || node.deleting {
        let cordon = taint("node.kubernetes.io/unschedulable", "NoSchedule");
        if node.deleting || !tolerated(&cordon, &wants.tolerations) {
            return Err(vec![Misfit::Unschedulable]);
        }
    }
    let unready = (node.ready != Some(true)).then(|| taint("node.kubernetes.io/not-ready", "NoSchedule"));
    if let Some(taint) = node
        .taints
        .iter()
        .chain(&unready)
        .filter(|taint| taint.effect != "PreferNoSchedule" && taint.key != "node.kubernetes.io/unschedulable")
        .find(|taint| !tolerated(taint, &wants.tolerations))
    {
        return Err(vec![Misfit::Taint(
            taint.key.clone(),
            taint.value.clone().unwrap_or_default(),
        )]);
    }
    let selected = wants
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let affine = wants
        .node_affinity
        .as_ref()
        .is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)));
    if !selected || !affine {
        return Err(vec![Misfit::Affinity]);
    }
    let taken = |port: &(String, i32)| {
        usage
            .on(index)
            .iter()
            .any(|other| other.placement.host_ports.contains(port))
    };
    if wants.host_ports.iter().any(taken) {
        return Err(vec![Misfit::HostPorts]);
    }
    let mut lacking = Vec::new();
    if usage.on(index).len() >= node.max_pods() {
        lacking.push(Misfit::TooManyPods);
    }
    for (resource, amount) in &wants.requests {
        if *amount > node.allocatable.get(resource).copied().unwrap_or(0) {
            lacking.push(Misfit::Insufficient(resource.clone()));
        }
    }
    if !lacking.is_empty() {
        return Err(lacking);
    }
    if !wants.pod_affinity.is_empty()
        && !wants
            .pod_affinity
            .iter()
            .all(|term| company(pod, term, index, nodes, usage))
    {
        return Err(vec![Misfit::PodAffinity]);
    }
    if wants
        .pod_anti_affinity
        .iter()
        .any(|term| in_domain(term, pod, index, nodes, usage))
        || refused_by_others(pod, index, nodes, usage)
    {
        return Err(vec![Misfit::PodAntiAffinity]);
    }
    Ok(())
}

/// Whether a term of pod affinity is met: by a pod in the domain, or, as the real scheduler grants the first pod of a
/// group, by the pod itself where no other matches anywhere.
fn company(
    pod: &PodFacts,
    term: &PodAffinityTerm,
    index: usize,
    nodes: &[Arc<NodeFacts>],
    usage: &Usage,
) -> bool {
    if in_domain(term, pod, index, nodes, usage) {
        return true;
    }
    let nobody =
        (0..nodes.len()).all(|node| !usage.on(node).iter().any(|other| term_selects(term, pod, other)));
    nobody && term_selects(term, pod, pod) && nodes[index].labels.contains_key(&term.topology_key)
}

/// Whether a pod that the term of `owner` selects is in the topology domain of a node.
fn in_domain(
    term: &PodAffinityTerm,
    owner: &PodFacts,
    index: usize,
    nodes: &[Arc<NodeFacts>],
    usage: &Usage,
) -> bool {
    let Some(domain) = nodes[index].labels.get(&term.topology_key) else {
        return false;
    };
    nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.labels.get(&term.topology_key) == Some(domain))
        .any(|(node, _)| {
            usage
                .on(node)
                .iter()
                .any(|other| term_selects(term, owner, other))
        })
}

/// Whether a pod in the topology domain has an anti-affinity to `pod`.
fn refused_by_others(pod: &PodFacts, index: usize, nodes: &[Arc<NodeFacts>], usage: &Usage) -> bool {
    nodes.iter().enumerate().any(|(other_index, other_node)| {
        usage.on(other_index).iter().any(|other| {
            other.placement.pod_anti_affinity.iter().any(|term| {
                let domain = nodes[index].labels.get(&term.topology_key);
                domain.is_some()
                    && other_node.labels.get(&term.topology_key) == domain
                    && term_selects(term, other, pod)
            })
        })
    })
}

/// Whether a term of `owner` selects `other`. Namespaces are taken by name; a namespace selector selects all.
fn term_selects(term: &PodAffinityTerm, owner: &PodFacts, other: &PodFacts) -> bool {
    let in_namespace = match (&term.namespaces, &term.namespace_selector) {
        (_, Some(_)) => true,
        (Some(names), None) if !names.is_empty() => names.contains(&other.key.namespace),
        _ => owner.key.namespace == other.key.namespace,
    };
    in_namespace
        && term
            .label_selector
            .as_ref()
            .is_some_and(|selector| selects(selector, &other.labels))
}

/// Whether a label selector matches; one that is malformed matches nothing.
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

/// Whether every taint that keeps new pods away is tolerated by the pod.
pub fn tolerates(taints: &[Taint], tolerations: &[Toleration]) -> bool {
    taints
        .iter()
        .filter(|taint| taint.effect != "PreferNoSchedule")
        .all(|taint| tolerated(taint, tolerations))
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    tolerations.iter().any(|toleration| {
        let effect = given(&toleration.effect).is_none_or(|effect| effect == taint.effect);
        let exists = toleration.operator.as_deref() == Some("Exists");
        let key = match given(&toleration.key) {
            Some(key) => key == taint.key,
            None => exists,
        };
        let value =
            exists || toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("");
        effect && key && value
    })
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        ..Taint::default()
    }
}

/// Whether a term of node affinity matches: all its expressions do. A term without any matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeFacts) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let empty = expressions.clone().next().is_none() && fields.clone().next().is_none();
    !empty
        && expressions
            .into_iter()
            .all(|requirement| holds(requirement, node.labels.get(&requirement.key).map(String::as_str)))
        && fields.into_iter().all(|requirement| {
            requirement.key == "metadata.name" && holds(requirement, Some(node.key.name.as_str()))
        })
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let mut values = requirement.values.iter().flatten();
    let number = |text: &str| text.parse::<i64>().ok();
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.any(|wanted| wanted == value)),
        "NotIn" => value.is_none_or(|value| values.all(|wanted| wanted != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value
            .and_then(number)
            .zip(values.next().and_then(|bound| number(bound)))
            .is_some_and(|(v, b)| v > b),
        "Lt" => value
            .and_then(number)
            .zip(values.next().and_then(|bound| number(bound)))
            .is_some_and(|(v, b)| v < b),
        _ => false,
    }
}

// === impl Unschedulable ===

impl Unschedulable {
    /// Whether the only thing that a node of the right kind lacks is room: a further node would help.
    pub fn lacks_room(&self) -> bool {
        self.nodes == 0 || self.reasons.keys().any(|reason| *reason == Misfit::TooManyPods)
    }
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(misfit, count)| format!("{count} {misfit}"))
            .collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

// === impl Misfit ===

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::Taint(key, value) => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Self::HostPorts => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::PodAntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::PodAffinity => f.write_str("node(s) didn't match pod affinity rules"),
        }
    }
}
