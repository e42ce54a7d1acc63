//! Flows that the node's stack carries because something there translates them, beside programs that avoid the stack.
//!
//! A packet that comes out of the stack although a program would have sent it past the stack was translated there. Its
//! flow is noted, and packets of the other direction go up the stack to be translated back. A note is wrong, or no
//! longer right, when a packet of its flow comes from where packets are not translated; then it is forgotten.

use weft_abi::{
    DropReason, Endpoint, FlowKey,
    packet::{Fragment, Ipv4, Quoted, Transport},
};

use crate::{skb::Skb, tables};

/// Notes the flow of a packet that comes out of the stack, to or from `endpoint`.
///
/// Unless the other direction is noted: then this is a reply that went up the stack for that note, and nothing there
/// translated it back. The first packets to a pod that is being wired leave such notes: they go up the stack because
/// there is no endpoint yet, and come out as they were when there is one. Two such notes would keep each other alive.
#[inline(always)]
pub fn note(skb: &Skb, ip: &Ipv4, endpoint: &Endpoint) -> Result<(), DropReason> {
    if let Some(flow) = flow_of(skb, ip)?
        && !tables::forget_stack_flow(&flow.reversed())
    {
        tables::note_stack_flow(&flow, endpoint);
    }
    Ok(())
}

/// Whether the stack has to see a packet of an endpoint with stack flows: a reply of such a flow, or an ICMP error
/// about a packet of it.
///
/// Later fragments go where the first went; one that overtakes it goes past the stack and is lost to a reply.
#[inline(always)]
pub fn awaits(skb: &Skb, ip: &Ipv4) -> Result<bool, DropReason> {
    if ip.fragment == Fragment::Later {
        return Ok(tables::is_stack_fragment(&ip.fragment_key()));
    }
    let up = match transport_of(skb, ip)? {
        Transport::Ports { source, destination } => {
            tables::is_stack_flow(&ip.flow(source, destination).reversed())
        }
        Transport::IcmpError => quoted_flow(skb, ip)
            .is_some_and(|flow| tables::is_stack_flow(&flow) || tables::is_stack_flow(&flow.reversed())),
    };
    if ip.fragment == Fragment::First {
        tables::set_stack_fragment(&ip.fragment_key(), up);
    }
    Ok(up)
}

/// Forgets the note of a packet's flow, for the packet passes the stack by: what the stack translated has ended, and
/// both ends speak to each other directly.
///
/// Should the translated flow live nevertheless, its next packet out of the stack notes it again.
#[inline(always)]
pub fn forget(skb: &Skb, ip: &Ipv4) {
    if ip.fragment != Fragment::Whole {
        return;
    }
    if let Ok(Transport::Ports { source, destination }) = transport_of(skb, ip)
        // All packets of a protocol without ports are one flow, and say nothing of each other.
        && (source, destination) != (0, 0)
    {
        tables::forget_stack_flow(&ip.flow(source, destination));
    }
}

/// The flow of a packet with a transport header of its own; `None` for later fragments and ICMP errors.
#[inline(always)]
fn flow_of(skb: &Skb, ip: &Ipv4) -> Result<Option<FlowKey>, DropReason> {
    if ip.fragment == Fragment::Later {
        return Ok(None);
    }
    match transport_of(skb, ip)? {
        Transport::Ports { source, destination } => Ok(Some(ip.flow(source, destination))),
        Transport::IcmpError => Ok(None),
    }
}

/// The flow of the packet that an ICMP error is about; `None` when the error does not quote enough of it.
#[inline(always)]
fn quoted_flow(skb: &Skb, ip: &Ipv4) -> Option<FlowKey> {
    let header = ip.transport_offset() + Quoted::OFFSET;
    let quoted = Quoted::parse(&skb.load(header)?)?;
    let bytes = skb.load(header + u32::from(quoted.header_len))?;
    match Transport::parse(quoted.protocol, &bytes) {
        Transport::Ports { source, destination } => Some(quoted.flow(source, destination)),
        Transport::IcmpError => None,
    }
}

#[inline(always)]
fn transport_of(skb: &Skb, ip: &Ipv4) -> Result<Transport, DropReason> {
    let bytes = skb.load(ip.transport_offset()).ok_or(DropReason::Malformed)?;
    Ok(Transport::parse(ip.protocol, &bytes))
}
