//! Which routes the node needs, and what of others gets in the way of pods' addresses.

use super::{NodeNet, OVERLAY, OWNER, Paths};
use crate::desired::{Desired, Prefix};
use crate::pass::Pass;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_kernel::rtnl::{MAIN_TABLE, RTPROT_WEFT, Route, RouteFilter, RouteKey, RouteKind};
use weft_model::audit::FindingKind;

// === impl NodeNet ===

impl NodeNet {
    /// The route of the node that is not Weft's and shares addresses with the pod CIDRs, in words that name both.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn overlapping_route(&mut self, desired: &Desired) -> Result<Option<String>, weft_kernel::Error> {
        let routes = self.rtnl.routes(RouteFilter {
            table: Some(MAIN_TABLE),
            ..RouteFilter::default()
        })?;
        let Some((route, cidr)) = routes
            .iter()
            .find_map(|route| Some((route, overlapped(route, desired)?)))
        else {
            return Ok(None);
        };
        let link = match route.oif {
            Some(index) => self.rtnl.link(index)?.map(|link| format!(" dev {}", link.name)),
            None => None,
        };
        Ok(Some(format!(
            "route {}{} of the node overlaps pod CIDR {cidr}",
            route.dst,
            link.unwrap_or_default()
        )))
    }

    /// Routes for the pod CIDRs into the overlay, but for what is reached by the node's own routes, and an answer for
    /// addresses of this node's blocks that no pod has: their packets must not go round through the overlay. Where
    /// another's route leads to the block of a node on Weft, as after a migration, the overlay's are one bit longer: they
    /// win, and the other stays for the way back.
    pub(super) fn routes(
        &mut self,
        desired: &Desired,
        overlay: u32,
        paths: &Paths,
        pass: &mut Pass,
    ) -> Result<(), weft_kernel::Error> {
        let route = |net: Ipv4Net| Route::link(net, overlay).with_src(desired.address);
        let mut wanted: BTreeSet<Route> = desired
            .pod_cidrs
            .iter()
            .flat_map(|cidr| without(*cidr, &desired.non_masquerade))
            .map(route)
            .collect();
        // By these the stack tells senders, or fragments, what is too long for the path to one node.
        let narrow: BTreeMap<Ipv4Net, u16> = desired
            .prefixes
            .iter()
            .filter_map(|(net, prefix)| match prefix {
                Prefix::RemoteBlock { underlay } => Some((*net, paths.get(underlay)?.mtu?)),
                _ => None,
            })
            .collect();
        for (net, mtu) in &narrow {
            wanted.retain(|route| route.dst != (*net).into());
            wanted.insert(route(*net).with_mtu((*mtu).into()));
        }
        for past in self.routes_past(desired)? {
            wanted.retain(|route| route.dst != past.into());
            let halves = past.subnets(past.prefix_len() + 1).into_iter().flatten();
            let mtu = narrow
                .iter()
                .find(|(net, _)| net.contains(&past))
                .map(|(_, mtu)| *mtu);
            wanted.extend(halves.map(|half| match mtu {
                Some(mtu) => route(half).with_mtu(mtu.into()),
                None => route(half),
            }));
        }
        // A block that is the whole CIDR has the pods' own /32 routes and this one; the overlay has nothing to do.
        for block in &desired.blocks {
            wanted.retain(|route| route.dst != block.net().into());
            wanted.insert(Route::unreachable(block.net()));
        }
        let held: BTreeSet<Route> = self
            .rtnl
            .routes(RouteFilter::own())?
            .into_iter()
            .filter(|route| route.oif == Some(overlay) || route.kind == RouteKind::Unreachable)
            .collect();
        let named = |route: &Route| match route.kind {
            RouteKind::Unreachable => format!("unreachable {}", route.dst),
            _ => format!("{} dev {OVERLAY}", route.dst),
        };
        for route in wanted.difference(&held) {
            if pass.differs(
                FindingKind::Route,
                OWNER,
                format!("route {} is missing or changed", named(route)),
            ) {
                self.rtnl.replace_route(route)?;
            }
        }
        // Replacing a route removed the one of the same key; deleting by that key would remove the new one.
        let kept: BTreeSet<RouteKey> = wanted.iter().map(Route::key).collect();
        for route in held
            .difference(&wanted)
            .filter(|route| !kept.contains(&route.key()))
        {
            if pass.differs(
                FindingKind::Route,
                OWNER,
                format!("route {} belongs to nobody", named(route)),
            ) {
                self.rtnl.delete_route(route)?;
            }
        }
        Ok(())
    }

    /// Where routes of others lead past the overlay to blocks of other nodes on Weft.
    fn routes_past(&mut self, desired: &Desired) -> Result<BTreeSet<Ipv4Net>, weft_kernel::Error> {
        let routes = self.rtnl.routes(RouteFilter {
            table: Some(MAIN_TABLE),
            ..RouteFilter::default()
        })?;
        let past = routes.iter().filter(|route| route.protocol != RTPROT_WEFT);
        Ok(past
            .filter_map(|route| match route.dst {
                IpNet::V4(dst) if dst.prefix_len() < 32 => Some(dst),
                _ => None,
            })
            .filter(|dst| is_remote(*dst, desired))
            .collect())
    }

    /// Addresses of this node's blocks are pods'. On an interface of the node one makes the node answer in the pod's place.
    pub(super) fn claims(
        &mut self,
        desired: &Desired,
        overlay: u32,
        pass: &mut Pass,
    ) -> Result<(), weft_kernel::Error> {
        let in_block = |net: &IpNet| match net.addr() {
            IpAddr::V4(address) => desired.blocks.iter().any(|block| block.contains(address)),
            IpAddr::V6(_) => false,
        };
        let claims = self.rtnl.addresses(None)?;
        for claim in claims
            .iter()
            .filter(|claim| claim.link != overlay && in_block(&claim.net))
        {
            let Some(link) = self.rtnl.link(claim.link)? else {
                continue;
            };
            if pass.differs(
                FindingKind::Address,
                OWNER,
                format!(
                    "{} of the node has the pod address {}",
                    link.name,
                    claim.net.addr()
                ),
            ) {
                self.rtnl.delete_address(claim)?;
            }
        }
        Ok(())
    }
}

