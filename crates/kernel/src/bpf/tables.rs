//! The maps that user space fills, each as a [`Target`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, IterableMap, LpmTrie, MapData, MapError};
use ipnet::{IpNet, Ipv4Net};
use weft_abi::{Address, BlockKey, Identity, Prefix, PrefixKey, PrefixKind, names};
use weft_model::Mac;

use super::convert::{Raw, from_abi, prefix_from_abi, prefix_to_abi, to_abi};
use super::{Datapath, batch};
use crate::error::{Context, Result};
use crate::target::Target;

/// What the programs need to know about their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's tunnel address on the underlay.
    pub underlay: IpAddr,
    /// Interface index of the overlay device.
    pub overlay_ifindex: u32,
    /// Largest IP packet, in bytes, that may enter the overlay.
    pub pod_mtu: u32,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// How packets get to other nodes.
    pub transport: Transport,
    /// Which blocks are in [`Blocks`] too.
    pub blocks: Option<BlockIndex>,
}

/// Which addresses are looked for in [`Blocks`] before [`Prefixes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockIndex {
    /// Length of the blocks in bits, 0 to 32.
    pub len: u8,
    /// A network that they are in.
    pub within: Ipv4Net,
}

/// How packets get to other nodes and come from them; on the wire all are the same. May change at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By the overlay device.
    Device,
    /// Past it, by programs at the pods' interfaces and at the uplink with this interface index, which must have
    /// Ethernet headers and be where routes to all nodes lead.
    Direct(u32),
}

/// What is behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixTarget {
    /// A block of this node.
    LocalBlock,
    /// A block of the node with this tunnel address.
    RemoteBlock {
        /// The node's tunnel address.
        underlay: IpAddr,
        /// Largest IP packet in bytes that may enter the tunnel there, where that is less than [`NodeConfig::pod_mtu`].
        mtu: Option<u16>,
        /// Who takes packets to that node on the uplink's network, where that is the same for all of them: the node
        /// itself or a gateway. Without it, the node's routes are asked about each packet.
        next_hop: Option<Ipv4Addr>,
    },
    /// An address of this node.
    SelfNode,
    /// An address of the node with this tunnel address.
    RemoteNode {
        /// The node's tunnel address.
        underlay: IpAddr,
        /// As for its blocks.
        mtu: Option<u16>,
        /// As for its blocks.
        next_hop: Option<Ipv4Addr>,
    },
    /// Pod CIDR; the blocks of it that a node holds are longer prefixes.
    Pool,
    /// Outside, reached with the pod's own address.
    Native,
}

/// A pod's interface, except for its address, which is the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the host side of the pod's veth pair.
    pub ifindex: u32,
    /// Who the pod is to policy.
    pub identity: Identity,
    /// MAC address of the pod's side.
    pub mac: Mac,
    /// MAC address of the host's side.
    pub host_mac: Mac,
}

/// Blocks, pools, nodes' addresses and native destinations. The longest prefix counts.
#[derive(Debug)]
pub struct Prefixes<'a> {
    map: &'a mut LpmTrie<MapData, Raw<Address>, Raw<Prefix>>,
    writes: &'a mut u64,
}

/// Blocks of one length, which are in [`Prefixes`] too and have no longer prefix in them: the programs find one by one
/// look, however many nodes there are.
#[derive(Debug)]
pub struct Blocks<'a> {
    map: &'a mut HashMap<MapData, Raw<BlockKey>, Raw<Prefix>>,
    writes: &'a mut u64,
}

/// The pods of this node, by address. Flags that programs set on them survive.
#[derive(Debug)]
pub struct Endpoints<'a> {
    by_addr: &'a mut HashMap<MapData, Raw<Address>, Raw<weft_abi::Endpoint>>,
    by_ifindex: &'a mut HashMap<MapData, u32, Raw<weft_abi::Endpoint>>,
    writes: &'a mut u64,
}

/// Underlay addresses of the cluster's nodes.
#[derive(Debug)]
pub struct Nodes<'a> {
    map: &'a mut HashMap<MapData, Raw<Address>, u32>,
    writes: &'a mut u64,
}

// === impl Datapath ===

