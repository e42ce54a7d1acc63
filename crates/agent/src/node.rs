//! The node's own part of the kernel, pods aside: overlay device, programs, maps, routes and rules.

mod overlay;
mod paths;
mod routes;
mod transport;

pub use paths::Paths;
pub use transport::Selection;

use crate::desired::{Desired, Prefix};
use crate::metrics::Metrics;
use crate::originals::Originals;
use crate::pass::Pass;
use crate::peers;
use crate::takeover;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use weft_abi::VXLAN_OVERHEAD;
use weft_kernel::bpf::{Datapath, NodeConfig, PrefixTarget, Program};
use weft_kernel::ipsec::Ipsec;
use weft_kernel::nft::{Applied, Nft, Ruleset, WeftNft, weft_table};
use weft_kernel::rtnl::{Link, Rtnl};
use weft_kernel::sysctl::Key;
use weft_model::audit::{Finding, FindingKind, Remedy, Repaired};
use weft_model::{Mac, TransportChoice, UserError, codes};

/// The VXLAN device.
pub const OVERLAY: &str = "weft0";

/// Every IPv4 host has to accept packets of this size (RFC 791 section 3.1).
const SMALLEST_MTU: u32 = 576;

/// Whose what belongs to no pod is.
const OWNER: &str = "node";

/// Repairs that an audit can still tell of.
const REMEMBERED: usize = 100;

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
    /// How packets are to get to other nodes.
    pub transport: TransportChoice,
    /// Where values of the whole node's parameters are noted before they are changed.
    pub originals: Originals,
}

/// Brings the kernel to what is desired, again and again.
#[derive(Debug)]
pub struct NodeNet {
    settings: Settings,
    rtnl: Rtnl,
    nft: Nft,
    /// Opened when first needed, and again after it failed.
    ipsec: Option<Ipsec>,
    rules: Option<Rules>,
    datapath: Arc<Mutex<Datapath>>,
    metrics: Arc<Metrics>,
    /// The last wish that was carried out in full: a difference from it is somebody else's doing.
    done: Option<Arc<Desired>>,
    /// What the last full pass found below the overlay.
    underlay: Option<Underlay>,
    /// What was put right, the last first.
    repaired: VecDeque<(Instant, Finding)>,
}

