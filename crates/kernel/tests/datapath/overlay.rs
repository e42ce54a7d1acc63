//! What arrives at a node's VXLAN port, from other nodes and from those who would like to be one.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Instant;

use ipnet::Ipv4Net;
use weft_kernel::NetNs;
use weft_kernel::bpf::{DropReason, ForwardPath, Identity, PrefixTarget};
use weft_kernel::sockets::{FrameSocket, udp_socket};
use weft_kernel::target::Target;
use weft_model::Mac;

use crate::frames::{IPV4, Ip, OVERLAY_MAC, OVERLAY_SOURCE_MAC, ethernet, inner, readdressed, vxlan};
use crate::needs_root;
use crate::support::{Cluster, Counts, PATIENCE, SILENCE, VXLAN_PORT};

const POD: u32 = Identity::POD.get();
const HOST: u32 = Identity::HOST.get();
const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const SENDER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const THIRD: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 3);
const SENDERS_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 9);
const THIRDS_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn sender(netns: &NetNs) -> UdpSocket {
    let socket = udp_socket(netns, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
    socket.connect(SocketAddrV4::new(NODE, VXLAN_PORT)).unwrap();
    socket
}

/// Sends to node 0 and waits until it has counted something. Returns what.
fn counted(cluster: &Cluster, socket: &UdpSocket, payload: &[u8]) -> Counts {
    let before = cluster.nodes[0].counts();
    socket.send(payload).unwrap();
    moved(cluster, &before)
}

fn moved(cluster: &Cluster, before: &Counts) -> Counts {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let moved = cluster.nodes[0].counts().since(before);
        if moved != Counts::default() || Instant::now() > deadline {
            return moved;
        }
    }
}

#[test]
fn forged_packets_are_dropped_each_for_its_reason() {
    use DropReason as D;
    needs_root!();
    let mut cluster = Cluster::new(3);
    let pod = cluster.pod(0, 1).address;
    let stranger = cluster.host(1);
    let absent = Ipv4Addr::new(10, 244, 0, 99);
    let strangers = sender(&stranger.netns);
    let senders = sender(&cluster.nodes[1].ns.netns);
    let udp = |source, destination| inner(&Ip::udp(source, destination));
    let rows = [
        (
            "a stranger as a pod",
            &strangers,
            POD,
            udp(SENDERS_POD, pod),
            D::UnknownNode,
        ),
        (
            "a stranger as a node",
            &strangers,
            HOST,
            udp(SENDER, pod),
            D::UnknownNode,
        ),
        (
            "a stranger as himself",
            &strangers,
            POD,
            udp(Ipv4Addr::new(172, 31, 0, 101), pod),
            D::UnknownNode,
        ),
        (
            "a node as another node's pod",
            &senders,
            POD,
            udp(THIRDS_POD, pod),
            D::ForeignSource,
        ),
        (
            "a node as another node",
            &senders,
            HOST,
            udp(THIRD, pod),
            D::ForeignSource,
        ),
        (
            "a node as this node's pod",
            &senders,
            POD,
            udp(pod, pod),
            D::ForeignSource,
        ),
        (
            "a node as this node",
            &senders,
            HOST,
            udp(NODE, pod),
            D::ForeignSource,
        ),
        (
            "a node as an outsider",
            &senders,
            POD,
            udp(OUTSIDE, pod),
            D::ForeignSource,
        ),
        (
            "a pod that claims to be a node",
            &senders,
            HOST,
            udp(SENDERS_POD, pod),
            D::ForgedIdentity,
        ),
        (
            "a node that claims to be a pod",
            &senders,
            POD,
            udp(SENDER, pod),
            D::ForgedIdentity,
        ),
        (
            "a node to this node",
            &senders,
            HOST,
            udp(SENDER, NODE),
            D::NodeToNode,
        ),
        (
            "to a third node's pod",
            &senders,
            POD,
            udp(SENDERS_POD, THIRDS_POD),
            D::NotForThisNode,
        ),
        (
            "to a third node",
            &senders,
            POD,
            udp(SENDERS_POD, THIRD),
            D::NotForThisNode,
        ),
        (
            "to outside",
            &senders,
            POD,
            udp(SENDERS_POD, OUTSIDE),
            D::NotForThisNode,
        ),
        (
            "to everybody",
            &senders,
            POD,
            udp(SENDERS_POD, Ipv4Addr::BROADCAST),
            D::NotForThisNode,
        ),
        (
            "to an address that no pod has",
            &senders,
            POD,
            udp(SENDERS_POD, absent),
            D::NoEndpoint,
        ),
        (
            "IPv6",
            &senders,
            POD,
            ethernet(OVERLAY_MAC, OVERLAY_SOURCE_MAC, 0x86dd, &[0x60; 40]),
            D::Ipv6,
        ),
        (
            "ARP",
            &senders,
            POD,
            ethernet(OVERLAY_MAC, OVERLAY_SOURCE_MAC, 0x0806, &[0; 40]),
            D::EtherType,
        ),
        (
            "tagged",
            &senders,
            POD,
            ethernet(
                OVERLAY_MAC,
                OVERLAY_SOURCE_MAC,
                0x8100,
                &[&[0, 5, 8, 0][..], &Ip::udp(SENDERS_POD, pod).bytes()].concat(),
            ),
            D::VlanTag,
        ),
        (
            "IP version 5",
            &senders,
            POD,
            ethernet(OVERLAY_MAC, OVERLAY_SOURCE_MAC, IPV4, &[0x55; 40]),
            D::Malformed,
        ),
    ];
    for (row, socket, vni, frame, reason) in rows {
        let moved = counted(&cluster, socket, &vxlan(vni, &frame));
        assert_eq!(moved, Counts::default().drop(reason, 1), "{row}");
    }
}

