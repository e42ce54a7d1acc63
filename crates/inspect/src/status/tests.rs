use serde_json::json;

use super::*;
use crate::fixture::{condition, healthy, network, node as node_json, object};

/// The problems as one line each.
fn problems(seen: &Snapshot) -> Vec<String> {
    let status = assess(seen);
    let healthy = status.verdict == Verdict::Healthy;
    assert_eq!(healthy, status.problems.is_empty());
    status
        .problems
        .iter()
        .map(|problem| format!("{:?}: {}", problem.subject, problem.message))
        .collect()
}

#[test]
fn a_cluster_as_it_should_be_is_healthy() {
    let node = |name: &str, address, block: &str, cooling| NodeState {
        name: name.to_owned(),
        ready: true,
        address: Some(address),
        blocks: vec![block.to_owned()],
        used: 2,
        cooling,
        capacity: 256,
        mtu: Some(1450),
        transport: Some(Transport::Device),
        transport_reason: Some("the agent was told --transport device".to_owned()),
        problems: Vec::new(),
    };
    assert_eq!(
        assess(&healthy()),
        NetworkStatus {
            api_version: "cli.weft.dev/v1alpha1",
            kind: "NetworkStatus",
            verdict: Verdict::Healthy,
            problems: Vec::new(),
            pools: vec![PoolState {
                name: "default".to_owned(),
                cidrs: vec!["10.244.0.0/16".to_owned()],
                block_size: 24,
                allocated: Some(2),
                capacity: Some(255),
                problems: Vec::new(),
            }],
            nodes: vec![
                node("a", Ipv4Addr::new(10, 224, 0, 4), "10.244.0.0/24", 3),
                node("b", Ipv4Addr::new(10, 224, 0, 5), "10.244.1.0/24", 0),
            ],
            slices: SliceState {
                slices: 1,
                nodes: 2,
                problems: Vec::new(),
            },
            addresses: AddressTotals {
                used: 4,
                cooling: 3,
                capacity: 512,
            },
        }
    );
}

#[test]
fn a_node_that_cannot_do_what_it_was_told_is_a_problem_and_ready() {
    let mut seen = healthy();
    let status = seen.networks[1].status.as_mut().unwrap();
    let why = "WEFT-1216: --transport direct is impossible, weft0 does it: the node has IPsec policies (2)";
    status.conditions[1] = object(condition("TransportAsRequested", "False", why));
    assert_eq!(problems(&seen), [format!("Node(\"b\"): {why}")]);
    let node = &assess(&seen).nodes[1];
    assert_eq!((node.ready, node.transport_reason.as_deref()), (true, Some(why)));
}

#[test]
fn an_empty_cluster_lacks_pools_and_nodes() {
    assert_eq!(
        problems(&Snapshot::default()),
        [
            "Cluster: there is no PodPool, so no node gets addresses for pods",
            "Cluster: there are no nodes"
        ]
    );
}

#[test]
fn an_exhausted_pool_is_told_before_the_node_that_waits() {
    let mut seen = healthy();
    seen.pools[0].status.as_mut().unwrap().conditions[1] =
        object(condition("Exhausted", "True", "1 node waits for a block"));
    seen.networks[1].status.as_mut().unwrap().allocation = Some(object(condition(
        "BlocksGranted",
        "False",
        "pool default is full",
    )));
    assert_eq!(
        problems(&seen),
        [
            "Pool(\"default\"): Because: 1 node waits for a block",
            "Node(\"b\"): it waits for a block: pool default is full"
        ]
    );
    assert!(
        assess(&seen).nodes[1].ready,
        "it serves pods while its blocks last"
    );
}

#[test]
fn the_agents_word_comes_before_the_kubelets() {
    let mut seen = healthy();
    let kubelet = |seen: &mut Snapshot, message| {
        seen.nodes[1].status.as_mut().unwrap().conditions =
            Some(vec![object(condition("Ready", "False", message))]);
    };
    kubelet(&mut seen, "the plugin answers nothing");
    assert_eq!(
        problems(&seen),
        ["Node(\"b\"): its kubelet is not ready: the plugin answers nothing"],
        "an agent that has gone leaves its last word"
    );
    let conditions = seen.nodes[1]
        .status
        .as_mut()
        .unwrap()
        .conditions
        .as_mut()
        .unwrap();
    conditions.push(object(condition(
        "NetworkUnavailable",
        "True",
        "no pod of weft-agent is Ready",
    )));
    assert_eq!(
        problems(&seen),
        ["Node(\"b\"): its network is unavailable: no pod of weft-agent is Ready"]
    );
    seen.networks[1].status.as_mut().unwrap().conditions[0] =
        object(condition("Ready", "False", "waiting for a block"));
    assert_eq!(
        problems(&seen),
        ["Node(\"b\"): its agent does not serve new pods: waiting for a block"]
    );
    seen.networks[1].status = None;
    assert_eq!(problems(&seen), ["Node(\"b\"): its agent has not reported yet"]);
}

