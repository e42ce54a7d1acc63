//! Each program by itself, run by the kernel on built frames: frame and tables in; action, frame out and every counter
//! asserted. What is not named in a row must not have moved.

use std::net::Ipv4Addr;

use weft_kernel::bpf::{DropReason, ForwardPath, Packet, Program};
use weft_kernel::target::Target;
use weft_model::Mac;

use crate::bench::{
    Bench, ICMP_UNREACHABLE, MORE_FRAGMENTS, NATIVE, OTHER_NODE, OUTSIDE, PASS, REDIRECT, SELF, SHOT, TCP,
    Want,
};
use crate::frames::{ARP, IPV4, Ip, OVERLAY_MAC, OVERLAY_SOURCE_MAC, arp, ethernet, readdressed};
use crate::namespaces::TestNs;
use crate::needs_root;
use crate::support::{Bpffs, Counts, POD_MTU, VXLAN_PORT};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const REMOTE_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 9);
const ABSENT_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 99);
const NOBODYS: Ipv4Addr = Ipv4Addr::new(10, 244, 77, 1);

#[test]
fn a_pods_packets_are_checked_and_sent_on_their_way() {
    use DropReason as D;
    use ForwardPath as F;
    needs_root!();
    let mut bench = Bench::new();
    let (own, ifindex) = (bench.pod.address, bench.pod.endpoint.ifindex);
    let (mac, host_mac) = (bench.pod.endpoint.mac, bench.pod.endpoint.host_mac);
    let (peer, peer_mac, peer_host_mac) = (
        bench.peer.address,
        bench.peer.endpoint.mac,
        bench.peer.endpoint.host_mac,
    );
    let to = |destination| Ip::udp(own, destination);
    let to_peer = Want::Redirect(F::PodToPod, peer_mac, peer_host_mac);
    let to_overlay = Want::Redirect(F::PodToOverlay, OVERLAY_MAC, OVERLAY_SOURCE_MAC);
    let truncated = |len| to(peer).bytes()[..len].to_vec();
    let tampered = |at: usize, byte| {
        let mut packet = to(peer).bytes();
        packet[at] = byte;
        packet
    };
    let rows: Vec<(&str, Vec<u8>, Want)> = vec![
        ("to a pod of the node", bench.sent(&to(peer)), to_peer),
        (
            "to a pod of another node",
            bench.sent(&to(REMOTE_POD)),
            to_overlay,
        ),
        (
            "to another node",
            bench.sent(&to(OTHER_NODE)),
            Want::Redirect(F::PodToOverlay, OVERLAY_MAC, OVERLAY_SOURCE_MAC),
        ),
        (
            "to its own node",
            bench.sent(&to(SELF)),
            Want::Pass(F::PodToStack),
        ),
        ("outside", bench.sent(&to(OUTSIDE)), Want::Pass(F::PodToStack)),
        (
            "outside without translation",
            bench.sent(&to(NATIVE)),
            Want::Pass(F::PodToStack),
        ),
        (
            "to the node's loopback address",
            bench.sent(&to(Ipv4Addr::LOCALHOST)),
            Want::Drop(D::Loopback),
        ),
        (
            "to the last of the loopback addresses",
            bench.sent(&to(Ipv4Addr::new(127, 255, 255, 255))),
            Want::Drop(D::Loopback),
        ),
        (
            "to an address of the block that no pod has",
            bench.sent(&to(ABSENT_POD)),
            Want::Pass(F::PodToStack),
        ),
        (
            "to a block that no node has",
            bench.sent(&to(NOBODYS)),
            Want::Drop(D::NoBlock),
        ),
        (
            "with IP options to a pod",
            bench.sent(&to(peer).with_options(10)),
            Want::Redirect(F::PodToPod, peer_mac, peer_host_mac),
        ),
        (
            "with IP options to another node",
            bench.sent(&to(REMOTE_POD).with_options(3)),
            Want::Redirect(F::PodToOverlay, OVERLAY_MAC, OVERLAY_SOURCE_MAC),
        ),
        (
            "a first fragment",
            bench.sent(&to(peer).with_fragment(MORE_FRAGMENTS)),
            Want::Redirect(F::PodToPod, peer_mac, peer_host_mac),
        ),
        (
            "a later fragment",
            bench.sent(&to(REMOTE_POD).with_fragment(185)),
            Want::Redirect(F::PodToOverlay, OVERLAY_MAC, OVERLAY_SOURCE_MAC),
        ),
        (
            "a later fragment that ends in what would be the ports",
            bench.sent(&Ip {
                payload: vec![0; 2],
                ..to(peer).with_fragment(185)
            }),
            Want::Redirect(F::PodToPod, peer_mac, peer_host_mac),
        ),
        (
            "from a foreign address",
            bench.sent(&Ip::udp(peer, REMOTE_POD)),
            Want::Drop(D::SpoofedAddress),
        ),
        (
            "from the loopback address",
            bench.sent(&Ip::udp(Ipv4Addr::LOCALHOST, SELF)),
            Want::Drop(D::SpoofedAddress),
        ),
        (
            "from no address",
            bench.sent(&Ip::udp(Ipv4Addr::UNSPECIFIED, peer)),
            Want::Drop(D::SpoofedAddress),
        ),
        (
            "from a foreign MAC address",
            ethernet(host_mac, peer_mac, IPV4, &to(peer).bytes()),
            Want::Drop(D::SpoofedMac),
        ),
        (
            "to a foreign MAC address",
            ethernet(peer_mac, mac, IPV4, &to(peer).bytes()),
            Want::Drop(D::NotUnicast),
        ),
        (
            "to everybody's MAC address",
            ethernet(Mac([0xff; 6]), mac, IPV4, &to(peer).bytes()),
            Want::Drop(D::NotUnicast),
        ),
        (
            "as a DHCP server",
            bench.sent(&Ip::udp_ports(own, 67, peer, 68)),
            Want::Drop(D::DhcpServer),
        ),
        (
            "as a DHCP server behind IP options",
            bench.sent(&Ip::udp_ports(own, 67, peer, 68).with_options(1)),
            Want::Drop(D::DhcpServer),
        ),
        (
            "to its node's tunnel port",
            bench.sent(&Ip::udp_ports(own, 9, SELF, VXLAN_PORT)),
            Want::Drop(D::TunnelPort),
        ),
        (
            "to another node's tunnel port",
            bench.sent(&Ip::udp_ports(own, 9, OTHER_NODE, VXLAN_PORT)),
            Want::Drop(D::TunnelPort),
        ),
        (
            "to a tunnel port in a first fragment",
            bench.sent(&Ip::udp_ports(own, 9, SELF, VXLAN_PORT).with_fragment(MORE_FRAGMENTS)),
            Want::Drop(D::TunnelPort),
        ),
        (
            "to the same port of a pod",
            bench.sent(&Ip::udp_ports(own, 9, REMOTE_POD, VXLAN_PORT)),
            Want::Redirect(F::PodToOverlay, OVERLAY_MAC, OVERLAY_SOURCE_MAC),
        ),
        (
            "to the same port outside",
            bench.sent(&Ip::udp_ports(own, 9, OUTSIDE, VXLAN_PORT)),
            Want::Pass(F::PodToStack),
        ),
        (
            "to the same TCP port of a node",
            bench.sent(&Ip {
                protocol: TCP,
                ..Ip::udp_ports(own, 9, SELF, VXLAN_PORT)
            }),
            Want::Pass(F::PodToStack),
        ),
        (
            "UDP without ports",
            ethernet(host_mac, mac, IPV4, &truncated(23)),
            Want::Drop(D::Malformed),
        ),
        (
            "IP version 5",
            ethernet(host_mac, mac, IPV4, &tampered(0, 0x55)),
            Want::Drop(D::Malformed),
        ),
        (
            "an IP header of four words",
            ethernet(host_mac, mac, IPV4, &tampered(0, 0x44)),
            Want::Drop(D::Malformed),
        ),
        (
            "IPv6",
            ethernet(host_mac, mac, 0x86dd, &[0x60; 40]),
            Want::Drop(D::Ipv6),
        ),
        (
            "something else",
            ethernet(host_mac, mac, 0x88cc, &[0; 40]),
            Want::Drop(D::EtherType),
        ),
        (
            "full size",
            bench.sent(&to(REMOTE_POD).with_len(POD_MTU as usize)),
            Want::Redirect(F::PodToOverlay, OVERLAY_MAC, OVERLAY_SOURCE_MAC),
        ),
        (
            "a byte too long for the overlay, to a pod",
            bench.sent(&to(REMOTE_POD).with_len(POD_MTU as usize + 1)),
            Want::Pass(F::PodToStack),
        ),
        (
            "a byte too long for the overlay, to a node",
            bench.sent(&to(OTHER_NODE).with_len(POD_MTU as usize + 1)),
            Want::Drop(D::TooBig),
        ),
        (
            "ARP for a foreign address",
            arp(1, mac, own, peer),
            Want::Drop(D::ArpTarget),
        ),
        (
            "ARP that claims a foreign address",
            arp(1, mac, peer, GATEWAY),
            Want::Drop(D::SpoofedArp),
        ),
        (
            "ARP that claims a foreign MAC address",
            arp(1, peer_mac, own, GATEWAY),
            Want::Drop(D::SpoofedArp),
        ),
        (
            "ARP that answers the node",
            arp(2, mac, own, SELF),
            Want::Pass(F::PodToStack),
        ),
        (
            "ARP of another kind",
            arp(3, mac, own, GATEWAY),
            Want::Drop(D::Malformed),
        ),
        (
            "half an ARP message",
            arp(1, mac, own, GATEWAY)[..30].to_vec(),
            Want::Drop(D::Malformed),
        ),
    ];
    for (row, frame, want) in &rows {
        bench.check(Program::FromPod, ifindex, row, frame, want);
    }
    let overlay = bench.cluster.nodes[0].overlay;
    let frame = bench.sent(&to(peer));
    bench.check(
        Program::FromPod,
        overlay,
        "from an interface that is no pod's",
        &frame,
        &Want::Drop(D::NoEndpoint),
    );
}

