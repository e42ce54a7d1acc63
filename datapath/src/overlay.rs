//! Programs of the overlay device.

use weft_abi::{
    Address, DropReason, Endpoint, ForwardPath, PrefixKind, Vni,
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4},
};

use crate::{
    pod::{HOST_VNI, ethertype, parse_ipv4, to_peer},
    skb::Skb,
    stack, tables, transport,
    verdict::{Action, Verdict},
};

/// Who a packet from another node is for.
pub enum Recipient {
    /// A pod, past the stack.
    Pod(&'static Endpoint),
    /// The node's stack.
    Stack,
}

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
            transport::encapsulate(skb, &ip, prefix.underlay, vni)?;
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
    match judge(skb, &ip, key.remote, key.vni)? {
        Recipient::Pod(pod) => to_peer(skb, pod, ForwardPath::OverlayToPod),
        Recipient::Stack => {
            if !skb.is_for_this_host() {
                skb.set_for_this_host();
            }
            Ok(Action::Pass(ForwardPath::OverlayToStack))
        }
    }
}

/// Whether a packet that came from the node at `remote` is that node's to send, and who it is for; `skb` without outer
/// headers.
#[inline(always)]
pub fn judge(skb: &Skb, ip: &Ipv4, remote: Address, vni: Vni) -> Result<Recipient, DropReason> {
    let from_node = match tables::prefix_of(ip.source) {
        Some((PrefixKind::RemoteBlock, prefix)) if prefix.underlay == remote => false,
        Some((PrefixKind::RemoteNode, prefix)) if prefix.underlay == remote => true,
        _ if tables::is_node(remote) => return Err(DropReason::ForeignSource),
        _ => return Err(DropReason::UnknownNode),
    };
    if vni.is_host() != from_node {
        return Err(DropReason::ForgedIdentity);
    }
    if let Some(pod) = tables::endpoint_by_addr(ip.destination) {
        if pod.has_stack_flows() {
            if stack::awaits(skb, ip)? {
                return Ok(Recipient::Stack);
            }
            stack::forget(skb, ip);
        }
        return Ok(Recipient::Pod(pod));
    }
    match tables::kind_of(ip.destination) {
        Some(PrefixKind::SelfNode) if from_node => Err(DropReason::NodeToNode),
        Some(PrefixKind::SelfNode) => Ok(Recipient::Stack),
        Some(PrefixKind::LocalBlock) => Err(DropReason::NoEndpoint),
        _ => Err(DropReason::NotForThisNode),
    }
}

#[inline(always)]
fn require_ipv4(skb: &Skb) -> Result<(), DropReason> {
    match ethertype(skb)? {
        ETHERTYPE_IPV4 => Ok(()),
        ETHERTYPE_IPV6 => Err(DropReason::Ipv6),
        _ => Err(DropReason::EtherType),
    }
}
