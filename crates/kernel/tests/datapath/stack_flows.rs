//! How the programs tell the flows that the node's stack translates from those that it does not.

use weft_kernel::bpf::{DropReason, ForwardPath, Program};

use crate::bench::{Bench, ICMP_UNREACHABLE, MORE_FRAGMENTS, NATIVE, OTHER_NODE, OUTSIDE, SELF, TCP, Want};
use crate::frames::{IPV4, Ip, ethernet};
use crate::needs_root;
use crate::support::VXLAN_PORT;

const ICMP_ECHO: u8 = 8;

#[test]
fn replies_of_translated_flows_and_only_those_go_up_the_stack() {
    use ForwardPath as F;
    needs_root!();
    let mut bench = Bench::new();
    let (pod, peer) = (bench.pod.address, bench.peer.address);
    let (at_pod, at_peer) = (bench.pod.endpoint, bench.peer.endpoint);
    let from_pod = |source: weft_kernel::bpf::Endpoint, packet: &Ip| {
        ethernet(source.host_mac, source.mac, IPV4, &packet.bytes())
    };
    let to_pod = |packet: &Ip| ethernet(at_pod.mac, at_pod.host_mac, IPV4, &packet.bytes());
    let fast = Want::Redirect(F::PodToPod, at_peer.mac, at_peer.host_mac);
    let slow = Want::Pass(F::PodToStack);
    let reply = Ip::udp_ports(pod, 2000, peer, 1000);

    bench.check(
        Program::FromPod,
        at_pod.ifindex,
        "before",
        &from_pod(at_pod, &reply),
        &fast,
    );
    for (row, source) in [("the node", SELF), ("outside", OUTSIDE), ("native", NATIVE)] {
        let frame = to_pod(&Ip::udp(source, pod));
        bench.check(
            Program::ToPod,
            at_pod.ifindex,
            row,
            &frame,
            &Want::Pass(F::StackToPod),
        );
    }
    assert!(
        bench.cluster.nodes[0]
            .datapath
            .endpoints()
            .with_stack_flows()
            .unwrap()
            .is_empty()
    );

    // The peer's packet comes out of the stack: something there has turned it to the pod.
    let frame = to_pod(&Ip::udp(peer, pod));
    bench.check(
        Program::ToPod,
        at_pod.ifindex,
        "translated",
        &frame,
        &Want::Pass(F::StackToPod),
    );
    assert_eq!(
        bench.cluster.nodes[0]
            .datapath
            .endpoints()
            .with_stack_flows()
            .unwrap(),
        [pod]
    );
    for (row, packet, want) in [
        ("its reply", reply.clone(), &slow),
        (
            "its reply behind IP options",
            reply.clone().with_options(4),
            &slow,
        ),
        ("another flow", Ip::udp_ports(pod, 2001, peer, 1000), &fast),
        ("the same direction", Ip::udp_ports(pod, 1000, peer, 2000), &fast),
        (
            "the same ports of TCP",
            Ip {
                protocol: TCP,
                ..reply.clone()
            },
            &fast,
        ),
        ("an ICMP query", Ip::icmp(pod, peer, ICMP_ECHO), &fast),
    ] {
        bench.check(
            Program::FromPod,
            at_pod.ifindex,
            row,
            &from_pod(at_pod, &packet),
            want,
        );
    }
    let to_tunnel_port = Ip::udp_ports(pod, 9, OTHER_NODE, VXLAN_PORT).with_fragment(MORE_FRAGMENTS);
    let frame = from_pod(at_pod, &to_tunnel_port);
    let want = Want::Drop(DropReason::TunnelPort);
    bench.check(
        Program::FromPod,
        at_pod.ifindex,
        "a fragment to a tunnel port",
        &frame,
        &want,
    );

    // Its other end has no note of its own and sends as before.
    let frame = from_pod(at_peer, &Ip::udp(peer, pod));
    let want = Want::Redirect(F::PodToPod, at_pod.mac, at_pod.host_mac);
    bench.check(Program::FromPod, at_peer.ifindex, "the other end", &frame, &want);
}

