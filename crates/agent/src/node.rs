//! The node's own part of the kernel, pods aside: overlay device, programs, maps, routes and rules.

use crate::desired::{Desired, Prefix};
use crate::metrics::Metrics;
use crate::originals::Originals;
use crate::peers;
use crate::takeover;
use crate::wiring::{loose, without_ipv6};
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weft_abi::VXLAN_OVERHEAD;
use weft_kernel::bpf::{Attachment, Datapath, NodeConfig, PrefixTarget, Program, Transport};
use weft_kernel::nft::{Applied, Nft, Ruleset, WeftNft, weft_table};
use weft_kernel::rtnl::{
    Address, Link, MAIN_TABLE, RTPROT_WEFT, Route, RouteFilter, RouteKey, RouteKind, Rtnl, VxlanSpec,
};
use weft_kernel::sysctl::Key;
use weft_kernel::target::{Outcome, reconcile};
use weft_model::{Mac, UserError, codes};

/// The VXLAN device.
pub const OVERLAY: &str = "weft0";

/// Every IPv4 host has to accept packets of this size (RFC 791 section 3.1).
const SMALLEST_MTU: u32 = 576;

/// Source ports of masqueraded connections: above the NodePort range, and never the VXLAN port, which would make a
/// pod's packet look like a node's.
const MASQUERADE_PORTS: std::ops::RangeInclusive<u16> = 32768..=65535;

/// Whether the node can serve pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Something is not there yet; running pods are as they were.
    Waiting { why: String },
    /// New pods get this MTU, in bytes.
    Ready { mtu: u32 },
    /// The kernel refused something that pods need.
    Broken { why: String },
}

/// How this node is set up, from the command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The interface to the other nodes; the one with the node's address where absent.
    pub uplink: Option<String>,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// Where values of the whole node's parameters are noted before they are changed.
    pub originals: Originals,
}

/// Brings the kernel to what is desired, again and again.
#[derive(Debug)]
pub struct NodeNet {
    settings: Settings,
    rtnl: Rtnl,
    nft: Nft,
    rules: Option<Rules>,
    datapath: Arc<Mutex<Datapath>>,
    metrics: Arc<Metrics>,
    /// The last wish that was carried out in full: a difference from it is somebody else's doing.
    done: Option<Arc<Desired>>,
}

// === impl NodeNet ===

