//! Weft's nftables table, as packets meet it.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use weft_kernel::conntrack::Conntrack;
use weft_kernel::nft::{Nft, Ruleset, WeftNft, weft_table};
use weft_kernel::rtnl::{Address, LinkSpec, Route};
use weft_kernel::sockets::{FrameSocket, Ipv4Socket, udp_packet, udp_socket};
use weft_kernel::sysctl::{self, Key};

use crate::namespaces::TestNs;
use crate::needs_root;

const POD: &str = "10.244.1.5";
const NODE: &str = "10.224.0.4";
const OUTSIDE: &str = "10.224.0.9";
const EXEMPT: &str = "10.1.0.9";
const REMOTE_POD: &str = "10.244.2.9";

pub(crate) fn wanted() -> WeftNft {
    WeftNft {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        non_masquerade: vec!["10.1.0.0/16".parse().unwrap(), "10.3.0.0/24".parse().unwrap()],
        blocks: vec!["10.244.1.0/24".parse().unwrap()],
        node_addrs: vec![NODE.parse().unwrap()],
        uplink: Some("eth0".to_owned()),
        overlay: "weft0".to_owned(),
        port_range: 32768..=65535,
        vxlan_port: 8472,
    }
}

pub(crate) fn ruleset() -> Ruleset {
    weft_table(&wanted()).unwrap()
}

/// A pod, its node, a host outside, and another node behind `weft0`, which is
/// a plain cable here.
struct Net {
    pod: TestNs,
    node: TestNs,
    outside: TestNs,
    remote: TestNs,
}

impl Net {
    fn new() -> Self {
        let net = Self {
            pod: TestNs::new("pod"),
            node: TestNs::new("node"),
            outside: TestNs::new("out"),
            remote: TestNs::new("remote"),
        };
        let forward = Key::new("net/ipv4/ip_forward").unwrap();
        sysctl::write(&net.node.netns, &[(forward, "1".to_owned())]).unwrap();
        let mut node = net.node.rtnl();
        for (name, peer, address) in [
            ("weft0123456789", &net.pod, "169.254.1.1/32"),
            ("eth0", &net.outside, "10.224.0.4/24"),
            ("weft0", &net.remote, "10.224.0.4/32"),
        ] {
            let end = LinkSpec {
                up: true,
                ..LinkSpec::new(name)
            };
            let other = LinkSpec {
                up: true,
                netns: Some(&peer.netns),
                ..LinkSpec::new("eth0")
            };
            node.create_veth(&end, &other).unwrap();
            let index = node.link_index(name).unwrap();
            node.add_address(&Address::new(index, parse(address))).unwrap();
        }
        let veth = node.link_index("weft0123456789").unwrap();
        let overlay = node.link_index("weft0").unwrap();
        let uplink = node.link_index("eth0").unwrap();
        node.add_route(&Route::link(parse("10.244.1.5/32"), veth))
            .unwrap();
        node.add_route(&Route::link(parse("10.244.0.0/16"), overlay))
            .unwrap();
        let outside = OUTSIDE.parse::<std::net::Ipv4Addr>().unwrap();
        node.add_route(&Route::via(parse("10.1.0.0/16"), outside, uplink))
            .unwrap();
        for (test, addresses, gateway) in [
            (&net.pod, &["10.244.1.5/32"][..], "169.254.1.1"),
            (&net.outside, &["10.224.0.9/24", "10.1.0.9/32"], NODE),
            (&net.remote, &["10.244.2.9/32"], NODE),
        ] {
            let mut rtnl = test.rtnl();
            let index = rtnl.link_index("eth0").unwrap();
            for address in addresses {
                rtnl.add_address(&Address::new(index, parse(address))).unwrap();
            }
            let gateway = gateway.parse::<std::net::Ipv4Addr>().unwrap();
            rtnl.add_route(&Route::via(parse("0.0.0.0/0"), gateway, index).with_onlink())
                .unwrap();
        }
        net
    }
}

fn parse(net: &str) -> IpNet {
    net.parse().unwrap()
}