#[test]
fn a_nodes_packets_come_from_its_tunnel_address_only() {
    const SECONDARY: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 52);
    needs_root!();
    let mut cluster = Cluster::new(2);
    let pod = cluster.pod(0, 1).address;
    cluster.nodes[1].ns.exec("ip addr add 172.31.0.52/24 dev eth0");
    let secondary = udp_socket(&cluster.nodes[1].ns.netns, SocketAddrV4::new(SECONDARY, 0).into()).unwrap();
    secondary.connect(SocketAddrV4::new(NODE, VXLAN_PORT)).unwrap();
    let rows = [
        ("its pod", POD, Ip::udp(SENDERS_POD, pod)),
        ("itself", HOST, Ip::udp(SENDER, pod)),
        ("itself by that address", HOST, Ip::udp(SECONDARY, pod)),
    ];
    // Of what the address is depends only the reason.
    let check = |cluster: &Cluster, reason| {
        for (row, vni, packet) in &rows {
            let moved = counted(cluster, &secondary, &vxlan(*vni, &inner(packet)));
            assert_eq!(moved, Counts::default().drop(reason, 1), "{row}");
        }
    };
    check(&cluster, DropReason::UnknownNode);
    let underlay = IpAddr::from(SENDER);
    let known = Ipv4Net::from(SECONDARY).into();
    let datapath = &mut cluster.nodes[0].datapath;
    datapath
        .prefixes()
        .apply(
            &known,
            &PrefixTarget::RemoteNode {
                underlay,
                mtu: None,
                next_hop: None,
            },
        )
        .unwrap();
    check(&cluster, DropReason::UnknownNode);
    let datapath = &mut cluster.nodes[0].datapath;
    datapath.nodes().apply(&SECONDARY.into(), &()).unwrap();
    check(&cluster, DropReason::ForeignSource);
}

#[test]
fn a_pod_forges_no_tunnel_packets_by_its_nodes_address() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (pod, victim) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[1].ns.exec("ip addr add 172.31.0.52/24 dev eth0");
    cluster.nodes[0].dnat("ip daddr 10.0.0.10 meta l4proto udp dnat to 172.31.0.2:8472");
    let listening = udp_socket(&victim.ns.netns, SocketAddrV4::new(victim.address, 2000).into()).unwrap();
    listening.set_read_timeout(Some(PATIENCE)).unwrap();
    let forging = udp_socket(&pod.ns.netns, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
    // As its node would send it.
    let forged = vxlan(HOST, &inner(&Ip::udp(NODE, victim.address)));
    for to in ["10.0.0.10:80", "172.31.0.52:8472"] {
        forging.send_to(&forged, to).unwrap();
    }
    let honest = udp_socket(&cluster.nodes[0].ns.netns, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
    honest
        .send_to(b"honest", SocketAddrV4::new(victim.address, 2000))
        .unwrap();
    let mut buffer = [0; 64];
    let (length, _) = listening.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"honest");
    assert_eq!(
        cluster.counts()[1],
        Counts::default().forward(ForwardPath::OverlayToPod, 1)
    );
}

