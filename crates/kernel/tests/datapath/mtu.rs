//! Packets as long as the overlay carries, and longer ones.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use weft_kernel::bpf::{DropReason, ForwardPath, PrefixTarget, Transport};
use weft_kernel::rtnl::Route;
use weft_kernel::sockets::{FrameSocket, Ipv4Socket, udp_packet, udp_socket};

use crate::echo::{megabyte, tcp_echo, udp_echo};
use crate::frames::packet_of;
use crate::needs_root;
use crate::support::{Cluster, Counts, PATIENCE, POD_MTU, Pod, VXLAN_PORT};

const MTU: usize = POD_MTU as usize;
const ICMP: u8 = 1;

/// A UDP packet of `length` bytes with DF set.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> Vec<u8> {
    udp_packet(
        SocketAddrV4::new(source, 1000),
        SocketAddrV4::new(destination, 2000),
        &vec![0x55; length - 28],
    )
    .unwrap()
}

/// The next IPv4 packet that arrives and is of that protocol.
fn next(socket: &FrameSocket, protocol: u8) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.receive(&mut buffer, PATIENCE).unwrap();
        let packet = packet_of(&buffer[..length]);
        if packet[9] == protocol && packet[0] >> 4 == 4 {
            return packet.to_vec();
        }
    }
}

#[test]
fn a_full_packet_crosses_whole_and_a_longer_one_is_refused_with_the_right_size() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    one.ns.exec("ip link set eth0 mtu 1500");
    // Without a listener the pod would answer with an ICMP error.
    let _listener = udp_socket(&two.ns.netns, SocketAddrV4::new(two.address, 2000).into()).unwrap();
    let out = Ipv4Socket::open(&one.ns.netns).unwrap();
    let (at_one, at_two) = (
        FrameSocket::open(&one.ns.netns, "eth0").unwrap(),
        FrameSocket::open(&two.ns.netns, "eth0").unwrap(),
    );

    let before = cluster.counts();
    out.send(&packet(one.address, two.address, MTU), two.address)
        .unwrap();
    assert_eq!(next(&at_two, 17).len(), MTU);
    let none = Counts::default;
    assert_eq!(
        cluster.since(&before),
        [
            none().forward(ForwardPath::PodToOverlay, 1),
            none().forward(ForwardPath::OverlayToPod, 1)
        ]
    );

    let before = cluster.counts();
    out.send(&packet(one.address, two.address, MTU + 1), two.address)
        .unwrap();
    let refusal = next(&at_one, ICMP);
    assert_eq!(refusal[12..16], cluster.nodes[0].underlay.octets());
    let icmp = &refusal[20..];
    assert_eq!(icmp[..2], [3, 4], "fragmentation needed");
    assert_eq!(u16::from_be_bytes([icmp[6], icmp[7]]), POD_MTU as u16);
    assert_eq!(
        cluster.since(&before),
        [
            none()
                .forward(ForwardPath::PodToStack, 1)
                .forward(ForwardPath::StackToPod, 1),
            none()
        ]
    );
}

#[test]
fn a_packet_too_long_for_the_tunnel_to_a_node_does_not_leave_by_the_uplink_instead() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let pod = cluster.pod(0, 1);
    pod.ns.exec("ip link set eth0 mtu 1500");
    let out = Ipv4Socket::open(&pod.ns.netns).unwrap();
    let node = cluster.nodes[1].underlay;
    out.send(&packet(pod.address, node, MTU + 1), node).unwrap();
    assert_eq!(
        cluster.counts(),
        [Counts::default().drop(DropReason::TooBig, 1), Counts::default()]
    );
}

#[test]
fn tcp_finds_the_right_size_although_both_pods_believe_in_a_larger_one() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    for pod in [&one, &two] {
        pod.ns.exec("ip link set eth0 mtu 1500");
    }
    let to = SocketAddrV4::new(two.address, 7);
    tcp_echo(&one.ns.netns, &two.ns.netns, to, to, &megabyte()).unwrap();
}

#[test]
fn tcp_is_whole_without_super_packets() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    let to = SocketAddrV4::new(two.address, 7);
    for pod in [&one, &two] {
        pod.ns.exec("ip link set eth0 gso_max_segs 1");
    }
    let before = cluster.counts();
    tcp_echo(&one.ns.netns, &two.ns.netns, to, to, &megabyte()).unwrap();
    let sent = cluster.since(&before)[0].forwards[&ForwardPath::PodToOverlay];
    assert!(
        sent > 1_000_000 / u64::from(POD_MTU),
        "only {sent} packets were sent"
    );
}

/// What a path that takes 100 bytes less than the uplink leaves pods.
const NARROW: u16 = POD_MTU as u16 - 100;