#[test]
fn the_gateway_answers_arp() {
    needs_root!();
    let mut bench = Bench::new();
    let (own, endpoint) = (bench.pod.address, bench.pod.endpoint);
    let node = &mut bench.cluster.nodes[0];
    let request = Packet::new(endpoint.ifindex, arp(1, endpoint.mac, own, GATEWAY));
    let before = node.counts();
    let datapath = &mut node.datapath;
    let outcome = node
        .ns
        .netns
        .run(|| datapath.test_run(Program::FromPod, &request).unwrap())
        .unwrap();
    let message = [
        &[0, 1, 8, 0, 6, 4, 0, 2][..],
        &endpoint.host_mac.octets(),
        &GATEWAY.octets(),
        &endpoint.mac.octets(),
        &own.octets(),
    ];
    let reply = ethernet(endpoint.mac, endpoint.host_mac, ARP, &message.concat());
    let counted = node.counts().since(&before);
    assert_eq!(
        (outcome.action, outcome.frame, counted),
        (
            REDIRECT,
            reply,
            Counts::default().forward(ForwardPath::PodArpReply, 1)
        )
    );
}

#[test]
fn segments_of_a_super_packet_are_measured_not_the_whole() {
    needs_root!();
    let mut bench = Bench::new();
    let (own, ifindex) = (bench.pod.address, bench.pod.endpoint.ifindex);
    let mtu = POD_MTU;
    let tcp = |data_offset: u8| {
        let mut header = [0; 60];
        header[12] = data_offset << 4;
        let packet = Ip {
            protocol: TCP,
            payload: header.to_vec(),
            ..Ip::udp(own, REMOTE_POD)
        };
        packet.with_len(3000)
    };
    let fits = Want::Redirect(ForwardPath::PodToOverlay, OVERLAY_MAC, OVERLAY_SOURCE_MAC);
    let too_long = Want::Pass(ForwardPath::PodToStack);
    let rows = [
        ("TCP", tcp(5), mtu - 40, &fits),
        ("TCP, a byte more", tcp(5), mtu - 39, &too_long),
        ("TCP with timestamps", tcp(8), mtu - 52, &fits),
        ("TCP with timestamps, a byte more", tcp(8), mtu - 51, &too_long),
        ("TCP behind IP options", tcp(5).with_options(2), mtu - 48, &fits),
        (
            "TCP behind IP options, a byte more",
            tcp(5).with_options(2),
            mtu - 47,
            &too_long,
        ),
        ("UDP", Ip::udp(own, REMOTE_POD).with_len(3000), mtu - 28, &fits),
        (
            "UDP, a byte more",
            Ip::udp(own, REMOTE_POD).with_len(3000),
            mtu - 27,
            &too_long,
        ),
    ];
    for (row, packet, gso_size, want) in rows {
        let packet = Packet {
            gso_size,
            ..Packet::new(ifindex, bench.sent(&packet))
        };
        bench.check_packet(Program::FromPod, row, &packet, want);
    }
}

