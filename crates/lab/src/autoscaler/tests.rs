use serde_json::json;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn node(name: &str, age: i64, max_pods: u32) -> NodeFacts {
    let created = jiff::Timestamp::from_second(1_000_000 - age).unwrap();
    let node = json!({
        "metadata": {"name": name, "uid": name, "creationTimestamp": created.to_string(), "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"pods": max_pods.to_string()}, "conditions": [{"type": "Ready", "status": "True"}]},
    });
    NodeFacts::of(&serde_json::from_value(node).unwrap())
}

/// A pod on a node, or, without one, waiting and told that it finds no room.
#[expect(
    clippy::needless_pass_by_value,
    reason = "a literal reads best without a borrow"
)]
fn pod(name: &str, on: Option<&str>, owner: &str, spec: serde_json::Value) -> PodFacts {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner, "name": "o", "uid": "o", "controller": true}]},
        "spec": spec,
    });
    pod["spec"]["containers"] = json!([]);
    match on {
        Some(node) => pod["spec"]["nodeName"] = json!(node),
        None => {
            pod["status"]["conditions"] =
                json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
        }
    }
    PodFacts::of(&serde_json::from_value(pod).unwrap())
}

fn waiting(count: usize) -> Vec<PodFacts> {
    (0..count)
        .map(|number| pod(&format!("w{number:03}"), None, "ReplicaSet", json!({})))
        .collect()
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

fn config(min: u32, max: u32) -> Config {
    Config {
        range: NodeRange { min, max },
        idle: 20 * SECOND,
    }
}

#[test]
fn as_many_nodes_as_the_waiting_pods_fill_and_asked_for_once() {
    let mut state = state(vec![node("n1", 9, 10)], waiting(35));
    let now = Instant::now();
    let plan = state.plan(config(1, 10), now);
    // Ten fit the empty node as soon as the scheduler notices; 25 need three more.
    assert_eq!(
        (plan.nodes, plan.up, plan.helped.len(), plan.unhelped.len()),
        (1, 3, 25, 0)
    );
    assert_eq!(state.plan(config(1, 10), now).up, 0);
}

#[test]
fn the_largest_size_is_kept_and_those_left_over_are_told() {
    let plan = state(vec![node("n1", 9, 10)], waiting(35)).plan(config(1, 2), Instant::now());
    assert_eq!((plan.up, plan.helped.len()), (1, 10));
    assert_eq!(plan.unhelped.len(), 15);
    assert_eq!(plan.unhelped[0].1, "1 max node group size reached");
}

#[test]
fn no_node_is_added_for_a_pod_that_it_would_not_help() {
    let picky = pod(
        "picky",
        None,
        "ReplicaSet",
        json!({"nodeSelector": {"disk": "ssd"}}),
    );
    let plan = state(vec![node("n1", 9, 10)], vec![picky]).plan(config(1, 5), Instant::now());
    assert_eq!((plan.up, plan.unhelped.len()), (0, 1));
}

#[test]
fn nodes_idle_long_enough_go_youngest_first_down_to_the_least() {
    let nodes = vec![
        node("old", 9, 10),
        node("busy", 8, 10),
        node("young", 1, 10),
        node("middle", 5, 10),
    ];
    let pods = vec![
        pod("p", Some("busy"), "ReplicaSet", json!({})),
        pod("agent", Some("young"), "DaemonSet", json!({})),
    ];
    let mut state = state(nodes, pods);
    let start = Instant::now();
    assert_eq!(state.plan(config(2, 5), start).down, Vec::<String>::new());
    assert_eq!(
        state.plan(config(2, 5), start + 19 * SECOND).down,
        Vec::<String>::new()
    );
    assert_eq!(
        state.plan(config(2, 5), start + 20 * SECOND).down,
        ["young", "middle"]
    );
    assert_eq!(
        state.plan(config(2, 5), start + 21 * SECOND).down,
        Vec::<String>::new()
    );
}

#[test]
fn a_pod_in_between_starts_the_wait_anew() {
    let mut state = state(vec![node("a", 9, 10), node("b", 8, 10)], vec![]);
    let start = Instant::now();
    state.plan(config(1, 5), start);
    state.pods.apply(pod("p", Some("b"), "ReplicaSet", json!({})));
    state.plan(config(1, 5), start + 10 * SECOND);
    state
        .pods
        .delete(&crate::controllers::facts::Key::new("ns", "p"), "p");
    assert_eq!(state.plan(config(1, 5), start + 21 * SECOND).down, ["a"]);
    assert_eq!(
        state.plan(config(1, 5), start + 41 * SECOND).down,
        Vec::<String>::new()
    );
}
