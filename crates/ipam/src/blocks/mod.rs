//! Which node has which block.
//!
//! Blocks are found in the order of a pool's ranges, behind the last one given
//! out; what was given back is used again last, oldest first. A block never
//! shares an address with another one, whatever pool or size that is of, nor
//! with an excluded range.

mod cursor;
mod spans;

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use weft_model::{Block, BlockSize, NodeUid, PodCidr, UserError, codes};

use self::cursor::Candidates;
use self::spans::Spans;

/// Gives blocks to nodes. Pure: no time, no I/O, the same calls give the same blocks.
#[derive(Clone, Debug, Default)]
pub struct BlockAllocator {
    pools: BTreeMap<String, Pool>,
    /// Owners of every block that is given out; more than one only if somebody
    /// else than this allocator wrote it down so.
    given: Spans<Vec<Holding>>,
    /// Blocks that came back, and when, counted by `returns`.
    returned: Spans<u64>,
    return_order: BTreeMap<u64, Block>,
    returns: u64,
}

/// Where a pool's blocks come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// The ranges, used in this order.
    pub cidrs: Vec<PodCidr>,
    /// The size of blocks given out from now on.
    pub block_size: BlockSize,
    /// What no block may touch.
    pub excluded: Vec<Ipv4Net>,
}

/// How many blocks a pool has and how many of them are given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Blocks of the present size in the ranges, less those that touch an excluded one.
    pub capacity: u32,
    /// Blocks, of any size, given out from this pool.
    pub allocated: u32,
}

/// A pool has no block left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "pool {pool} has no free {size} block: {} of {} given out",
    usage.allocated,
    usage.capacity
)]
pub struct Exhausted {
    /// The pool.
    pub pool: String,
    /// The size of its blocks.
    pub size: BlockSize,
    /// Its counts.
    pub usage: PoolUsage,
}

/// Two nodes hold blocks that share addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {} holds {} and node {} holds {}", first.owner, first.block, second.owner, second.block)]
pub struct Conflict {
    /// The one that holds the larger or the lower block.
    pub first: Claim,
    /// The other one.
    pub second: Claim,
}

/// A block and the node it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The block.
    pub block: Block,
    /// The node.
    pub owner: NodeUid,
}

#[derive(Clone, Debug)]
struct Pool {
    config: PoolConfig,
    candidates: Candidates,
    allocated: u32,
    /// The candidate after the last one given out.
    next: u64,
    /// No candidate is free but for those that overlap a returned block.
    only_returned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Holding {
    owner: NodeUid,
    pool: String,
}

// === impl BlockAllocator ===

impl BlockAllocator {
    /// An allocator without pools.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pool or changes one. Blocks given out stay where they are, also
    /// outside of the new ranges.
    pub fn set_pool(&mut self, name: &str, config: PoolConfig) {
        if self.pools.get(name).is_some_and(|pool| pool.config == config) {
            return;
        }
        let candidates = Candidates::new(&config);
        let behind_last = self
            .given
            .iter()
            .filter_map(|(block, _)| candidates.position(block.last()))
            .max()
            .map_or(0, |position| position + 1);
        let allocated = self
            .given
            .iter()
            .flat_map(|(_, holdings)| holdings)
            .filter(|holding| holding.pool == name)
            .count();
        let pool = Pool {
            config,
            candidates,
            allocated: u32::try_from(allocated).unwrap_or(u32::MAX),
            next: behind_last,
            only_returned: false,
        };
        self.pools.insert(name.to_owned(), pool);
    }

    /// Removes a pool. Blocks given out stay where they are.
    pub fn remove_pool(&mut self, name: &str) {
        self.pools.remove(name);
    }

    /// Takes note of a block that is given out already, as found in a
    /// NodeNetwork. Repeating it changes nothing. A block that others hold too
    /// is noted all the same, see [`BlockAllocator::conflicts`].
    pub fn claim(&mut self, pool: &str, block: Block, owner: &NodeUid) {
        if self
            .given
            .get(block)
            .is_some_and(|holdings| holdings.iter().any(|holding| holding.owner == *owner))
        {
            return;
        }
        self.hold(pool, block, owner);
        if let Some(pool) = self.pools.get_mut(pool)
            && let Some(position) = pool.candidates.position(block.last())
        {
            pool.next = pool.next.max(position + 1);
        }
    }

    /// Gives the next block of a pool to a node.
    ///
    /// # Errors
    /// [`Exhausted`] if there is none, or no such pool.
    pub fn allocate(&mut self, pool: &str, owner: &NodeUid) -> Result<Block, Exhausted> {
        let found = self
            .take_unreturned(pool)
            .or_else(|| self.take_returned(pool))
            // A returned block may have been larger than what became of it.
            .or_else(|| self.take_unreturned(pool));
        match found {
            Some(block) => {
                self.hold(pool, block, owner);
                Ok(block)
            }
            None => Err(Exhausted {
                pool: pool.to_owned(),
                size: self
                    .pools
                    .get(pool)
                    .map_or(BlockSize::MAX, |pool| pool.config.block_size),
                usage: self.usage(pool),
            }),
        }
    }

