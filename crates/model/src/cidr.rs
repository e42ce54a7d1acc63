use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::{UserError, codes};

/// The number of leading bits all addresses of a block share, /20 to /30.
///
/// /20 is 4,096 addresses, far above what a node runs; below /30 a block would
/// be spent on a handful of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct BlockSize(u8);

/// A run of pod addresses that belongs to one node.
///
/// Every address of it is an ordinary pod address, the first and the last one
/// too: pods hold /32 routes, there is no subnet that could have a network or a
/// broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Block(Ipv4Net);

/// A range that pod addresses are taken from: canonical, /8 to /30, and unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodCidr(Ipv4Net);

/// Why a text is not a usable IPv4 range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `a.b.c.d/length` at all.
    #[error("\"{text}\" is not an IPv4 range: expected a.b.c.d/length, for example 10.244.0.0/16")]
    Malformed {
        /// The text as given.
        text: String,
    },
    /// Bits right of the prefix are set.
    #[error("{given} has host bits set: the range it lies in is written {canonical}")]
    NotCanonical {
        /// The range as given.
        given: Ipv4Net,
        /// The same range without host bits.
        canonical: Ipv4Net,
    },
    /// The prefix length is outside of what a pod CIDR may have.
    #[error("{given} is no pod CIDR: the prefix length has to be /{min} to /{max}")]
    Length {
        /// The range as given.
        given: Ipv4Net,
        /// The shortest prefix allowed.
        min: u8,
        /// The longest prefix allowed.
        max: u8,
    },
    /// The range holds addresses that can't belong to a pod.
    #[error("{given} can't be a pod CIDR: it overlaps {reserved} ({purpose})")]
    Reserved {
        /// The range as given.
        given: Ipv4Net,
        /// The reserved range (IANA special-purpose registry, RFC 6890).
        reserved: Ipv4Net,
        /// What it is reserved for.
        purpose: &'static str,
    },
}

/// Why a range is not a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The text is no range, or one with host bits.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// The length is outside /20 to /30.
    #[error("block size /{size} is outside /{} to /{}", BlockSize::MIN.0, BlockSize::MAX.0)]
    Size {
        /// The prefix length as given.
        size: u8,
    },
}

/// Two ranges that share addresses, each with the label it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap<L> {
    /// The range that starts first (the larger one if both start together).
    pub first: (L, Ipv4Net),
    /// The range that lies inside the first.
    pub second: (L, Ipv4Net),
}

/// Reads an IPv4 range and refuses one with host bits.
///
/// # Errors
/// [`CidrError::Malformed`] and [`CidrError::NotCanonical`].
pub fn parse_cidr(text: &str) -> Result<Ipv4Net, CidrError> {
    // std's parser, because ipnet's takes leading zeros, which other programs
    // read as octal or refuse.
    let given = text
        .split_once('/')
        .filter(|(_, length)| length.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|(_, length)| *length == "0" || !length.starts_with('0'))
        .and_then(|(address, length)| Ipv4Net::new(address.parse().ok()?, length.parse().ok()?).ok())
        .ok_or_else(|| CidrError::Malformed {
            text: text.to_owned(),
        })?;
    canonical(given)
}

/// The first pair of ranges that share an address, in address order.
///
/// O(n log n). Ranges with a prefix are nested or disjoint, so that of ranges
/// sorted by start and size an overlapping pair always has overlapping
/// neighbours.
pub fn first_overlap<L>(ranges: impl IntoIterator<Item = (L, Ipv4Net)>) -> Option<Overlap<L>> {
    let mut ranges: Vec<(L, Ipv4Net)> = ranges.into_iter().collect();
    ranges.sort_by_key(|(_, net)| (net.network(), net.prefix_len()));
    let at = ranges
        .windows(2)
        .position(|pair| pair[0].1.contains(&pair[1].1))?;
    let mut pair = ranges.drain(at..at + 2);
    Some(Overlap {
        first: pair.next()?,
        second: pair.next()?,
    })
}

// === impl BlockSize ===

impl BlockSize {
    /// The largest block, 4,096 addresses.
    pub const MIN: Self = Self(20);
    /// The smallest block, 4 addresses.
    pub const MAX: Self = Self(30);

    /// # Errors
    /// [`BlockError::Size`] outside /20 to /30.
    pub fn new(size: u8) -> Result<Self, BlockError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&size) {
            Ok(Self(size))
        } else {
            Err(BlockError::Size { size })
        }
    }

    /// The prefix length, 20 to 30.
    pub fn prefix_len(self) -> u8 {
        self.0
    }

    /// The number of addresses of a block, 4 to 4,096.
    pub fn addresses(self) -> u32 {
        1 << (32 - self.0)
    }
}

impl TryFrom<u8> for BlockSize {
    type Error = BlockError;

    fn try_from(size: u8) -> Result<Self, BlockError> {
        Self::new(size)
    }
}