impl Datapath {
    /// Tells the programs about their node. Until then they drop what pods send.
    ///
    /// # Errors
    /// The kernel refused to write the map.
    pub fn configure(&mut self, config: &NodeConfig) -> Result<()> {
        let value = weft_abi::Config {
            underlay: to_abi(config.underlay),
            overlay_ifindex: config.overlay_ifindex,
            pod_mtu: config.pod_mtu,
            direct_ifindex: match config.transport {
                Transport::Device => 0,
                Transport::Direct(uplink) => uplink,
            },
            vxlan_port: config.vxlan_port,
            reserved: 0,
            blocks: config
                .blocks
                .map_or(weft_abi::BlockIndex::NONE, BlockIndex::to_abi),
        };
        self.writes.others += 1;
        self.config
            .set(0, Raw(value), 0)
            .context("write eBPF map", names::CONFIG)
    }

    /// What the programs were told about their node, if anything.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn config(&self) -> Result<Option<NodeConfig>> {
        let Raw(value) = self.config.get(&0, 0).context("read eBPF map", names::CONFIG)?;
        Ok((value.overlay_ifindex != 0).then(|| NodeConfig {
            underlay: from_abi(value.underlay),
            overlay_ifindex: value.overlay_ifindex,
            pod_mtu: value.pod_mtu,
            vxlan_port: value.vxlan_port,
            transport: match value.direct_ifindex {
                0 => Transport::Device,
                uplink => Transport::Direct(uplink),
            },
            blocks: BlockIndex::from_abi(value.blocks),
        }))
    }

    /// The prefix trie.
    pub fn prefixes(&mut self) -> Prefixes<'_> {
        Prefixes {
            map: &mut self.prefixes,
            writes: &mut self.writes.others,
        }
    }

    /// The blocks that are found by one look.
    pub fn blocks(&mut self) -> Blocks<'_> {
        Blocks {
            map: &mut self.blocks,
            writes: &mut self.writes.others,
        }
    }

    /// The pods of this node.
    pub fn endpoints(&mut self) -> Endpoints<'_> {
        Endpoints {
            by_addr: &mut self.endpoints_by_addr,
            by_ifindex: &mut self.endpoints_by_ifindex,
            writes: &mut self.writes.endpoints,
        }
    }

    /// The cluster's nodes.
    pub fn nodes(&mut self) -> Nodes<'_> {
        Nodes {
            map: &mut self.nodes,
            writes: &mut self.writes.others,
        }
    }
}

// === impl BlockIndex ===

impl BlockIndex {
    fn to_abi(self) -> weft_abi::BlockIndex {
        weft_abi::BlockIndex::new(self.len, self.within.addr().octets(), self.within.prefix_len())
    }

    fn from_abi(raw: weft_abi::BlockIndex) -> Option<Self> {
        let key = |network, mask| BlockKey { network, mask }.parts();
        let ((_, len), (network, within_len)) = (key(0, raw.mask)?, key(raw.within, raw.within_mask)?);
        let within = Ipv4Net::new(network.into(), within_len).ok()?;
        (raw != weft_abi::BlockIndex::NONE).then_some(Self { len, within })
    }
}

// === impl PrefixTarget ===

impl PrefixTarget {
    fn to_abi(self) -> Prefix {
        let to_node = |kind, underlay, mtu: Option<u16>, next_hop: Option<Ipv4Addr>| Prefix {
            underlay: to_abi(underlay),
            next_hop: next_hop.map_or([0; 4], |address| address.octets()),
            kind: kind as u16,
            mtu: mtu.unwrap_or(0),
        };
        let other = |kind: PrefixKind| Prefix {
            underlay: Address::UNSPECIFIED,
            next_hop: [0; 4],
            kind: kind as u16,
            mtu: 0,
        };
        match self {
            Self::LocalBlock => other(PrefixKind::LocalBlock),
            Self::RemoteBlock {
                underlay,
                mtu,
                next_hop,
            } => to_node(PrefixKind::RemoteBlock, underlay, mtu, next_hop),
            Self::SelfNode => other(PrefixKind::SelfNode),
            Self::RemoteNode {
                underlay,
                mtu,
                next_hop,
            } => to_node(PrefixKind::RemoteNode, underlay, mtu, next_hop),
            Self::Pool => other(PrefixKind::Pool),
            Self::Native => other(PrefixKind::Native),
        }
    }