#[test]
fn the_stack_sends_to_the_overlay_only_what_is_the_nodes_or_a_pods() {
    use DropReason as D;
    use ForwardPath as F;
    needs_root!();
    let mut bench = Bench::new();
    let (pod, overlay) = (bench.pod.address, bench.cluster.nodes[0].overlay);
    let frame = |packet: &Ip| ethernet(OVERLAY_MAC, OVERLAY_MAC, IPV4, &packet.bytes());
    let encapsulated =
        |path, packet: &Ip| (path, readdressed(&frame(packet), OVERLAY_MAC, OVERLAY_SOURCE_MAC));
    for (row, packet, path) in [
        ("the node to a pod", Ip::udp(SELF, REMOTE_POD), F::NodeToOverlay),
        (
            "the node to another node",
            Ip::udp(SELF, OTHER_NODE),
            F::NodeToOverlay,
        ),
        ("a pod, translated", Ip::udp(pod, REMOTE_POD), F::StackToOverlay),
        (
            "a pod's later fragment",
            Ip::udp(pod, REMOTE_POD).with_fragment(185),
            F::StackToOverlay,
        ),
        (
            "a pod's ICMP error",
            Ip::icmp(pod, REMOTE_POD, ICMP_UNREACHABLE),
            F::StackToOverlay,
        ),
    ] {
        let (path, expected) = encapsulated(path, &packet);
        let node = &mut bench.cluster.nodes[0];
        let before = node.counts();
        let datapath = &mut node.datapath;
        let packet = Packet::new(overlay, frame(&packet));
        let outcome = node
            .ns
            .netns
            .run(|| datapath.test_run(Program::ToOverlay, &packet).unwrap())
            .unwrap();
        let counted = node.counts().since(&before);
        assert_eq!(
            (outcome.action, outcome.frame, counted),
            (PASS, expected, Counts::default().forward(path, 1)),
            "{row}"
        );
    }
    for (row, packet, reason) in [
        (
            "a stranger",
            Ip::udp(OUTSIDE, REMOTE_POD),
            D::ForeignSourceFromStack,
        ),
        (
            "another node",
            Ip::udp(OTHER_NODE, REMOTE_POD),
            D::ForeignSourceFromStack,
        ),
        (
            "another node's pod",
            Ip::udp(REMOTE_POD, REMOTE_POD),
            D::ForeignSourceFromStack,
        ),
        (
            "an address of the block that no pod has",
            Ip::udp(ABSENT_POD, REMOTE_POD),
            D::ForeignSourceFromStack,
        ),
        (
            "the node to a block that no node has",
            Ip::udp(SELF, NOBODYS),
            D::NoBlock,
        ),
        ("the node to outside", Ip::udp(SELF, OUTSIDE), D::NoOverlayRoute),
        ("the node to itself", Ip::udp(SELF, SELF), D::NoOverlayRoute),
        (
            "the node to a pod of its own",
            Ip::udp(SELF, pod),
            D::NoOverlayRoute,
        ),
    ] {
        bench.check(
            Program::ToOverlay,
            overlay,
            row,
            &frame(&packet),
            &Want::Drop(reason),
        );
    }
    for (row, ethertype, reason) in [("IPv6", 0x86dd, D::Ipv6), ("ARP", ARP, D::EtherType)] {
        let frame = ethernet(OVERLAY_MAC, OVERLAY_MAC, ethertype, &[0; 40]);
        bench.check(Program::ToOverlay, overlay, row, &frame, &Want::Drop(reason));
    }
    let frame = frame(&Ip::udp(REMOTE_POD, pod));
    bench.check(
        Program::FromOverlay,
        overlay,
        "nothing came by a tunnel",
        &frame,
        &Want::Drop(D::NoTunnelKey),
    );
}