fn socket(test: &TestNs, address: &str) -> UdpSocket {
    let socket = udp_socket(&test.netns, address.parse().unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// The source that the receiver sees of a datagram from `from` to `to`.
fn source_seen(from: (&TestNs, &str), to: (&TestNs, &str)) -> SocketAddr {
    let receiver = socket(to.0, &format!("{}:0", to.1));
    let sender = socket(from.0, &format!("{}:0", from.1));
    sender.send_to(b"hello", receiver.local_addr().unwrap()).unwrap();
    let (_, seen) = receiver.recv_from(&mut [0; 16]).unwrap();
    if seen.ip() == sender.local_addr().unwrap().ip() {
        assert_eq!(seen, sender.local_addr().unwrap());
    }
    seen
}

#[test]
fn a_pods_connections_outside_leave_with_the_nodes_address_and_a_port_of_the_range() {
    needs_root!();
    let net = Net::new();
    Nft::open_in(&net.node.netns).unwrap().apply(&ruleset()).unwrap();
    let receiver = socket(&net.outside, "10.224.0.9:0");
    let to = receiver.local_addr().unwrap();
    let mut seen = Vec::new();
    for port in 1000..1200 {
        let sender = socket(&net.pod, &format!("{POD}:{port}"));
        sender.send_to(b"x", to).unwrap();
        let (_, source) = receiver.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(source.ip().to_string(), NODE);
        seen.push(source.port());
    }
    assert!(seen.iter().all(|port| *port >= 32768), "{seen:?}");
    let spread = seen.iter().max().unwrap() - seen.iter().min().unwrap();
    assert!(
        spread > 16384,
        "random ports use the range, these only {spread} of it"
    );

    let listener =
        weft_kernel::sockets::tcp_listener(&net.outside.netns, "10.224.0.9:0".parse().unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let _client = weft_kernel::sockets::tcp_connect(&net.pod.netns, to, Duration::from_secs(5)).unwrap();
    let (_, source) = listener.accept().unwrap();
    assert_eq!(source.ip().to_string(), NODE);
    assert!(source.port() >= 32768, "{source}");

    let wire = FrameSocket::open(&net.outside.netns, "eth0").unwrap();
    let echo = [
        &udp_packet(
            "10.244.1.5:0".parse().unwrap(),
            "10.224.0.9:0".parse().unwrap(),
            &[],
        )
        .unwrap()[..9],
        &[
            1, 0, 0, 10, 244, 1, 5, 10, 224, 0, 9, 8, 0, 0xf7, 0xfd, 0, 1, 0, 1,
        ],
    ]
    .concat();
    Ipv4Socket::open(&net.pod.netns)
        .unwrap()
        .send(&echo, OUTSIDE.parse().unwrap())
        .unwrap();
    let mut frame = [0; 2048];
    loop {
        let length = wire.receive(&mut frame, Duration::from_secs(5)).unwrap();
        if frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 8 {
            assert_eq!(
                frame[26..30],
                [10, 224, 0, 4],
                "source of {:02x?}",
                &frame[..length]
            );
            break;
        }
    }
}

#[test]
fn whoever_can_be_answered_directly_keeps_his_address() {
    needs_root!();
    let net = Net::new();
    Nft::open_in(&net.node.netns).unwrap().apply(&ruleset()).unwrap();
    let ip = |source: SocketAddr| source.ip().to_string();
    assert_eq!(ip(source_seen((&net.pod, POD), (&net.outside, EXEMPT))), POD);
    assert_eq!(ip(source_seen((&net.pod, POD), (&net.remote, REMOTE_POD))), POD);
    assert_eq!(
        ip(source_seen((&net.node, NODE), (&net.remote, REMOTE_POD))),
        NODE
    );
    assert_eq!(ip(source_seen((&net.node, NODE), (&net.outside, OUTSIDE))), NODE);
    assert_eq!(ip(source_seen((&net.pod, POD), (&net.node, NODE))), POD);
}

#[test]
fn a_stranger_reaches_a_remote_pod_under_the_nodes_address() {
    needs_root!();
    let net = Net::new();
    Nft::open_in(&net.node.netns).unwrap().apply(&ruleset()).unwrap();
    let seen = source_seen((&net.outside, OUTSIDE), (&net.remote, REMOTE_POD));
    assert_eq!(seen.ip().to_string(), NODE);
}

#[test]
fn a_pod_reaches_no_tunnel_port_not_even_behind_nat() {
    const VIP: &str = "10.0.0.10:4789";
    const ELSEWHERE: &str = "10.0.0.11:4789";
    needs_root!();
    let net = Net::new();
    Nft::open_in(&net.node.netns).unwrap().apply(&ruleset()).unwrap();
    for command in [
        "table ip proxy",
        "chain ip proxy pre { type nat hook prerouting priority dstnat ; }",
        "rule ip proxy pre meta l4proto udp ip daddr 10.0.0.10 dnat to 10.224.0.9:8472",
        "rule ip proxy pre meta l4proto udp ip daddr 10.0.0.11 dnat to 10.224.0.9:8473",
    ] {
        net.node.exec(&format!("nft add {command}"));
    }
    let tunnel = socket(&net.outside, &format!("{OUTSIDE}:8472"));
    let other = socket(&net.outside, &format!("{OUTSIDE}:8473"));
    let pod = socket(&net.pod, &format!("{POD}:0"));
    let mut buffer = [0; 4096];
    // Longer than a packet as well: fragments are put together before rules see them.
    for (number, to) in [(1, VIP), (2, "10.224.0.9:8472")] {
        pod.send_to(b"forged", to).unwrap();
        pod.send_to(&[0; 4000], to).unwrap();
        let counted = net.node.exec("nft list chain ip weft guard");
        let packets = format!("counter packets {} ", 2 * number);
        assert!(counted.contains(&packets), "{to}: {counted}");
    }
    pod.send_to(b"honest", ELSEWHERE).unwrap();
    let (length, _) = other.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"honest");
    // Nor does its answer to who asks a port of its node's that leads to it.
    net.node
        .exec("nft add rule ip proxy pre iifname eth0 udp dport 30053 dnat to 10.244.1.5:53");
    let service = socket(&net.pod, &format!("{POD}:53"));
    let mut answered = |port: u16| {
        let client = socket(&net.outside, &format!("{OUTSIDE}:{port}"));
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        client.send_to(b"?", format!("{NODE}:30053")).unwrap();
        let (_, seen) = service.recv_from(&mut buffer).unwrap();
        service.send_to(b"!", seen).unwrap();
        client.recv_from(&mut [0; 16]).is_ok()
    };
    assert!(answered(40_000));
    drop(tunnel);
    assert!(!answered(8472));
    let tunnel = socket(&net.outside, &format!("{OUTSIDE}:8472"));
    // What isn't tracked is known by its source, and neither masqueraded nor exempt.
    for command in [
        "table ip untracking",
        "chain ip untracking pre { type filter hook prerouting priority raw ; }",
        "rule ip untracking pre iifname \"weft*\" udp dport 8472 notrack",
    ] {
        net.node.exec(&format!("nft add {command}"));
    }
    pod.send_to(b"forged", format!("{OUTSIDE}:8472")).unwrap();
    let counted = net.node.exec("nft list chain ip weft untranslated");
    assert!(counted.contains("udp dport 8472 counter packets 1 "), "{counted}");
    net.node.exec("nft delete table ip untracking");
    // The node itself is a peer of the tunnel; its datagram is the first that arrives there.
    let node = socket(&net.node, &format!("{NODE}:0"));
    node.send_to(b"node", format!("{OUTSIDE}:8472")).unwrap();
    let (length, _) = tunnel.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"node");
    // A pod of another node may have any port.
    let remote = socket(&net.remote, &format!("{REMOTE_POD}:8472"));
    pod.send_to(b"pod", format!("{REMOTE_POD}:8472")).unwrap();
    let (length, _) = remote.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"pod");
}

