//! Programs of a pod's host-side veth.

use weft_abi::{
    Address, Config, DropReason, Endpoint, ForwardPath, GATEWAY, Identity, PrefixKind, Vni,
    packet::{
        Arp, ArpOperation, DHCP_SERVER_PORT, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment,
        IPV4_HALFWORDS, Ipv4, PROTOCOL_TCP, PROTOCOL_UDP, wire_len,
    },
};

use crate::{
    skb::Skb,
    stack, tables, transport,
    verdict::{Action, Verdict},
};

#[inline(always)]
pub fn try_from_pod(skb: &mut Skb) -> Verdict {
    let endpoint = tables::endpoint_by_ifindex(skb.ifindex()).ok_or(DropReason::NoEndpoint)?;
    let config = tables::config().ok_or(DropReason::NoConfig)?;
    match ethertype(skb)? {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_ARP => return try_arp(skb, endpoint),
        ETHERTYPE_IPV6 => return Err(DropReason::Ipv6),
        _ => return Err(DropReason::EtherType),
    }
    if !skb.is_for_this_host() {
        return Err(DropReason::NotUnicast);
    }
    let ip = parse_ipv4(skb)?;
    if ip.source_mac != endpoint.mac {
        return Err(DropReason::SpoofedMac);
    }
    if ip.source != endpoint.address {
        return Err(DropReason::SpoofedAddress);
    }
    // Where an interface has `route_localnet` the stack would take it for its own (CVE-2020-8558).
    if ip.destination.is_v4_loopback() {
        return Err(DropReason::Loopback);
    }
    let destination = tables::prefix_of(ip.destination);
    if ip.protocol == PROTOCOL_UDP && ip.fragment != Fragment::Later {
        check_udp(skb, &ip, config, destination.map(|(kind, _)| kind))?;
    }
    if endpoint.has_stack_flows() && stack::awaits(skb, &ip)? {
        return Ok(Action::Pass(ForwardPath::PodToStack));
    }
    match destination {
        Some((PrefixKind::LocalBlock, _)) => match tables::endpoint_by_addr(ip.destination) {
            Some(peer) => {
                if peer.has_stack_flows() {
                    stack::forget(skb, &ip);
                }
                to_peer(skb, peer, ForwardPath::PodToPod)
            }
            // The stack has an unreachable route for the block and tells the sender.
            None => Ok(Action::Pass(ForwardPath::PodToStack)),
        },
        Some((kind @ (PrefixKind::RemoteBlock | PrefixKind::RemoteNode), prefix)) => {
            let len = longest_len(skb, &ip)?;
            let fits = prefix.takes(len);
            if len > config.pod_mtu || !fits {
                match kind {
                    // The stack's routes to the overlay device have these MTUs; it tells the sender or fragments.
                    PrefixKind::RemoteBlock => return Ok(Action::Pass(ForwardPath::PodToStack)),
                    // The stack's route to another node is the uplink, where the packet would fit.
                    _ if len > config.pod_mtu => return Err(DropReason::TooBig),
                    _ => {}
                }
            }
            if endpoint.has_stack_flows() {
                stack::forget(skb, &ip);
            }
            let vni = Vni::from_raw(endpoint.identity);
            if fits {
                transport::send(skb, config, &ip, prefix, vni, ForwardPath::PodToOverlay)
            } else {
                transport::send_in_pieces(skb, config, &ip, prefix.underlay, vni, ForwardPath::PodToOverlay)
            }
        }
        Some((PrefixKind::Pool, _)) => Err(DropReason::NoBlock),
        Some((PrefixKind::SelfNode | PrefixKind::Native, _)) | None => {
            Ok(Action::Pass(ForwardPath::PodToStack))
        }
    }
}

