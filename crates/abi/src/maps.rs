use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Mac};

/// Names of the maps, as programs declare them and pins are called.
pub mod names {
    /// Array of one [`Config`](crate::Config).
    pub const CONFIG: &str = "CONFIG";
    /// LPM trie from [`PrefixKey`](crate::PrefixKey) to [`Prefix`](crate::Prefix).
    pub const PREFIXES: &str = "PREFIXES";
    /// Hash from [`BlockKey`](crate::BlockKey) to [`Prefix`](crate::Prefix): entries of [`PREFIXES`] that most packets
    /// look for, where one look finds them however many nodes there are.
    pub const BLOCKS: &str = "BLOCKS";
    /// Hash from the ifindex of a pod's host-side veth to [`Endpoint`](crate::Endpoint).
    pub const ENDPOINTS_BY_IFINDEX: &str = "ENDPOINTS_BY_IFINDEX";
    /// Hash from a pod's [`Address`](crate::Address) to [`Endpoint`](crate::Endpoint).
    pub const ENDPOINTS_BY_ADDR: &str = "ENDPOINTS_BY_ADDR";
    /// Hash from a node's underlay [`Address`](crate::Address) to 1.
    pub const NODES: &str = "NODES";
    /// LRU hash from [`FlowKey`](crate::FlowKey) to 1, of all protocols but TCP.
    pub const STACK_FLOWS: &str = "STACK_FLOWS";
    /// LRU hash from [`FlowKey`](crate::FlowKey) to 1, of TCP: its connections outlive long silences, which the
    /// short flows of other protocols must not make them pay for.
    pub const STACK_FLOWS_TCP: &str = "STACK_FLOWS_TCP";
    /// LRU hash from [`FragmentKey`](crate::FragmentKey) to 1.
    pub const STACK_FRAGMENTS: &str = "STACK_FRAGMENTS";
    /// Per-CPU array of [`Counter`](crate::Counter), indexed by [`DropReason`](crate::DropReason).
    pub const DROPS: &str = "DROPS";
    /// Per-CPU array of [`Counter`](crate::Counter), indexed by [`ForwardPath`](crate::ForwardPath).
    pub const FORWARDS: &str = "FORWARDS";
    /// All of them.
    pub const ALL: [&str; 11] = [
        CONFIG,
        PREFIXES,
        BLOCKS,
        ENDPOINTS_BY_IFINDEX,
        ENDPOINTS_BY_ADDR,
        NODES,
        STACK_FLOWS,
        STACK_FLOWS_TCP,
        STACK_FRAGMENTS,
        DROPS,
        FORWARDS,
    ];
}

/// What the programs of a node need to know about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// The node's tunnel address on the underlay.
    pub underlay: Address,
    /// Interface index of `weft0`.
    pub overlay_ifindex: u32,
    /// Largest IP packet, in bytes, that may enter the overlay.
    pub pod_mtu: u32,
    /// Interface index of the uplink where programs write and strip outer headers themselves; 0 where the overlay device
    /// does. What was always zero here meant the same.
    pub direct_ifindex: u32,
    /// UDP port of the overlay, host byte order.
    pub vxlan_port: u16,
    /// Explicit padding, zero.
    pub reserved: u16,
    /// Which addresses are looked for in [`names::BLOCKS`] before [`names::PREFIXES`].
    pub blocks: BlockIndex,
}

/// Which IPv4 addresses are looked for among the blocks of one length before the trie is searched.
///
/// Words hold the bytes of an address or a mask in network order and have no meaning as numbers. All zero looks for every
/// address among blocks of length zero, of which there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockIndex {
    /// Network mask of the blocks.
    pub mask: u32,
    /// A network that all of them are in; what is outside is looked for in the trie only.
    pub within: u32,
    /// That network's mask.
    pub within_mask: u32,
}

/// Key of a block that is found by one look.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockKey {
    /// First address of the block, network order.
    pub network: u32,
    /// Its mask, network order: blocks of two lengths may begin at one address while the length changes.
    pub mask: u32,
}

/// Key of the prefix trie (`struct bpf_lpm_trie_key`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PrefixKey {
    /// Length in bits of the 128; an IPv4 prefix has [`Address::V4_PREFIX_BITS`] more than it is written with.
    pub bits: u32,
    /// The network; host bits are zero.
    pub network: Address,
}

/// What is behind a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Prefix {
    /// Underlay address of the node behind [`PrefixKind::RemoteBlock`] and [`PrefixKind::RemoteNode`], else unspecified.
    pub underlay: Address,
    /// IPv4 address of who takes packets to that node on the uplink's network, in network order: the node itself or a
    /// gateway. All zero where the node's routes are to be asked about each packet.
    pub next_hop: [u8; 4],
    /// A [`PrefixKind`] as a number; a number that is none counts as outside.
    pub kind: u16,
    /// Largest IP packet, in bytes, that may enter the tunnel to that node, where the path to it takes less than
    /// [`Config::pod_mtu`]; 0 where it takes as much.
    pub mtu: u16,
}

/// Kinds of prefixes. An address in no prefix is outside: the node's stack routes and masquerades it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u16)]
pub enum PrefixKind {
    /// A block of this node.
    LocalBlock = 1,
    /// A block of another node, whose tunnel address is [`Prefix::underlay`].
    RemoteBlock = 2,
    /// An address of this node, /32.
    SelfNode = 3,
    /// An address of another node, /32, whose tunnel address is [`Prefix::underlay`].
    RemoteNode = 4,
    /// Pod CIDR that no node holds.
    Pool = 5,
    /// Outside, reached with the pod's own address.
    Native = 6,
}