#[test]
fn a_packet_that_no_nat_touches_does_not_leave_with_a_pods_source() {
    needs_root!();
    let net = Net::new();
    Nft::open_in(&net.node.netns).unwrap().apply(&ruleset()).unwrap();
    let wire = FrameSocket::open(&net.outside.netns, "eth0").unwrap();
    let raw = Ipv4Socket::open(&net.pod.netns).unwrap();

    // A reset without a connection is invalid to conntrack.
    let (from, to): (SocketAddrV4, SocketAddrV4) = (
        "10.244.1.5:4000".parse().unwrap(),
        "10.224.0.9:4001".parse().unwrap(),
    );
    let mut reset = udp_packet(from, to, &[0; 12]).unwrap();
    reset[9] = 6;
    reset[10..12].fill(0);
    reset[20..].copy_from_slice(&[
        0x0f, 0xa0, 0x0f, 0xa1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0,
    ]);
    let sum = tcp_checksum(&reset);
    reset[36..38].copy_from_slice(&sum.to_be_bytes());
    raw.send(&reset, *to.ip()).unwrap();
    raw.send_udp(from, to, b"end").unwrap();

    let mut frame = [0; 2048];
    loop {
        let length = wire.receive(&mut frame, Duration::from_secs(5)).unwrap();
        let packet = &frame[14..length];
        if frame[12..14] != [8, 0] {
            continue;
        }
        assert_eq!(packet[12..16], [10, 224, 0, 4], "source of {packet:02x?}");
        if packet[9] == 17 {
            break;
        }
    }
    let guard = net.node.exec("nft list chain ip weft untranslated");
    assert!(guard.contains("counter packets 1 "), "{guard}");
}

