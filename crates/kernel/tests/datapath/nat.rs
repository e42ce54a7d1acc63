//! NAT rules in the node's stack, as kube-proxy makes them, beside a datapath that avoids the stack.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};

use weft_kernel::NetNs;
use weft_kernel::bpf::{ForwardPath, Options};
use weft_kernel::sockets::{tcp_connect, tcp_listener, udp_socket};

use crate::echo::{Echo, megabyte, tcp_echo, udp_echo};
use crate::needs_root;
use crate::support::{Cluster, Counts, PATIENCE, Pod};

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 80);
const NODE_PORT: u16 = 30_080;
const BACKEND: u16 = 8080;

fn backend(pod: &Pod) -> SocketAddrV4 {
    SocketAddrV4::new(pod.address, BACKEND)
}

fn to_vip(pod: &Pod) -> String {
    let to = backend(pod);
    format!(
        "ip daddr {} meta l4proto {{ tcp, udp }} th dport {} dnat to {to}",
        VIP.ip(),
        VIP.port()
    )
}

fn to_node_port(node: Ipv4Addr, pod: &Pod) -> String {
    let to = backend(pod);
    format!("ip daddr {node} meta l4proto {{ tcp, udp }} th dport {NODE_PORT} dnat to {to}")
}

/// TCP and UDP from `client` to `to`, which rules turn to `server`. Twice, because the second time every note of a flow
/// is already there. Returns the client's address as the server saw it.
fn round_trips(client: &NetNs, server: &Pod, to: SocketAddrV4) -> Ipv4Addr {
    let listen = backend(server);
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(udp_echo(client, &server.ns.netns, listen, to, b"hello").unwrap());
        seen.push(tcp_echo(client, &server.ns.netns, listen, to, &megabyte()).unwrap());
    }
    let addresses: Vec<_> = seen.iter().map(std::net::SocketAddr::ip).collect();
    assert!(
        addresses.windows(2).all(|pair| pair[0] == pair[1]),
        "{addresses:?}"
    );
    match addresses[0] {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(address) => panic!("{address}"),
    }
}

fn no_drops(cluster: &Cluster) {
    for counts in cluster.counts() {
        assert_eq!(counts.drops, Counts::default().drops);
    }
}

#[test]
fn a_service_leads_to_a_pod_of_the_same_node() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let (client, server) = (cluster.pod(0, 1), cluster.pod(0, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    assert_eq!(round_trips(&client.ns.netns, &server, VIP), client.address);
    no_drops(&cluster);
}

#[test]
fn a_service_leads_to_a_pod_of_another_node() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (client, server) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    assert_eq!(round_trips(&client.ns.netns, &server, VIP), client.address);
    no_drops(&cluster);
}

#[test]
fn a_service_leads_a_pod_back_to_itself() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let pod = cluster.pod(0, 1);
    let node = &cluster.nodes[0];
    node.dnat(&to_vip(&pod));
    node.snat(&format!("ip saddr {0} ip daddr {0} masquerade", pod.address));
    assert_eq!(round_trips(&pod.ns.netns, &pod, VIP), node.underlay);
    no_drops(&cluster);
}

#[test]
fn a_node_reaches_services_with_pods_here_and_there() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (here, there) = (cluster.pod(0, 1), cluster.pod(1, 2));
    let node = &cluster.nodes[0];
    node.dnat(&to_vip(&here));
    assert_eq!(round_trips(&node.ns.netns, &here, VIP), node.underlay);
    node.dnat(&to_vip(&there));
    assert_eq!(round_trips(&node.ns.netns, &there, VIP), node.underlay);
    no_drops(&cluster);
}

#[test]
fn a_node_port_leads_a_stranger_to_a_pod_of_the_node_under_his_own_address() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let server = cluster.pod(0, 1);
    let stranger = cluster.host(1);
    let node = &cluster.nodes[0];
    node.dnat(&to_node_port(node.underlay, &server));
    let to = SocketAddrV4::new(node.underlay, NODE_PORT);
    assert_eq!(
        round_trips(&stranger.netns, &server, to),
        Ipv4Addr::new(172, 31, 0, 101)
    );
    no_drops(&cluster);
}

#[test]
fn a_node_port_leads_a_stranger_to_a_pod_of_another_node_under_the_nodes_address() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let server = cluster.pod(1, 2);
    let stranger = cluster.host(1);
    let node = &cluster.nodes[0];
    node.dnat(&to_node_port(node.underlay, &server));
    let to = SocketAddrV4::new(node.underlay, NODE_PORT);
    assert_eq!(round_trips(&stranger.netns, &server, to), node.underlay);
    no_drops(&cluster);
}

#[test]
fn a_pod_uses_the_node_port_of_another_node_to_a_pod_there_to_a_third_node_and_back_to_its_own() {
    needs_root!();
    let mut cluster = Cluster::new(3);
    let client = cluster.pod(0, 1);
    let (there, third, home) = (cluster.pod(1, 2), cluster.pod(2, 3), cluster.pod(0, 4));
    let node = &cluster.nodes[1];
    let to = SocketAddrV4::new(node.underlay, NODE_PORT);
    node.dnat(&to_node_port(node.underlay, &there));
    assert_eq!(round_trips(&client.ns.netns, &there, to), client.address);
    for server in [&third, &home] {
        node.dnat(&to_node_port(node.underlay, server));
        assert_eq!(round_trips(&client.ns.netns, server, to), node.underlay);
    }
    no_drops(&cluster);
}

#[test]
fn a_pod_uses_the_node_port_of_its_own_node() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (client, here, there) = (cluster.pod(0, 1), cluster.pod(0, 2), cluster.pod(1, 3));
    let node = &cluster.nodes[0];
    let to = SocketAddrV4::new(node.underlay, NODE_PORT);
    for server in [&here, &there] {
        node.dnat(&to_node_port(node.underlay, server));
        assert_eq!(round_trips(&client.ns.netns, server, to), client.address);
    }
    no_drops(&cluster);
}

