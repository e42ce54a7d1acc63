//! The overlay's edges: the largest packet, and packets that nobody may send.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use weft_abi::{DropReason, Identity, Vni};
use weft_kernel::NetNs;
use weft_kernel::rtnl::Rtnl;
use weft_kernel::sockets::{FrameSocket, Ipv4Socket, udp_packet};
use weft_model::Mac;

use super::probe::{self, ARRIVES, bound, expect_silence, same};
use super::scene::{Node, Probe, Scene, end_of};
use super::{Check, Outcome, Trouble};

/// UDP port of the overlay.
const VXLAN_PORT: u16 = 8472;

/// Copies of every forged packet.
const COPIES: u64 = 5;

/// Bytes of an IPv4 header without options, and of a UDP header.
const HEADERS: usize = 28;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];

pub(super) const ALL: &[Check] = &[
    Check {
        name: "mtu-full-packet",
        description: "the largest packet crosses between nodes with DF set",
        run: full_packet,
    },
    Check {
        name: "mtu-plus-one",
        description: "a packet one byte larger is refused with ICMP that names the MTU",
        run: one_byte_more,
    },
    Check {
        name: "forged-by-stranger",
        description: "VXLAN packets of a host that is no node are dropped and counted",
        run: |scene| {
            let (a, b) = (scene.a.pod.address, scene.b()?);
            forged(
                &scene.host.netns,
                &b.node,
                Identity::POD,
                a,
                &b.pod.netns,
                b.pod.address,
                DropReason::UnknownNode,
            )
        },
    },
    Check {
        name: "forged-inner-source",
        description: "a node's VXLAN packets with a source outside its blocks are dropped and counted",
        run: |scene| {
            let (node, b) = (&scene.a.node.machine.netns, scene.b()?);
            let foreign = scene.host.address;
            forged(
                node,
                &b.node,
                Identity::POD,
                foreign,
                &b.pod.netns,
                b.pod.address,
                DropReason::ForeignSource,
            )
        },
    },
    Check {
        name: "forged-identity",
        description: "a pod's packets that claim to be a node's are dropped and counted",
        run: |scene| {
            let (a, b) = (&scene.a, scene.b()?);
            let node = &a.node.machine.netns;
            forged(
                node,
                &b.node,
                Identity::HOST,
                a.pod.address,
                &b.pod.netns,
                b.pod.address,
                DropReason::ForgedIdentity,
            )
        },
    },
    Check {
        name: "forged-to-node",
        description: "a node's VXLAN packets to a node itself are dropped and counted",
        run: |scene| {
            let (a, b) = (&scene.a.node.machine, &scene.b()?.node);
            let target = &b.machine;
            forged(
                &a.netns,
                b,
                Identity::HOST,
                a.address,
                &target.netns,
                target.address,
                DropReason::NodeToNode,
            )
        },
    },
    Check {
        name: "forged-to-elsewhere",
        description: "VXLAN packets for an address beyond the node are dropped and counted",
        run: |scene| {
            let (a, b, host) = (&scene.a, scene.b()?, &scene.host);
            let node = &a.node.machine.netns;
            forged(
                node,
                &b.node,
                Identity::POD,
                a.pod.address,
                &host.netns,
                host.address,
                DropReason::NotForThisNode,
            )
        },
    },
    Check {
        name: "underlay-to-pod",
        description: "packets for a pod that a VNet host sends to its node are dropped and counted",
        run: underlay_to_pod,
    },
    Check {
        name: "spoofed-source-address",
        description: "a pod's packets with another pod's address are dropped and counted",
        run: spoofed_address,
    },
    Check {
        name: "spoofed-source-mac",
        description: "a pod's frames with another MAC address are dropped and counted",
        run: spoofed_mac,
    },
    Check {
        name: "spoofed-arp",
        description: "a pod's ARP messages that claim the gateway's address are dropped and counted",
        run: spoofed_arp,
    },
    Check {
        name: "pod-to-vxlan-port",
        description: "a pod can't send to a node's VXLAN port",
        run: |scene| {
            let (a, b) = (&scene.a, scene.b()?);
            let socket = probe::udp_socket(&a.pod.netns, a.pod.address)?;
            counted(&a.node, DropReason::TunnelPort, || {
                socket.send_to(&[0; 64], (b.node.machine.address, VXLAN_PORT))?;
                Ok(())
            })
        },
    },
    Check {
        name: "cluster-isolation",
        description: "a pod can't reach the pods of another cluster in the VNet, nor its nodes forge",
        run: isolation,
    },
];

