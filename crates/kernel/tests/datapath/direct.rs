//! Packets whose outer headers programs write and strip, past the overlay device, and beside nodes where it does.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use weft_kernel::bpf::{DropReason, ForwardPath, Identity, PrefixTarget, Transport};
use weft_kernel::sockets::{FrameSocket, udp_packet, udp_socket};
use weft_model::Mac;

use crate::echo::{Echo, megabyte, tcp_echo, udp_echo};
use crate::frames::{IPV4, Ip, ethernet, inner, packet_of, readdressed, vxlan};
use crate::namespaces::TestNs;
use crate::needs_root;
use crate::support::{Cluster, Counts, PATIENCE, Pod, VXLAN_PORT};

const POD: u32 = Identity::POD.get();
const SENDER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const SENDERS_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 9);
const CONGESTED: u8 = 3;

/// Two nodes with a pod each, and what each node's transport is.
fn cluster(direct: [bool; 2]) -> (Cluster, Pod, Pod) {
    let mut cluster = Cluster::new(2);
    for (node, direct) in cluster.nodes.iter_mut().zip(direct) {
        node.switch(if direct {
            Transport::Direct(node.uplink)
        } else {
            Transport::Device
        });
    }
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    (cluster, one, two)
}

fn echo(one: &Pod, two: &Pod) {
    let to = SocketAddrV4::new(two.address, 7);
    tcp_echo(&one.ns.netns, &two.ns.netns, to, to, &megabyte()).unwrap();
}

/// A frame to node 0 that carries another, as `Ip` has it. No UDP checksum, as nodes send them.
fn tunnelled(cluster: &Cluster, remote: Ipv4Addr, frame: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let to = SocketAddrV4::new(cluster.nodes[0].underlay, VXLAN_PORT);
    let mut packet = udp_packet(SocketAddrV4::new(remote, 50_000), to, &vxlan(POD, frame)).unwrap();
    packet[26..28].fill(0);
    change(&mut packet);
    // Checksum of the header, for the rows that change it.
    packet[10..12].fill(0);
    let sum: u32 = packet[..20]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mac = cluster.nodes[0].ns.rtnl().get_link("eth0").unwrap().mac.unwrap();
    ethernet(mac, Mac([2, 0, 0, 0, 0, 9]), IPV4, &packet)
}

/// What node 0 counts when the frame arrives from the wire.
fn counted(cluster: &Cluster, wire: &FrameSocket, frame: &[u8]) -> Counts {
    let before = cluster.nodes[0].counts();
    wire.send(frame).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let moved = cluster.nodes[0].counts().since(&before);
        if moved != Counts::default() || Instant::now() > deadline {
            return moved;
        }
    }
}

#[test]
fn every_mix_of_transports_carries_super_packets_and_single_ones_whole() {
    needs_root!();
    for direct in [[true, true], [true, false], [false, true], [false, false]] {
        let (cluster, one, two) = cluster(direct);
        echo(&one, &two);
        for pod in [&one, &two] {
            pod.ns.exec("ip link set eth0 gso_max_segs 1");
        }
        echo(&one, &two);
        for (node, direct) in cluster.nodes.iter().zip(direct) {
            let [received, sent] = node.by_device();
            assert_eq!(
                (received == 0, sent == 0),
                (direct, direct),
                "{direct}: received {received}, sent {sent}"
            );
        }
    }
}

#[test]
fn a_flow_outlives_every_switch() {
    needs_root!();
    let (mut cluster, one, two) = cluster([false, false]);
    let to = SocketAddrV4::new(two.address, 2000);
    let flow = Echo::start(&one.ns.netns, &two.ns.netns, to, to);
    for node in [0, 1, 0, 1] {
        flow.round_trip();
        let node = &mut cluster.nodes[node];
        let now = node.datapath.config().unwrap().unwrap().transport;
        node.switch(match now {
            Transport::Device => Transport::Direct(node.uplink),
            Transport::Direct(_) => Transport::Device,
        });
    }
    flow.round_trip();
    assert!(cluster.counts().iter().all(|counts| counts.drops.is_empty()));
}

#[test]
fn a_pod_that_forwards_what_it_gets_forwards_it_whole() {
    needs_root!();
    let (_cluster, one, two) = cluster([true, true]);
    let behind = TestNs::quiet("behind");
    two.ns.exec(&format!(
        "ip link add in0 type veth peer name eth0 netns {}",
        behind.name
    ));
    two.ns.exec("ip addr add 192.168.77.1/24 dev in0");
    two.ns.exec("ip link set in0 up");
    two.ns.sysctl("ipv4/ip_forward", "1");
    behind.exec("ip addr add 192.168.77.2/24 dev eth0");
    behind.exec("ip link set eth0 up");
    behind.exec("ip route add default via 192.168.77.1");
    let rules = "table ip nat { chain pre { type nat hook prerouting priority dstnat; tcp dport 7 dnat to 192.168.77.2\n}\n}";
    two.ns.feed("nft -f -", rules);
    let to = SocketAddrV4::new(two.address, 7);
    let listen = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7);
    // Segmented there for one device, and whole for another.
    for size in [65_536, 4000] {
        two.ns.exec(&format!("ip link set in0 gso_max_size {size}"));
        let seen = tcp_echo(&one.ns.netns, &behind.netns, listen, to, &megabyte()).unwrap();
        assert_eq!(seen.ip(), one.address, "{size}");
    }
}

