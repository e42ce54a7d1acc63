//! What a program decides, and how the kernel is told.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use weft_abi::{DropReason, ForwardPath, VXLAN_OVERHEAD};

use crate::{
    skb::{Skb, redirect, redirect_neigh, redirect_peer},
    tables,
};

/// What to do with a packet that is not dropped.
pub enum Action {
    /// Let it go on where it was going, uncounted: it is none of ours, or was counted before.
    Ignore,
    /// Let it go on where it was going.
    Pass(ForwardPath),
    /// Send it out of an interface.
    Redirect(ForwardPath, u32),
    /// Send it, with outer headers around it, out of an interface to the next hop with this IPv4 address; where that is
    /// all zero, to that of its route.
    RedirectNeighbour(ForwardPath, u32, [u8; 4]),
    /// Hand it to the other side of a veth pair, as if it had arrived there.
    RedirectPeer(ForwardPath, u32),
}

pub type Verdict = Result<Action, DropReason>;

/// Counts a decision and returns it in the kernel's terms.
///
/// Passing is `TC_ACT_UNSPEC` (`TCX_NEXT`) and not `TC_ACT_OK`, so that other programs on the interface still run.
#[inline(always)]
pub fn finish(skb: &Skb, verdict: Verdict) -> i32 {
    match verdict {
        Ok(Action::Ignore) => TC_ACT_UNSPEC,
        Ok(Action::Pass(path)) => {
            tables::count_forward(path, skb.len());
            TC_ACT_UNSPEC
        }
        Ok(Action::Redirect(path, ifindex)) => {
            tables::count_forward(path, skb.len());
            redirect(ifindex)
        }
        Ok(Action::RedirectNeighbour(path, ifindex, next_hop)) => {
            // As counted where the overlay device adds them.
            tables::count_forward(path, skb.len() - VXLAN_OVERHEAD);
            redirect_neigh(ifindex, next_hop)
        }
        Ok(Action::RedirectPeer(path, ifindex)) => {
            tables::count_forward(path, skb.len());
            redirect_peer(ifindex)
        }
        Err(reason) => {
            tables::count_drop(reason, skb.len());
            TC_ACT_SHOT
        }
    }
}