#[test]
fn a_note_is_forgotten_when_a_packet_of_its_flow_passes_the_stack_by_or_comes_back_untranslated() {
    use ForwardPath as F;
    needs_root!();
    let mut bench = Bench::new();
    let (pod, peer) = (bench.pod.address, bench.peer.address);
    let (at_pod, at_peer) = (bench.pod.endpoint, bench.peer.endpoint);
    let from = |source: weft_kernel::bpf::Endpoint, packet: &Ip| {
        ethernet(source.host_mac, source.mac, IPV4, &packet.bytes())
    };
    let to = |target: weft_kernel::bpf::Endpoint, packet: &Ip| {
        ethernet(target.mac, target.host_mac, IPV4, &packet.bytes())
    };
    let fast = |target: weft_kernel::bpf::Endpoint| Want::Redirect(F::PodToPod, target.mac, target.host_mac);
    let up = || Want::Pass(F::PodToStack);
    let down = || Want::Pass(F::StackToPod);
    let request = Ip::udp(peer, pod);
    let reply = Ip::udp_ports(pod, 2000, peer, 1000);
    let echo = Ip::icmp(peer, pod, ICMP_ECHO);

    // The peer speaks to the pod through a service, then directly from the same port.
    let (sent, answered) = (from(at_peer, &request), from(at_pod, &reply));
    bench.check(
        Program::ToPod,
        at_pod.ifindex,
        "translated",
        &to(at_pod, &request),
        &down(),
    );
    bench.check(Program::FromPod, at_pod.ifindex, "its reply", &answered, &up());
    for (row, packet) in [
        ("another flow", Ip::udp_ports(peer, 1001, pod, 2000)),
        ("a fragment", request.clone().with_fragment(MORE_FRAGMENTS)),
        ("a query", echo.clone()),
    ] {
        let frame = from(at_peer, &packet);
        bench.check(Program::FromPod, at_peer.ifindex, row, &frame, &fast(at_pod));
        bench.check(Program::FromPod, at_pod.ifindex, row, &answered, &up());
    }
    bench.check(Program::FromPod, at_peer.ifindex, "direct", &sent, &fast(at_pod));
    bench.check(
        Program::FromPod,
        at_pod.ifindex,
        "its direct reply",
        &answered,
        &fast(at_peer),
    );

    // The peer's first packet went up the stack although nothing there translates it.
    bench.check(
        Program::ToPod,
        at_pod.ifindex,
        "too early",
        &to(at_pod, &request),
        &down(),
    );
    bench.check(Program::FromPod, at_pod.ifindex, "its reply", &answered, &up());
    bench.check(
        Program::ToPod,
        at_peer.ifindex,
        "its reply, untranslated",
        &to(at_peer, &reply),
        &down(),
    );
    bench.check(
        Program::FromPod,
        at_peer.ifindex,
        "the second",
        &sent,
        &fast(at_pod),
    );
    bench.check(
        Program::FromPod,
        at_pod.ifindex,
        "its reply",
        &answered,
        &fast(at_peer),
    );
}