    fn from_abi(prefix: Prefix) -> Option<Self> {
        let underlay = from_abi(prefix.underlay);
        let mtu = (prefix.mtu != 0).then_some(prefix.mtu);
        let next_hop = (prefix.next_hop != [0; 4]).then(|| prefix.next_hop.into());
        Some(match PrefixKind::from_raw(prefix.kind)? {
            PrefixKind::LocalBlock => Self::LocalBlock,
            PrefixKind::RemoteBlock => Self::RemoteBlock {
                underlay,
                mtu,
                next_hop,
            },
            PrefixKind::SelfNode => Self::SelfNode,
            PrefixKind::RemoteNode => Self::RemoteNode {
                underlay,
                mtu,
                next_hop,
            },
            PrefixKind::Pool => Self::Pool,
            PrefixKind::Native => Self::Native,
        })
    }
}

// === impl Prefixes ===

impl Target for Prefixes<'_> {
    type Key = IpNet;
    type Value = PrefixTarget;

    fn list(&mut self) -> Result<BTreeMap<IpNet, PrefixTarget>> {
        let entries = batch::entries::<PrefixKey, Prefix>(names::PREFIXES, self.map.map())?;
        let known = |(key, prefix)| Some((prefix_from_abi(key)?, PrefixTarget::from_abi(prefix)?));
        Ok(entries.into_iter().filter_map(known).collect())
    }

    fn apply(&mut self, net: &IpNet, target: &PrefixTarget) -> Result<()> {
        *self.writes += 1;
        self.map
            .insert(&key_of(*net), Raw(target.to_abi()), 0)
            .context("write eBPF map PREFIXES at", net)
    }

    fn remove(&mut self, net: &IpNet) -> Result<()> {
        *self.writes += 1;
        removed(self.map.remove(&key_of(*net))).context("remove from eBPF map PREFIXES", net)
    }
}

// === impl Blocks ===

impl Target for Blocks<'_> {
    type Key = Ipv4Net;
    type Value = PrefixTarget;

    fn list(&mut self) -> Result<BTreeMap<Ipv4Net, PrefixTarget>> {
        let entries = batch::entries::<BlockKey, Prefix>(names::BLOCKS, self.map.map())?;
        let known = |(key, prefix): (BlockKey, Prefix)| {
            let (network, len) = key.parts()?;
            let net = Ipv4Net::new(network.into(), len).ok()?;
            Some((net, PrefixTarget::from_abi(prefix)?))
        };
        Ok(entries.into_iter().filter_map(known).collect())
    }

    fn apply(&mut self, block: &Ipv4Net, target: &PrefixTarget) -> Result<()> {
        *self.writes += 1;
        self.map
            .insert(Raw(block_key(*block)), Raw(target.to_abi()), 0)
            .context("write eBPF map BLOCKS at", block)
    }

    fn remove(&mut self, block: &Ipv4Net) -> Result<()> {
        *self.writes += 1;
        removed(self.map.remove(&Raw(block_key(*block)))).context("remove from eBPF map BLOCKS", block)
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// A pod that has no identity of its own.
    pub const fn new(ifindex: u32, mac: Mac, host_mac: Mac) -> Self {
        Self {
            ifindex,
            identity: Identity::POD,
            mac,
            host_mac,
        }
    }

    fn to_abi(self, address: Address) -> weft_abi::Endpoint {
        weft_abi::Endpoint {
            address,
            ifindex: self.ifindex,
            identity: self.identity.get(),
            flags: 0,
            program_flags: 0,
            mac: weft_abi::Mac::new(self.mac.octets()),
            host_mac: weft_abi::Mac::new(self.host_mac.octets()),
        }
    }

    /// `None` for an entry that is not one of ours; it differs from everything that is wanted.
    fn from_abi(raw: &weft_abi::Endpoint) -> Option<Self> {
        Some(Self {
            ifindex: raw.ifindex,
            identity: Identity::new(raw.identity).ok()?,
            mac: Mac(raw.mac.octets()),
            host_mac: Mac(raw.host_mac.octets()),
        })
    }

    /// The endpoint of these halves: the one found by address, and the one found by its interface.
    fn from_halves(by_addr: &weft_abi::Endpoint, by_ifindex: Option<&weft_abi::Endpoint>) -> Self {
        Self::from_abi(by_addr)
            .filter(|_| by_ifindex.is_some_and(|other| same(by_addr, other)))
            .unwrap_or(Self::BROKEN)
    }

    /// Half an endpoint: in one map only, or different in the two. No interface has the index zero, so it differs from
    /// everything that is wanted, and is repaired or removed.
    const BROKEN: Self = Self {
        ifindex: 0,
        identity: Identity::POD,
        mac: Mac([0; 6]),
        host_mac: Mac([0; 6]),
    };
}

