//! The blocks a pool could give out, as numbers.

use std::net::Ipv4Addr;
use std::ops::Range;

use ipnet::Ipv4Net;
use weft_model::{Block, BlockSize};

use super::PoolConfig;

/// The blocks of a pool's ranges, numbered in the order of the ranges. Those
/// that touch an excluded range have a number too but are never found.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    size: BlockSize,
    ranges: Vec<Numbered>,
    /// Excluded addresses, first and last, ascending and apart.
    excluded: Vec<(u32, u32)>,
    len: u64,
    capacity: u32,
}

#[derive(Clone, Copy, Debug)]
struct Numbered {
    net: Ipv4Net,
    /// The number of its first block.
    from: u64,
    /// The number after its last block's.
    to: u64,
}

// === impl Candidates ===

impl Candidates {
    pub(super) fn new(config: &PoolConfig) -> Self {
        let mut ranges = Vec::new();
        let mut len = 0;
        for cidr in &config.cidrs {
            let blocks = u64::from(cidr.blocks(config.block_size));
            ranges.push(Numbered {
                net: cidr.net(),
                from: len,
                to: len + blocks,
            });
            len += blocks;
        }
        let excluded = Ipv4Net::aggregate(&config.excluded)
            .iter()
            .map(|net| (net.network().to_bits(), net.broadcast().to_bits()))
            .collect();
        let mut candidates = Self {
            size: config.block_size,
            ranges,
            excluded,
            len,
            capacity: 0,
        };
        candidates.capacity = candidates.count();
        candidates
    }

    /// One more than the highest number.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many blocks touch no excluded range.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number of the block that `address` lies in.
    pub(super) fn position(&self, address: Ipv4Addr) -> Option<u64> {
        self.ranges
            .iter()
            .find(|range| range.to > range.from && range.net.contains(&address))
            .map(|range| range.number(address, self.size))
    }

    /// Whether a block shares addresses with the pool's ranges.
    pub(super) fn touches(&self, block: Block) -> bool {
        !self.span(block).is_empty()
    }

    /// The numbers of the blocks that share addresses with `block`, within the
    /// first range that does.
    pub(super) fn span(&self, block: Block) -> Range<u64> {
        let net = block.net();
        let overlaps = |range: &&Numbered| range.net.contains(&net) || net.contains(&range.net);
        match self
            .ranges
            .iter()
            .filter(|range| range.to > range.from)
            .find(overlaps)
        {
            None => 0..0,
            Some(range) => {
                let first = net.network().max(range.net.network());
                let last = net.broadcast().min(range.net.broadcast());
                range.number(first, self.size)..range.number(last, self.size) + 1
            }
        }
    }

    /// The first block of these numbers that is neither excluded nor blocked.
    /// `blocker` says the last address of what blocks one.
    pub(super) fn find(
        &self,
        numbers: Range<u64>,
        blocker: impl Fn(Block) -> Option<Ipv4Addr>,
    ) -> Option<(u64, Block)> {
        for range in &self.ranges {
            let end = numbers.end.min(range.to);
            let mut number = numbers.start.max(range.from);
            while number < end {
                let block = range.block(number, self.size);
                let blocked_to = self.exclusion(block).or_else(|| blocker(block));
                match blocked_to {
                    None => return Some((number, block)),
                    Some(last) => {
                        let last = last.clamp(block.last(), range.net.broadcast());
                        number = range.number(last, self.size) + 1;
                    }
                }
            }
        }
        None
    }

    /// The last address of the excluded range that touches a block.
    fn exclusion(&self, block: Block) -> Option<Ipv4Addr> {
        let (first, last) = (block.first().to_bits(), block.last().to_bits());
        let at = self.excluded.partition_point(|(_, end)| *end < first);
        let (start, end) = self.excluded.get(at)?;
        (*start <= last).then(|| Ipv4Addr::from_bits(*end))
    }

    fn count(&self) -> u32 {
        let mut count = self.len;
        for range in &self.ranges {
            let (first, last) = (range.net.network().to_bits(), range.net.broadcast().to_bits());
            let mut counted_to = range.from;
            if range.to == range.from {
                continue;
            }
            for (start, end) in &self.excluded {
                if *end < first || *start > last {
                    continue;
                }
                let from = range.number(Ipv4Addr::from_bits((*start).max(first)), self.size);
                let to = range.number(Ipv4Addr::from_bits((*end).min(last)), self.size) + 1;
                count -= to - from.max(counted_to).min(to);
                counted_to = to;
            }
        }
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

// === impl Numbered ===

impl Numbered {
    /// The number of the block of this size that `address`, which lies in the
    /// range, lies in.
    fn number(&self, address: Ipv4Addr, size: BlockSize) -> u64 {
        let offset = address.to_bits() - self.net.network().to_bits();
        self.from + u64::from(offset / size.addresses())
    }

    fn block(&self, number: u64, size: BlockSize) -> Block {
        // The number of a range's block is below 2^22, see PodCidr::blocks.
        let offset = (number - self.from) as u32 * size.addresses();
        Block::containing(Ipv4Addr::from_bits(self.net.network().to_bits() + offset), size)
    }
}