/// A live pod interface of this node. Stored twice, by ifindex and by address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    /// The pod's address.
    pub address: Address,
    /// Index of the host side of the pod's veth pair.
    pub ifindex: u32,
    /// The pod's [`Identity`](crate::Identity), as the number.
    pub identity: u32,
    /// Set by user space. Reserved, zero.
    pub flags: u32,
    /// Set by programs and kept by user space: [`Endpoint::STACK_FLOWS`].
    pub program_flags: u32,
    /// MAC of the pod's side.
    pub mac: Mac,
    /// MAC of the host's side, the pod's gateway.
    pub host_mac: Mac,
}

/// A flow that the node's stack carries because something there translated it, in the direction seen leaving the stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, or the identifier of an ICMP query; host byte order.
    pub source_port: u16,
    /// Destination port, or the identifier of an ICMP query; host byte order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u32,
}

/// A fragmented packet whose first fragment went up the node's stack (RFC 791 section 2.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// IP protocol number.
    pub protocol: u32,
    /// IPv4 identification, 16 bits.
    pub identification: u32,
}

// === impl PrefixKey ===

impl PrefixKey {
    /// Bits of a key that names one address.
    pub const HOST_BITS: u32 = 128;

    /// The key that looks up one address.
    #[inline(always)]
    #[must_use]
    pub const fn host(address: Address) -> Self {
        Self {
            bits: Self::HOST_BITS,
            network: address,
        }
    }
}

// === impl BlockIndex ===

impl BlockIndex {
    /// For a node that has no blocks.
    pub const NONE: Self = Self {
        mask: 0,
        within: 0,
        within_mask: u32::MAX,
    };

    /// The index of blocks of `len` bits inside the network `within` of `within_len` bits; lengths from 0 to 32.
    #[must_use]
    pub const fn new(len: u8, within: [u8; 4], within_len: u8) -> Self {
        let within_mask = mask(within_len);
        Self {
            mask: mask(len),
            within: u32::from_ne_bytes(within) & within_mask,
            within_mask,
        }
    }

    /// The key of the block that may hold an address; `None` where none does.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self, address: Address) -> Option<BlockKey> {
        match address.as_v4_word() {
            Some(word) if word & self.within_mask == self.within => Some(BlockKey {
                network: word & self.mask,
                mask: self.mask,
            }),
            _ => None,
        }
    }
}

// === impl BlockKey ===

impl BlockKey {
    /// Of the block of `len` bits, 0 to 32, that holds an address.
    #[must_use]
    pub const fn new(address: [u8; 4], len: u8) -> Self {
        let mask = mask(len);
        Self {
            network: u32::from_ne_bytes(address) & mask,
            mask,
        }
    }

    /// First address and length in bits; `None` for a mask with holes.
    #[must_use]
    pub const fn parts(self) -> Option<([u8; 4], u8)> {
        let ones = u32::from_be(self.mask);
        if ones.count_ones() == ones.leading_ones() {
            Some((self.network.to_ne_bytes(), ones.count_ones() as u8))
        } else {
            None
        }
    }
}

/// Network mask of `len` bits in network order.
const fn mask(len: u8) -> u32 {
    match u32::MAX.checked_shl(32 - len as u32) {
        Some(ones) => ones.to_be(),
        None => 0,
    }
}

// === impl PrefixKind ===

impl PrefixKind {
    /// The kind behind the number in a map.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u16) -> Option<Self> {
        match raw {
            1 => Some(Self::LocalBlock),
            2 => Some(Self::RemoteBlock),
            3 => Some(Self::SelfNode),
            4 => Some(Self::RemoteNode),
            5 => Some(Self::Pool),
            6 => Some(Self::Native),
            _ => None,
        }
    }

    /// Whether addresses of this kind belong to pods, of this node, of others, or of nobody yet.
    #[inline(always)]
    #[must_use]
    pub const fn is_pod(self) -> bool {
        matches!(self, Self::LocalBlock | Self::RemoteBlock | Self::Pool)
    }

    /// Whether packets of this source reach a pod past the node's stack. One that comes out of the stack nevertheless
    /// was translated there.
    #[inline(always)]
    #[must_use]
    pub const fn bypasses_stack(self) -> bool {
        matches!(self, Self::LocalBlock | Self::RemoteBlock | Self::RemoteNode)
    }
}

// === impl Prefix ===

impl Prefix {
    /// Whether an IP packet of `len` bytes may enter the tunnel to the node, as far as the path to it is concerned.
    #[inline(always)]
    #[must_use]
    pub const fn takes(&self, len: u32) -> bool {
        self.mtu == 0 || len <= self.mtu as u32
    }
}

// === impl Config ===

impl Config {
    /// Whether programs at this interface take packets of the overlay without its device.
    #[inline(always)]
    #[must_use]
    pub const fn is_direct_at(&self, ifindex: u32) -> bool {
        self.direct_ifindex == ifindex && ifindex != 0
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// The node's stack translates flows of this endpoint: look for their notes before taking the fast path.
    pub const STACK_FLOWS: u32 = 1;

    /// Whether flows of this endpoint may be noted.
    #[inline(always)]
    #[must_use]
    pub const fn has_stack_flows(&self) -> bool {
        self.program_flags & Self::STACK_FLOWS != 0
    }
}

// === impl FlowKey ===

impl FlowKey {
    /// The same flow seen from its other end.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}
