//! The ways to other nodes: which link they leave by, to whom there, and what they take.

use super::{NodeNet, SMALLEST_MTU, Underlay};
use crate::desired::Desired;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use weft_abi::VXLAN_OVERHEAD;
use weft_kernel::rtnl::{Learned, RouteFilter, RouteKind, RouteLookup};

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
        let peers: BTreeSet<Ipv4Addr> = peers.into_iter().collect();
        if peers.is_empty() {
            return Vec::new();
        }
        // Rules may look at marks, classes of traffic, or where packets come from.
        let rules = self.rtnl.rules();
        let by_destination = rules.as_ref().is_ok_and(|rules| !rules.others);
        let routes = if rules.is_ok_and(|rules| !rules.of_destinations) {
            self.shared_routes().ok()
        } else {
            None
        };
        let Some((prefixes, learned)) = routes else {
            let alone = peers
                .into_iter()
                .filter_map(|peer| self.way(peer, by_destination));
            return alone.collect();
        };
        let mut ways = Vec::with_capacity(peers.len());
        for group in grouped(peers, &prefixes) {
            let shared = match group[..] {
                [first, _, ..] => self.rtnl.one_way_to(first).ok().flatten(),
                _ => None,
            };
            ways.extend(group.into_iter().filter_map(|peer| match &shared {
                Some(found) if !learned.contains_key(&peer) => Way::by(peer, found, || by_destination),
                _ => self.way(peer, by_destination),
            }));
        }
        ways.sort_unstable_by_key(|way| way.peer);
        ways
    }

    /// The prefixes of all routes, whichever table they are in, and what was learned of single paths.
    fn shared_routes(
        &mut self,
    ) -> Result<(BTreeSet<Ipv4Net>, BTreeMap<Ipv4Addr, Learned>), weft_kernel::Error> {
        let routes = self.rtnl.routes(RouteFilter::default())?;
        let prefixes = routes.iter().filter_map(|route| match route.dst {
            IpNet::V4(dst) => Some(dst),
            IpNet::V6(_) => None,
        });
        Ok((prefixes.collect(), self.rtnl.learned()?))
    }

    fn way(&mut self, peer: Ipv4Addr, by_destination: bool) -> Option<Way> {
        let found = self.rtnl.route_to(peer.into()).ok()?;
        Way::by(peer, &found, || {
            by_destination && (found.gateway.is_none() || self.has_one_way_to(peer))
        })
    }

    fn has_one_way_to(&mut self, peer: Ipv4Addr) -> bool {
        self.rtnl.one_way_to(peer).is_ok_and(|way| way.is_some())
    }
}

// === impl Way ===

impl Way {
    /// The way by this route. `is_only` tells whether all packets take it, and is asked where that counts.
    fn by(peer: Ipv4Addr, found: &RouteLookup, is_only: impl FnOnce() -> bool) -> Option<Self> {
        let next_hop = match found.gateway {
            _ if found.kind != RouteKind::Unicast || found.wraps => None,
            None => Some(peer),
            Some(IpAddr::V4(gateway)) => Some(gateway),
            Some(IpAddr::V6(_)) => None,
        };
        Some(Self {
            peer,
            link: found.oif?,
            mtu: found.mtu,
            next_hop: next_hop.filter(|_| is_only()),
        })
    }

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

// === private ===

/// The peers by the longest prefix among `prefixes` that they are in. All shorter ones that one of a group is in, the others
/// are in too, so that all tables have the same routes for them.
fn grouped(peers: BTreeSet<Ipv4Addr>, prefixes: &BTreeSet<Ipv4Net>) -> Vec<Vec<Ipv4Addr>> {
    let mut groups: BTreeMap<Option<Ipv4Net>, Vec<Ipv4Addr>> = BTreeMap::new();
    // By their first address, shorter ones first: each is behind those that it is in.
    let mut prefixes = prefixes.iter().copied().peekable();
    let mut around: Vec<Ipv4Net> = Vec::new();
    for peer in peers {
        while let Some(prefix) = prefixes.next_if(|prefix| prefix.network() <= peer) {
            while around.pop_if(|outer| !outer.contains(&prefix)).is_some() {}
            around.push(prefix);
        }
        while around.pop_if(|outer| !outer.contains(&peer)).is_some() {}
        groups.entry(around.last().copied()).or_default().push(peer);
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_together_where_the_longest_prefix_around_them_is_the_same() {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let groups = |peers: &[&str], prefixes: &[&str]| {
            let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
            let mut groups = grouped(peers.iter().map(|peer| address(peer)).collect(), &prefixes);
            groups.sort();
            groups
        };
        let peers = ["10.0.0.1", "10.0.0.9", "10.0.1.1", "10.1.0.1", "192.0.2.1"];
        let all = [peers.map(address).to_vec()];
        assert_eq!(groups(&peers, &["0.0.0.0/0"]), all);
        assert_eq!(groups(&peers, &[]), all);
        // Prefixes between peers, and behind the last one, part nobody.
        assert_eq!(
            groups(&peers, &["0.0.0.0/0", "10.0.0.4/32", "203.0.113.0/24"]),
            all
        );
        assert_eq!(
            groups(
                &peers,
                &[
                    "0.0.0.0/0",
                    "10.0.0.0/8",
                    "10.0.0.0/16",
                    "10.0.0.0/24",
                    "10.0.0.9/32"
                ]
            ),
            [
                vec![address("10.0.0.1")],
                vec![address("10.0.0.9")],
                vec![address("10.0.1.1")],
                vec![address("10.1.0.1")],
                vec![address("192.0.2.1")],
            ]
        );
        // One that is left again: what is behind it is in what is around it.
        assert_eq!(
            groups(
                &["10.0.0.1", "10.0.1.1", "10.0.2.1"],
                &["10.0.0.0/16", "10.0.1.0/24"]
            ),
            [
                vec![address("10.0.0.1"), address("10.0.2.1")],
                vec![address("10.0.1.1")],
            ]
        );
    }
}
