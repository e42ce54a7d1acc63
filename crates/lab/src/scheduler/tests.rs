use serde_json::json;

use super::*;
use crate::controllers::facts::Key;

fn node(name: &str, max_pods: u32, extra: Value) -> NodeFacts {
    let mut node = json!({
        "metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"pods": max_pods.to_string(), "cpu": "4"}, "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut node, extra);
    NodeFacts::of(&serde_json::from_value(node).unwrap())
}

fn pod(name: &str, extra: Value) -> PodFacts {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c"}]},
    });
    merge(&mut pod, extra);
    PodFacts::of(&serde_json::from_value(pod).unwrap())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn state(nodes: Vec<NodeFacts>, pods: Vec<PodFacts>) -> State {
    let mut state = State {
        listed: (true, true),
        ..State::default()
    };
    state.nodes.reset(nodes);
    state.pods.reset(pods);
    state
}

/// What the scheduler decides: `pod>node`, or `pod: message`.
fn decisions(state: &mut State) -> Vec<String> {
    state
        .decide()
        .into_iter()
        .map(|decision| match decision {
            Decision::Bind(pod, node) => format!("{}>{node}", pod.key.name),
            Decision::Tell(pod, message) => format!("{}: {message}", pod.key.name),
        })
        .collect()
}

#[test]
fn pods_spread_over_nodes_by_count_and_what_finds_no_room_is_told_once() {
    let pods = ["a", "b", "c", "d", "e"]
        .map(|name| pod(name, json!({})))
        .to_vec();
    let mut state = state(vec![node("n1", 2, json!({})), node("n2", 2, json!({}))], pods);
    assert_eq!(
        decisions(&mut state),
        [
            "a>n1",
            "b>n2",
            "c>n1",
            "d>n2",
            "e: 0/2 nodes are available: 2 Too many pods."
        ]
    );
    assert_eq!(decisions(&mut state), Vec::<String>::new());
}

#[test]
fn a_deleted_pod_makes_room() {
    let bound = pod("old", json!({"spec": {"nodeName": "n1"}}));
    let mut state = state(vec![node("n1", 1, json!({}))], vec![bound, pod("new", json!({}))]);
    assert_eq!(
        decisions(&mut state),
        ["new: 0/1 nodes are available: 1 Too many pods."]
    );
    state.pods.delete(&Key::new("ns", "old"), "old");
    assert_eq!(decisions(&mut state), ["new>n1"]);
}

#[test]
fn ended_pods_take_no_room_and_deleted_ones_wait_for_none() {
    let done = pod(
        "done",
        json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Succeeded"}}),
    );
    let gone = pod(
        "gone",
        json!({"metadata": {"deletionTimestamp": "2026-11-23T00:00:00Z"}}),
    );
    let gated = pod("gated", json!({"spec": {"schedulingGates": [{"name": "g"}]}}));
    let mut state = state(
        vec![node("n1", 1, json!({}))],
        vec![done, gone, gated, pod("a", json!({}))],
    );
    assert_eq!(decisions(&mut state), ["a>n1"]);
}

#[test]
fn higher_priority_goes_first() {
    let low = pod("a", json!({}));
    let high = pod("b", json!({"spec": {"priority": 10}}));
    let mut state = state(vec![node("n1", 1, json!({}))], vec![low, high]);
    assert_eq!(
        decisions(&mut state),
        ["b>n1", "a: 0/1 nodes are available: 1 Too many pods."]
    );
}

#[test]
fn each_filter_in_the_real_schedulers_words() {
    let tainted = json!({"spec": {"taints": [{"key": "team", "value": "db", "effect": "NoSchedule"}]}});
    let anti = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}});
    let affinity = |operator: &str, key: &str| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": key, "operator": operator, "values": ["x"]}]}]}}}}})
    };
    let tolerant = json!({"spec": {"tolerations": [{"key": "team", "operator": "Exists"}]}});
    let requests = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "5", "nvidia.com/gpu": "1"}}}]}});
    let port =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let fits = "p>n1";
    let table = [
        (
            tainted.clone(),
            json!({}),
            "1 node(s) had untolerated taint {team: db}",
        ),
        (tainted, tolerant, fits),
        (
            json!({"spec": {"unschedulable": true}}),
            json!({}),
            "1 node(s) were unschedulable",
        ),
        (
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
            json!({}),
            "1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }",
        ),
        (
            json!({}),
            json!({"spec": {"nodeSelector": {"disk": "ssd"}}}),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        (
            json!({}),
            affinity("In", "disk"),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        (
            json!({}),
            affinity("Exists", "disk"),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        (json!({}), affinity("NotIn", "disk"), fits),
        (json!({}), affinity("Exists", "kubernetes.io/hostname"), fits),
        (json!({}), anti, "1 node(s) didn't match pod anti-affinity rules"),
        (
            json!({}),
            requests,
            "1 Insufficient cpu, 1 Insufficient nvidia.com/gpu",
        ),
        (
            json!({}),
            port,
            "1 node(s) didn't have free ports for the requested pod ports",
        ),
    ];
    for (node_extra, pod_extra, expected) in table {
        let there = pod(
            "there",
            json!({"spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}}),
        );
        let mut state = state(
            vec![node("n1", 110, node_extra)],
            vec![there, pod("p", pod_extra)],
        );
        let expected = if expected == fits {
            fits.to_owned()
        } else {
            format!("p: 0/1 nodes are available: {expected}.")
        };
        assert_eq!(decisions(&mut state), [expected]);
    }
}

#[test]
fn the_first_pod_of_a_group_that_wants_its_own_company_is_placed_and_the_others_follow_it() {
    let wants = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}});
    let pods = ["a", "b", "c"].map(|name| pod(name, wants.clone())).to_vec();
    let mut state = state(vec![node("n1", 9, json!({})), node("n2", 9, json!({}))], pods);
    assert_eq!(decisions(&mut state), ["a>n1", "b>n1", "c>n1"]);
}

#[test]
fn without_nodes_there_is_nothing_to_count() {
    let mut state = state(vec![], vec![pod("a", json!({}))]);
    assert_eq!(decisions(&mut state), ["a: no nodes available to schedule pods"]);
}
