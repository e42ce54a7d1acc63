use super::*;
use weft_kernel::bpf::BlockIndex;

fn net(s: &str) -> Ipv4Net {
    s.parse().unwrap()
}

fn ip(s: &str) -> Ipv4Addr {
    s.parse().unwrap()
}

fn name(s: &str) -> NodeName {
    s.parse().unwrap()
}

fn uid(s: &str) -> NodeUid {
    s.parse().unwrap()
}

fn block(s: &str) -> Block {
    s.parse().unwrap()
}

fn peer(node: &str, address: &str, blocks: &[&str]) -> Node {
    Node {
        name: name(node),
        uid: uid(&format!("uid-{node}")),
        addresses: vec![ip(address)],
        blocks: blocks.iter().map(|b| block(b)).collect(),
        routing: weft_model::Routing::Overlay,
    }
}

fn index() -> Index {
    let mut index = Index::new(name("n1"));
    index.set_node(Some(OwnNode {
        uid: uid("u1"),
        addresses: vec![ip("10.224.0.4")],
        max_pods: Some(250),
    }));
    index.set_grant(Some(Grant {
        node_uid: uid("u1"),
        blocks: vec![block("10.244.0.0/24")],
        retiring: vec![],
    }));
    index.set_pool(
        "default",
        Some(Pool {
            cidrs: vec![net("10.244.0.0/16")],
            non_masquerade: vec![],
        }),
    );
    index.set_slice(
        "s0",
        vec![
            peer("n1", "10.224.0.4", &["10.244.0.0/24"]),
            peer("n2", "10.224.0.5", &["10.244.1.0/24"]),
        ],
    );
    for source in Source::ALL {
        index.listed(source);
    }
    index
}

#[test]
fn nothing_is_desired_before_every_source_was_listed() {
    let mut index = index();
    index.listed.remove(&Source::Slices);
    assert_eq!(index.desired(), None);
    assert_eq!(index.missing(), vec![Source::Slices]);
    index.listed(Source::Slices);
    assert!(index.desired().is_some());
}

#[test]
fn a_node_without_an_address_desires_nothing() {
    let mut index = index();
    index.set_node(Some(OwnNode {
        uid: uid("u1"),
        addresses: vec![],
        max_pods: None,
    }));
    assert_eq!(index.desired(), None);
}

#[test]
fn two_nodes_and_a_pool_compile_to_one_value() {
    let underlay = ip("10.224.0.5");
    assert_eq!(
        index().desired(),
        Some((
            Desired {
                node_uid: uid("u1"),
                address: ip("10.224.0.4"),
                addresses: vec![ip("10.224.0.4")],
                max_pods: Some(250),
                blocks: vec![block("10.244.0.0/24")],
                retiring: vec![],
                pod_cidrs: [net("10.244.0.0/16")].into(),
                non_masquerade: [].into(),
                prefixes: [
                    (net("10.224.0.4/32"), Prefix::SelfNode),
                    (net("10.244.0.0/24"), Prefix::LocalBlock),
                    (net("10.224.0.5/32"), Prefix::RemoteNode { underlay }),
                    (net("10.244.1.0/24"), Prefix::RemoteBlock { underlay }),
                    (net("10.244.0.0/16"), Prefix::Pool),
                ]
                .into(),
                nodes: [underlay].into(),
            },
            vec![]
        ))
    );
}

#[test]
fn blocks_given_to_an_earlier_node_of_the_same_name_are_not_used() {
    let mut index = index();
    index.set_node(Some(OwnNode {
        uid: uid("u2"),
        addresses: vec![ip("10.224.0.4")],
        max_pods: Some(250),
    }));
    let (desired, _) = index.desired().unwrap();
    assert_eq!(desired.blocks, vec![]);
    assert_eq!(desired.prefixes.get(&net("10.244.0.0/24")), None);
}

#[test]
fn a_block_claimed_twice_stays_with_its_first_owner_and_is_reported() {
    for claimed in ["10.244.0.0/24", "10.244.0.128/25", "10.244.0.0/23"] {
        let mut index = index();
        index.set_slice("s1", vec![peer("n3", "10.224.0.6", &[claimed])]);
        let (desired, conflicts) = index.desired().unwrap();
        assert_eq!(
            conflicts,
            vec![Conflict {
                prefix: net(claimed),
                kept: name("n1"),
                refused: name("n3")
            }],
            "{claimed}"
        );
        assert_eq!(
            desired.prefixes.get(&net("10.244.0.0/24")),
            Some(&Prefix::LocalBlock),
            "{claimed}"
        );
    }
}

#[test]
fn a_retiring_block_is_this_nodes_still() {
    let mut index = index();
    index.set_grant(Some(Grant {
        node_uid: uid("u1"),
        blocks: vec![block("10.244.0.0/24"), block("10.244.7.0/24")],
        retiring: vec![block("10.244.0.0/24")],
    }));
    let (desired, _) = index.desired().unwrap();
    assert_eq!(desired.retiring, [block("10.244.0.0/24")]);
    for own in ["10.244.0.0/24", "10.244.7.0/24"] {
        assert_eq!(desired.prefixes.get(&net(own)), Some(&Prefix::LocalBlock));
    }
}