#[test]
fn fragments_go_where_the_first_of_their_packet_goes() {
    needs_root!();
    let mut bench = Bench::new();
    let (pod, peer) = (bench.pod.address, bench.peer.address);
    let (at_pod, at_peer) = (bench.pod.endpoint, bench.peer.endpoint);
    let frame = |packet: &Ip| ethernet(at_pod.host_mac, at_pod.mac, IPV4, &packet.bytes());
    let fast = Want::Redirect(ForwardPath::PodToPod, at_peer.mac, at_peer.host_mac);
    let up = Want::Pass(ForwardPath::PodToStack);
    note(&mut bench, &Ip::udp(peer, pod));
    let reply = Ip::udp_ports(pod, 2000, peer, 1000);
    let direct = Ip::udp(pod, peer);
    let first = |packet: &Ip, id| frame(&packet.clone().with_id(id).with_fragment(MORE_FRAGMENTS));
    let later = |id, fragment| frame(&direct.clone().with_id(id).with_fragment(fragment));
    let tcp = Ip {
        protocol: TCP,
        ..direct.clone()
    };
    for (row, frame, want) in [
        ("a later one without a first", later(7, 185), &fast),
        ("the first of a reply", first(&reply, 7), &up),
        ("its second", later(7, MORE_FRAGMENTS | 185), &up),
        ("its last", later(7, 370), &up),
        ("the first of another flow", first(&direct, 8), &fast),
        ("its last", later(8, 185), &fast),
        ("another of TCP", frame(&tcp.with_id(7).with_fragment(185)), &fast),
        ("the number again for another flow", first(&direct, 7), &fast),
        ("its last", later(7, 185), &fast),
        (
            "the first of a reply behind options",
            first(&reply.clone().with_options(10), 9),
            &up,
        ),
        ("its last", later(9, 185), &up),
    ] {
        bench.check(Program::FromPod, at_pod.ifindex, row, &frame, want);
    }
}

#[test]
fn icmp_errors_go_where_the_packets_go_that_they_are_about() {
    needs_root!();
    let mut bench = Bench::new();
    let (pod, peer) = (bench.pod.address, bench.peer.address);
    let (at_pod, at_peer) = (bench.pod.endpoint, bench.peer.endpoint);
    let fast = Want::Redirect(ForwardPath::PodToPod, at_peer.mac, at_peer.host_mac);
    let up = Want::Pass(ForwardPath::PodToStack);
    let request = Ip::udp(peer, pod);
    note(&mut bench, &request);
    let reply = Ip::udp_ports(pod, 2000, peer, 1000);
    let bytes = request.bytes();
    let tampered = |at: usize, byte| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    let error = |quoted: &[u8]| Ip::icmp_about(pod, peer, ICMP_UNREACHABLE, quoted);
    for (row, packet, want) in [
        ("the request", error(&bytes), &up),
        ("its first eight bytes", error(&bytes[..28]), &up),
        ("less of it", error(&bytes[..27]), &fast),
        ("less than its header", error(&bytes[..19]), &fast),
        ("nothing", error(&[]), &fast),
        (
            "the request behind options",
            error(&request.clone().with_options(10).bytes()),
            &up,
        ),
        (
            "the request, behind options of the error",
            error(&bytes).with_options(10),
            &up,
        ),
        ("the reply", error(&reply.bytes()), &up),
        (
            "its first fragment",
            error(&request.clone().with_fragment(MORE_FRAGMENTS).bytes()),
            &up,
        ),
        (
            "a later fragment",
            error(&request.clone().with_fragment(185).bytes()),
            &fast,
        ),
        (
            "another flow",
            error(&Ip::udp_ports(peer, 1001, pod, 2000).bytes()),
            &fast,
        ),
        ("another protocol", error(&tampered(9, TCP)), &fast),
        ("another IP version", error(&tampered(0, 0x65)), &fast),
        ("half an IP header", error(&tampered(0, 0x42)), &fast),
        ("an ICMP error", error(&error(&bytes).bytes()), &fast),
    ] {
        let frame = ethernet(at_pod.host_mac, at_pod.mac, IPV4, &packet.bytes());
        bench.check(Program::FromPod, at_pod.ifindex, row, &frame, want);
    }
}

/// Lets a packet come out of the stack to the pod.
fn note(bench: &mut Bench, packet: &Ip) {
    let pod = bench.pod.endpoint;
    let frame = ethernet(pod.mac, pod.host_mac, IPV4, &packet.bytes());
    let want = Want::Pass(ForwardPath::StackToPod);
    bench.check(Program::ToPod, pod.ifindex, "translated", &frame, &want);
}