fn full_packet(scene: &Scene) -> Outcome {
    let (a, b) = (&scene.a, scene.b()?);
    let mtu = a.pod_end()?.mtu as usize;
    let server = probe::udp_socket(&b.pod.netns, b.pod.address)?;
    let payload = probe::pattern(mtu - HEADERS);
    Ipv4Socket::open(&a.pod.netns)?.send_udp(
        SocketAddrV4::new(a.pod.address, 40_000),
        bound(&server)?,
        &payload,
    )?;
    let mut buffer = vec![0; mtu];
    let length = server.recv(&mut buffer).map_err(|_| {
        Trouble::Failed(format!(
            "{mtu} bytes did not arrive within {} s",
            ARRIVES.as_secs()
        ))
    })?;
    if buffer[..length] != payload {
        return Err(Trouble::Failed("what arrived is not what was sent".to_owned()));
    }
    Ok(format!("{mtu} bytes"))
}

/// The pod's own link refuses such a packet already, so both its ends are made larger meanwhile.
fn one_byte_more(scene: &Scene) -> Outcome {
    let (a, b) = (&scene.a, scene.b()?);
    let (pod, node) = (a.pod_end()?, a.node_end()?);
    let server = probe::udp_socket(&b.pod.netns, b.pod.address)?;
    let size = pod.mtu as usize + 1;
    let packet = udp_packet(
        SocketAddrV4::new(a.pod.address, 40_001),
        bound(&server)?,
        &probe::pattern(size - HEADERS),
    )?;
    let larger = [
        LargerMtu::set(&a.node.machine.netns, node.index, node.mtu, node.mtu + 50)?,
        LargerMtu::set(&a.pod.netns, pod.index, pod.mtu, pod.mtu + 50)?,
    ];
    let link = FrameSocket::open(&a.pod.netns, "eth0")?;
    link.send(&frame(node.mac, pod.mac, ETHERTYPE_IPV4, &packet))?;
    let answer = fragmentation_needed(&link);
    drop(larger);
    expect_silence(&server)?;
    let (from, mtu) = answer?;
    same("the MTU in the ICMP message", u32::from(mtu), pod.mtu)?;
    Ok(format!(
        "{size} bytes: fragmentation needed, MTU {mtu}, says {from}"
    ))
}

/// Waits for ICMP "fragmentation needed" (RFC 792, RFC 1191): who sent it, and the MTU it names.
fn fragmentation_needed(link: &FrameSocket) -> Result<(Ipv4Addr, u16), Trouble> {
    const ETHERNET: usize = 14;
    let began = Instant::now();
    let mut buffer = [0; 2048];
    while began.elapsed() < ARRIVES {
        let Ok(length) = link.receive(&mut buffer, ARRIVES) else {
            break;
        };
        let Some(packet) = buffer[..length].get(ETHERNET..) else {
            continue;
        };
        // IPv4 without options, protocol 1; type 3, code 4; the MTU in the last two bytes of the ICMP header.
        if packet.len() >= 28 && packet[0] == 0x45 && packet[9] == 1 && packet[20..22] == [3, 4] {
            let source = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
            return Ok((source, u16::from_be_bytes([packet[26], packet[27]])));
        }
    }
    Err(Trouble::Failed("no ICMP message came".to_owned()))
}

