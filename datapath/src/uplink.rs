//! Programs of the uplink. Most packets there are the node's own, outer headers of the overlay included, so they look
//! for the node's address before they search for prefixes. Where nothing says that the uplink has Ethernet headers, they
//! read from the IP header on.

use weft_abi::{
    Address, Config, DropReason, PrefixKind,
    packet::{ETHERTYPE_IPV4, IPV4_HALFWORDS, Ipv4},
};

use crate::{
    skb::Skb,
    tables, transport,
    verdict::{Action, Verdict},
};

struct Ends {
    source: Address,
    destination: Address,
}

#[inline(always)]
pub fn try_to_uplink(skb: &Skb) -> Verdict {
    let config = tables::config();
    let Some(ends) = ends_of(skb, config)? else {
        return Ok(Action::Ignore);
    };
    if is_own(ends.source, config) || !is_pod(ends.source) {
        return Ok(Action::Ignore);
    }
    match tables::kind_of(ends.destination) {
        Some(PrefixKind::Native) => Ok(Action::Ignore),
        _ => Err(DropReason::UnmasqueradedEgress),
    }
}

#[inline(always)]
pub fn try_from_uplink(skb: &mut Skb) -> Verdict {
    let config = tables::config();
    if let Some(config) = config
        && let Some(action) = transport::receive(skb, config)?
    {
        return Ok(action);
    }
    let Some(ends) = ends_of(skb, config)? else {
        return Ok(Action::Ignore);
    };
    if is_own(ends.destination, config) || !is_pod(ends.destination) {
        return Ok(Action::Ignore);
    }
    match tables::kind_of(ends.source) {
        Some(PrefixKind::Native) => Ok(Action::Ignore),
        _ => Err(DropReason::UnderlayToPod),
    }
}

/// `None` for anything but IPv4.
#[inline(always)]
fn ends_of(skb: &Skb, config: Option<&Config>) -> Result<Option<Ends>, DropReason> {
    const SOURCE: u32 = 12;
    if skb.protocol() != ETHERTYPE_IPV4 {
        return Ok(None);
    }
    // Where programs write and strip outer headers there are Ethernet headers, and the helper is not needed.
    if config.is_some_and(|config| config.is_direct_at(skb.ifindex()))
        && let Some(frame) = skb.linear::<IPV4_HALFWORDS>()
    {
        let (source, destination) = Ipv4::ends(frame);
        return Ok(Some(Ends { source, destination }));
    }
    let bytes: [u8; 8] = skb.load_network(SOURCE).ok_or(DropReason::Malformed)?;
    let [a0, a1, a2, a3, b0, b1, b2, b3] = bytes;
    Ok(Some(Ends {
        source: Address::v4([a0, a1, a2, a3]),
        destination: Address::v4([b0, b1, b2, b3]),
    }))
}

#[inline(always)]
fn is_own(address: Address, config: Option<&Config>) -> bool {
    config.is_some_and(|config| config.underlay == address)
}

#[inline(always)]
fn is_pod(address: Address) -> bool {
    tables::kind_of(address).is_some_and(PrefixKind::is_pod)
}