#[test]
fn honest_packets_reach_pods_and_the_node() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let pod = cluster.pod(0, 1);
    let senders = sender(&cluster.nodes[1].ns.netns);
    // Without a listener the pod would answer with an ICMP error.
    let _listener = udp_socket(&pod.ns.netns, SocketAddrV4::new(pod.address, 2000).into()).unwrap();
    let eth0 = FrameSocket::open(&pod.ns.netns, "eth0").unwrap();
    let to_pod = |path| Counts::default().forward(path, 1);
    let mut buffer = [0; 2048];
    for (row, vni, packet) in [
        ("a pod", POD, Ip::udp(SENDERS_POD, pod.address)),
        (
            "a pod with IP options",
            POD,
            Ip::udp(SENDERS_POD, pod.address).with_options(3),
        ),
        (
            "a pod's fragment",
            POD,
            Ip::udp(SENDERS_POD, pod.address).with_fragment(185),
        ),
        ("a node", HOST, Ip::udp(SENDER, pod.address)),
        (
            "a pod isolated on egress",
            POD | 1 << 23,
            Ip::udp(SENDERS_POD, pod.address),
        ),
    ] {
        let frame = inner(&packet);
        let moved = counted(&cluster, &senders, &vxlan(vni, &frame));
        assert_eq!(moved, to_pod(ForwardPath::OverlayToPod), "{row}");
        let length = eth0.receive(&mut buffer, PATIENCE).unwrap();
        let expected = readdressed(&frame, pod.endpoint.mac, pod.endpoint.host_mac);
        assert_eq!(buffer[..length], expected, "{row}");
    }

    let node = udp_socket(&cluster.nodes[0].ns.netns, SocketAddrV4::new(NODE, 2000).into()).unwrap();
    node.set_read_timeout(Some(PATIENCE)).unwrap();
    for destination_mac in [OVERLAY_MAC, Mac([2, 0, 0, 0, 0, 9])] {
        let packet = Ip::udp(SENDERS_POD, NODE);
        let frame = ethernet(destination_mac, OVERLAY_SOURCE_MAC, IPV4, &packet.bytes());
        let moved = counted(&cluster, &senders, &vxlan(POD, &frame));
        assert_eq!(moved, to_pod(ForwardPath::OverlayToStack));
        let (length, from) = node.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from),
            (&b"hello"[..], SocketAddrV4::new(SENDERS_POD, 1000).into())
        );
    }
}

#[test]
fn the_wire_carries_identity_and_no_trace_of_the_node() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
    let socket = udp_socket(&one.ns.netns, SocketAddrV4::new(one.address, 1000).into()).unwrap();
    socket
        .send_to(b"hello", SocketAddrV4::new(two.address, 2000))
        .unwrap();
    let mut buffer = [0; 2048];
    let datagram = loop {
        let length = wire.receive(&mut buffer, PATIENCE).unwrap();
        if buffer[12..14] == IPV4.to_be_bytes() && buffer[23] == 17 {
            break buffer[..length].to_vec();
        }
    };
    let outer = &datagram[14..];
    assert_eq!(
        (&outer[12..16], &outer[16..20]),
        (&NODE.octets()[..], &SENDER.octets()[..])
    );
    assert_eq!(outer[22..24], VXLAN_PORT.to_be_bytes());
    assert_eq!(outer[26..28], [0, 0], "no checksum over the payload");
    assert_eq!(outer[28..36], [8, 0, 0, 0, 0, 0, POD as u8, 0]);
    let macs = [OVERLAY_MAC.octets(), OVERLAY_SOURCE_MAC.octets()].concat();
    assert_eq!(outer[36..48], macs);
}

#[test]
fn stumps_of_packets_are_dropped() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let pod = cluster.pod(0, 1);
    let host = cluster.host(1);
    let bytes = Ip::udp(pod.address, NODE).bytes();
    let out = FrameSocket::open(&pod.ns.netns, "eth0").unwrap();
    for length in [0, 1, 19] {
        let before = cluster.nodes[0].counts();
        out.send(&ethernet(
            pod.endpoint.host_mac,
            pod.endpoint.mac,
            IPV4,
            &bytes[..length],
        ))
        .unwrap();
        assert_eq!(
            moved(&cluster, &before),
            Counts::default().drop(DropReason::Malformed, 1),
            "{length}"
        );
    }
    let out = FrameSocket::open(&host.netns, "eth0").unwrap();
    let before = cluster.nodes[0].counts();
    out.send(&ethernet(Mac([2; 6]), Mac([4; 6]), IPV4, &bytes[..19]))
        .unwrap();
    assert_eq!(
        moved(&cluster, &before),
        Counts::default().drop(DropReason::Malformed, 1)
    );
}

#[test]
fn tagged_frames_of_a_pod_are_dropped() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(0, 2));
    let out = FrameSocket::open(&one.ns.netns, "eth0").unwrap();
    let arriving = FrameSocket::open(&two.ns.netns, "eth0").unwrap();
    let tagged = [&[0, 5, 8, 0][..], &Ip::udp(one.address, two.address).bytes()].concat();
    out.send(&ethernet(
        one.endpoint.host_mac,
        one.endpoint.mac,
        0x8100,
        &tagged,
    ))
    .unwrap();
    assert!(arriving.receive(&mut [0; 64], SILENCE).is_err());
    assert_eq!(cluster.counts(), [Counts::default().drop(DropReason::VlanTag, 1)]);
}
