//! Programs of the overlay device.

use weft_abi::{
    DropReason, ForwardPath, PrefixKind, Vni,
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use crate::{
    pod::{HOST_VNI, ethertype, parse_ipv4, to_peer},
    skb::Skb,
    stack, tables, transport,
    verdict::{Action, Verdict},
};

#[inline(always)]
pub fn try_to_overlay(skb: &mut Skb) -> Verdict {
    // Only a program can have given a packet tunnel parameters before it reaches the device: `from_pod` did, and
    // checked it. What the stack routes here has none.
    if skb.tunnel_key().is_some() {
        return Ok(Action::Ignore);
    }
    require_ipv4(skb)?;
    let ip = parse_ipv4(skb)?;
    let (vni, path) = match tables::kind_of(ip.source) {
        Some(PrefixKind::SelfNode) => (HOST_VNI, ForwardPath::NodeToOverlay),
        Some(PrefixKind::LocalBlock) => {
            let endpoint = tables::endpoint_by_addr(ip.source).ok_or(DropReason::ForeignSourceFromStack)?;
            stack::note(skb, &ip, endpoint)?;
            (Vni::from_raw(endpoint.identity), ForwardPath::StackToOverlay)
        }
        _ => return Err(DropReason::ForeignSourceFromStack),
    };
    match tables::prefix_of(ip.destination) {
        Some((PrefixKind::RemoteBlock | PrefixKind::RemoteNode, prefix)) => {
            transport::encapsulate(skb, prefix.underlay, vni)?;
            Ok(Action::Pass(path))
        }
        Some((PrefixKind::Pool, _)) => Err(DropReason::NoBlock),
        _ => Err(DropReason::NoOverlayRoute),
    }
}

#[inline(always)]
pub fn try_from_overlay(skb: &mut Skb) -> Verdict {
    require_ipv4(skb)?;
    let key = skb.tunnel_key().ok_or(DropReason::NoTunnelKey)?;
    let ip = parse_ipv4(skb)?;
    let from_node = match tables::prefix_of(ip.source) {
        Some((PrefixKind::RemoteBlock, prefix)) if prefix.underlay == key.remote => false,
        Some((PrefixKind::RemoteNode, prefix)) if prefix.underlay == key.remote => true,
        _ if tables::is_node(key.remote) => return Err(DropReason::ForeignSource),
        _ => return Err(DropReason::UnknownNode),
    };
    if key.vni.is_host() != from_node {
        return Err(DropReason::ForgedIdentity);
    }
    if let Some(pod) = tables::endpoint_by_addr(ip.destination) {
        if pod.has_stack_flows() {
            if stack::awaits(skb, &ip)? {
                return to_stack(skb);
            }
            stack::forget(skb, &ip);
        }
        return to_peer(skb, pod, ForwardPath::OverlayToPod);
    }
    match tables::kind_of(ip.destination) {
        Some(PrefixKind::SelfNode) if from_node => Err(DropReason::NodeToNode),
        Some(PrefixKind::SelfNode) => to_stack(skb),
        Some(PrefixKind::LocalBlock) => Err(DropReason::NoEndpoint),
        _ => Err(DropReason::NotForThisNode),
    }
}

#[inline(always)]
fn to_stack(skb: &mut Skb) -> Verdict {
    if !skb.is_for_this_host() {
        skb.set_for_this_host();
    }
    Ok(Action::Pass(ForwardPath::OverlayToStack))
}

#[inline(always)]
fn require_ipv4(skb: &Skb) -> Result<(), DropReason> {
    match ethertype(skb)? {
        ETHERTYPE_IPV4 => Ok(()),
        ETHERTYPE_IPV6 => Err(DropReason::Ipv6),
        _ => Err(DropReason::EtherType),
    }
}