/// The network below the overlay, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Underlay {
    uplink: Link,
    /// MTU of pods in bytes.
    mtu: u32,
    paths: Paths,
    selection: Selection,
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
            ipsec: None,
            rules: None,
            datapath,
            metrics,
            done: None,
            underlay: None,
            repaired: VecDeque::new(),
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
        let underlay = self.look_below(desired, uplink)?;
        let mut pass = Pass::mending();
        self.pass(desired, &underlay, &mut pass)?;
        self.metrics.peers(desired.nodes.len());
        let (mtu, before) = (underlay.mtu, self.underlay.take());
        let same = before.as_ref() == Some(&underlay) && self.done.as_ref() == Some(desired);
        self.selected(before.as_ref(), underlay);
        if same {
            self.repaired(pass.into_findings());
        } else {
            self.done = Some(Arc::clone(desired));
        }
        Ok(mtu)
    }

    /// The MTU of pods in bytes, and how the kernel differs from what `desired` says. Changes nothing.
    ///
    /// # Errors
    /// As for [`reconcile`](Self::reconcile).
    pub fn audit(&mut self, desired: &Desired) -> Result<(u32, Vec<Finding>), UserError> {
        let uplink = self.uplink(desired)?;
        let underlay = self.look_below(desired, uplink)?;
        let mut pass = Pass::looking();
        self.pass(desired, &underlay, &mut pass)?;
        if let Some(overlap) = self
            .overlapping_route(desired)
            .map_err(|error| kernel(codes::NETLINK, &error))?
        {
            let step = "remove the route, or list its range under nonMasqueradeCIDRs";
            pass.note(FindingKind::Route, OWNER, overlap, Remedy::Person(step.into()));
        }
        Ok((underlay.mtu, pass.into_findings()))
    }

    /// How packets get to other nodes since the last full pass; `None` before the first.
    pub fn selection(&self) -> Option<&Selection> {
        self.underlay.as_ref().map(|underlay| &underlay.selection)
    }

    /// Whether the network below the overlay is not what the last full pass found.
    pub fn is_underlay_changed(&mut self, desired: &Desired) -> bool {
        let now = self
            .uplink(desired)
            .and_then(|uplink| self.look_below(desired, uplink));
        now.ok() != self.underlay
    }

    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, weft_kernel::Error> {
        self.rtnl.link(name)
    }

    /// Brings the maps to what `desired` says, whoever changed them; only of a wish that was carried out in full.
    ///
    /// # Errors
    /// As for [`reconcile`](Self::reconcile).
    pub fn repair_maps(&mut self, desired: &Desired) -> Result<(), UserError> {
        let Some(underlay) = self.underlay.clone() else {
            return Ok(());
        };
        let overlay = self
            .rtnl
            .get_link(OVERLAY)
            .map_err(|error| kernel(codes::NETLINK, &error))?;
        let mut pass = Pass::mending();
        self.maps(desired, overlay.index, &underlay, &mut pass)
            .map_err(|error| kernel(codes::BPF_LOAD, &error))?;
        self.repaired(pass.into_findings());
        Ok(())
    }

    /// What was put right lately, the last first.
    pub fn repairs(&self) -> Vec<Repaired> {
        let told = |(at, finding): &(Instant, Finding)| Repaired {
            finding: finding.clone(),
            ago_ms: u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.repaired.iter().map(told).collect()
    }

    fn pass(&mut self, desired: &Desired, underlay: &Underlay, pass: &mut Pass) -> Result<(), UserError> {
        let uplink = &underlay.uplink;
        let netlink = |error: weft_kernel::Error| kernel(codes::NETLINK, &error);
        self.rules(desired, uplink, pass)
            .map_err(|error| kernel(codes::NFTABLES, &error))?;
        let Some(overlay) = self.overlay(desired, underlay.mtu, pass)? else {
            return Ok(());
        };
        self.maps(desired, overlay.index, underlay, pass)
            .and_then(|()| self.programs(uplink, overlay.index, pass))
            .map_err(|error| kernel(codes::BPF_LOAD, &error))?;
        // Only now: an overlay device that is up without programs takes packets from anybody.
        if !overlay.up && pass.differs(FindingKind::Link, OWNER, format!("interface {OVERLAY} is down")) {
            self.rtnl.set_up(overlay.index, true).map_err(netlink)?;
        }
        self.routes(desired, overlay.index, &underlay.paths, pass)
            .map_err(netlink)?;
        self.claims(desired, overlay.index, pass).map_err(netlink)
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
        let Some(paths) = self.paths_with_new(&done, desired) else {
            self.done = Some(done);
            return Ok(false);
        };
        let updated = peers::update(&mut lock(&self.datapath), &done, desired, &paths);
        if let Some(underlay) = &mut self.underlay {
            underlay.paths = paths;
        }
        // Also after a failure: this agent has been here, its programs need not be attached anew.
        self.done = Some(done);
        updated.map_err(|error| kernel(codes::BPF_LOAD, &error))?;
        self.metrics.peers(desired.nodes.len());
        self.done = Some(Arc::clone(desired));
        Ok(true)
    }

    /// Tells of differences that nobody wished for and that were put right.
    pub fn repaired(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            tracing::warn!(
                kind = finding.kind.name(),
                owner = finding.owner,
                what = finding.what,
                "put right what somebody else changed"
            );
            self.metrics.repaired(finding.kind.name());
            self.repaired.push_front((Instant::now(), finding));
        }
        self.repaired.truncate(REMEMBERED);
    }

    /// What there is below the overlay, behind this uplink.
    fn look_below(&mut self, desired: &Desired, uplink: Link) -> Result<Underlay, UserError> {
        let mtu = pod_mtu(&uplink)?;
        let ways = self.ways(desired);
        Ok(Underlay {
            mtu,
            paths: ways
                .iter()
                .filter_map(|way| way.path(uplink.index, mtu))
                .collect(),
            selection: self.select(&uplink, &ways),
            uplink,
        })
    }

    fn selected(&mut self, before: Option<&Underlay>, underlay: Underlay) {
        if before.map(|before| &before.selection) != Some(&underlay.selection) {
            let (transport, (_, why)) = (underlay.selection.name(), underlay.selection.why());
            match underlay.selection.refusal() {
                Some(error) => {
                    tracing::error!(code = %error.code(), next = error.next(), "{}", error.message());
                }
                None => tracing::info!(transport, why, "chose how packets get to other nodes"),
            }
        }
        self.metrics.transport(underlay.selection.name());
        self.underlay = Some(underlay);
    }

    fn uplink(&mut self, desired: &Desired) -> Result<Link, UserError> {
        let found = match &self.settings.uplink {
            // A name that no interface can have is none's either.
            Some(name) => self
                .rtnl
                .links()
                .map(|links| links.into_iter().find(|link| link.name == *name)),
            None => self.link_with(desired.address),
        };
        let found = found.map_err(|error| kernel(codes::NETLINK, &error))?;
        found.ok_or_else(|| {
            let message = match &self.settings.uplink {
                Some(name) => format!("the node has no interface {name}"),
                None => format!("no interface of the node has its address {}", desired.address),
            };
            UserError::new(codes::NO_UPLINK, message, "ip -br address")
        })
    }

    /// The first link but the overlay's that has this address.
    fn link_with(&mut self, address: Ipv4Addr) -> Result<Option<Link>, weft_kernel::Error> {
        let held = self.rtnl.addresses(None)?;
        let with = held.iter().filter(|held| held.net.addr() == address);
        let indices: BTreeSet<u32> = with.map(|held| held.link).collect();
        for index in indices {
            let link = self.rtnl.link(index)?;
            if let Some(link) = link.filter(|link| link.name != OVERLAY && link.name != "lo") {
                return Ok(Some(link));
            }
        }
        Ok(None)
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
        let mut pass = Pass::mending();
        self.rules(desired, &uplink, &mut pass)
            .map_err(|error| kernel(codes::NFTABLES, &error))?;
        self.repaired(pass.into_findings());
        Ok(())
    }

    /// The address that this agent has served under, where no interface has it any more but the overlay's, which got it
    /// from the agent.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn lost_address(&mut self) -> Result<Option<Ipv4Addr>, weft_kernel::Error> {
        let Some(address) = self.done.as_ref().map(|done| done.address) else {
            return Ok(None);
        };
        let overlay = self.rtnl.link(OVERLAY)?.map(|link| link.index);
        let held = self.rtnl.addresses(None)?;
        let there = held
            .iter()
            .any(|held| held.net.addr() == IpAddr::from(address) && Some(held.link) != overlay);
        Ok((!there).then_some(address))
    }

    /// Whether a wish was carried out in full.
    pub fn is_settled(&self) -> bool {
        self.done.is_some()
    }

    /// Removes what an agent of another ABI version left; to be called when this one's programs are everywhere.
    pub fn forget_other_versions(&self) {
        match lock(&self.datapath).remove_other_versions() {
            Ok(0) => {}
            Ok(versions) => tracing::info!(versions, "took over from agents of other ABI versions"),
            Err(error) => tracing::warn!(%error, "cannot take over from another ABI version"),
        }
    }

    fn maps(
        &mut self,
        desired: &Desired,
        overlay: u32,
        underlay: &Underlay,
        pass: &mut Pass,
    ) -> Result<(), weft_kernel::Error> {
        let mut datapath = lock(&self.datapath);
        let config = NodeConfig {
            underlay: desired.address.into(),
            overlay_ifindex: overlay,
            pod_mtu: underlay.mtu,
            vxlan_port: self.settings.vxlan_port,
            transport: underlay.selection.transport,
            blocks: desired.block_index(),
        };
        if datapath.config()? != Some(config)
            && pass.differs(FindingKind::Map, OWNER, "map CONFIG does not describe this node")
        {
            datapath.configure(&config)?;
        }
        let prefixes: BTreeMap<IpNet, _> = desired
            .prefixes
            .iter()
            .map(|(net, prefix)| ((*net).into(), target(*prefix, &underlay.paths)))
            .collect();
        let node = |_: &_| OWNER.to_owned();
        pass.table("PREFIXES", node, &mut datapath.prefixes(), &prefixes)?;
        let blocks: BTreeMap<Ipv4Net, _> = desired
            .all_indexed()
            .map(|(net, prefix)| (net, target(prefix, &underlay.paths)))
            .collect();
        let node = |_: &_| OWNER.to_owned();
        pass.table("BLOCKS", node, &mut datapath.blocks(), &blocks)?;
        let nodes: BTreeMap<_, _> = desired
            .nodes
            .iter()
            .map(|address| (IpAddr::from(*address), ()))
            .collect();
        let node = |_: &_| OWNER.to_owned();
        pass.table("NODES", node, &mut datapath.nodes(), &nodes)
    }

    fn programs(&mut self, uplink: &Link, overlay: u32, pass: &mut Pass) -> Result<(), weft_kernel::Error> {
        let mut datapath = lock(&self.datapath);
        // At the first pass the programs may be those of an earlier agent, to be replaced by this one's.
        let adopted = self.done.is_some() || !pass.mends();
        let mut missing = |datapath: &Datapath, programs: [Program; 2], link: u32, name: &str| {
            let attached = if adopted {
                datapath.attached_to(link)?
            } else {
                BTreeSet::new()
            };
            let missing: Vec<&str> = programs
                .into_iter()
                .filter(|program| !attached.contains(program))
                .map(Program::name)
                .collect();
            let what = || format!("{} not attached to {name}", missing.join(" and "));
            Ok(!missing.is_empty() && pass.differs(FindingKind::Program, OWNER, what()))
        };
        let programs = [Program::FromUplink, Program::ToUplink];
        if missing(&datapath, programs, uplink.index, &uplink.name)? {
            datapath.attach_uplink(uplink.index, &uplink.name)?;
        }
        let programs = [Program::FromOverlay, Program::ToOverlay];
        if missing(&datapath, programs, overlay, OVERLAY)? {
            datapath.attach_overlay(overlay, OVERLAY)?;
        }
        Ok(())
    }

    fn rules(&mut self, desired: &Desired, uplink: &Link, pass: &mut Pass) -> Result<(), weft_kernel::Error> {
        const WRONG: &str = "nftables table weft is missing or was changed";
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
            if !self.nft.is_intact(&mut rules.applied)? && pass.differs(FindingKind::Rules, OWNER, WRONG) {
                rules.applied = self.nft.apply(&rules.batch)?;
            }
        } else if pass.differs(FindingKind::Rules, OWNER, WRONG) {
            let batch = weft_table(&wanted)?;
            let applied = self.nft.apply(&batch)?;
            self.rules = Some(Rules {
                wanted,
                batch,
                applied,
            });
        }
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

