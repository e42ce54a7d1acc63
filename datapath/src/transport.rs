//! How a packet gets to another node, and comes from one.
//!
//! `device`: the kernel's VXLAN device in collect-metadata mode writes the outer headers from the parameters set here,
//! and strips them. `direct`: programs do, at the interface where packets enter and leave the node, past that device and
//! the node's stack. On the wire both are the same, and what `direct` cannot do goes by the device, packet by packet.

use weft_abi::{
    Address, Config, DropReason, ForwardPath, OVERLAY_MAC, OVERLAY_SOURCE_MAC, Prefix, Vni,
    packet::{ETHERNET_LEN, ETHERTYPE_IPV4, Ipv4},
    tunnel::{Envelope, Outer, PROTOCOL_HALFWORDS, TUNNELLED_HALFWORDS, carries_udp},
};

use crate::{
    overlay::{self, Recipient},
    pod::to_peer,
    skb::Skb,
    verdict::{Action, Verdict},
};

/// Bytes of the shortest frame that another node sends.
const SHORTEST_TUNNELLED: u32 = 2 * TUNNELLED_HALFWORDS as u32;

/// Sends a packet from outside the overlay device to the node behind `prefix`.
#[inline(always)]
pub fn send(
    skb: &mut Skb,
    config: &Config,
    ip: &Ipv4,
    prefix: &Prefix,
    vni: Vni,
    path: ForwardPath,
) -> Verdict {
    if config.direct_ifindex != 0 && wrap(skb, config, ip, prefix.underlay, vni)? {
        return Ok(Action::RedirectNeighbour(
            path,
            config.direct_ifindex,
            prefix.next_hop,
        ));
    }
    encapsulate(skb, ip, prefix.underlay, vni)?;
    Ok(Action::Redirect(path, config.overlay_ifindex))
}

/// The same for a packet that is longer than the path takes, where nobody would tell its sender: the only outer packets
/// that may be fragmented.
#[inline(always)]
pub fn send_in_pieces(
    skb: &mut Skb,
    config: &Config,
    ip: &Ipv4,
    underlay: Address,
    vni: Vni,
    path: ForwardPath,
) -> Verdict {
    address(skb, ip, underlay, vni, false)?;
    Ok(Action::Redirect(path, config.overlay_ifindex))
}

/// Addresses a packet that is already leaving by the overlay device to the node at `underlay`.
#[inline(always)]
pub fn encapsulate(skb: &mut Skb, ip: &Ipv4, underlay: Address, vni: Vni) -> Result<(), DropReason> {
    address(skb, ip, underlay, vni, true)
}

/// Takes a packet of another node that arrives at the uplink and is for a pod. `None`, and the packet as it was, when it
/// is none, or is the overlay device's to take: for the node's stack, or of a form that only the kernel can strip.
#[inline(always)]
pub fn receive(skb: &mut Skb, config: &Config) -> Result<Option<Action>, DropReason> {
    if !config.is_direct_at(skb.ifindex())
        // Acknowledgements of the node's own and the like, which would be pulled for nothing.
        || skb.len() < SHORTEST_TUNNELLED
        || skb.protocol() != ETHERTYPE_IPV4
        || skb.has_vlan_tag()
        || !skb.is_for_this_host()
    {
        return Ok(None);
    }
    // Of a TCP segment often no more than its headers is linear: less than a tunnel packet's, and pulling the rest costs
    // more than all else here.
    if skb.linear::<TUNNELLED_HALFWORDS>().is_none()
        && skb
            .linear::<PROTOCOL_HALFWORDS>()
            .is_some_and(|frame| !carries_udp(frame))
    {
        return Ok(None);
    }
    let (local, port) = (config.underlay, config.vxlan_port);
    let Some((outer, ip)) = skb.head().and_then(|frame| Outer::parse(frame, local, port)) else {
        return Ok(None);
    };
    // A mark that the inner packet cannot take over is a reason to drop it (RFC 6040 section 4.2), which the device does.
    let marked = outer.is_congested();
    if marked && !ip.is_congestion_capable() {
        return Ok(None);
    }
    let Recipient::Pod(pod) = overlay::judge(&skb.inner(), &ip, outer.remote, outer.vni)? else {
        return Ok(None);
    };
    if skb.shrink().is_none() {
        return Ok(None);
    }
    if marked {
        skb.set_congested();
    }
    to_peer(skb, pod, ForwardPath::OverlayToPod).map(Some)
}

#[inline(always)]
fn address(skb: &mut Skb, ip: &Ipv4, underlay: Address, vni: Vni, whole: bool) -> Result<(), DropReason> {
    skb.set_macs(OVERLAY_MAC, OVERLAY_SOURCE_MAC)
        .ok_or(DropReason::Malformed)?;
    skb.set_tunnel_key(underlay, vni, ip.service, whole)
        .ok_or(DropReason::TunnelKey)
}

/// Puts outer headers around a packet. `false`, and the packet as it was, when the kernel cannot: it is a tunnel's
/// super-packet already, for one.
#[inline(always)]
fn wrap(skb: &mut Skb, config: &Config, ip: &Ipv4, underlay: Address, vni: Vni) -> Result<bool, DropReason> {
    let (Some(source), Some(destination)) = (config.underlay.as_v4(), underlay.as_v4()) else {
        return Ok(false);
    };
    let envelope = Envelope {
        source,
        destination,
        port: config.vxlan_port,
        flow_hash: skb.flow_hash(),
        inner_len: skb.len() - ETHERNET_LEN,
        service: ip.service,
        vni,
    };
    if skb.grow().is_none() {
        return Ok(false);
    }
    skb.write_outer(&envelope.headers())
        .ok_or(DropReason::TunnelKey)?;
    Ok(true)
}
