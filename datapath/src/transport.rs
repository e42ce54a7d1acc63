//! How a packet gets to another node. `device`: the kernel's VXLAN device in collect-metadata mode writes the outer
//! headers from the parameters set here.

use weft_abi::{Address, Config, DropReason, ForwardPath, OVERLAY_MAC, OVERLAY_SOURCE_MAC, Vni};

use crate::{
    skb::Skb,
    verdict::{Action, Verdict},
};

/// Sends a packet from outside the overlay device to the node at `underlay`.
#[inline(always)]
pub fn send(skb: &mut Skb, config: &Config, underlay: Address, vni: Vni, path: ForwardPath) -> Verdict {
    encapsulate(skb, underlay, vni)?;
    Ok(Action::Redirect(path, config.overlay_ifindex))
}

/// Addresses a packet that is already leaving by the overlay device to the node at `underlay`.
#[inline(always)]
pub fn encapsulate(skb: &mut Skb, underlay: Address, vni: Vni) -> Result<(), DropReason> {
    skb.set_macs(OVERLAY_MAC, OVERLAY_SOURCE_MAC)
        .ok_or(DropReason::Malformed)?;
    skb.set_tunnel_key(underlay, vni).ok_or(DropReason::TunnelKey)
}