/// Two nodes with a pod each, and a path that takes less from the first to the second, as an agent would have it.
fn narrow() -> (Cluster, Pod, Pod) {
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    let (address, block) = (cluster.nodes[1].underlay, cluster.nodes[1].block);
    let (underlay, mtu) = (IpAddr::from(address), Some(NARROW));
    let node = &mut cluster.nodes[0];
    let route = Route::link(block, node.overlay).with_src(node.underlay);
    node.ns
        .rtnl()
        .replace_route(&route.with_mtu(NARROW.into()))
        .unwrap();
    let entry = PrefixTarget::RemoteBlock {
        underlay,
        mtu,
        next_hop: Some(address),
    };
    node.tell(block, entry);
    let entry = PrefixTarget::RemoteNode {
        underlay,
        mtu,
        next_hop: Some(address),
    };
    node.tell(address.into(), entry);
    (cluster, one, two)
}

/// The next outer packet of node 0 on the wire, without its Ethernet header.
fn outer(wire: &FrameSocket) -> Vec<u8> {
    loop {
        let packet = next(wire, 17);
        if packet[12..16] == [172, 31, 0, 1] && packet[22..24] == VXLAN_PORT.to_be_bytes() {
            return packet;
        }
    }
}

#[test]
fn a_sender_hears_what_the_path_to_one_node_takes() {
    needs_root!();
    let (cluster, one, two) = narrow();
    let _listener = udp_socket(&two.ns.netns, SocketAddrV4::new(two.address, 2000).into()).unwrap();
    let out = Ipv4Socket::open(&one.ns.netns).unwrap();
    let at = |pod: &Pod| FrameSocket::open(&pod.ns.netns, "eth0").unwrap();
    let (at_one, at_two) = (at(&one), at(&two));
    let length = usize::from(NARROW);
    out.send(&packet(one.address, two.address, length), two.address)
        .unwrap();
    assert_eq!(next(&at_two, 17).len(), length);
    out.send(&packet(one.address, two.address, length + 1), two.address)
        .unwrap();
    let refusal = next(&at_one, ICMP);
    assert_eq!(refusal[20..22], [3, 4], "fragmentation needed");
    assert_eq!(refusal[26..28], NARROW.to_be_bytes());
    assert!(cluster.counts().iter().all(|counts| counts.drops.is_empty()));
}

#[test]
fn nothing_longer_than_the_path_takes_leaves_and_everything_arrives() {
    needs_root!();
    let (cluster, one, two) = narrow();
    let to = SocketAddrV4::new(two.address, 7);
    let snmp = |field: &str| cluster.nodes[0].ns.ip_statistic(field);
    let before = snmp("FragCreates");
    tcp_echo(&one.ns.netns, &two.ns.netns, to, to, &megabyte()).unwrap();
    let cached = one.ns.exec(&format!("ip route get {}", two.address));
    assert!(cached.contains(&format!("mtu {NARROW}")), "{cached}");
    assert_eq!(
        snmp("FragCreates"),
        before,
        "super-packets are judged by their segments"
    );

    // Without DF the inner packet is fragmented, and no outer one.
    let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
    one.ns.sysctl("ipv4/ip_no_pmtu_disc", "1");
    udp_echo(
        &one.ns.netns,
        &two.ns.netns,
        to,
        to,
        &vec![7; usize::from(NARROW)],
    )
    .unwrap();
    for _ in 0..2 {
        let packet = outer(&wire);
        assert!(packet.len() <= usize::from(NARROW) + 50, "{}", packet.len());
        assert_eq!(packet[6..8], [0x40, 0], "don't fragment, no fragment");
    }
    assert!(cluster.counts().iter().all(|counts| counts.drops.is_empty()));
}

#[test]
fn what_is_too_long_for_the_path_to_a_node_itself_may_be_fragmented_on_it() {
    needs_root!();
    let (cluster, one, _two) = narrow();
    let node = cluster.nodes[1].underlay;
    let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
    let out = Ipv4Socket::open(&one.ns.netns).unwrap();
    for (length, flags) in [(NARROW, [0x40, 0]), (NARROW + 1, [0, 0])] {
        out.send(&packet(one.address, node, length.into()), node).unwrap();
        let packet = outer(&wire);
        assert_eq!(
            (packet.len(), &packet[6..8]),
            (usize::from(length) + 50, &flags[..])
        );
    }
}

#[test]
fn no_router_may_fragment_what_goes_to_a_pod() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    for direct in [false, true] {
        let node = &mut cluster.nodes[0];
        node.switch(if direct {
            Transport::Direct(node.uplink)
        } else {
            Transport::Device
        });
        let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
        let out = Ipv4Socket::open(&one.ns.netns).unwrap();
        out.send(&packet(one.address, two.address, 100), two.address)
            .unwrap();
        assert_eq!(outer(&wire)[6..8], [0x40, 0], "direct: {direct}");
    }
    // Also what the node's stack sends.
    let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
    let node = &cluster.nodes[0];
    let out = Ipv4Socket::open(&node.ns.netns).unwrap();
    out.send(&packet(node.underlay, two.address, 100), two.address)
        .unwrap();
    assert_eq!(outer(&wire)[6..8], [0x40, 0]);
}