// === impl Endpoints ===

impl Endpoints<'_> {
    /// Addresses whose flows the node's stack carries some of.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn with_stack_flows(&self) -> Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for entry in self.by_addr.iter() {
            let (Raw(address), Raw(raw)) = entry.context("read eBPF map", names::ENDPOINTS_BY_ADDR)?;
            if raw.has_stack_flows() {
                found.push(from_abi(address));
            }
        }
        Ok(found)
    }

    /// The pod with this address, as [`list`](Target::list) shows it but without listing all.
    ///
    /// # Errors
    /// The kernel refused to read a map.
    pub fn get(&self, address: &IpAddr) -> Result<Option<Endpoint>> {
        let Some(raw) = self.at_addr(to_abi(*address))? else {
            return Ok(None);
        };
        let other = self.at_ifindex(raw.ifindex)?;
        Ok(Some(Endpoint::from_halves(&raw, other.as_ref())))
    }

    fn at_addr(&self, address: Address) -> Result<Option<weft_abi::Endpoint>> {
        found(self.by_addr.get(&Raw(address), 0)).context("read eBPF map", names::ENDPOINTS_BY_ADDR)
    }

    fn at_ifindex(&self, ifindex: u32) -> Result<Option<weft_abi::Endpoint>> {
        found(self.by_ifindex.get(&ifindex, 0)).context("read eBPF map", names::ENDPOINTS_BY_IFINDEX)
    }
}

impl Target for Endpoints<'_> {
    type Key = IpAddr;
    type Value = Endpoint;

    fn list(&mut self) -> Result<BTreeMap<IpAddr, Endpoint>> {
        let by_ifindex = batch::entries::<u32, _>(names::ENDPOINTS_BY_IFINDEX, self.by_ifindex.map())?;
        let by_ifindex: BTreeMap<u32, weft_abi::Endpoint> = by_ifindex.into_iter().collect();
        let by_addr = batch::entries::<Address, _>(names::ENDPOINTS_BY_ADDR, self.by_addr.map())?;
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = by_ifindex
            .values()
            .map(|raw| (from_abi(raw.address), Endpoint::BROKEN))
            .collect();
        endpoints.extend(by_addr.iter().map(|(address, raw)| {
            let whole = Endpoint::from_halves(raw, by_ifindex.get(&raw.ifindex));
            (from_abi(*address), whole)
        }));
        Ok(endpoints)
    }

    /// Crash-safe in its order: an interface finds its endpoint only after the endpoint can be found by its address, so
    /// whatever is left half done is seen by [`list`](Self::list).
    fn apply(&mut self, address: &IpAddr, endpoint: &Endpoint) -> Result<()> {
        *self.writes += 1;
        let raw_address = to_abi(*address);
        let mut raw = endpoint.to_abi(raw_address);
        if let Some(before) = self.at_addr(raw_address)? {
            if before.ifindex == raw.ifindex && before.mac == raw.mac {
                raw.program_flags = before.program_flags;
            } else if before.ifindex != raw.ifindex {
                removed(self.by_ifindex.remove(&before.ifindex))
                    .context("remove from eBPF map ENDPOINTS_BY_IFINDEX", before.ifindex)?;
            }
        }
        self.by_addr
            .insert(Raw(raw_address), Raw(raw), 0)
            .context("write eBPF map ENDPOINTS_BY_ADDR at", address)?;
        self.by_ifindex
            .insert(raw.ifindex, Raw(raw), 0)
            .context("write eBPF map ENDPOINTS_BY_IFINDEX at", raw.ifindex)
    }

    fn remove(&mut self, address: &IpAddr) -> Result<()> {
        *self.writes += 1;
        let raw_address = to_abi(*address);
        let indices: Vec<u32> = match self.at_addr(raw_address)? {
            Some(before) => vec![before.ifindex],
            // Only an interface has it: somebody took the other half away.
            None => self
                .by_ifindex
                .iter()
                .filter_map(std::result::Result::ok)
                .filter(|(_, Raw(raw))| raw.address == raw_address)
                .map(|(ifindex, _)| ifindex)
                .collect(),
        };
        for ifindex in indices {
            if self
                .at_ifindex(ifindex)?
                .is_some_and(|raw| raw.address == raw_address)
            {
                removed(self.by_ifindex.remove(&ifindex))
                    .context("remove from eBPF map ENDPOINTS_BY_IFINDEX", ifindex)?;
            }
        }
        removed(self.by_addr.remove(&Raw(raw_address)))
            .context("remove from eBPF map ENDPOINTS_BY_ADDR", address)
    }
}