#[test]
fn a_node_registered_anew_is_told_from_the_one_before() {
    let mut seen = healthy();
    seen.nodes[0].metadata.uid = Some("uid-new".to_owned());
    assert_eq!(
        problems(&seen),
        [
            "Node(\"a\"): it was registered anew and its NodeNetwork is still that of the Node before",
            "Slices: they list node a, which is gone",
        ]
    );
}

#[test]
fn slices_have_to_show_every_node_as_it_is() {
    let mut seen = healthy();
    seen.slices[0].spec.nodes[1].blocks = vec!["10.244.9.0/24".to_owned()];
    let first = seen.slices[0].spec.nodes.remove(0);
    assert_eq!(
        problems(&seen),
        [
            "Slices: they do not show node b as it is: 10.244.9.0/24 at 10.224.0.5 instead of 10.244.1.0/24 at 10.224.0.5",
            "Slices: they do not list node a, so no other node can reach its pods",
        ]
    );
    let mut seen = healthy();
    seen.slices[0].spec.nodes.push(first);
    assert_eq!(problems(&seen), ["Slices: they list node a twice"]);
}

#[test]
fn a_node_that_joins_is_not_missed_in_the_slices_before_it_has_a_network() {
    let mut seen = healthy();
    seen.nodes.push(object(node_json("c", "10.224.0.6")));
    assert_eq!(
        problems(&seen),
        ["Node(\"c\"): the operator has made no NodeNetwork for it yet"]
    );
}

#[test]
fn blocks_that_two_nodes_hold_are_told() {
    let mut seen = healthy();
    let inside = ["10.244.0.0/25", "10.244.0.192/26"].map(str::to_owned);
    let mut network: NodeNetwork = object(network("b", &inside[0], 0));
    network
        .spec
        .blocks
        .push(object(json!({"cidr": inside[1], "pool": "default"})));
    seen.networks[1] = network;
    seen.slices[0].spec.nodes[1].blocks = inside.into();
    assert_eq!(
        problems(&seen),
        [
            "Node(\"b\"): its block 10.244.0.0/25 overlaps 10.244.0.0/24 of node a",
            "Node(\"b\"): its block 10.244.0.192/26 overlaps 10.244.0.0/24 of node a",
        ]
    );
}

#[test]
fn the_schema_for_programs_stays() {
    let mut seen = healthy();
    seen.nodes.clear();
    seen.networks.clear();
    seen.slices.clear();
    assert_eq!(
        serde_json::to_value(assess(&seen)).unwrap(),
        json!({
            "apiVersion": "cli.weft.dev/v1alpha1",
            "kind": "NetworkStatus",
            "verdict": "degraded",
            "problems": [{"subject": {"kind": "cluster"}, "message": "there are no nodes"}],
            "pools": [{
                "name": "default", "cidrs": ["10.244.0.0/16"], "blockSize": 24,
                "allocated": 2, "capacity": 255, "problems": []
            }],
            "nodes": [],
            "slices": {"slices": 0, "nodes": 0, "problems": []},
            "addresses": {"used": 0, "cooling": 0, "capacity": 0},
        })
    );
}

#[test]
fn quarantined_addresses_and_a_ledger_made_anew_are_told_of_a_node_that_serves() {
    let mut seen = healthy();
    let mut network = network("b", "10.244.1.0/24", 0);
    network["status"]["addresses"]["quarantined"] = json!(2);
    let damaged = condition("LedgerIntact", "False", "the ledger was damaged and made anew");
    network["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(damaged);
    seen.networks[1] = object(network);
    let status = assess(&seen);
    assert!(status.nodes[1].ready);
    assert_eq!(
        status.nodes[1].problems,
        [
            "2 of its addresses are quarantined, which nobody gets: weft audit says why",
            "the ledger was damaged and made anew",
        ]
    );
    assert_eq!(status.verdict, Verdict::Degraded);
}
