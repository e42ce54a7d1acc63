//! Links, addresses, routes and neighbours, compared with what `ip -j` shows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::namespaces::TestNs;
use crate::needs_root;
use ipnet::IpNet;
use serde_json::{Value, json};
use weft_kernel::rtnl::{
    Address, Addresses, Change, LinkSpec, Monitor, Neighbour, Neighbours, RTPROT_WEFT, Route, RouteFilter,
    RouteKind, Routes, Rtnl, Rules, Scope, VxlanSpec,
};
use weft_kernel::target::reconcile;
use weft_model::Mac;

const HOST_MAC: Mac = Mac([0x0a, 0x58, 0, 0, 0, 1]);
const POD_MAC: Mac = Mac([0x0a, 0x58, 0, 0, 0, 2]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The named fields of a JSON object.
fn pick(value: &Value, fields: &[&str]) -> Value {
    fields
        .iter()
        .map(|field| ((*field).to_owned(), value[*field].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A veth pair: `weft0001` in the first namespace, `eth0` in the second, both up.
fn pair(node: &TestNs, pod: &TestNs) -> (u32, u32) {
    node.rtnl()
        .create_veth(
            &LinkSpec {
                mac: Some(HOST_MAC),
                mtu: Some(1450),
                alias: Some("weft:0123456789/eth0"),
                up: true,
                ..LinkSpec::new("weft0001")
            },
            &LinkSpec {
                mac: Some(POD_MAC),
                mtu: Some(1450),
                netns: Some(&pod.netns),
                up: true,
                ..LinkSpec::new("eth0")
            },
        )
        .unwrap();
    (
        node.rtnl().link_index("weft0001").unwrap(),
        pod.rtnl().link_index("eth0").unwrap(),
    )
}

#[test]
fn the_links_of_a_group_go_together_and_no_others() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    let (host, inside) = pair(&node, &pod);
    let mut rtnl = node.rtnl();
    rtnl.create_bridge(&LinkSpec::new("bridge")).unwrap();
    rtnl.create_bridge(&LinkSpec::new("stays")).unwrap();
    assert!(!rtnl.delete_group(77).unwrap());
    for link in ["weft0001", "bridge"] {
        rtnl.set_group(link, 77).unwrap();
        rtnl.set_group(link, 77).unwrap();
    }
    assert_eq!(node.ip("link show weft0001")[0]["group"], json!("77"));
    assert!(rtnl.set_group("nothing", 77).unwrap_err().is_not_found());
    let made_in_it = LinkSpec {
        group: Some(77),
        ..LinkSpec::new("made")
    };
    rtnl.create_veth(&made_in_it, &LinkSpec::new("made-peer"))
        .unwrap();
    rtnl.bring_up("made").unwrap();
    assert!(rtnl.get_link("made").unwrap().up);
    assert_eq!(node.ip("link show made")[0]["group"], json!("77"));
    assert_eq!(node.ip("link show made-peer")[0]["group"], json!("default"));
    assert!(rtnl.delete_group(77).unwrap());
    let left: Vec<String> = rtnl.links().unwrap().into_iter().map(|link| link.name).collect();
    assert!(left.contains(&"stays".to_owned()), "{left:?}");
    assert!(!left.contains(&"bridge".to_owned()), "{left:?}");
    assert_eq!(rtnl.link(host).unwrap(), None);
    assert_eq!(pod.rtnl().link(inside).unwrap(), None);
    // Everybody is in group 0.
    assert!(rtnl.delete_group(0).is_err());
}

#[test]
fn a_veth_pair_appears_whole_in_both_namespaces() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    let (host, inside) = pair(&node, &pod);
    let fields = ["ifname", "ifindex", "address", "mtu", "operstate", "ifalias"];

    assert_eq!(
        pick(&node.ip("link show weft0001")[0], &fields),
        json!({"ifname": "weft0001", "ifindex": host, "address": HOST_MAC.to_string(), "mtu": 1450,
               "operstate": "UP", "ifalias": "weft:0123456789/eth0"})
    );
    assert_eq!(
        pick(&pod.ip("link show eth0")[0], &fields),
        json!({"ifname": "eth0", "ifindex": inside, "address": POD_MAC.to_string(), "mtu": 1450,
               "operstate": "UP", "ifalias": null})
    );

    let seen = node.rtnl().get_link("weft0001").unwrap();
    assert_eq!(
        (seen.kind.as_deref(), seen.peer, seen.alias.as_deref()),
        (Some("veth"), Some(inside), Some("weft:0123456789/eth0"))
    );
    assert!(seen.up && seen.carrier && seen.peer_netns.is_some());
    assert_eq!(pod.rtnl().get_link("eth0").unwrap().peer, Some(host));
    assert_eq!(pod.rtnl().links().unwrap().len(), 2, "lo and eth0");
}

#[test]
fn a_failed_pair_leaves_nothing_and_says_what_the_kernel_said() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    pair(&node, &pod);
    let mut rtnl = node.rtnl();

    let taken = rtnl
        .create_veth(
            &LinkSpec::new("weft0002"),
            &LinkSpec {
                netns: Some(&pod.netns),
                ..LinkSpec::new("eth0")
            },
        )
        .unwrap_err();
    assert!(taken.is_exists(), "{taken}");
    assert_eq!(rtnl.link("weft0002").unwrap(), None);

    let huge = rtnl.set_mtu("weft0001", 70_000).unwrap_err();
    assert_eq!(
        huge.to_string(),
        "set MTU of weft0001: mtu greater than device maximum (Invalid argument (os error 22))"
    );
    let nameless = rtnl
        .create_bridge(&LinkSpec::new("sixteen-letters-"))
        .unwrap_err();
    assert!(
        nameless.to_string().contains("is no interface name"),
        "{nameless}"
    );
}

#[test]
fn changes_to_a_link_are_made_once() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    pair(&node, &pod);
    let mut rtnl = node.rtnl();
    rtnl.create_bridge(&LinkSpec::new("br0")).unwrap();
    let bridge = rtnl.link_index("br0").unwrap();

    for changed in [true, false] {
        assert_eq!(rtnl.set_up("br0", true).unwrap(), changed);
        assert_eq!(rtnl.set_mtu("weft0001", 1400).unwrap(), changed);
        assert_eq!(rtnl.set_mac("weft0001", POD_MAC).unwrap(), changed);
        assert_eq!(rtnl.set_master("weft0001", Some(bridge)).unwrap(), changed);
        assert_eq!(rtnl.set_alias("weft0001", "other").unwrap(), changed);
    }
    assert_eq!(
        pick(
            &node.ip("link show weft0001")[0],
            &["mtu", "address", "master", "ifalias"]
        ),
        json!({"mtu": 1400, "address": POD_MAC.to_string(), "master": "br0", "ifalias": "other"})
    );
    assert!(rtnl.set_master("weft0001", None).unwrap());
    assert!(rtnl.set_alias("weft0001", "").unwrap());
    assert!(rtnl.set_up("weft0001", false).unwrap());
    let seen = rtnl.get_link("weft0001").unwrap();
    assert_eq!((seen.master, seen.alias, seen.up), (None, None, false));
    assert!(rtnl.rename("weft0001", "renamed").unwrap());
    rtnl.move_to("renamed", &pod.netns).unwrap();
    assert_eq!(rtnl.link("renamed").unwrap(), None);
    assert!(pod.rtnl().delete_link("renamed").unwrap());
    assert!(!pod.rtnl().delete_link("renamed").unwrap());
    assert_eq!(pod.rtnl().link("eth0").unwrap(), None, "both ends go together");
    assert!(rtnl.set_up("gone", true).unwrap_err().is_not_found());
}

