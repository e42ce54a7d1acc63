//! How packets get to other nodes, by what an agent is told and what its node has.

use super::in_namespaces::{Node, on_a_node_told, output};
use weft_kernel::bpf::{PrefixTarget, Transport};
use weft_kernel::rtnl::{LinkSpec, RouteFilter, Rtnl};
use weft_kernel::target::Target;
use weft_model::TransportChoice;

/// What a full pass makes of the node as it is now: the transport in the map, and why.
fn chosen(node: &mut Node) -> (Transport, &'static str, Option<u16>) {
    node.net.reconcile(&node.desired).unwrap();
    let config = node.wiring.datapath.lock().unwrap().config().unwrap().unwrap();
    let selection = node.net.selection().unwrap();
    assert_eq!(config.transport, selection.transport);
    let refusal = selection.refusal().map(|error| error.code().number());
    (selection.transport, selection.why().0, refusal)
}

fn ip(words: &str) {
    output("ip", &words.split(' ').collect::<Vec<_>>());
}

#[test]
fn packets_go_past_the_device_where_that_was_asked_for_and_nothing_is_in_the_way() {
    for choice in [TransportChoice::Auto, TransportChoice::Direct] {
        on_a_node_told(choice, |mut node| {
            let eth0 = Rtnl::open().unwrap().link_index("eth0").unwrap();
            let direct = (Transport::Direct(eth0), "Possible", None);
            assert_eq!(chosen(&mut node), direct);
            let refused = (choice == TransportChoice::Direct).then_some(1216);

            let policy = "src 10.224.0.4 dst 10.224.0.5 dir out";
            ip(&format!("xfrm policy add {policy} action block"));
            assert!(node.net.is_underlay_changed(&node.desired));
            assert_eq!(chosen(&mut node), (Transport::Device, "IPsecPolicies", refused));
            assert!(!node.net.is_underlay_changed(&node.desired));
            ip(&format!("xfrm policy delete {policy}"));
            assert_eq!(chosen(&mut node), direct);

            ip("xfrm policy setdefault in block");
            assert_eq!(chosen(&mut node), (Transport::Device, "IPsecPolicies", refused));
            ip("xfrm policy setdefault in accept");
            assert_eq!(chosen(&mut node), direct);
            assert_eq!(node.net.repairs(), [], "nobody else changed anything");
        });
    }
}

#[test]
fn who_asks_for_the_device_gets_it() {
    on_a_node_told(TransportChoice::Device, |mut node| {
        assert_eq!(chosen(&mut node), (Transport::Device, "Requested", None));
    });
}

#[test]
fn programs_send_by_one_uplink_only() {
    on_a_node_told(TransportChoice::Auto, |mut node| {
        let mut rtnl = Rtnl::open().unwrap();
        let up = |name| LinkSpec {
            up: true,
            ..LinkSpec::new(name)
        };
        rtnl.create_veth(&up("eth1"), &up("beyond")).unwrap();
        // The agent looks at the first other node's way itself, which must keep its source.
        let mut wish = crate::desired::Desired::clone(&node.desired);
        let third = "10.224.0.6".parse().unwrap();
        wish.nodes.insert(third);
        let block = "10.244.2.0/24".parse().unwrap();
        let remote = crate::desired::Prefix::RemoteBlock { underlay: third };
        wish.prefixes.insert(block, remote);
        let wish = std::sync::Arc::new(wish);

        ip("route add 10.224.0.6 dev eth1 src 10.224.0.4");
        assert!(
            !node.net.update_peers(&wish).unwrap(),
            "a full pass has to look at it"
        );
        node.desired = wish;
        assert_eq!(chosen(&mut node), (Transport::Device, "SeveralUplinks", None));
        ip("route delete 10.224.0.6 dev eth1");
        assert!(node.net.is_underlay_changed(&node.desired));
        assert_eq!(chosen(&mut node).1, "Possible");
    });
}

