//! The ways to other nodes: which link they leave by, and what they take.

use super::{NodeNet, SMALLEST_MTU};
use crate::desired::Desired;
use std::net::Ipv4Addr;
use weft_abi::VXLAN_OVERHEAD;

/// The node's way to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Where the tunnel ends.
    pub(super) peer: Ipv4Addr,
    /// Index of the link that it leaves by.
    pub(super) link: u32,
    /// What it takes in bytes, where the kernel knows that it is less than the link's MTU.
    mtu: Option<u32>,
}

// === impl NodeNet ===

impl NodeNet {
    /// The ways to all other nodes. No way at all is an outage of the underlay, which is nobody's to judge.
    pub(super) fn ways(&mut self, desired: &Desired) -> Vec<Way> {
        let peers = desired.tunnel_ends().into_iter();
        peers.filter_map(|peer| self.way(peer)).collect()
    }

    /// Whether the way to a new node leaves by another link than the uplink, or takes less.
    pub(super) fn is_new_peer_special(&mut self, done: &Desired, desired: &Desired) -> bool {
        let Some(uplink) = self.underlay.as_ref().map(|underlay| underlay.uplink.index) else {
            return true;
        };
        let known = done.tunnel_ends();
        let mut new = desired
            .tunnel_ends()
            .into_iter()
            .filter(|peer| !known.contains(peer));
        new.any(|peer| {
            self.way(peer)
                .is_some_and(|way| way.link != uplink || way.mtu.is_some())
        })
    }

    fn way(&mut self, peer: Ipv4Addr) -> Option<Way> {
        let found = self.rtnl.route_to(peer.into()).ok()?;
        Some(Way {
            peer,
            link: found.oif?,
            mtu: found.mtu,
        })
    }
}

// === impl Way ===

impl Way {
    /// What a pod's packet may have in bytes, where the path takes less than its link. Not less than every IPv4 host
    /// has to accept, though: a path that does not carry that is broken.
    pub(super) fn pod_mtu(self) -> Option<u16> {
        let inner = self.mtu?.saturating_sub(VXLAN_OVERHEAD).max(SMALLEST_MTU);
        u16::try_from(inner).ok()
    }
}
