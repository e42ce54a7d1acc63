//! Packets as long as the overlay carries, and longer ones.

use std::net::{Ipv4Addr, SocketAddrV4};

use weft_kernel::bpf::{DropReason, ForwardPath};
use weft_kernel::sockets::{FrameSocket, Ipv4Socket, udp_packet, udp_socket};

use crate::frames::packet_of;
use crate::needs_root;
use crate::support::{Cluster, Counts, PATIENCE, POD_MTU, megabyte, tcp_echo};

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
