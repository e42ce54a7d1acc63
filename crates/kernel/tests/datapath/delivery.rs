//! What pods, nodes and strangers can send to each other, and by which path it goes.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use weft_kernel::bpf::ForwardPath;

use crate::echo::{megabyte, tcp_echo, udp_echo};
use crate::needs_root;
use crate::support::{Cluster, Counts};

const PORT: u16 = 7;

fn at(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, PORT)
}

#[test]
fn pods_of_one_node_talk_past_the_stack() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(0, 2));
    let before = cluster.counts();
    let seen = udp_echo(
        &one.ns.netns,
        &two.ns.netns,
        at(two.address),
        at(two.address),
        b"hello",
    )
    .unwrap();
    assert_eq!(seen.ip(), one.address);
    let after = cluster.counts();
    assert_eq!(
        after[0].since(&before[0]),
        Counts::default().forward(ForwardPath::PodToPod, 2)
    );
    tcp_echo(
        &one.ns.netns,
        &two.ns.netns,
        at(two.address),
        at(two.address),
        &megabyte(),
    )
    .unwrap();
}

#[test]
fn pods_of_two_nodes_talk_past_both_stacks() {
    needs_root!();
    let mut cluster = Cluster::new(2);
    let (one, two) = (cluster.pod(0, 1), cluster.pod(1, 2));
    let before = cluster.counts();
    let seen = udp_echo(
        &one.ns.netns,
        &two.ns.netns,
        at(two.address),
        at(two.address),
        b"hello",
    )
    .unwrap();
    assert_eq!(seen.ip(), one.address);
    let each = Counts::default()
        .forward(ForwardPath::PodToOverlay, 1)
        .forward(ForwardPath::OverlayToPod, 1);
    assert_eq!(cluster.since(&before), [each.clone(), each]);
    tcp_echo(
        &one.ns.netns,
        &two.ns.netns,
        at(two.address),
        at(two.address),
        &megabyte(),
    )
    .unwrap();
}

#[test]
fn a_pod_and_its_node_see_each_others_addresses() {
    needs_root!();
    let mut cluster = Cluster::new(1);
    let pod = cluster.pod(0, 1);
    let node = &cluster.nodes[0];
    let seen =
        |client, server, to| -> SocketAddr { udp_echo(client, server, at(to), at(to), b"hello").unwrap() };
    assert_eq!(
        seen(&pod.ns.netns, &node.ns.netns, node.underlay).ip(),
        pod.address
    );
    assert_eq!(
        seen(&node.ns.netns, &pod.ns.netns, pod.address).ip(),
        node.underlay
    );
}