#[test]
fn the_overlay_device_takes_its_keys_from_packets_and_asks_nobody() {
    needs_root!();
    let node = TestNs::new("node");
    let mut rtnl = node.rtnl();
    rtnl.create_vxlan(&VxlanSpec {
        name: "weft0",
        mac: HOST_MAC,
        mtu: 1450,
        port: 8472,
    })
    .unwrap();
    assert!(rtnl.set_up("weft0", true).unwrap());

    let shown = &node.ip("link show weft0")[0];
    assert_eq!(
        pick(&shown["linkinfo"]["info_data"], &["external", "port", "learning"]),
        json!({"external": true, "port": 8472, "learning": false})
    );
    let flags: Vec<&str> = shown["flags"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(flags.contains(&"NOARP") && flags.contains(&"UP"), "{flags:?}");
    let seen = rtnl.get_link("weft0").unwrap();
    assert_eq!(
        (
            seen.kind.as_deref(),
            seen.mac,
            seen.mtu,
            seen.noarp,
            seen.vxlan_external_port
        ),
        (Some("vxlan"), Some(HOST_MAC), 1450, true, Some(8472))
    );
}

#[test]
fn addresses_are_listed_as_they_were_set() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    let (host, _) = pair(&node, &pod);
    let mut rtnl = node.rtnl();
    let four = Address::host(host, ip("10.244.0.1"));
    let wide = Address {
        no_prefix_route: true,
        ..Address::new(host, net("192.0.2.1/24"))
    };
    let six = Address::host(host, ip("fd00::1"));
    for address in [four, wide, six] {
        rtnl.add_address(&address).unwrap();
        assert!(!rtnl.replace_address(&address).unwrap());
    }
    assert!(rtnl.add_address(&four).unwrap_err().is_exists());

    let own = |list: Vec<Address>| -> Vec<Address> {
        list.into_iter()
            .filter(|address| address.scope == Scope::Universe)
            .collect()
    };
    assert_eq!(own(rtnl.addresses(Some(host)).unwrap()), [four, wide, six]);
    let shown: Vec<Value> = node.ip("addr show weft0001")[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|info| info["scope"] == "global")
        .map(|info| pick(info, &["local", "prefixlen", "noprefixroute"]))
        .collect();
    assert_eq!(
        shown,
        [
            json!({"local": "10.244.0.1", "prefixlen": 32, "noprefixroute": null}),
            json!({"local": "192.0.2.1", "prefixlen": 24, "noprefixroute": true}),
            json!({"local": "fd00::1", "prefixlen": 128, "noprefixroute": null}),
        ]
    );

    let narrower = Address {
        scope: Scope::Link,
        ..four
    };
    assert!(
        rtnl.replace_address(&narrower).unwrap(),
        "another scope is a change"
    );
    assert!(rtnl.addresses(Some(host)).unwrap().contains(&narrower));
    assert!(rtnl.delete_address(&narrower).unwrap());
    assert!(!rtnl.delete_address(&narrower).unwrap());
    assert_eq!(own(rtnl.addresses(Some(host)).unwrap()), [wide, six]);
}