impl From<BlockSize> for u8 {
    fn from(size: BlockSize) -> u8 {
        size.0
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

// === impl Block ===

impl Block {
    /// # Errors
    /// [`BlockError`] if the range has host bits or a length outside /20 to /30.
    pub fn new(net: Ipv4Net) -> Result<Self, BlockError> {
        BlockSize::new(net.prefix_len())?;
        Ok(Self(canonical(net)?))
    }

    /// The block of this size that `address` lies in.
    pub fn containing(address: Ipv4Addr, size: BlockSize) -> Self {
        Self(Ipv4Net::new_assert(address, size.0).trunc())
    }

    /// The range of the block.
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// The size of the block.
    pub fn size(self) -> BlockSize {
        BlockSize(self.0.prefix_len())
    }

    /// The lowest address, a pod address like any other.
    pub fn first(self) -> Ipv4Addr {
        self.0.network()
    }

    /// The highest address, a pod address like any other.
    pub fn last(self) -> Ipv4Addr {
        self.0.broadcast()
    }

    /// Whether `address` belongs to the block.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// Whether the two blocks share an address.
    pub fn overlaps(self, other: Block) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }

    /// All addresses of the block, lowest first.
    pub fn addresses(self) -> impl ExactSizeIterator<Item = Ipv4Addr> {
        let base = self.first().to_bits();
        (0..self.size().addresses()).map(move |offset| Ipv4Addr::from_bits(base + offset))
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self, BlockError> {
        Self::new(parse_cidr(text)?)
    }
}

impl TryFrom<String> for Block {
    type Error = BlockError;

    fn try_from(text: String) -> Result<Self, BlockError> {
        text.parse()
    }
}

impl From<Block> for String {
    fn from(block: Block) -> String {
        block.to_string()
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl PodCidr ===

impl PodCidr {
    /// The shortest prefix: one whole class-A network such as 10.0.0.0/8.
    pub const MIN_LEN: u8 = 8;
    /// The longest prefix: the smallest block.
    pub const MAX_LEN: u8 = BlockSize::MAX.0;
    /// Ranges no pod may have, after RFC 6890, and what for; 169.254.0.0/16 also
    /// holds the gateway address 169.254.1.1 that every pod routes to.
    pub const RESERVED: [(&str, &str); 4] = [
        ("0.0.0.0/8", "\"this network\""),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local and the gateway of pods"),
        ("224.0.0.0/3", "multicast and reserved"),
    ];

    /// # Errors
    /// [`CidrError`] if the range has host bits, is shorter than /8 or longer
    /// than /30, or holds addresses that can't be a pod's.
    pub fn new(net: Ipv4Net) -> Result<Self, CidrError> {
        let given = canonical(net)?;
        if !(Self::MIN_LEN..=Self::MAX_LEN).contains(&given.prefix_len()) {
            return Err(CidrError::Length {
                given,
                min: Self::MIN_LEN,
                max: Self::MAX_LEN,
            });
        }
        for (reserved, purpose) in Self::RESERVED {
            let reserved = parse_cidr(reserved)?;
            if reserved.contains(&given) || given.contains(&reserved) {
                return Err(CidrError::Reserved {
                    given,
                    reserved,
                    purpose,
                });
            }
        }
        Ok(Self(given))
    }

    /// The range itself.
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// How many blocks of this size the range holds; 0 if the block is larger.
    pub fn blocks(self, size: BlockSize) -> u32 {
        size.prefix_len()
            .checked_sub(self.0.prefix_len())
            .map_or(0, |bits| 1 << bits)
    }
}

impl FromStr for PodCidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        Self::new(parse_cidr(text)?)
    }
}

impl TryFrom<String> for PodCidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<PodCidr> for String {
    fn from(cidr: PodCidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for PodCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl CidrError ===

impl From<CidrError> for UserError {
    fn from(error: CidrError) -> UserError {
        let message = error.to_string();
        match error {
            CidrError::Malformed { .. } => {
                UserError::new(codes::MALFORMED_CIDR, message, "write the range as 10.244.0.0/16")
            }
            CidrError::NotCanonical { canonical, .. } => UserError::new(
                codes::NON_CANONICAL_CIDR,
                message,
                format!("use {canonical} if the whole range is meant"),
            ),
            CidrError::Length { .. } | CidrError::Reserved { .. } => UserError::new(
                codes::UNUSABLE_POD_CIDR,
                message,
                "choose a private range such as 10.244.0.0/16",
            ),
        }
    }
}

// === impl BlockError ===

impl From<BlockError> for UserError {
    fn from(error: BlockError) -> UserError {
        match error {
            BlockError::Cidr(cidr) => cidr.into(),
            BlockError::Size { .. } => UserError::new(
                codes::BLOCK_SIZE,
                error.to_string(),
                "choose a block size of 20 to 30; 24 (256 addresses) suits 250 pods a node",
            ),
        }
    }
}

// === impl Overlap ===

impl<L: fmt::Display> fmt::Display for Overlap<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, outer) = &self.first;
        let (second, inner) = &self.second;
        write!(f, "{first} {outer} overlaps {second} {inner}")
    }
}

impl<L: fmt::Display> From<Overlap<L>> for UserError {
    fn from(overlap: Overlap<L>) -> UserError {
        UserError::new(
            codes::CIDR_OVERLAP,
            overlap.to_string(),
            format!("move {} or {}", overlap.first.0, overlap.second.0),
        )
    }
}

fn canonical(given: Ipv4Net) -> Result<Ipv4Net, CidrError> {
    let canonical = given.trunc();
    if canonical == given {
        Ok(given)
    } else {
        Err(CidrError::NotCanonical { given, canonical })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_with_host_bits_is_refused_with_its_canonical_form() {
        let error = parse_cidr("10.244.3.7/16").unwrap_err();
        assert_eq!(
            error.to_string(),
            "10.244.3.7/16 has host bits set: the range it lies in is written 10.244.0.0/16"
        );
        assert_eq!(
            UserError::from(error).to_string(),
            "error[WEFT-1002]: 10.244.3.7/16 has host bits set: the range it lies in is written 10.244.0.0/16\n  \
             next: use 10.244.0.0/16 if the whole range is meant"
        );
    }

    #[test]
    fn text_that_is_no_range_is_refused_as_it_was_given() {
        for text in [
            "",
            "10.244.0.0",
            "10.244.0.0/33",
            "10.244.0/16",
            "10.244.0.0/16 ",
            "010.244.0.0/16",
            "fd00::/64",
            "10.244.0.0/-1",
            "10.244.0.0/016",
        ] {
            assert_eq!(
                parse_cidr(text),
                Err(CidrError::Malformed {
                    text: text.to_owned()
                }),
            );
        }
    }

    #[test]
    fn a_pod_cidr_keeps_clear_of_addresses_no_pod_can_have() {
        for (text, reserved) in [
            ("127.0.0.0/16", "127.0.0.0/8"),
            ("169.254.0.0/24", "169.254.0.0/16"),
            ("169.0.0.0/8", "169.254.0.0/16"),
            ("240.0.0.0/8", "224.0.0.0/3"),
            ("0.0.0.0/8", "0.0.0.0/8"),
        ] {
            let Err(CidrError::Reserved { reserved: hit, .. }) = text.parse::<PodCidr>() else {
                panic!("{text} was accepted");
            };
            assert_eq!(hit.to_string(), reserved);
        }
        assert!(matches!(
            "10.0.0.0/7".parse::<PodCidr>(),
            Err(CidrError::Length { min: 8, max: 30, .. })
        ));
        assert!("10.0.0.0/31".parse::<PodCidr>().is_err());
        assert_eq!(
            "10.0.0.0/8".parse::<PodCidr>().map(PodCidr::net),
            Ok("10.0.0.0/8".parse().unwrap())
        );
    }

    #[test]
    fn a_pod_cidr_knows_how_many_blocks_it_holds() {
        let blocks = |cidr: &str, size| {
            cidr.parse::<PodCidr>()
                .unwrap()
                .blocks(BlockSize::new(size).unwrap())
        };
        assert_eq!(blocks("10.244.0.0/16", 24), 256);
        assert_eq!(blocks("10.0.0.0/11", 24), 8192);
        assert_eq!(blocks("10.244.0.0/24", 24), 1);
        assert_eq!(blocks("10.244.0.0/25", 24), 0);
        assert_eq!(blocks("10.0.0.0/8", 30), 1 << 22);
    }

    #[test]
    fn a_block_is_a_twentieth_to_thirtieth_prefix_without_host_bits() {
        assert_eq!(
            "10.244.0.0/19".parse::<Block>(),
            Err(BlockError::Size { size: 19 })
        );
        assert_eq!(
            "10.244.0.0/31".parse::<Block>(),
            Err(BlockError::Size { size: 31 })
        );
        assert!(matches!(
            "10.244.0.1/24".parse::<Block>(),
            Err(BlockError::Cidr(CidrError::NotCanonical { .. }))
        ));
        for size in 20..=30 {
            let block = Block::containing(Ipv4Addr::new(10, 244, 19, 77), BlockSize::new(size).unwrap());
            assert_eq!(block.to_string().parse(), Ok(block));
            assert_eq!(block.addresses().len() as u32, block.size().addresses());
            assert_eq!(block.addresses().next(), Some(block.first()));
            assert_eq!(block.addresses().last(), Some(block.last()));
        }
    }

    #[test]
    fn the_offending_pair_is_found_wherever_it_stands() {
        let net = |text: &str| parse_cidr(text).unwrap();
        let ranges = [
            ("pods", net("10.244.0.0/16")),
            ("services", net("10.0.0.0/16")),
            ("nodes", net("10.224.0.0/16")),
        ];
        assert_eq!(first_overlap(ranges), None);
        let found = first_overlap(ranges.into_iter().chain([("VNet", net("10.224.128.0/20"))]));
        assert_eq!(
            found.map(|overlap| overlap.to_string()),
            Some("nodes 10.224.0.0/16 overlaps VNet 10.224.128.0/20".to_owned())
        );
        let same = first_overlap([("a", net("10.0.0.0/8")), ("b", net("10.0.0.0/8"))]);
        assert_eq!(
            same.map(|overlap| (overlap.first.0, overlap.second.0)),
            Some(("a", "b"))
        );
    }
}