// === private ===

/// What is left of `net` without `holes`, in as few pieces as there can be.
fn without(net: Ipv4Net, holes: &BTreeSet<Ipv4Net>) -> Vec<Ipv4Net> {
    if holes.iter().any(|hole| hole.contains(&net)) {
        return Vec::new();
    }
    let inside: BTreeSet<Ipv4Net> = holes.iter().copied().filter(|hole| net.contains(hole)).collect();
    if inside.is_empty() {
        return vec![net];
    }
    // A hole is inside, so that the net is not a single address and has two halves.
    net.subnets(net.prefix_len() + 1)
        .into_iter()
        .flatten()
        .flat_map(|half| without(half, &inside))
        .collect()
}

/// Whether a range lies in the block of another node on Weft.
fn is_remote(dst: Ipv4Net, desired: &Desired) -> bool {
    let blocks = desired.prefixes.iter();
    blocks
        .filter(|(_, what)| matches!(what, Prefix::RemoteBlock { .. }))
        .any(|(block, _)| block.contains(&dst))
}

/// The pod CIDR that a route of somebody else's shares addresses with. Default routes share them with everything, and
/// what is reached natively has routes of its own.
fn overlapped(route: &Route, desired: &Desired) -> Option<Ipv4Net> {
    let IpNet::V4(dst) = route.dst else {
        return None;
    };
    let native = || desired.non_masquerade.iter().any(|native| native.contains(&dst));
    if route.protocol == RTPROT_WEFT || dst.prefix_len() == 0 || native() {
        return None;
    }
    desired
        .pod_cidrs
        .iter()
        .copied()
        .find(|cidr| cidr.contains(&dst) || dst.contains(cidr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_of_other_nodes_on_weft_are_kept_from_foreign_routes() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let remote = Prefix::RemoteBlock {
            underlay: "10.224.0.5".parse().unwrap(),
        };
        let desired = Desired {
            node_uid: "u1".parse().unwrap(),
            address: "10.224.0.4".parse().unwrap(),
            addresses: Vec::new(),
            max_pods: None,
            blocks: Vec::new(),
            retiring: Vec::new(),
            pod_cidrs: [net("10.244.0.0/16")].into(),
            non_masquerade: BTreeSet::new(),
            prefixes: [
                (net("10.244.0.0/16"), Prefix::Pool),
                (net("10.244.1.0/24"), remote),
                (net("10.244.2.0/24"), Prefix::LocalBlock),
            ]
            .into(),
            nodes: BTreeSet::new(),
        };
        for (dst, wanted) in [
            ("10.244.1.0/24", true),
            ("10.244.1.128/25", true),
            ("10.244.2.0/24", false),
            ("10.244.3.0/24", false),
            ("10.244.0.0/23", false),
        ] {
            assert_eq!(is_remote(net(dst), &desired), wanted, "{dst}");
        }
    }

    #[test]
    fn what_is_reached_natively_is_left_out_of_the_overlays_routes() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let left =
            |cidr: &str, holes: &[&str]| without(net(cidr), &holes.iter().map(|hole| net(hole)).collect());
        assert_eq!(left("10.244.0.0/16", &["10.0.0.0/16"]), [net("10.244.0.0/16")]);
        assert_eq!(left("10.244.0.0/16", &["10.244.0.0/15"]), []);
        assert_eq!(
            left(
                "10.244.0.0/22",
                &["10.244.1.0/24", "10.244.1.0/26", "10.0.0.1/32"]
            ),
            [net("10.244.0.0/24"), net("10.244.2.0/23")]
        );
    }
}