#[test]
fn routes_are_listed_as_they_were_set_and_carry_their_maker() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    let (host, _) = pair(&node, &pod);
    let mut rtnl = node.rtnl();
    rtnl.add_address(&Address::host(host, ip("10.224.0.4"))).unwrap();

    let pod_route = Route::link(net("10.244.1.7/32"), host).with_src(ip("10.224.0.4"));
    let default = Route::via(net("0.0.0.0/0"), ip("169.254.1.1"), host)
        .with_onlink()
        .with_mtu(1400);
    let refused = Route::unreachable(net("10.244.0.0/16"));
    let dropped = Route::blackhole(net("10.245.0.0/16"));
    let elsewhere = Route {
        table: 1000,
        metric: 7,
        ..Route::link(net("10.9.0.0/16"), host)
    };
    let six = Route::link(net("fd00:1::/64"), host);
    let six_refused = Route::unreachable(net("fd00:2::/64"));
    let mut all = vec![pod_route, default, refused, dropped, elsewhere, six, six_refused];
    all.sort();
    for route in &all {
        rtnl.add_route(route).unwrap();
        rtnl.replace_route(route).unwrap();
    }
    assert!(rtnl.add_route(&pod_route).unwrap_err().is_exists());

    assert_eq!(rtnl.routes(RouteFilter::own()).unwrap(), all);
    assert_eq!(
        rtnl.routes(RouteFilter {
            table: Some(1000),
            ..RouteFilter::own()
        })
        .unwrap(),
        [elsewhere]
    );
    let on_link = rtnl
        .routes(RouteFilter {
            oif: Some(host),
            ..RouteFilter::own()
        })
        .unwrap();
    assert_eq!(on_link.len(), 4, "{on_link:?}");

    let shown = node.ip(&format!("route show proto {RTPROT_WEFT}"));
    let shown: Vec<Value> = shown
        .as_array()
        .unwrap()
        .iter()
        .map(|route| {
            pick(
                route,
                &[
                    "dst", "type", "gateway", "dev", "prefsrc", "scope", "flags", "metrics",
                ],
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            json!({"dst": "default", "type": "unicast", "gateway": "169.254.1.1", "dev": "weft0001", "prefsrc": null,
                   "scope": "global", "flags": ["onlink"], "metrics": [{"mtu": 1400}]}),
            json!({"dst": "10.244.0.0/16", "type": "unreachable", "gateway": null, "dev": null, "prefsrc": null,
                   "scope": "global", "flags": [], "metrics": null}),
            json!({"dst": "10.244.1.7", "type": "unicast", "gateway": null, "dev": "weft0001", "prefsrc": "10.224.0.4",
                   "scope": "link", "flags": [], "metrics": null}),
            json!({"dst": "10.245.0.0/16", "type": "blackhole", "gateway": null, "dev": null, "prefsrc": null,
                   "scope": "global", "flags": [], "metrics": null}),
        ]
    );

    let found = rtnl.route_to(ip("10.244.1.7")).unwrap();
    assert_eq!(
        (found.kind, found.oif, found.gateway, found.src),
        (RouteKind::Unicast, Some(host), None, Some(ip("10.224.0.4")))
    );
    assert!(rtnl.route_to(ip("10.244.9.9")).is_err());
    assert!(!found.wraps);

    for route in &all {
        assert!(rtnl.delete_route(route).unwrap(), "{route:?}");
        assert!(!rtnl.delete_route(route).unwrap(), "{route:?}");
    }
    assert_eq!(rtnl.routes(RouteFilter::own()).unwrap(), []);
}

