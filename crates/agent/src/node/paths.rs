//! The ways to other nodes: which link they leave by, to whom there, and what they take.

use super::{NodeNet, SMALLEST_MTU, Underlay};
use crate::desired::Desired;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use weft_abi::VXLAN_OVERHEAD;
use weft_kernel::rtnl::{RouteKind, RouteLookup};

/// What the maps say of the ways to other nodes, by the tunnel's end; of those only that they say something of.
pub type Paths = BTreeMap<Ipv4Addr, Path>;

/// What the maps say of the way to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// What pods' packets may have in bytes, where that is less than the MTU of pods.
    pub mtu: Option<u16>,
    /// Who takes packets on the uplink's network, where that is the same for all of them.
    pub next_hop: Option<Ipv4Addr>,
}

/// The node's way to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Where the tunnel ends.
    pub(super) peer: Ipv4Addr,
    /// Index of the link that it leaves by.
    pub(super) link: u32,
    /// What it takes in bytes, where the kernel knows that it is less than the link's MTU.
    mtu: Option<u32>,
    /// Who takes packets on that link, where that is the same for all of them.
    next_hop: Option<Ipv4Addr>,
}

// === impl NodeNet ===

impl NodeNet {
    /// The ways to all other nodes. No way at all is an outage of the underlay, which is nobody's to judge.
    pub(super) fn ways(&mut self, desired: &Desired) -> Vec<Way> {
        self.ways_to(desired.tunnel_ends())
    }

    /// What the maps are to say of the ways once `done` is `desired`. `None` where a full pass has to look: the way to a
    /// new node leaves by another link than the uplink, or takes less.
    pub(super) fn paths_with_new(&mut self, done: &Desired, desired: &Desired) -> Option<Paths> {
        let Underlay {
            uplink, mtu, paths, ..
        } = self.underlay.as_ref()?;
        let (uplink, mtu, mut paths) = (uplink.index, *mtu, paths.clone());
        let (known, wanted) = (done.tunnel_ends(), desired.tunnel_ends());
        paths.retain(|peer, _| wanted.contains(peer));
        for way in self.ways_to(wanted.difference(&known).copied()) {
            if way.link != uplink || way.mtu.is_some() {
                return None;
            }
            paths.extend(way.path(uplink, mtu));
        }
        Some(paths)
    }

    fn ways_to(&mut self, peers: impl IntoIterator<Item = Ipv4Addr>) -> Vec<Way> {
        let mut peers = peers.into_iter().peekable();
        if peers.peek().is_none() {
            return Vec::new();
        }
        // Rules may look at marks, classes of traffic, or where packets come from.
        let by_destination = self.rtnl.has_own_rules().is_ok_and(|own| !own);
        peers.filter_map(|peer| self.way(peer, by_destination)).collect()
    }

    fn way(&mut self, peer: Ipv4Addr, by_destination: bool) -> Option<Way> {
        let found = self.rtnl.route_to(peer.into()).ok()?;
        let next_hop = if by_destination && found.kind == RouteKind::Unicast && !found.wraps {
            self.next_hop(peer, &found)
        } else {
            None
        };
        Some(Way {
            peer,
            link: found.oif?,
            mtu: found.mtu,
            next_hop,
        })
    }

    fn next_hop(&mut self, peer: Ipv4Addr, found: &RouteLookup) -> Option<Ipv4Addr> {
        match found.gateway {
            None => Some(peer),
            Some(IpAddr::V4(gateway)) => self
                .rtnl
                .has_one_way_to(peer)
                .is_ok_and(|one| one)
                .then_some(gateway),
            Some(IpAddr::V6(_)) => None,
        }
    }
}

// === impl Way ===

impl Way {
    /// What the maps are to say of it, if anything, beside this uplink and MTU of pods in bytes.
    pub(super) fn path(self, uplink: u32, pod_mtu: u32) -> Option<(Ipv4Addr, Path)> {
        let path = Path {
            mtu: self.pod_mtu().filter(|mtu| u32::from(*mtu) < pod_mtu),
            next_hop: self.next_hop.filter(|_| self.link == uplink),
        };
        (path != Path::default()).then_some((self.peer, path))
    }

    /// What a pod's packet may have in bytes, where the path takes less than its link. Not less than every IPv4 host
    /// has to accept, though: a path that does not carry that is broken.
    fn pod_mtu(self) -> Option<u16> {
        let inner = self.mtu?.saturating_sub(VXLAN_OVERHEAD).max(SMALLEST_MTU);
        u16::try_from(inner).ok()
    }
}