// === impl Nodes ===

impl Target for Nodes<'_> {
    type Key = IpAddr;
    type Value = ();

    fn list(&mut self) -> Result<BTreeMap<IpAddr, ()>> {
        let entries = batch::entries::<Address, u32>(names::NODES, self.map.map())?;
        Ok(entries
            .into_iter()
            .map(|(address, _)| (from_abi(address), ()))
            .collect())
    }

    fn apply(&mut self, underlay: &IpAddr, &(): &()) -> Result<()> {
        *self.writes += 1;
        self.map
            .insert(Raw(to_abi(*underlay)), 1, 0)
            .context("write eBPF map NODES at", underlay)
    }

    fn remove(&mut self, underlay: &IpAddr) -> Result<()> {
        *self.writes += 1;
        removed(self.map.remove(&Raw(to_abi(*underlay)))).context("remove from eBPF map NODES", underlay)
    }
}

fn block_key(block: Ipv4Net) -> BlockKey {
    BlockKey::new(block.addr().octets(), block.prefix_len())
}

fn key_of(net: IpNet) -> Key<Raw<Address>> {
    let key = prefix_to_abi(net);
    Key::new(key.bits, Raw(key.network))
}

// === impl Datapath ===

impl Datapath {
    /// Notes that the stack carries flows of an endpoint. One that isn't there yet is written as it is, for
    /// [`Endpoints`] to be put right.
    pub(super) fn flag_stack_flows(&mut self, endpoint: &weft_abi::Endpoint) -> Result<()> {
        let endpoints = self.endpoints();
        let mut flagged = match endpoints.at_addr(endpoint.address)? {
            None => *endpoint,
            Some(now) if now.ifindex == endpoint.ifindex && now.mac == endpoint.mac => now,
            Some(_) => return Ok(()),
        };
        flagged.program_flags |= weft_abi::Endpoint::STACK_FLOWS;
        *endpoints.writes += 1;
        endpoints
            .by_addr
            .insert(Raw(flagged.address), Raw(flagged), 0)
            .context("write eBPF map", names::ENDPOINTS_BY_ADDR)?;
        endpoints
            .by_ifindex
            .insert(flagged.ifindex, Raw(flagged), 0)
            .context("write eBPF map", names::ENDPOINTS_BY_IFINDEX)
    }
}

/// Whether two copies of an endpoint agree in what user space writes.
fn same(one: &weft_abi::Endpoint, other: &weft_abi::Endpoint) -> bool {
    weft_abi::Endpoint {
        program_flags: 0,
        ..*one
    } == weft_abi::Endpoint {
        program_flags: 0,
        ..*other
    }
}

fn found<T>(looked_up: std::result::Result<Raw<T>, MapError>) -> std::result::Result<Option<T>, MapError> {
    match looked_up {
        Ok(Raw(value)) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn removed(outcome: std::result::Result<(), MapError>) -> std::result::Result<(), MapError> {
    match outcome {
        Err(MapError::SyscallError(failed)) if failed.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        other => other,
    }
}