#[test]
fn ways_that_not_only_the_destination_decides_on_are_told_from_others() {
    needs_root!();
    let node = TestNs::new("node");
    node.exec("ip link add eth0 type veth peer name beyond");
    node.exec("ip link set eth0 up");
    node.exec("ip link set beyond up");
    node.exec("ip addr add 10.224.0.4/16 dev eth0");
    let mut rtnl = node.rtnl();
    let peer = "10.225.0.5".parse().unwrap();
    for (change, one_way) in [
        ("via 10.224.0.1", true),
        ("nexthop via 10.224.0.1 nexthop via 10.224.0.2", false),
        ("via 10.224.0.2", true),
    ] {
        node.exec(&format!("ip route replace 10.225.0.0/16 {change}"));
        assert_eq!(rtnl.one_way_to(peer).unwrap().is_some(), one_way, "{change}");
    }
    node.exec("ip route replace 10.225.0.0/16 via 10.224.0.2 mtu 1400");
    let found = rtnl.one_way_to(peer).unwrap().unwrap();
    assert_eq!((found.gateway, found.mtu), (Some(ip("10.224.0.2")), Some(1400)));
    let whole = rtnl.route_to(peer.into()).unwrap();
    assert_eq!(
        (found.kind, found.oif, found.gateway, found.mtu, found.wraps),
        (whole.kind, whole.oif, whole.gateway, whole.mtu, whole.wraps)
    );
    node.exec("ip route delete 10.225.0.0/16");
    node.exec("ip nexthop add id 7 via 10.224.0.1 dev eth0");
    node.exec("ip route add 10.225.0.0/16 nhid 7");
    assert_eq!(rtnl.one_way_to(peer).unwrap(), None);
    node.exec("ip route replace 10.225.0.0/16 via inet6 fe80::1 dev eth0");
    let gateway = rtnl.route_to(peer.into()).unwrap().gateway;
    assert_eq!(gateway, Some(ip("fe80::1")));
    node.exec("ip route delete 10.225.0.0/16");
    assert!(rtnl.one_way_to(peer).is_err());
    let local = "10.224.0.4".parse().unwrap();
    assert_eq!(rtnl.one_way_to(local).unwrap(), None);

    for (rule, of_destinations) in [
        ("fwmark 1 lookup main priority 5", false),
        ("from 10.224.0.4 lookup 100", false),
        ("to 10.225.0.0/16 unreachable", true),
        ("not to 10.225.0.5 lookup 100", true),
    ] {
        assert_eq!(rtnl.rules().unwrap(), Rules::default());
        node.exec(&format!("ip rule add {rule}"));
        let expected = Rules {
            others: true,
            of_destinations,
        };
        assert_eq!(rtnl.rules().unwrap(), expected, "{rule}");
        node.exec(&format!("ip rule delete {rule}"));
    }
}