    /// Takes a block back. False if the node does not have it.
    pub fn release(&mut self, block: Block, owner: &NodeUid) -> bool {
        let Some(holdings) = self.given.get_mut(block) else {
            return false;
        };
        let Some(at) = holdings.iter().position(|holding| holding.owner == *owner) else {
            return false;
        };
        let holding = holdings.remove(at);
        if holdings.is_empty() {
            self.given.remove(block);
            self.returns += 1;
            if let Some(earlier) = self.returned.insert(block, self.returns) {
                self.return_order.remove(&earlier);
            }
            self.return_order.insert(self.returns, block);
        }
        if let Some(pool) = self.pools.get_mut(&holding.pool) {
            pool.allocated -= 1;
        }
        true
    }

    /// The counts of a pool; zero if there is none of this name.
    pub fn usage(&self, pool: &str) -> PoolUsage {
        self.pools
            .get(pool)
            .map_or_else(PoolUsage::default, |pool| PoolUsage {
                capacity: pool.candidates.capacity(),
                allocated: pool.allocated,
            })
    }

    /// Another node than `owner` that holds addresses of `block`, with what it holds.
    pub fn other_owner(&self, block: Block, owner: &NodeUid) -> Option<Claim> {
        self.given
            .all_overlapping(block)
            .flat_map(|(block, holdings)| holdings.iter().map(move |holding| (block, holding)))
            .find(|(_, holding)| holding.owner != *owner)
            .map(|(block, holding)| Claim {
                block,
                owner: holding.owner.clone(),
            })
    }

    /// All pairs of claims that share addresses, in address order.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let mut around: Vec<Claim> = Vec::new();
        for (block, holdings) in self.given.iter() {
            around.retain(|outer| outer.block.contains(block.first()));
            for holding in holdings {
                let claim = Claim {
                    block,
                    owner: holding.owner.clone(),
                };
                conflicts.extend(around.iter().map(|outer| Conflict {
                    first: outer.clone(),
                    second: claim.clone(),
                }));
                around.push(claim);
            }
        }
        conflicts
    }

    fn hold(&mut self, pool: &str, block: Block, owner: &NodeUid) {
        if let Some(order) = self.returned.remove(block) {
            self.return_order.remove(&order);
        }
        let holding = Holding {
            owner: owner.clone(),
            pool: pool.to_owned(),
        };
        match self.given.get_mut(block) {
            Some(holdings) => holdings.push(holding),
            None => {
                self.given.insert(block, vec![holding]);
            }
        }
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.allocated += 1;
        }
    }

    /// The next candidate that touches neither a given nor a returned block.
    fn take_unreturned(&mut self, name: &str) -> Option<Block> {
        let pool = self.pools.get_mut(name)?;
        if pool.only_returned {
            return None;
        }
        let blocker = |block: Block| {
            let given = self.given.overlapping(block).map(Block::last);
            given.or_else(|| self.returned.overlapping(block).map(Block::last))
        };
        let (next, end) = (pool.next, pool.candidates.len());
        let found = pool
            .candidates
            .find(next..end, blocker)
            .or_else(|| pool.candidates.find(0..next.min(end), blocker));
        match found {
            Some((position, block)) => {
                pool.next = position + 1;
                Some(block)
            }
            None => {
                pool.only_returned = true;
                None
            }
        }
    }

    /// The candidate that overlaps the block which came back first.
    fn take_returned(&mut self, name: &str) -> Option<Block> {
        loop {
            let candidates = &self.pools.get(name)?.candidates;
            let (order, returned) = self
                .return_order
                .iter()
                .map(|(order, block)| (*order, *block))
                .find(|(_, block)| candidates.touches(*block))?;
            self.return_order.remove(&order);
            self.returned.remove(returned);
            let size = self.pools.get(name)?.config.block_size;
            for (other, pool) in &mut self.pools {
                // What is not taken of it below is free for all.
                if other != name || returned.size() < size {
                    pool.only_returned = false;
                }
            }
            let pool = self.pools.get_mut(name)?;
            let blocker = |block: Block| {
                let given = self.given.overlapping(block).map(Block::last);
                given.or_else(|| self.returned.overlapping(block).map(Block::last))
            };
            let span = pool.candidates.span(returned);
            if let Some((_, block)) = pool.candidates.find(span, blocker) {
                return Some(block);
            }
        }
    }
}

// === impl PoolConfig ===

impl PoolConfig {
    /// Blocks of the present size in the ranges, less those that touch an excluded one.
    pub fn capacity(&self) -> u32 {
        Candidates::new(self).capacity()
    }
}

// === impl Exhausted ===

impl From<Exhausted> for UserError {
    fn from(error: Exhausted) -> UserError {
        UserError::new(
            codes::POOL_EXHAUSTED,
            error.to_string(),
            format!(
                "kubectl edit podpool {} and append a range to spec.cidrs",
                error.pool
            ),
        )
    }
}

#[cfg(test)]
mod tests;