/// MTU of pods, in bytes, behind this uplink.
fn pod_mtu(uplink: &Link) -> Result<u32, UserError> {
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
    Ok(mtu)
}

/// The datapath's word for it.
pub fn target(prefix: Prefix, paths: &Paths) -> PrefixTarget {
    let path = |underlay| paths.get(underlay).copied().unwrap_or_default();
    match prefix {
        Prefix::LocalBlock => PrefixTarget::LocalBlock,
        Prefix::RemoteBlock { underlay } => PrefixTarget::RemoteBlock {
            underlay: underlay.into(),
            mtu: path(&underlay).mtu,
            next_hop: path(&underlay).next_hop,
        },
        Prefix::SelfNode => PrefixTarget::SelfNode,
        Prefix::RemoteNode { underlay } => PrefixTarget::RemoteNode {
            underlay: underlay.into(),
            mtu: path(&underlay).mtu,
            next_hop: path(&underlay).next_hop,
        },
        Prefix::Pool => PrefixTarget::Pool,
        Prefix::Native => PrefixTarget::Native,
    }
}

pub fn kernel(code: weft_model::Code, error: &weft_kernel::Error) -> UserError {
    UserError::new(code, error.to_string(), "see the agent's log")
}

/// The parameter that keeps IPv6 from an interface.
pub fn no_ipv6(link: &str) -> Result<Key, weft_kernel::Error> {
    Key::new(format!("net/ipv6/conf/{link}/disable_ipv6"))
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