#[test]
fn permanent_neighbours_are_listed_as_they_were_set() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    let (host, inside) = pair(&node, &pod);
    let mut rtnl = pod.rtnl();
    let gateway = Neighbour {
        link: inside,
        ip: ip("169.254.1.1"),
        mac: HOST_MAC,
    };
    rtnl.add_neighbour(&gateway).unwrap();
    assert!(rtnl.add_neighbour(&gateway).unwrap_err().is_exists());
    let moved = Neighbour {
        mac: POD_MAC,
        ..gateway
    };
    rtnl.replace_neighbour(&moved).unwrap();
    assert_eq!(rtnl.neighbours(Some(inside)).unwrap(), [moved]);
    assert_eq!(node.rtnl().neighbours(Some(host)).unwrap(), []);
    assert_eq!(
        pick(&pod.ip("neigh show dev eth0")[0], &["dst", "lladdr", "state"]),
        json!({"dst": "169.254.1.1", "lladdr": POD_MAC.to_string(), "state": ["PERMANENT"]})
    );
    assert!(rtnl.delete_neighbour(inside, moved.ip).unwrap());
    assert!(!rtnl.delete_neighbour(inside, moved.ip).unwrap());
}

#[test]
fn one_dump_brings_more_links_than_a_datagram_holds() {
    needs_root!();
    let node = TestNs::new("node");
    let mut rtnl = node.rtnl();
    let names: Vec<String> = (0..150).map(|number| format!("br{number}")).collect();
    for name in &names {
        rtnl.create_bridge(&LinkSpec::new(name)).unwrap();
    }
    let mut rtnl = Rtnl::open_in(&node.netns).unwrap();
    let listed: Vec<String> = rtnl
        .links()
        .unwrap()
        .into_iter()
        .filter(|link| link.kind.as_deref() == Some("bridge"))
        .map(|link| link.name)
        .collect();
    assert_eq!(listed, names);
}