#[test]
fn a_node_that_is_not_on_weft_is_reached_without_tunnel_and_translation() {
    let mut index = index();
    let legacy = Node {
        routing: Routing::Native,
        ..peer("n3", "10.224.0.6", &["10.244.2.0/24"])
    };
    index.set_slice("s1", vec![legacy]);
    let (desired, conflicts) = index.desired().unwrap();
    assert_eq!(conflicts, []);
    let native = [net("10.224.0.6/32"), net("10.244.2.0/24")];
    for net in native {
        assert_eq!(desired.prefixes.get(&net), Some(&Prefix::Native));
    }
    assert_eq!(desired.non_masquerade, native.into());
    // Only nodes of the overlay may send through the tunnel.
    assert_eq!(desired.nodes, [ip("10.224.0.5")].into());
}

#[test]
fn a_pool_that_is_one_block_is_that_nodes_block() {
    let mut index = index();
    index.set_pool(
        "default",
        Some(Pool {
            cidrs: vec![net("10.244.0.0/24")],
            non_masquerade: vec![],
        }),
    );
    let (desired, _) = index.desired().unwrap();
    assert_eq!(
        desired.prefixes.get(&net("10.244.0.0/24")),
        Some(&Prefix::LocalBlock)
    );
}

#[test]
fn a_relist_loses_what_is_gone() {
    let mut index = index();
    index.set_slice("s1", vec![peer("n3", "10.224.0.6", &["10.244.2.0/24"])]);
    index.retain_slices(&["s0".to_owned()].into());
    assert_eq!(index.lost_slices().collect::<Vec<_>>(), ["s1"]);
    index.forget_slice("s1");
    let (desired, _) = index.desired().unwrap();
    assert_eq!(desired.prefixes.get(&net("10.244.2.0/24")), None);
    assert_eq!(desired.nodes, [ip("10.224.0.5")].into());
}

#[test]
fn what_a_lost_slice_said_counts_until_it_is_contradicted_or_forgotten() {
    let reached = |index: &Index| {
        let (desired, conflicts) = index.desired().unwrap();
        assert_eq!(conflicts, []);
        let nodes: Vec<String> = desired.nodes.iter().map(ToString::to_string).collect();
        (
            nodes.join(" "),
            desired.prefixes.get(&net("10.244.1.0/24")).copied(),
        )
    };
    let remote = |underlay: &str| {
        Some(Prefix::RemoteBlock {
            underlay: underlay.parse().unwrap(),
        })
    };
    let before = ("10.224.0.5".to_owned(), remote("10.224.0.5"));

    let mut index = index();
    index.lose_slice("s0");
    assert_eq!(reached(&index), before);
    // An operator packs the same node into another slice, with another address.
    index.set_slice("s1", vec![peer("n2", "10.224.0.9", &["10.244.1.0/24"])]);
    assert_eq!(reached(&index), ("10.224.0.9".to_owned(), remote("10.224.0.9")));
    // Or its block is another's by now.
    index.set_slice("s1", vec![peer("n3", "10.224.0.6", &["10.244.1.0/24"])]);
    assert_eq!(reached(&index), ("10.224.0.6".to_owned(), remote("10.224.0.6")));
    // Or it comes back as it was.
    index.set_slice("s1", vec![]);
    index.set_slice("s0", vec![peer("n2", "10.224.0.5", &["10.244.1.0/24"])]);
    assert_eq!((reached(&index), index.lost_slices().count()), (before, 0));
    index.lose_slice("s0");
    index.forget_slice("s0");
    assert_eq!(reached(&index), (String::new(), None));
}

#[test]
fn blocks_as_long_as_the_nodes_own_are_found_by_one_look() {
    let mut index = index();
    index.set_slice("s1", vec![peer("n3", "10.224.0.6", &["10.244.2.0/25"])]);
    let (desired, _) = index.desired().unwrap();
    let within = net("10.244.0.0/16");
    assert_eq!(desired.block_index(), Some(BlockIndex { len: 24, within }));
    let found: Vec<Ipv4Net> = desired.all_indexed().map(|(block, _)| block).collect();
    assert_eq!(found, [net("10.244.0.0/24"), net("10.244.1.0/24")]);
    let around = [
        "10.244.2.128/25",
        "10.244.1.0/24",
        "10.244.0.0/16",
        "10.224.0.5/32",
    ];
    assert_eq!(
        around.map(|inside| desired.block_around(&net(inside))),
        [Some(net("10.244.2.0/24")), Some(net("10.244.1.0/24")), None, None]
    );
}

#[test]
fn a_longer_prefix_in_a_block_is_not_passed_over() {
    let mut index = index();
    for inside in ["10.244.1.0/25", "10.244.1.255/32"] {
        index.set_pool(
            "default",
            Some(Pool {
                cidrs: vec![net("10.244.0.0/16")],
                non_masquerade: vec![net(inside)],
            }),
        );
        let (desired, _) = index.desired().unwrap();
        assert_eq!(desired.prefixes.get(&net(inside)), Some(&Prefix::Native));
        assert_eq!(desired.indexed(&net("10.244.1.0/24")), None, "{inside}");
        assert_eq!(desired.indexed(&net("10.244.0.0/24")), Some(Prefix::LocalBlock));
    }
}

#[test]
fn pools_far_apart_are_in_one_network() {
    let mut index = index();
    for (name, cidr) in [("low", "10.16.0.0/16"), ("high", "100.64.0.0/10")] {
        index.set_pool(
            name,
            Some(Pool {
                cidrs: vec![net(cidr)],
                non_masquerade: vec![],
            }),
        );
    }
    let (desired, _) = index.desired().unwrap();
    let within = net("0.0.0.0/1");
    assert_eq!(desired.block_index(), Some(BlockIndex { len: 24, within }));
    index.set_grant(None);
    assert_eq!(
        index.desired().unwrap().0.block_index(),
        None,
        "a node without blocks"
    );
}