#[test]
fn fragments_and_a_node_whose_neighbours_are_forgotten_lose_nothing() {
    needs_root!();
    let (cluster, one, two) = cluster([true, true]);
    let to = SocketAddrV4::new(two.address, 2000);
    for node in &cluster.nodes {
        node.ns.exec("ip neigh flush dev eth0");
    }
    for length in [100, 9000] {
        udp_echo(&one.ns.netns, &two.ns.netns, to, to, &vec![7; length]).unwrap();
    }
    assert!(cluster.nodes.iter().all(|node| node.by_device() == [0, 0]));
}

#[test]
fn packets_go_to_the_next_hop_of_the_map_and_without_one_where_routes_lead() {
    needs_root!();
    let (mut cluster, one, two) = cluster([true, true]);
    let (node, block) = (cluster.nodes[1].underlay, cluster.nodes[1].block);
    let gateway = Ipv4Addr::new(172, 31, 0, 101);
    let router = cluster.host(1);
    router.sysctl("ipv4/ip_forward", "1");
    for link in ["all", "eth0"] {
        router.sysctl(&format!("ipv4/conf/{link}/send_redirects"), "0");
    }
    let forwarded = || {
        let table = router.exec("cat /proc/net/snmp");
        let mut rows = table.lines().filter(|line| line.starts_with("Ip:"));
        let column = rows
            .next()
            .unwrap()
            .split(' ')
            .position(|name| name == "ForwDatagrams");
        let value = rows.next().unwrap().split(' ').nth(column.unwrap());
        value.unwrap().parse::<u64>().unwrap()
    };
    let to = SocketAddrV4::new(two.address, 2000);
    let by_router = |cluster: &mut Cluster, next_hop| {
        let target = PrefixTarget::RemoteBlock {
            underlay: node.into(),
            mtu: None,
            next_hop,
        };
        cluster.nodes[0].tell(block, target);
        let before = forwarded();
        udp_echo(&one.ns.netns, &two.ns.netns, to, to, b"hello").unwrap();
        forwarded() - before
    };
    assert_eq!(by_router(&mut cluster, None), 0);
    assert_eq!(by_router(&mut cluster, Some(gateway)), 1);
    cluster.nodes[0].ns.exec("ip neigh flush dev eth0");
    assert_eq!(
        by_router(&mut cluster, Some(gateway)),
        1,
        "a neighbour to be found out"
    );
    let route = format!("ip route add {node} via {gateway}");
    cluster.nodes[0].ns.exec(&route);
    assert_eq!(by_router(&mut cluster, None), 1);
    assert_eq!(by_router(&mut cluster, Some(node)), 0);
    assert!(cluster.nodes.iter().all(|node| node.by_device() == [0, 0]));
}

#[test]
fn forged_packets_are_dropped_as_at_the_device() {
    use DropReason as D;
    needs_root!();
    let (cluster, pod, _two) = cluster([true, true]);
    let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
    let udp = |source, destination| inner(&Ip::udp(source, destination));
    let nobody = Ipv4Addr::new(172, 31, 0, 77);
    for (row, remote, frame, reason) in [
        (
            "a stranger",
            nobody,
            udp(SENDERS_POD, pod.address),
            D::UnknownNode,
        ),
        (
            "a foreign source",
            SENDER,
            udp(pod.address, pod.address),
            D::ForeignSource,
        ),
        (
            "a node as a pod",
            SENDER,
            udp(SENDER, pod.address),
            D::ForgedIdentity,
        ),
        (
            "for nobody",
            SENDER,
            udp(SENDERS_POD, Ipv4Addr::new(10, 244, 0, 99)),
            D::NoEndpoint,
        ),
        (
            "for another node",
            SENDER,
            udp(SENDERS_POD, Ipv4Addr::new(10, 244, 2, 9)),
            D::NotForThisNode,
        ),
    ] {
        let moved = counted(&cluster, &wire, &tunnelled(&cluster, remote, &frame, |_| {}));
        assert_eq!(moved, Counts::default().drop(reason, 1), "{row}");
    }
    assert_eq!(cluster.nodes[0].by_device(), [0, 0]);
}