#[test]
fn flows_beside_a_translated_one_stay_on_the_fast_path() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (client, server) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    round_trips(&client.ns.netns, &server, VIP);
    assert_eq!(
        cluster.nodes[0].datapath.endpoints().with_stack_flows().unwrap(),
        [client.address]
    );
    assert!(
        cluster.nodes[1]
            .datapath
            .endpoints()
            .with_stack_flows()
            .unwrap()
            .is_empty()
    );
    let before = cluster.counts();
    let to = backend(&server);
    udp_echo(&client.ns.netns, &server.ns.netns, to, to, b"straight").unwrap();
    let each = Counts::default()
        .forward(ForwardPath::PodToOverlay, 1)
        .forward(ForwardPath::OverlayToPod, 1);
    assert_eq!(cluster.since(&before), [each.clone(), each]);
}

#[test]
fn a_direct_flow_in_the_place_of_a_translated_one_passes_both_stacks_by() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (client, server) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    let listen = backend(&server);
    let listening = udp_socket(&server.ns.netns, listen.into()).unwrap();
    // One socket, so that both flows have the same ports.
    let sending = udp_socket(&client.ns.netns, SocketAddrV4::new(client.address, 5000).into()).unwrap();
    for socket in [&listening, &sending] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let round_trip = |to: SocketAddrV4| {
        let mut buffer = [0; 16];
        sending.send_to(b"hello", to).unwrap();
        let (length, peer) = listening.recv_from(&mut buffer).unwrap();
        listening.send_to(&buffer[..length], peer).unwrap();
        sending.recv_from(&mut buffer).unwrap().1
    };
    for _ in 0..2 {
        assert_eq!(round_trip(VIP), VIP.into());
        let before = cluster.counts();
        assert_eq!(round_trip(listen), listen.into());
        let each = Counts::default()
            .forward(ForwardPath::PodToOverlay, 1)
            .forward(ForwardPath::OverlayToPod, 1);
        assert_eq!(cluster.since(&before), [each.clone(), each]);
    }
}

#[test]
fn a_service_carries_datagrams_of_many_fragments_and_direct_ones_still_pass_both_stacks_by() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (client, server) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    let (listen, long) = (backend(&server), vec![0x5a; 4000]);
    for _ in 0..2 {
        udp_echo(&client.ns.netns, &server.ns.netns, listen, VIP, &long).unwrap();
    }
    let before = cluster.counts();
    udp_echo(&client.ns.netns, &server.ns.netns, listen, listen, &long).unwrap();
    let each = Counts::default()
        .forward(ForwardPath::PodToOverlay, 3)
        .forward(ForwardPath::OverlayToPod, 3);
    assert_eq!(cluster.since(&before), [each.clone(), each]);
    no_drops(&cluster);
}

#[test]
fn who_asks_a_closed_port_is_told_through_a_service_and_directly() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (client, server) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    let refused = |to: SocketAddrV4| {
        let asking = udp_socket(&client.ns.netns, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        asking.set_read_timeout(Some(PATIENCE)).unwrap();
        asking.connect(to).unwrap();
        asking.send(b"anybody there?").unwrap();
        asking.recv(&mut [0; 16]).unwrap_err().kind()
    };
    assert_eq!(refused(VIP), ErrorKind::ConnectionRefused);
    let before = cluster.counts();
    assert_eq!(refused(backend(&server)), ErrorKind::ConnectionRefused);
    let each = Counts::default()
        .forward(ForwardPath::PodToOverlay, 1)
        .forward(ForwardPath::OverlayToPod, 1);
    assert_eq!(cluster.since(&before), [each.clone(), each]);
    no_drops(&cluster);
}

#[test]
fn a_flow_in_use_outlives_more_others_than_there_is_room_for() {
    needs_root!();
    let mut cluster = Cluster::with(2, |options| Options {
        stack_flows: Some(1024),
        ..options
    });
    let (client, server) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    let living = Echo::start(&client.ns.netns, &server.ns.netns, backend(&server), VIP);
    for _ in 0..40 {
        for _ in 0..100 {
            let other = udp_socket(&client.ns.netns, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
            other.send_to(b"", VIP).unwrap();
        }
        living.round_trip();
    }
    no_drops(&cluster);
}

#[test]
fn a_connection_at_rest_hears_its_server_after_more_queries_than_there_is_room_for() {
    needs_root!();
    let mut cluster = Cluster::with(2, |options| Options {
        stack_flows: Some(1024),
        ..options
    });
    let (client, server) = (cluster.pod(0, 1), cluster.pod(1, 2));
    cluster.nodes[0].dnat(&to_vip(&server));
    let listener = tcp_listener(&server.ns.netns, backend(&server).into()).unwrap();
    let mut hearing = tcp_connect(&client.ns.netns, VIP.into(), PATIENCE).unwrap();
    let (mut speaking, _) = listener.accept().unwrap();
    let answering = udp_socket(&server.ns.netns, backend(&server).into()).unwrap();
    answering.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut query = [0; 5];
    for _ in 0..5000 {
        let asking = udp_socket(&client.ns.netns, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        asking.set_read_timeout(Some(PATIENCE)).unwrap();
        asking.connect(VIP).unwrap();
        asking.send(b"where").unwrap();
        let (_, peer) = answering.recv_from(&mut query).unwrap();
        answering.send_to(b"there", peer).unwrap();
        asking.recv(&mut query).unwrap();
    }
    speaking.write_all(b"unasked").unwrap();
    hearing.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 7];
    hearing.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"unasked");
    no_drops(&cluster);
}