#[test]
fn own_routes_neighbours_and_addresses_are_brought_to_what_is_wanted() {
    needs_root!();
    let (node, pod) = (TestNs::new("node"), TestNs::new("pod"));
    let (host, _) = pair(&node, &pod);
    let mut rtnl = node.rtnl();
    let foreign = Route {
        protocol: libc::RTPROT_STATIC,
        ..Route::link(net("192.0.2.0/24"), host)
    };
    rtnl.add_route(&foreign).unwrap();
    let wanted = |routes: &[Route]| routes.iter().map(|route| (route.key(), *route)).collect();

    let (first, second) = (
        Route::link(net("10.244.1.1/32"), host),
        Route::link(net("10.244.1.2/32"), host),
    );
    let outcome = reconcile(&mut Routes(&mut rtnl), &wanted(&[first, second])).unwrap();
    assert_eq!(outcome.added, [first.key(), second.key()]);
    let with_mtu = second.with_mtu(1400);
    let outcome = reconcile(&mut Routes(&mut rtnl), &wanted(&[with_mtu])).unwrap();
    assert_eq!(
        (outcome.changed, outcome.removed),
        (vec![second.key()], vec![first.key()])
    );
    assert!(
        reconcile(&mut Routes(&mut rtnl), &wanted(&[with_mtu]))
            .unwrap()
            .is_unchanged()
    );
    let left = rtnl
        .routes(RouteFilter {
            oif: Some(host),
            ..RouteFilter::default()
        })
        .unwrap();
    assert!(left.contains(&foreign) && left.contains(&with_mtu), "{left:?}");

    let mut neighbours = Neighbours {
        rtnl: &mut rtnl,
        link: host,
    };
    let outcome = reconcile(&mut neighbours, &[(ip("10.244.1.2"), POD_MAC)].into()).unwrap();
    assert_eq!(outcome.added, [ip("10.244.1.2")]);
    let outcome = reconcile(&mut neighbours, &BTreeMap::new()).unwrap();
    assert_eq!(outcome.removed, [ip("10.244.1.2")]);

    let mut addresses = Addresses {
        rtnl: &mut rtnl,
        link: host,
    };
    let own = [(net("10.224.0.4/32"), Scope::Universe)].into();
    assert_eq!(
        reconcile(&mut addresses, &own).unwrap().added,
        [net("10.224.0.4/32")]
    );
    assert!(reconcile(&mut addresses, &own).unwrap().is_unchanged());
}

#[test]
fn changes_made_by_others_are_reported() {
    needs_root!();
    let node = TestNs::new("node");
    let mut monitor = Monitor::open_in(&node.netns).unwrap();
    assert_eq!(monitor.try_changes().unwrap(), []);
    node.exec("ip link add br0 type bridge");
    node.exec("ip link set br0 up");
    node.exec("ip addr add 192.0.2.1/32 dev br0");
    node.exec("ip rule add fwmark 1 lookup 100");
    node.exec("ip route add unreachable 198.51.100.0/24");
    node.exec("ip route del unreachable 198.51.100.0/24");
    let bridge = node.rtnl().link_index("br0").unwrap();
    let address = Address::host(bridge, ip("192.0.2.1"));
    let refused = Route {
        protocol: libc::RTPROT_BOOT,
        ..Route::unreachable(net("198.51.100.0/24"))
    };
    let changes = monitor
        .wait()
        .into_iter()
        .chain(monitor.try_changes())
        .flatten()
        .collect::<Vec<_>>();
    assert!(
        changes
            .iter()
            .any(|change| matches!(change, Change::Link(link) if link.name == "br0" && link.up)),
        "{changes:?}"
    );
    assert!(changes.contains(&Change::Address(address)), "{changes:?}");
    let end = [Change::Rules, Change::Route(refused), Change::RouteGone(refused)];
    assert!(changes.ends_with(&end), "{changes:?}");
}

#[test]
fn a_monitor_that_fell_behind_asks_for_everything_anew() {
    needs_root!();
    let node = TestNs::new("node");
    let mut monitor = Monitor::open_in(&node.netns).unwrap();
    let mut rtnl = node.rtnl();
    // More than the monitor's buffer holds, at about 1 KiB a message.
    for number in 0..40_000u32 {
        let address = std::net::Ipv4Addr::from_bits(0x0af4_0000 + number);
        rtnl.add_route(&Route::blackhole(IpNet::from(IpAddr::from(address))))
            .unwrap();
    }
    let changes = monitor.try_changes().unwrap();
    assert!(changes.len() > 1_000, "a burst of that size fits");
    assert!(changes.contains(&Change::Resync));
    assert_eq!(rtnl.routes(RouteFilter::own()).unwrap().len(), 40_000);
}