fn underlay_to_pod(scene: &Scene) -> Outcome {
    let b = scene.b.as_ref().unwrap_or(&scene.a);
    let server = probe::udp_socket(&b.pod.netns, b.pod.address)?;
    let uplink = end_of(&b.node.machine.netns, "eth0")?;
    let own = end_of(&scene.host.netns, "eth0")?;
    let packet = udp_packet(
        SocketAddrV4::new(scene.host.address, 40_002),
        bound(&server)?,
        b"underlay",
    )?;
    let link = FrameSocket::open(&scene.host.netns, "eth0")?;
    let value = counted(&b.node, DropReason::UnderlayToPod, || {
        Ok(link.send(&frame(uplink.mac, own.mac, ETHERTYPE_IPV4, &packet))?)
    })?;
    expect_silence(&server)?;
    Ok(value)
}

fn spoofed_address(scene: &Scene) -> Outcome {
    let (a, target) = (&scene.a, scene.b.as_ref().unwrap_or(&scene.a2));
    let server = probe::udp_socket(&target.pod.netns, target.pod.address)?;
    let raw = Ipv4Socket::open(&a.pod.netns)?;
    let (from, to) = (SocketAddrV4::new(scene.a2.pod.address, 40_003), bound(&server)?);
    let value = counted(&a.node, DropReason::SpoofedAddress, || {
        Ok(raw.send_udp(from, to, b"spoofed")?)
    })?;
    expect_silence(&server)?;
    Ok(value)
}

fn spoofed_mac(scene: &Scene) -> Outcome {
    let (a, target) = (&scene.a, scene.b.as_ref().unwrap_or(&scene.a2));
    let server = probe::udp_socket(&target.pod.netns, target.pod.address)?;
    let packet = udp_packet(
        SocketAddrV4::new(a.pod.address, 40_004),
        bound(&server)?,
        b"spoofed",
    )?;
    let link = FrameSocket::open(&a.pod.netns, "eth0")?;
    let other = Mac([0x02, 0, 0, 0, 0, 0x66]);
    let gateway = a.node_end()?.mac;
    let value = counted(&a.node, DropReason::SpoofedMac, || {
        Ok(link.send(&frame(gateway, other, ETHERTYPE_IPV4, &packet))?)
    })?;
    expect_silence(&server)?;
    Ok(value)
}

fn spoofed_arp(scene: &Scene) -> Outcome {
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    let a: &Probe = &scene.a;
    let (own, gateway) = (a.pod_end()?.mac, a.node_end()?.mac);
    // Ethernet, IPv4, reply (RFC 826): "169.254.1.1 is at" the pod's own MAC address.
    let mut claim = vec![0, 1, 8, 0, 6, 4, 0, 2];
    claim.extend_from_slice(&own.0);
    claim.extend_from_slice(&GATEWAY.octets());
    claim.extend_from_slice(&gateway.0);
    claim.extend_from_slice(&a.pod.address.octets());
    let link = FrameSocket::open(&a.pod.netns, "eth0")?;
    counted(&a.node, DropReason::SpoofedArp, || {
        Ok(link.send(&frame(gateway, own, ETHERTYPE_ARP, &claim))?)
    })
}

fn isolation(scene: &Scene) -> Outcome {
    let Some(neighbour) = &scene.neighbour else {
        return Err(Trouble::Skipped("no other cluster is in the VNet".to_owned()));
    };
    let b = scene.b.as_ref().unwrap_or(&scene.a);
    let forged = forged(
        &neighbour.node.netns,
        &b.node,
        Identity::POD,
        scene.a.pod.address,
        &b.pod.netns,
        b.pod.address,
        DropReason::UnknownNode,
    )?;
    let Some(pod) = &neighbour.pod else {
        return Ok(format!("{} has no pods; its node: {forged}", neighbour.cluster));
    };
    let theirs = probe::udp_socket(&pod.netns, pod.address)?;
    let ours = probe::udp_socket(&scene.a.pod.netns, scene.a.pod.address)?;
    // No route at all is as good an answer as silence.
    let _ = ours.send_to(b"hello", bound(&theirs)?);
    expect_silence(&theirs)?;
    Ok(format!(
        "{} in cluster {} heard nothing; its node: {forged}",
        pod.address, neighbour.cluster
    ))
}

