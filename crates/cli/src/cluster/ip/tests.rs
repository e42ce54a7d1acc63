use weft_inspect::{API_VERSION, BlockUse, PodAddress, PodRef};

use super::*;

fn block() -> BlockRef {
    BlockRef {
        block: "10.244.0.0/24".parse().unwrap(),
        pool: "default".to_owned(),
        node: "node-1".to_owned(),
    }
}

fn pod() -> PodRef {
    PodRef {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        node: "node-1".to_owned(),
    }
}

fn answer(owner: AddressOwner, problems: &[&str]) -> Vec<String> {
    let cluster = ClusterArgs {
        context: Some("prod".to_owned()),
        ..ClusterArgs::default()
    };
    let answer = AddressAnswer {
        api_version: API_VERSION,
        kind: "AddressAnswer",
        address: Ipv4Addr::new(10, 244, 0, 7),
        owner,
        problems: problems.iter().map(|&text| text.to_owned()).collect(),
    };
    render_answer(&answer, &cluster)
}

#[test]
fn an_answer_names_owner_node_block_and_pool() {
    let owner = AddressOwner::Pod {
        pods: vec![pod()],
        block: Some(block()),
    };
    assert_eq!(
        answer(owner, &[]),
        [
            "10.244.0.7 is pod shop/web",
            "  node   node-1",
            "  block  10.244.0.0/24",
            "  pool   default",
            "  next: kubectl --context prod -n shop get pod web -o wide",
        ]
    );
}

#[test]
fn every_state_of_an_address_has_its_sentence() {
    let unused = |cooling, free, ended| AddressOwner::Unused {
        block: block(),
        cooling,
        free,
        ended,
    };
    let unassigned = |excluded| AddressOwner::Unassigned {
        pool: "default".to_owned(),
        excluded,
    };
    let node = AddressOwner::Node {
        node: "node-1".to_owned(),
    };
    for (owner, sentence) in [
        (node, "10.244.0.7 is node node-1's own"),
        (unused(0, 9, None), "10.244.0.7 is free"),
        (unused(3, 0, None), "10.244.0.7 is cooling"),
        (
            unused(1, 9, None),
            "10.244.0.7 is free or cooling: 1 address of its node cools",
        ),
        (
            unused(3, 9, Some(pod())),
            "10.244.0.7 is free or cooling: 3 addresses of its node cool; pod shop/web, which has ended, had it",
        ),
        (
            unassigned(false),
            "10.244.0.7 is unassigned: it lies in pool default, in no node's block yet",
        ),
        (
            unassigned(true),
            "10.244.0.7 is unassigned: pool default excludes it",
        ),
        (
            AddressOwner::Outside,
            "10.244.0.7 is outside: neither a pod, a node nor a pool has it",
        ),
    ] {
        assert_eq!(answer(owner, &[])[0], sentence);
    }
}

#[test]
fn contradictions_stand_below_the_answer() {
    let lines = answer(AddressOwner::Outside, &["2 pods have it"]);
    assert_eq!(
        lines[1..],
        [
            format!("{} 2 pods have it", out::mark(false)),
            "  next: weft status --context prod".to_owned(),
        ]
    );
}

#[test]
fn the_list_shows_blocks_then_addresses() {
    let list = AddressList {
        api_version: API_VERSION,
        kind: "AddressList",
        blocks: vec![BlockUse {
            block: block(),
            used: 1,
            capacity: 256,
        }],
        addresses: vec![PodAddress {
            address: Ipv4Addr::new(10, 244, 0, 7),
            pod: pod(),
            block: Some(block().block),
        }],
    };
    assert_eq!(
        render_list(&list),
        [
            "BLOCK           POOL      NODE     USED",
            "10.244.0.0/24   default   node-1   1/256",
            "",
            "ADDRESS      POD        NODE     BLOCK",
            "10.244.0.7   shop/web   node-1   10.244.0.0/24",
        ]
    );
}