#[test]
fn a_path_that_takes_less_is_told_to_programs_and_stack_until_it_takes_more() {
    on_a_node_told(TransportChoice::Auto, |mut node| {
        let block: ipnet::IpNet = "10.244.1.0/24".parse().unwrap();
        let held = |node: &mut Node| {
            chosen(node);
            let prefixes = node.wiring.datapath.lock().unwrap().prefixes().list().unwrap();
            let way = Rtnl::open().unwrap().route_to("10.244.1.7".parse().unwrap());
            let in_map = |net: &str| match prefixes[&net.parse().unwrap()] {
                PrefixTarget::RemoteBlock { mtu, .. } | PrefixTarget::RemoteNode { mtu, .. } => mtu,
                other => panic!("{net} is {other:?}"),
            };
            assert_eq!(in_map("10.224.0.5/32"), in_map("10.244.1.0/24"));
            (in_map("10.244.1.0/24"), way.unwrap().mtu)
        };
        assert_eq!(held(&mut node), (None, None));
        for (path, pods) in [("1400", 1350), ("600", 576), ("1450", 1400)] {
            ip(&format!(
                "route replace 10.224.0.5 dev eth0 src 10.224.0.4 mtu {path}"
            ));
            assert!(node.net.is_underlay_changed(&node.desired));
            assert_eq!(held(&mut node), (Some(pods), Some(pods.into())), "{path}");
            assert_eq!(node.net.selection().unwrap().why().0, "Possible");
        }
        assert_eq!(node.net.repairs(), [], "nobody changed anything of Weft's");
        // A foreign route to the block, as after a migration, does not undo it.
        ip("route add 10.244.1.0/24 dev eth0 metric 7");
        assert_eq!(held(&mut node), (Some(1400), Some(1400)));
        ip("route delete 10.244.1.0/24 dev eth0 metric 7");
        ip("route delete 10.224.0.5 dev eth0");
        assert_eq!(held(&mut node), (None, None));
        let own = Rtnl::open().unwrap().routes(RouteFilter::own()).unwrap();
        assert!(own.iter().all(|route| route.dst != block), "{own:?}");
    });
}

/// Who takes packets to the node that this is a block or an address of, as the maps have it.
fn next_hop(node: &mut Node, block: &str) -> Option<std::net::Ipv4Addr> {
    let prefixes = node.wiring.datapath.lock().unwrap().prefixes().list().unwrap();
    match prefixes[&block.parse().unwrap()] {
        PrefixTarget::RemoteBlock { next_hop, .. } | PrefixTarget::RemoteNode { next_hop, .. } => next_hop,
        other => panic!("{block} is {other:?}"),
    }
}

#[test]
fn the_next_hop_is_in_the_maps_where_it_is_the_same_for_all_packets() {
    on_a_node_told(TransportChoice::Auto, |mut node| {
        let (itself, gateway) = (
            Some("10.224.0.5".parse().unwrap()),
            Some("10.224.0.1".parse().unwrap()),
        );
        let held = |node: &mut Node| {
            assert_eq!(chosen(node).1, "Possible");
            let hop = next_hop(node, "10.244.1.0/24");
            assert_eq!(next_hop(node, "10.224.0.5/32"), hop);
            hop
        };
        assert_eq!(held(&mut node), itself);
        for (change, expected) in [
            ("route add 10.224.0.5 src 10.224.0.4 via 10.224.0.1", gateway),
            (
                "route replace 10.224.0.5 src 10.224.0.4 nexthop via 10.224.0.1 nexthop via 10.224.0.2",
                None,
            ),
            ("route replace 10.224.0.5 src 10.224.0.4 via 10.224.0.1", gateway),
            ("rule add fwmark 1 lookup 100", None),
            ("rule delete fwmark 1 lookup 100", gateway),
            ("route delete 10.224.0.5", itself),
        ] {
            ip(change);
            assert!(node.net.is_underlay_changed(&node.desired), "{change}");
            assert_eq!(held(&mut node), expected, "{change}");
        }
        assert_eq!(node.net.repairs(), [], "nobody changed anything of Weft's");
    });
}