/// Sends VXLAN packets to a node that it has to drop for the reason given; nobody may hear them at their inner
/// destination.
fn forged(
    from: &NetNs,
    node: &Node,
    identity: Identity,
    inner_source: Ipv4Addr,
    target: &NetNs,
    inner_target: Ipv4Addr,
    reason: DropReason,
) -> Outcome {
    let server = probe::udp_socket(target, inner_target)?;
    let inner = udp_packet(
        SocketAddrV4::new(inner_source, 40_005),
        bound(&server)?,
        b"forged",
    )?;
    let overlay = end_of(&node.machine.netns, "weft0")?.mac;
    // A VXLAN device takes a frame with its own address as the source for an echo and drops it unseen.
    let sender = Mac([0x02, 0, 0, 0, 0, 0x77]);
    // RFC 7348, section 5: flags with the VNI bit, reserved, VNI, reserved.
    let vni = Vni::of(identity).raw().to_be_bytes();
    let mut packet = vec![0x08, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    packet.extend(frame(overlay, sender, ETHERTYPE_IPV4, &inner));
    let socket = probe::udp_socket(from, Ipv4Addr::UNSPECIFIED)?;
    let value = counted(node, reason, || {
        socket.send_to(&packet, (node.machine.address, VXLAN_PORT))?;
        Ok(())
    })?;
    expect_silence(&server)?;
    Ok(value)
}

/// Sends something several times and waits until a node has counted as many drops for the reason.
fn counted(node: &Node, reason: DropReason, send: impl Fn() -> Result<(), Trouble>) -> Outcome {
    let before = node.drops()?;
    let count_in = |drops: &super::scene::Drops| drops.get(&reason).copied();
    let Some(first) = count_in(&before) else {
        return Err(Trouble::Failed(format!(
            "the datapath has no counter {}",
            reason.name()
        )));
    };
    for _ in 0..COPIES {
        send()?;
    }
    let began = Instant::now();
    loop {
        let after = node.drops()?;
        let new = count_in(&after).unwrap_or(first) - first;
        if new >= COPIES {
            return Ok(format!("{new} of {COPIES} dropped: {}", reason.name()));
        }
        if began.elapsed() > ARRIVES {
            let others: Vec<String> = after
                .iter()
                .filter_map(|(name, now)| {
                    let new = now - before.get(name).copied().unwrap_or(0);
                    (new > 0).then(|| format!("{} {new}", name.name()))
                })
                .collect();
            let others = if others.is_empty() {
                "none".to_owned()
            } else {
                others.join(", ")
            };
            return Err(Trouble::Failed(format!(
                "{new} of {COPIES} counted as {}; new drops: {others}",
                reason.name()
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An Ethernet frame (IEEE 802.3 clause 3, without checksum).
fn frame(to: Mac, from: Mac, ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&ethertype);
    frame.extend_from_slice(payload);
    frame
}

/// A link's MTU, larger for a while.
struct LargerMtu {
    rtnl: Rtnl,
    link: u32,
    usual: u32,
}

// === impl LargerMtu ===

impl LargerMtu {
    fn set(netns: &NetNs, link: u32, usual: u32, larger: u32) -> Result<Self, Trouble> {
        let mut rtnl = Rtnl::open_in(netns)?;
        rtnl.set_mtu(link, larger)?;
        Ok(Self { rtnl, link, usual })
    }
}

impl Drop for LargerMtu {
    fn drop(&mut self) {
        if let Err(error) = self.rtnl.set_mtu(self.link, self.usual) {
            tracing::warn!(%error, "can't set an MTU back");
        }
    }
}
