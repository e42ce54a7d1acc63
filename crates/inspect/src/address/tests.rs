use serde_json::json;

use super::*;
use crate::fixture::{healthy, pod};

fn block(block: &str, node: &str) -> BlockRef {
    BlockRef {
        block: block.parse().unwrap(),
        pool: "default".to_owned(),
        node: node.to_owned(),
    }
}

fn web(node: &str) -> PodRef {
    PodRef {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        node: node.to_owned(),
    }
}

fn ask(address: &str, pods: &[Pod]) -> (AddressOwner, Vec<String>) {
    let answer = look_up(address.parse().unwrap(), &healthy(), pods);
    (answer.owner, answer.problems)
}

#[test]
fn every_kind_of_owner_is_found() {
    let running = [pod("web", "a", "10.244.0.7", "Running")];
    assert_eq!(
        ask("10.244.0.7", &running),
        (
            AddressOwner::Pod {
                pods: vec![web("a")],
                block: Some(block("10.244.0.0/24", "a")),
            },
            Vec::new()
        )
    );
    assert_eq!(
        ask("10.224.0.5", &running),
        (AddressOwner::Node { node: "b".to_owned() }, Vec::new())
    );
    assert_eq!(
        ask("10.244.1.255", &running),
        (
            AddressOwner::Unused {
                block: block("10.244.1.0/24", "b"),
                cooling: 0,
                free: 254,
                ended: None,
            },
            Vec::new()
        )
    );
    for (address, excluded) in [("10.244.2.0", false), ("10.244.255.1", true)] {
        let pool = "default".to_owned();
        assert_eq!(
            ask(address, &running),
            (AddressOwner::Unassigned { pool, excluded }, Vec::new())
        );
    }
    assert_eq!(ask("192.0.2.1", &running), (AddressOwner::Outside, Vec::new()));
}

#[test]
fn a_pod_that_has_ended_owns_its_address_no_more() {
    assert_eq!(
        ask("10.244.0.7", &[pod("web", "a", "10.244.0.7", "Succeeded")]),
        (
            AddressOwner::Unused {
                block: block("10.244.0.0/24", "a"),
                cooling: 3,
                free: 251,
                ended: Some(web("a")),
            },
            Vec::new()
        )
    );
}

#[test]
fn a_pod_on_the_hosts_network_has_no_address_of_its_own() {
    let mut hosted = pod("proxy", "a", "10.224.0.4", "Running");
    hosted.spec.as_mut().unwrap().host_network = Some(true);
    assert_eq!(
        ask("10.224.0.4", std::slice::from_ref(&hosted)),
        (AddressOwner::Node { node: "a".to_owned() }, Vec::new())
    );
    assert_eq!(list_addresses(&healthy(), &[hosted]).addresses, []);
}

#[test]
fn contradictions_are_told() {
    let pods = [
        pod("web", "a", "10.244.0.7", "Running"),
        pod("api", "b", "10.244.0.7", "Running"),
    ];
    assert_eq!(
        ask("10.244.0.7", &pods).1,
        [
            "2 pods have it: shop/web, shop/api",
            "pod shop/api runs on node b, and block 10.244.0.0/24 belongs to node a",
        ]
    );
    assert_eq!(
        ask("192.0.2.1", &[pod("web", "a", "192.0.2.1", "Running")]).1,
        ["pod shop/web has it, and it lies in no node's block"]
    );
}

#[test]
fn the_list_has_every_block_and_every_address_once_in_order() {
    let pods = [
        pod("late", "b", "10.244.1.2", "Running"),
        pod("web", "a", "10.244.0.255", "Running"),
        pod("new", "a", "10.244.0.10", "Pending"),
        pod("done", "a", "10.244.0.11", "Failed"),
        pod("foreign", "a", "10.9.0.1", "Running"),
    ];
    let list = list_addresses(&healthy(), &pods);
    let addresses: Vec<String> = list
        .addresses
        .iter()
        .map(|held| {
            let block = held.block.map_or("-".to_owned(), |block| block.to_string());
            format!("{} {} {block}", held.address, held.pod)
        })
        .collect();
    assert_eq!(
        addresses,
        [
            "10.9.0.1 shop/foreign -",
            "10.244.0.10 shop/new 10.244.0.0/24",
            "10.244.0.255 shop/web 10.244.0.0/24",
            "10.244.1.2 shop/late 10.244.1.0/24",
        ]
    );
    assert_eq!(
        serde_json::to_value(&list.blocks).unwrap(),
        json!([
            {"block": "10.244.0.0/24", "pool": "default", "node": "a", "used": 2, "capacity": 256},
            {"block": "10.244.1.0/24", "pool": "default", "node": "b", "used": 1, "capacity": 256},
        ])
    );
}

#[test]
fn the_schema_of_an_answer_for_programs_stays() {
    let pods = [pod("web", "a", "10.244.0.7", "Running")];
    let answer = look_up("10.244.0.7".parse().unwrap(), &healthy(), &pods);
    assert_eq!(
        serde_json::to_value(answer).unwrap(),
        json!({
            "apiVersion": "cli.weft.dev/v1alpha1",
            "kind": "AddressAnswer",
            "address": "10.244.0.7",
            "owner": {
                "state": "pod",
                "pods": [{"namespace": "shop", "name": "web", "node": "a"}],
                "block": "10.244.0.0/24", "pool": "default", "node": "a",
            },
            "problems": [],
        })
    );
}