#[test]
fn what_programs_do_not_strip_the_device_does() {
    needs_root!();
    let (cluster, pod, _two) = cluster([true, true]);
    let _listener = udp_socket(&pod.ns.netns, SocketAddrV4::new(pod.address, 2000).into()).unwrap();
    let eth0 = FrameSocket::open(&pod.ns.netns, "eth0").unwrap();
    let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
    let frame = inner(&Ip::udp(SENDERS_POD, pod.address));
    let mut buffer = [0; 2048];
    for (received, wire_frame) in [
        (0, tunnelled(&cluster, SENDER, &frame, |_| {})),
        // Fragments of one packet would be a second frame; without DF it is whole.
        (0, tunnelled(&cluster, SENDER, &frame, |packet| packet[6] = 0)),
        (
            1,
            tunnelled(&cluster, SENDER, &frame, |packet| {
                // The sum that a node with checksums would send.
                let to = SocketAddrV4::new(cluster.nodes[0].underlay, VXLAN_PORT);
                let summed = udp_packet(SocketAddrV4::new(SENDER, 50_000), to, &packet[28..]).unwrap();
                packet.copy_from_slice(&summed);
            }),
        ),
    ] {
        let before = cluster.nodes[0].by_device()[0];
        let moved = counted(&cluster, &wire, &wire_frame);
        assert_eq!(moved, Counts::default().forward(ForwardPath::OverlayToPod, 1));
        let length = eth0.receive(&mut buffer, PATIENCE).unwrap();
        assert_eq!(
            buffer[..length],
            readdressed(&frame, pod.endpoint.mac, pod.endpoint.host_mac)
        );
        assert_eq!(cluster.nodes[0].by_device()[0] - before, received);
    }
}

#[test]
fn congestion_marked_on_the_way_reaches_who_understands_it() {
    needs_root!();
    let (cluster, pod, _two) = cluster([true, true]);
    let _listener = udp_socket(&pod.ns.netns, SocketAddrV4::new(pod.address, 2000).into()).unwrap();
    let eth0 = FrameSocket::open(&pod.ns.netns, "eth0").unwrap();
    let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
    let packet = Ip::udp(SENDERS_POD, pod.address).bytes();
    let mut buffer = [0; 2048];
    for (service, marked) in [(0x02, 0x03), (0xb9, 0xbb), (0x03, 0x03)] {
        let mut capable = packet.clone();
        capable[1] = service;
        // One's complement arithmetic: what the byte grew by, the sum shrinks by.
        let sum = u32::from(u16::from_be_bytes([capable[10], capable[11]])) + 0xffff - u32::from(service);
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        capable[10..12].copy_from_slice(&sum.to_be_bytes());
        let frame = inner(&Ip::udp(SENDERS_POD, pod.address))[..14].to_vec();
        let frame = [frame, capable].concat();
        let wire_frame = tunnelled(&cluster, SENDER, &frame, |packet| packet[1] = CONGESTED);
        let moved = counted(&cluster, &wire, &wire_frame);
        assert_eq!(moved, Counts::default().forward(ForwardPath::OverlayToPod, 1));
        let length = eth0.receive(&mut buffer, PATIENCE).unwrap();
        let arrived = packet_of(&buffer[..length]);
        assert_eq!(arrived[1], marked, "{service:#x}");
        let sum: u32 = arrived[..20]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        assert_eq!(
            (sum & 0xffff) + (sum >> 16),
            0xffff,
            "{service:#x}: header checksum"
        );
    }
    assert_eq!(cluster.nodes[0].by_device(), [0, 0]);
}

#[test]
fn the_outer_header_has_the_inner_ones_class_and_a_port_of_its_flow() {
    needs_root!();
    for direct in [true, false] {
        let (cluster, one, two) = cluster([direct, true]);
        let wire = FrameSocket::open(&cluster.nodes[1].ns.netns, "eth0").unwrap();
        let mut ports = std::collections::BTreeSet::new();
        let raw = weft_kernel::sockets::Ipv4Socket::open(&one.ns.netns).unwrap();
        for source in 1000..1016 {
            let from = SocketAddrV4::new(one.address, source);
            let mut packet = udp_packet(from, SocketAddrV4::new(two.address, 2000), b"hello").unwrap();
            packet[1] = 0xba;
            for _ in 0..2 {
                raw.send(&packet, two.address).unwrap();
                let mut buffer = [0; 2048];
                let outer = loop {
                    let length = wire.receive(&mut buffer, PATIENCE).unwrap();
                    let packet = packet_of(&buffer[..length]);
                    if buffer[12..14] == IPV4.to_be_bytes()
                        && packet[9] == 17
                        && packet[12..16] == [172, 31, 0, 1]
                    {
                        break packet.to_vec();
                    }
                };
                assert_eq!(outer[1], 0xba, "direct: {direct}");
                ports.insert((source, u16::from_be_bytes([outer[20], outer[21]])));
            }
        }
        assert_eq!(ports.len(), 16, "a flow keeps its port");
        let different: std::collections::BTreeSet<_> = ports.iter().map(|(_, port)| port).collect();
        assert!(different.len() > 8, "{ports:?}");
    }
}