#[test]
fn the_next_hops_of_nodes_that_come_and_go_do_too() {
    on_a_node_told(TransportChoice::Auto, |mut node| {
        let third = "10.224.0.6".parse().unwrap();
        let mut wish = crate::desired::Desired::clone(&node.desired);
        wish.nodes.insert(third);
        let remote = crate::desired::Prefix::RemoteBlock { underlay: third };
        wish.prefixes.insert("10.244.2.0/24".parse().unwrap(), remote);
        let wish = std::sync::Arc::new(wish);
        assert!(node.net.update_peers(&wish).unwrap());
        assert_eq!(next_hop(&mut node, "10.244.2.0/24"), Some(third));
        assert!(!node.net.is_underlay_changed(&wish));
        let before = std::sync::Arc::clone(&node.desired);
        assert!(node.net.update_peers(&before).unwrap());
        assert!(!node.net.is_underlay_changed(&before));
    });
}

#[test]
fn nodes_that_share_a_route_have_the_way_that_each_has_by_itself() {
    on_a_node_told(TransportChoice::Auto, |mut node| {
        let mut wish = crate::desired::Desired::clone(&node.desired);
        let peers = [224, 225, 226, 227, 228].into_iter().flat_map(|net| {
            let peer = move |host| std::net::Ipv4Addr::new(10, net, 0, host);
            [(net, peer(7)), (net, peer(8))]
        });
        for (number, (_, peer)) in (10..).zip(peers.clone()) {
            let block = ipnet::Ipv4Net::new([10, 244, number, 0].into(), 24).unwrap();
            let remote = crate::desired::Prefix::RemoteBlock { underlay: peer };
            wish.nodes.insert(peer);
            wish.prefixes.insert(block, remote);
        }
        node.desired = std::sync::Arc::new(wish);
        for route in [
            "10.225.0.0/16 via 10.224.0.1 mtu 1400",
            "10.226.0.0/16 nexthop via 10.224.0.1 nexthop via 10.224.0.2",
            "10.227.0.0/16 via inet6 fe80::1 dev eth0",
            // Inside of a wider one, and in a table that no rule speaks of yet.
            "10.224.0.8 via 10.224.0.3",
            "10.225.0.0/16 via 10.224.0.2 mtu 1300 table 100",
        ] {
            ip(&format!("route add {route}"));
        }
        let gateway = |host| Some(std::net::Ipv4Addr::new(10, 224, 0, host));
        let held = |node: &mut Node| -> Vec<(Option<u16>, Option<std::net::Ipv4Addr>)> {
            chosen(node);
            let prefixes = node.wiring.datapath.lock().unwrap().prefixes().list().unwrap();
            let in_map = |number: u8| {
                let block: ipnet::IpNet = format!("10.244.{number}.0/24").parse().unwrap();
                match prefixes[&block] {
                    PrefixTarget::RemoteBlock { mtu, next_hop, .. } => (mtu, next_hop),
                    other => panic!("{block} is {other:?}"),
                }
            };
            (10..20).map(in_map).collect()
        };
        let mut expected = vec![
            (None, gateway(7)),
            (None, gateway(3)),
            (Some(1350), gateway(1)),
            (Some(1350), gateway(1)),
            // Of two next hops, of a gateway of IPv6, and of no route at all, programs are told nothing.
            (None, None),
            (None, None),
            (None, None),
            (None, None),
            (None, None),
            (None, None),
        ];
        assert_eq!(held(&mut node), expected);

        // A rule for one of two that share all routes.
        ip("rule add to 10.225.0.8 lookup 100");
        assert!(node.net.is_underlay_changed(&node.desired));
        expected.iter_mut().for_each(|(_, next_hop)| *next_hop = None);
        expected[3].0 = Some(1250);
        assert_eq!(held(&mut node), expected);
        assert_eq!(node.net.repairs(), [], "nobody changed anything of Weft's");
    });
}