impl NodeNet {
    /// # Errors
    /// Sockets can't be opened.
    pub fn new(
        settings: Settings,
        datapath: Arc<Mutex<Datapath>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, weft_kernel::Error> {
        Ok(Self {
            settings,
            rtnl: Rtnl::open()?,
            nft: Nft::open()?,
            rules: None,
            datapath,
            metrics,
            done: None,
        })
    }

    /// Makes the kernel hold what `desired` says and returns the MTU of pods in bytes.
    ///
    /// The order matters: what fences pods in comes before what lets them out.
    ///
    /// # Errors
    /// The first thing that could not be done. What was done stays; the next call goes on from there.
    pub fn reconcile(&mut self, desired: &Arc<Desired>) -> Result<u32, UserError> {
        let uplink = self.uplink(desired)?;
        // A block that is in use stays so, whoever comes later.
        if self
            .done
            .as_ref()
            .is_none_or(|done| done.blocks != desired.blocks)
        {
            takeover::new_blocks_are_free(&mut self.rtnl, desired)?;
        }
        self.outer_source(desired, &uplink)?;
        let mtu = uplink.mtu.saturating_sub(VXLAN_OVERHEAD);
        if mtu < SMALLEST_MTU {
            let message = format!(
                "the MTU of {} is {}, which leaves pods {mtu} bytes of the {SMALLEST_MTU} they need at least",
                uplink.name, uplink.mtu
            );
            return Err(UserError::new(
                codes::MTU_TOO_SMALL,
                message,
                format!("ip link set {} mtu 1500", uplink.name),
            ));
        }
        let mut repairs = Repairs::default();
        self.rules(desired, &uplink, &mut repairs)
            .map_err(|error| kernel(codes::NFTABLES, &error))?;
        let overlay = self.overlay(desired, mtu, &mut repairs)?;
        self.programs(desired, &uplink, overlay, mtu, &mut repairs)
            .map_err(|error| kernel(codes::BPF_LOAD, &error))?;
        // Only now: an overlay device that is up without programs takes packets from anybody.
        let up = self
            .rtnl
            .set_up(overlay, true)
            .map_err(|error| kernel(codes::NETLINK, &error))?;
        repairs.add("link", usize::from(up));
        self.routes(desired, overlay, &mut repairs)
            .map_err(|error| kernel(codes::NETLINK, &error))?;
        self.metrics.peers(desired.nodes.len());
        if self.done.as_ref() == Some(desired) {
            for (kind, count) in repairs.0 {
                self.repaired(kind, count);
            }
        } else {
            self.done = Some(Arc::clone(desired));
        }
        Ok(mtu)
    }

    /// Brings the maps of other nodes from the wish that was carried out last to `desired`, without looking at what
    /// they hold. Returns whether that is all there is to do; `false` changed nothing.
    ///
    /// A cluster of thousands of nodes has a change every second, and reading the maps takes two system calls an entry.
    ///
    /// # Errors
    /// The kernel's refusal; only [`reconcile`](Self::reconcile) knows what to do then.
    pub fn update_peers(&mut self, desired: &Arc<Desired>) -> Result<bool, UserError> {
        let Some(done) = self.done.take_if(|done| done.is_same_but_peers(desired)) else {
            return Ok(false);
        };
        let updated = peers::update(&mut lock(&self.datapath), &done, desired);
        // Also after a failure: this agent has been here, its programs need not be attached anew.
        self.done = Some(done);
        updated.map_err(|error| kernel(codes::BPF_LOAD, &error))?;
        self.metrics.peers(desired.nodes.len());
        self.done = Some(Arc::clone(desired));
        Ok(true)
    }

    /// Counts differences that nobody wished for.
    pub fn repaired(&self, kind: &'static str, count: usize) {
        if count > 0 {
            tracing::warn!(kind, count, "put right what somebody else changed");
            self.metrics.repaired(kind, count);
        }
    }

    fn uplink(&mut self, desired: &Desired) -> Result<Link, UserError> {
        let links = self
            .rtnl
            .links()
            .map_err(|error| kernel(codes::NETLINK, &error))?;
        let found = match &self.settings.uplink {
            Some(name) => links.into_iter().find(|link| link.name == *name),
            None => {
                let addresses = self
                    .rtnl
                    .addresses(None)
                    .map_err(|error| kernel(codes::NETLINK, &error))?;
                let ours = |link: &Link| {
                    link.name != OVERLAY
                        && link.name != "lo"
                        && addresses
                            .iter()
                            .any(|held| held.link == link.index && held.net.addr() == desired.address)
                };
                links.into_iter().find(ours)
            }
        };
        found.ok_or_else(|| {
            let message = match &self.settings.uplink {
                Some(name) => format!("the node has no interface {name}"),
                None => format!("no interface of the node has its address {}", desired.address),
            };
            UserError::new(codes::NO_UPLINK, message, "ip -br address")
        })
    }

    /// Other nodes know this one by `desired.address` and drop what comes from any other.
    fn outer_source(&mut self, desired: &Desired, uplink: &Link) -> Result<(), UserError> {
        let Some(peer) = desired.nodes.first() else {
            return Ok(());
        };
        // No route at all is an outage of the underlay, which is not the node's to judge.
        let Ok(way) = self.rtnl.route_to((*peer).into()) else {
            return Ok(());
        };
        let (Some(source), Some(link)) = (way.src, way.oif) else {
            return Ok(());
        };
        if source == IpAddr::from(desired.address) && link == uplink.index {
            return Ok(());
        }
        let message = format!(
            "packets to node {peer} leave with the source {source}, but the other nodes expect {} on {}",
            desired.address, uplink.name
        );
        Err(UserError::new(
            codes::NO_UPLINK,
            message,
            format!("ip route get {peer}"),
        ))
    }

    /// Only the rules: what is put back when somebody flushes them.
    ///
    /// # Errors
    /// As for [`reconcile`](Self::reconcile).
    pub fn restore_rules(&mut self, desired: &Desired) -> Result<(), UserError> {
        let uplink = self.uplink(desired)?;
        let mut repairs = Repairs::default();
        self.rules(desired, &uplink, &mut repairs)
            .map_err(|error| kernel(codes::NFTABLES, &error))?;
        for (kind, count) in repairs.0 {
            self.repaired(kind, count);
        }
        Ok(())
    }

    /// Whether a wish was carried out in full.
    pub fn is_settled(&self) -> bool {
        self.done.is_some()
    }

    /// Removes what an agent of another ABI version left; to be called when this one's programs are everywhere.
    pub fn forget_other_versions(&self) {
        if let Err(error) = lock(&self.datapath).remove_other_versions() {
            tracing::warn!(%error, "cannot remove the pins of another version");
        }
    }

    fn overlay(&mut self, desired: &Desired, mtu: u32, repairs: &mut Repairs) -> Result<u32, UserError> {
        let port = self.settings.vxlan_port;
        let netlink = |error: weft_kernel::Error| kernel(codes::NETLINK, &error);
        let found = self.rtnl.link(OVERLAY).map_err(netlink)?;
        let usable = match &found {
            None => false,
            Some(link) if link.kind.as_deref() != Some("vxlan") => {
                let kind = link.kind.as_deref().unwrap_or("hardware");
                let message = format!("interface {OVERLAY} exists and is of kind {kind}");
                return Err(UserError::new(
                    codes::INTERFACE_CONFLICT,
                    message,
                    format!("ip -d link show {OVERLAY}"),
                ));
            }
            Some(link) => link.vxlan_external_port == Some(port),
        };
        if !usable {
            if found.is_some() {
                self.rtnl.delete_link(OVERLAY).map_err(netlink)?;
            }
            let mac = overlay_mac();
            self.rtnl
                .create_vxlan(&VxlanSpec {
                    name: OVERLAY,
                    mac,
                    mtu,
                    port,
                })
                .map_err(netlink)?;
            repairs.add("link", 1);
        }
        let overlay = self.rtnl.get_link(OVERLAY).map_err(netlink)?;
        let index = overlay.index;
        let mut change = || -> Result<usize, weft_kernel::Error> {
            let mut changed = usize::from(self.rtnl.set_mac(index, overlay_mac())?);
            changed += usize::from(self.rtnl.set_mtu(index, mtu)?);
            changed += usize::from(loose(OVERLAY)?);
            changed += usize::from(without_ipv6(OVERLAY)?);
            // A masquerade towards the overlay picks the address of this device, which is then the node's.
            let address = Address::host(index, desired.address);
            changed += usize::from(self.rtnl.replace_address(&address)?);
            for other in self
                .rtnl
                .addresses(Some(index))?
                .into_iter()
                .filter(|held| held.net != address.net)
            {
                changed += usize::from(self.rtnl.delete_address(&other)?);
            }
            Ok(changed)
        };
        repairs.add("link", change().map_err(netlink)?);
        let forward = Key::new("net/ipv4/ip_forward").map_err(netlink)?;
        repairs.add("sysctl", usize::from(self.settings.originals.set(&forward, "1")?));
        Ok(index)
    }

    fn programs(
        &mut self,
        desired: &Desired,
        uplink: &Link,
        overlay: u32,
        mtu: u32,
        repairs: &mut Repairs,
    ) -> Result<(), weft_kernel::Error> {
        let mut datapath = lock(&self.datapath);
        let config = NodeConfig {
            underlay: desired.address.into(),
            overlay_ifindex: overlay,
            pod_mtu: mtu,
            vxlan_port: self.settings.vxlan_port,
            transport: Transport::Device,
        };
        if datapath.config()? != Some(config) {
            datapath.configure(&config)?;
            repairs.add("map", 1);
        }
        let prefixes: BTreeMap<IpNet, _> = desired
            .prefixes
            .iter()
            .map(|(net, prefix)| ((*net).into(), target(*prefix)))
            .collect();
        repairs.add("map", changes(reconcile(&mut datapath.prefixes(), &prefixes)?)?);
        let nodes: BTreeMap<_, _> = desired
            .nodes
            .iter()
            .map(|address| (IpAddr::from(*address), ()))
            .collect();
        repairs.add("map", changes(reconcile(&mut datapath.nodes(), &nodes)?)?);
        // At the first pass the programs may be those of an earlier agent, to be replaced by this one's.
        let attached = if self.done.is_none() {
            BTreeSet::new()
        } else {
            datapath.attached()?
        };
        let missing = |programs: [Program; 2], ifindex| {
            programs
                .into_iter()
                .any(|program| !attached.contains(&Attachment { ifindex, program }))
        };
        if missing([Program::FromUplink, Program::ToUplink], uplink.index) {
            datapath.attach_uplink(uplink.index, &uplink.name)?;
            repairs.add("program", 1);
        }
        if missing([Program::FromOverlay, Program::ToOverlay], overlay) {
            datapath.attach_overlay(overlay, OVERLAY)?;
            repairs.add("program", 1);
        }
        Ok(())
    }

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

    /// Routes for the pod CIDRs into the overlay, but for what is reached by the node's own routes, and an answer for addresses of this node's blocks that no pod
    /// has: their packets must not go round through the overlay. Where another's route leads to the block of a node on
    /// Weft, as after a migration, the overlay's are one bit longer: they win, and the other stays for the way back.
    fn routes(
        &mut self,
        desired: &Desired,
        overlay: u32,
        repairs: &mut Repairs,
    ) -> Result<(), weft_kernel::Error> {
        let mut wanted: BTreeSet<Route> = desired
            .pod_cidrs
            .iter()
            .flat_map(|cidr| without(*cidr, &desired.non_masquerade))
            .map(|net| Route::link(net, overlay).with_src(desired.address))
            .collect();
        for past in self.routes_past(desired)? {
            wanted.retain(|route| route.dst != past.into());
            let halves = past.subnets(past.prefix_len() + 1).into_iter().flatten();
            wanted.extend(halves.map(|half| Route::link(half, overlay).with_src(desired.address)));
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
        for route in wanted.difference(&held) {
            self.rtnl.replace_route(route)?;
            repairs.add("route", 1);
        }
        // Replacing a route removed the one of the same key; deleting by that key would remove the new one.
        let kept: BTreeSet<RouteKey> = wanted.iter().map(Route::key).collect();
        for route in held
            .difference(&wanted)
            .filter(|route| !kept.contains(&route.key()))
        {
            repairs.add("route", usize::from(self.rtnl.delete_route(route)?));
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

    fn rules(
        &mut self,
        desired: &Desired,
        uplink: &Link,
        repairs: &mut Repairs,
    ) -> Result<(), weft_kernel::Error> {
        let wanted = WeftNft {
            pod_cidrs: desired.pod_cidrs.iter().copied().collect(),
            non_masquerade: desired.non_masquerade.iter().copied().collect(),
            blocks: desired.blocks.iter().map(|block| block.net()).collect(),
            node_addrs: desired.addresses.clone(),
            uplink: Some(uplink.name.clone()),
            overlay: OVERLAY.into(),
            port_range: MASQUERADE_PORTS,
            vxlan_port: self.settings.vxlan_port,
        };
        if let Some(rules) = self.rules.as_mut().filter(|rules| rules.wanted == wanted) {
            if self.nft.is_intact(&mut rules.applied)? {
                return Ok(());
            }
            rules.applied = self.nft.apply(&rules.batch)?;
        } else {
            let batch = weft_table(&wanted)?;
            let applied = self.nft.apply(&batch)?;
            self.rules = Some(Rules {
                wanted,
                batch,
                applied,
            });
        }
        repairs.add("rules", 1);
        Ok(())
    }
}

// === private ===

/// The rules as they were put into the kernel, ready to be put there again with one message.
#[derive(Debug)]
struct Rules {
    wanted: WeftNft,
    batch: Ruleset,
    applied: Applied,
}

/// What was changed, by kind.
#[derive(Debug, Default)]
struct Repairs(BTreeMap<&'static str, usize>);

impl Repairs {
    fn add(&mut self, kind: &'static str, count: usize) {
        if count > 0 {
            *self.0.entry(kind).or_default() += count;
        }
    }
}

/// How many entries a reconciliation changed.
pub fn changes<K>(outcome: Outcome<K>) -> Result<usize, weft_kernel::Error> {
    let count = outcome.added.len() + outcome.changed.len() + outcome.removed.len();
    match outcome.failed.into_iter().next() {
        None => Ok(count),
        Some((_, error)) => Err(error),
    }
}

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

/// The datapath's word for it.
pub fn target(prefix: Prefix) -> PrefixTarget {
    match prefix {
        Prefix::LocalBlock => PrefixTarget::LocalBlock,
        Prefix::RemoteBlock { underlay } => PrefixTarget::RemoteBlock {
            underlay: underlay.into(),
        },
        Prefix::SelfNode => PrefixTarget::SelfNode,
        Prefix::RemoteNode { underlay } => PrefixTarget::RemoteNode {
            underlay: underlay.into(),
        },
        Prefix::Pool => PrefixTarget::Pool,
        Prefix::Native => PrefixTarget::Native,
    }
}

pub fn kernel(code: weft_model::Code, error: &weft_kernel::Error) -> UserError {
    UserError::new(code, error.to_string(), "see the agent's log")
}

pub fn lock(datapath: &Mutex<Datapath>) -> MutexGuard<'_, Datapath> {
    datapath.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a link is the VXLAN device that an agent made.
pub fn is_overlay(link: &Link) -> bool {
    link.name == OVERLAY && link.vxlan_external_port.is_some()
}

/// The same on every node, so that what one sends is for the other.
fn overlay_mac() -> Mac {
    Mac(weft_abi::OVERLAY_MAC.octets())
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