#[test]
fn nothing_of_pods_passes_the_uplink_outside_the_overlay() {
    use DropReason as D;
    needs_root!();
    let mut bench = Bench::new();
    let (pod, uplink) = (bench.pod.address, bench.cluster.nodes[0].uplink);
    let host = |number| Ipv4Addr::new(172, 31, 0, number);
    let frame = |source, destination| {
        ethernet(
            Mac([2, 0, 0, 0, 0, 2]),
            Mac([2, 0, 0, 0, 0, 1]),
            IPV4,
            &Ip::udp(source, destination).bytes(),
        )
    };
    for (row, source, destination, want) in [
        ("the node", SELF, OUTSIDE, Want::Ignore),
        (
            "somebody that the node routes for",
            host(7),
            OUTSIDE,
            Want::Ignore,
        ),
        ("a pod", pod, OUTSIDE, Want::Drop(D::UnmasqueradedEgress)),
        (
            "a pod to another node",
            pod,
            OTHER_NODE,
            Want::Drop(D::UnmasqueradedEgress),
        ),
        (
            "another node's pod",
            REMOTE_POD,
            OUTSIDE,
            Want::Drop(D::UnmasqueradedEgress),
        ),
        (
            "nobody's pod address",
            NOBODYS,
            OUTSIDE,
            Want::Drop(D::UnmasqueradedEgress),
        ),
        ("a pod to where pods are known", pod, NATIVE, Want::Ignore),
    ] {
        bench.check(Program::ToUplink, uplink, row, &frame(source, destination), &want);
    }
    for (row, source, destination, want) in [
        ("to the node", OUTSIDE, SELF, Want::Ignore),
        (
            "to somebody that the node routes for",
            OUTSIDE,
            host(7),
            Want::Ignore,
        ),
        ("to a pod", host(7), pod, Want::Drop(D::UnderlayToPod)),
        (
            "to a pod from another node",
            OTHER_NODE,
            pod,
            Want::Drop(D::UnderlayToPod),
        ),
        (
            "to another node's pod",
            OUTSIDE,
            REMOTE_POD,
            Want::Drop(D::UnderlayToPod),
        ),
        ("to a pod from where pods are known", NATIVE, pod, Want::Ignore),
    ] {
        bench.check(
            Program::FromUplink,
            uplink,
            row,
            &frame(source, destination),
            &want,
        );
    }
    for program in [Program::ToUplink, Program::FromUplink] {
        for ethertype in [ARP, 0x86dd, 0x88cc] {
            let frame = ethernet(Mac([0xff; 6]), Mac([2, 0, 0, 0, 0, 1]), ethertype, &[0; 50]);
            bench.check(program, uplink, "no IPv4", &frame, &Want::Ignore);
        }
    }
}

#[test]
fn before_it_is_configured_a_node_drops_what_pods_send() {
    needs_root!();
    let bpffs = Bpffs::new();
    let ns = TestNs::quiet("node");
    let options = weft_kernel::bpf::Options::new(bpffs.path.join("pins"));
    let mut datapath = weft_kernel::bpf::Datapath::load(&options).unwrap();
    assert_eq!(datapath.config().unwrap(), None);
    let (mac, host_mac) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let own = Ipv4Addr::new(10, 244, 0, 1);
    let lo = ns.rtnl().link_index("lo").unwrap();
    let endpoint = weft_kernel::bpf::Endpoint::new(lo, mac, host_mac);
    datapath.endpoints().apply(&own.into(), &endpoint).unwrap();
    let packet = Packet::new(lo, ethernet(host_mac, mac, IPV4, &Ip::udp(own, OUTSIDE).bytes()));
    let outcome = ns
        .netns
        .run(|| datapath.test_run(Program::FromPod, &packet).unwrap())
        .unwrap();
    assert_eq!(
        (
            outcome.action,
            datapath.drops().unwrap()[&DropReason::NoConfig].packets
        ),
        (SHOT, 1)
    );
}