#[inline(always)]
pub fn try_to_pod(skb: &mut Skb) -> Verdict {
    if skb.protocol() != ETHERTYPE_IPV4 {
        // The node's own ARP and IPv6 chatter on the interface; pods cannot send here.
        return Ok(Action::Ignore);
    }
    let ip = parse_ipv4(skb)?;
    if tables::kind_of(ip.source).is_some_and(PrefixKind::bypasses_stack) {
        let endpoint = tables::endpoint_by_ifindex(skb.ifindex()).ok_or(DropReason::NoEndpoint)?;
        stack::note(skb, &ip, endpoint)?;
    }
    Ok(Action::Pass(ForwardPath::StackToPod))
}

/// EtherType of a frame without a VLAN tag.
#[inline(always)]
pub fn ethertype(skb: &Skb) -> Result<u16, DropReason> {
    if skb.has_vlan_tag() {
        Err(DropReason::VlanTag)
    } else {
        Ok(skb.protocol())
    }
}

#[inline(always)]
pub fn parse_ipv4(skb: &mut Skb) -> Result<Ipv4, DropReason> {
    skb.head::<IPV4_HALFWORDS>()
        .and_then(Ipv4::parse)
        .ok_or(DropReason::Malformed)
}

/// Delivers a packet to a pod of this node, past the stack.
#[inline(always)]
pub fn to_peer(skb: &mut Skb, pod: &Endpoint, path: ForwardPath) -> Verdict {
    skb.set_macs(pod.mac, pod.host_mac).ok_or(DropReason::Malformed)?;
    Ok(Action::RedirectPeer(path, pod.ifindex))
}

#[inline(always)]
fn check_udp(
    skb: &Skb,
    ip: &Ipv4,
    config: &Config,
    destination: Option<PrefixKind>,
) -> Result<(), DropReason> {
    let bytes: [u8; 4] = skb.load(ip.transport_offset()).ok_or(DropReason::Malformed)?;
    let [s0, s1, d0, d1] = bytes;
    if u16::from_be_bytes([s0, s1]) == DHCP_SERVER_PORT {
        return Err(DropReason::DhcpServer);
    }
    let to_node = matches!(destination, Some(PrefixKind::SelfNode | PrefixKind::RemoteNode));
    if to_node && u16::from_be_bytes([d0, d1]) == config.vxlan_port {
        return Err(DropReason::TunnelPort);
    }
    Ok(())
}

/// Bytes of IP of the packet, or of its longest segment.
#[inline(always)]
fn longest_len(skb: &Skb, ip: &Ipv4) -> Result<u32, DropReason> {
    let gso_size = skb.gso_size();
    let transport_len = if gso_size == 0 {
        0
    } else if ip.protocol == PROTOCOL_TCP {
        const DATA_OFFSET: u32 = 12;
        let [data_offset] = skb
            .load(ip.transport_offset() + DATA_OFFSET)
            .ok_or(DropReason::Malformed)?;
        u32::from(data_offset >> 4) * 4
    } else {
        8
    };
    Ok(wire_len(skb.len(), gso_size, ip.header_len, transport_len))
}

#[inline(always)]
fn try_arp(skb: &mut Skb, endpoint: &Endpoint) -> Verdict {
    let arp = skb.head().and_then(Arp::parse).ok_or(DropReason::Malformed)?;
    if arp.sender_mac != endpoint.mac || arp.sender != endpoint.address {
        return Err(DropReason::SpoofedArp);
    }
    match arp.operation {
        ArpOperation::Request if arp.target == Address::v4(GATEWAY) => {
            Arp::answer(skb.head_mut().ok_or(DropReason::Malformed)?, endpoint.host_mac);
            Ok(Action::Redirect(ForwardPath::PodArpReply, endpoint.ifindex))
        }
        ArpOperation::Request => Err(DropReason::ArpTarget),
        // The node's stack asked, and the answer is true.
        ArpOperation::Reply => Ok(Action::Pass(ForwardPath::PodToStack)),
    }
}

/// The identity under which the node's own packets cross the overlay.
pub const HOST_VNI: Vni = Vni::of(Identity::HOST);
