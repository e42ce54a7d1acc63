//! Before a block is taken into use: that no other plugin has pods in it.

use crate::desired::Desired;
use crate::node::kernel;
use std::net::IpAddr;
use weft_kernel::rtnl::{Address, Route, RouteFilter, Rtnl};
use weft_model::{UserError, codes};

/// Refuses blocks that are not in use yet and in which an interface of the node has an address, as a bridge does.
///
/// Weft's route for a block takes the place of the bridge's, and the ledger knows nothing of the bridge's pods.
///
/// # Errors
/// `BLOCK_HELD` names the interface and the block; `NETLINK` is the kernel's refusal.
pub fn new_blocks_are_free(rtnl: &mut Rtnl, desired: &Desired) -> Result<(), UserError> {
    let netlink = |error| kernel(codes::NETLINK, &error);
    let used = rtnl.routes(RouteFilter::own()).map_err(netlink)?;
    let addresses = rtnl.addresses(None).map_err(netlink)?;
    let held = desired
        .blocks
        .iter()
        .map(|block| block.net())
        .filter(|net| !used.contains(&Route::unreachable(*net)))
        .find_map(|net| {
            let inside = |held: &&Address| matches!(held.net.addr(), IpAddr::V4(addr) if net.contains(&addr));
            Some((net, addresses.iter().find(inside)?))
        });
    let Some((block, address)) = held else {
        return Ok(());
    };
    let links = rtnl.links().map_err(netlink)?;
    let name = links
        .into_iter()
        .find(|link| link.index == address.link)
        .map_or_else(|| address.link.to_string(), |link| link.name);
    Err(UserError::new(
        codes::BLOCK_HELD,
        format!(
            "interface {name} has the address {} in this node's block {block}",
            address.net
        ),
        format!("move the pods of {name} away, then: ip link delete {name}"),
    ))
}