#[test]
fn the_overlays_outer_packets_are_not_tracked() {
    needs_root!();
    let net = Net::new();
    Nft::open_in(&net.node.netns).unwrap().apply(&ruleset()).unwrap();
    for (from, to) in [
        ((&net.node, NODE), (&net.outside, OUTSIDE)),
        ((&net.outside, OUTSIDE), (&net.node, NODE)),
    ] {
        let receiver = socket(to.0, &format!("{}:8472", to.1));
        socket(from.0, &format!("{}:40000", from.1))
            .send_to(b"x", receiver.local_addr().unwrap())
            .unwrap();
        receiver.recv_from(&mut [0; 16]).unwrap();
    }
    source_seen((&net.outside, OUTSIDE), (&net.node, NODE));
    let tracked = net.node.exec("conntrack -L -p udp");
    assert!(!tracked.contains("8472"), "{tracked}");
    assert_eq!(
        tracked.lines().count(),
        1,
        "the other datagram is tracked: {tracked}"
    );
}

#[test]
fn an_address_that_changes_hands_leaves_no_connection_behind() {
    needs_root!();
    let net = Net::new();
    Nft::open_in(&net.node.netns).unwrap().apply(&ruleset()).unwrap();
    source_seen((&net.pod, POD), (&net.outside, OUTSIDE));
    source_seen((&net.outside, OUTSIDE), (&net.pod, POD));
    source_seen((&net.outside, OUTSIDE), (&net.remote, REMOTE_POD));
    let mut conntrack = Conntrack::open_in(&net.node.netns).unwrap();
    assert_eq!(conntrack.delete_address(POD.parse().unwrap()).unwrap(), 2);
    assert_eq!(conntrack.delete_address(POD.parse().unwrap()).unwrap(), 0);
    let left = net.node.exec("conntrack -L -p udp");
    assert!(left.lines().count() == 1 && left.contains(REMOTE_POD), "{left}");
}

#[test]
fn no_packet_leaves_untranslated_while_the_table_is_replaced() {
    needs_root!();
    let net = Net::new();
    let mut nft = Nft::open_in(&net.node.netns).unwrap();
    let ruleset = ruleset();
    nft.apply(&ruleset).unwrap();
    let receiver = socket(&net.outside, "10.224.0.9:0");
    let SocketAddr::V4(to) = receiver.local_addr().unwrap() else {
        unreachable!()
    };
    let raw = Ipv4Socket::open(&net.pod.netns).unwrap();
    let replacing = AtomicBool::new(true);
    let replaced = thread::scope(|scope| {
        let replacer = scope.spawn(|| {
            let mut replaced = 0;
            while replacing.load(Ordering::Relaxed) {
                nft.apply(&ruleset).unwrap();
                replaced += 1;
            }
            replaced
        });
        // Each from another port, so that each is a new connection.
        let sources: Vec<_> = (1..=20000)
            .map(|port| {
                let from = SocketAddrV4::new(POD.parse().unwrap(), port);
                raw.send_udp(from, to, b"x")
                    .and_then(|()| receiver.recv_from(&mut [0; 16]))
            })
            .collect();
        replacing.store(false, Ordering::Relaxed);
        let wrong = sources
            .iter()
            .find(|source| !matches!(source, Ok((_, source)) if source.ip().to_string() == NODE));
        assert!(wrong.is_none(), "{wrong:?}");
        replacer.join().unwrap()
    });
    assert!(replaced > 10, "replaced only {replaced} times");
}

fn tcp_checksum(packet: &[u8]) -> u16 {
    let pseudo = [
        &packet[12..20],
        &[0, 6],
        &((packet.len() - 20) as u16).to_be_bytes(),
    ]
    .concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .chain(packet[20..].chunks(2))
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
