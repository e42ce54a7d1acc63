//! The ledger's states and steps, without file or clock.
//!
//! A step changes [`State`] and notes what has to be written; the writer makes
//! the notes of many callers durable at once.

mod reservations;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::SystemTime;

use weft_model::{AttachmentKey, Block, first_overlap};

use super::error::LedgerError;
use super::record::{Attachment, Details, Entry, Quarantined, Released};
use super::{BlockChange, BlockStats, COOLING, Found, Recovery, Stats};
use crate::clock::Moment;

/// What the clock said when a step began.
#[derive(Clone, Debug)]
pub(super) struct Now {
    pub(super) moment: Moment,
    pub(super) wall: SystemTime,
}

/// What has to be written.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// What becomes of the records of these addresses; absent ones go.
    pub(super) addresses: BTreeMap<Ipv4Addr, Option<Entry>>,
    /// The blocks, if they changed.
    pub(super) blocks: Option<Vec<HeldBlock>>,
}

/// What is not on the disk as it should be.
#[derive(Debug, Default)]
struct Dirty {
    addresses: BTreeSet<Ipv4Addr>,
    blocks: bool,
}

/// A block the node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct HeldBlock {
    pub(super) block: Block,
    /// About to leave the node, or not the node's any more while pods still
    /// have addresses of it: no new ones come from it.
    pub(super) retiring: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    blocks: Vec<HeldBlock>,
    /// Every address that was ever given out, but for those of blocks that left.
    entries: BTreeMap<Ipv4Addr, Entry>,
    by_key: HashMap<AttachmentKey, Ipv4Addr>,
    /// Per block of `blocks`, the lowest offset that may never have been given out.
    unused_from: Vec<u32>,
    /// Released addresses of serving blocks, the longest-released first.
    released: VecDeque<Ipv4Addr>,
    next_sequence: u64,
    /// Reserved addresses whose record on the disk says, or is about to say, that they are active.
    recorded: BTreeSet<Ipv4Addr>,
    /// Addresses that nobody has any more but by their record on the disk, which is about to go.
    leaving: BTreeSet<Ipv4Addr>,
    dirty: Dirty,
    /// Counts the changes that somebody waits for. What only tidies up goes with the next of them.
    due: u64,
}

// === impl State ===

impl State {
    /// The state that was stored.
    pub(super) fn restore(blocks: Vec<HeldBlock>, entries: BTreeMap<Ipv4Addr, Entry>) -> Self {
        let mut state = Self {
            blocks,
            entries,
            ..Self::default()
        };
        state.next_sequence = state
            .entries
            .values()
            .filter_map(|entry| match entry {
                Entry::Released(released) => Some(released.sequence + 1),
                _ => None,
            })
            .max()
            .unwrap_or(0);
        for (address, entry) in &state.entries {
            if let Some(owner) = entry.owner() {
                state.by_key.entry(owner.key.clone()).or_insert(*address);
            }
        }
        state.index_free();
        state
    }

    /// Puts right what a process that ended at any moment may have left.
    pub(super) fn recover(&mut self, now: &Now) -> Recovery {
        let mut recovery = Recovery::default();
        let second_claims: Vec<(Ipv4Addr, Ipv4Addr, AttachmentKey)> = self
            .entries
            .iter()
            .filter_map(|(address, entry)| {
                let key = &entry.owner()?.key;
                let first = *self.by_key.get(key)?;
                (first != *address).then(|| (first, *address, key.clone()))
            })
            .collect();
        for (first, second, key) in second_claims {
            let reason = format!("attachment {key} claims both {first} and {second}");
            let owner = self.entries.get(&first).and_then(Entry::owner).cloned();
            let quarantine = |owner| {
                Entry::Quarantined(Quarantined {
                    reason: reason.clone(),
                    owner,
                })
            };
            self.put(first, quarantine(owner));
            self.put(second, quarantine(None));
        }
        let entries: Vec<(Ipv4Addr, Entry)> = self
            .entries
            .iter()
            .map(|(address, entry)| (*address, entry.clone()))
            .collect();
        for (address, entry) in entries {
            match entry {
                Entry::Reserved(owner) => {
                    self.by_key.remove(&owner.key);
                    self.cool(address, Some(owner.clone()), now);
                    recovery.undone.push(owner);
                }
                Entry::Active(owner) if owner.boot != now.moment.boot => {
                    recovery.other_boot.push(owner);
                }
                Entry::Quarantined(quarantined) => {
                    recovery.quarantined.push((address, quarantined));
                }
                Entry::Active(_) | Entry::Released(_) => {}
            }
        }
        recovery
    }

    /// Fills a new ledger with what was found; see [`super::Ledger::rebuild`].
    pub(super) fn rebuild(
        &mut self,
        serving: &[Block],
        retiring: &[Block],
        found: Vec<Found>,
        now: &Now,
    ) -> Result<(), LedgerError> {
        self.set_blocks(serving, retiring, now)?;
        for found in found {
            self.adopt(found, now);
        }
        let blocks: Vec<Block> = self.blocks.iter().map(|held| held.block).collect();
        for address in blocks.iter().flat_map(|block| block.addresses()) {
            if !self.entries.contains_key(&address) {
                self.cool(address, None, now);
            }
        }
        self.index_free();
        Ok(())
    }

    fn adopt(&mut self, found: Found, now: &Now) {
        let Found {
            key,
            address,
            host_if_name,
        } = found;
        let other = match (self.entries.get(&address), self.by_key.get(&key)) {
            (Some(entry), _) => entry
                .owner()
                .map(|owner| format!("attachment {} has it too", owner.key)),
            (None, Some(first)) => Some(format!("attachment {key} has {first} too")),
            (None, None) => None,
        };
        if let Some(other) = other {
            let owner = self.entries.get(&address).and_then(Entry::owner).cloned();
            let reason = format!("found at {key} when a damaged ledger was made anew, but {other}");
            self.put(address, Entry::Quarantined(Quarantined { reason, owner }));
            return;
        }
        let attachment = Attachment {
            key: key.clone(),
            address,
            details: Details {
                host_if_name,
                ..Details::default()
            },
            boot: now.moment.boot.clone(),
            created_ms: millis(now.wall),
        };
        self.by_key.insert(key, address);
        self.put(address, Entry::Active(attachment));
    }

    /// Grows with each change that has to be written for the step to be done.
    pub(super) fn due(&self) -> u64 {
        self.due
    }

    /// What is to be written since the last call.
    pub(super) fn take_changes(&mut self) -> Changes {
        let Dirty { addresses, blocks } = std::mem::take(&mut self.dirty);
        let record = |address: &Ipv4Addr| match self.entries.get(address) {
            Some(Entry::Reserved(owner)) if self.recorded.contains(address) => {
                Some(Entry::Active(owner.clone()))
            }
            // A reservation lives in memory; the record is of an earlier owner, whose rest is over.
            Some(Entry::Reserved(_)) | None => None,
            Some(entry) => Some(entry.clone()),
        };
        Changes {
            addresses: addresses
                .into_iter()
                .map(|address| (address, record(&address)))
                .collect(),
            blocks: blocks.then(|| self.blocks.clone()),
        }
    }

    /// These changes are on the disk.
    pub(super) fn written(&mut self, changes: &Changes) {
        let gone = changes.addresses.iter().filter(|(_, record)| record.is_none());
        for (&address, _) in gone {
            if self.leaving.remove(&address) {
                self.offer(address);
            }
        }
    }

    /// All addresses with an entry, in order.
    pub(super) fn entries(&self) -> &BTreeMap<Ipv4Addr, Entry> {
        &self.entries
    }

    /// The entry of the address a key has.
    pub(super) fn get(&self, key: &AttachmentKey) -> Option<(Ipv4Addr, &Entry)> {
        let address = *self.by_key.get(key)?;
        Some((address, self.entries.get(&address)?))
    }

    pub(super) fn blocks(&self) -> &[HeldBlock] {
        &self.blocks
    }

    pub(super) fn set_blocks(
        &mut self,
        serving: &[Block],
        retiring: &[Block],
        now: &Now,
    ) -> Result<BlockChange, LedgerError> {
        let wanted = [serving, retiring].concat();
        if let Some(overlap) = first_overlap(wanted.iter().map(|block| (*block, block.net()))) {
            return Err(LedgerError::OverlappingBlocks {
                first: overlap.first.0,
                second: overlap.second.0,
            });
        }
        let mut change = BlockChange::default();
        let mut blocks: Vec<HeldBlock> = Vec::with_capacity(wanted.len());
        for held in &self.blocks {
            if wanted.contains(&held.block) {
                continue;
            }
            if self.is_quiet(held.block, now) {
                change.removed.push(held.block);
            } else {
                // A new block that shares addresses with one still in use would
                // make two records of one address.
                if let Some(second) = wanted.iter().find(|block| block.overlaps(held.block)) {
                    return Err(LedgerError::OverlappingBlocks {
                        first: held.block,
                        second: *second,
                    });
                }
                change.lingering.push(held.block);
            }
        }
        for &block in serving {
            let held = HeldBlock {
                block,
                retiring: false,
            };
            if !self.blocks.contains(&held) {
                change.added.push(block);
            }
            blocks.push(held);
        }
        blocks.extend(retiring.iter().chain(&change.lingering).map(|&block| HeldBlock {
            block,
            retiring: true,
        }));
        for block in &change.removed {
            for address in block.addresses() {
                if self.entries.remove(&address).is_some() {
                    self.dirty.addresses.insert(address);
                }
            }
        }
        if blocks != self.blocks {
            self.dirty.blocks = true;
            self.due += 1;
            self.blocks = blocks;
            self.index_free();
        }
        Ok(change)
    }

    pub(super) fn release(&mut self, key: &AttachmentKey, now: &Now) -> Option<Attachment> {
        let address = self.by_key.remove(key)?;
        match self.entries.get(&address)? {
            Entry::Reserved(owner) => {
                let owner = owner.clone();
                self.withdraw(address);
                Some(owner)
            }
            Entry::Active(owner) => {
                let owner = owner.clone();
                self.cool(address, Some(owner.clone()), now);
                Some(owner)
            }
            Entry::Quarantined(quarantined) => {
                let mut quarantined = quarantined.clone();
                let owner = quarantined.owner.take();
                self.put(address, Entry::Quarantined(quarantined));
                owner
            }
            Entry::Released(_) => None,
        }
    }

    /// Has an address looked at again that was given out before.
    fn offer(&mut self, address: Ipv4Addr) {
        for (held, from) in self.blocks.iter().zip(&mut self.unused_from) {
            if held.block.contains(address) {
                *from = (*from).min(address.to_bits() - held.block.first().to_bits());
            }
        }
    }

    /// Releases every active attachment that is not in `valid`. Reserved ones
    /// belong to an ADD that is under way.
    pub(super) fn gc(&mut self, valid: &HashSet<AttachmentKey>, now: &Now) -> Vec<Attachment> {
        let stale: Vec<AttachmentKey> = self
            .entries
            .values()
            .filter(|entry| !matches!(entry, Entry::Reserved(_)))
            .filter_map(Entry::owner)
            .filter(|owner| !valid.contains(&owner.key))
            .map(|owner| owner.key.clone())
            .collect();
        stale.iter().filter_map(|key| self.release(key, now)).collect()
    }

    pub(super) fn quarantine(&mut self, address: Ipv4Addr, reason: String) -> Result<(), LedgerError> {
        if !self.blocks.iter().any(|held| held.block.contains(address)) {
            return Err(LedgerError::ForeignAddress { address });
        }
        let owner = self.entries.get(&address).and_then(Entry::owner).cloned();
        self.released.retain(|released| *released != address);
        self.put(address, Entry::Quarantined(Quarantined { reason, owner }));
        Ok(())
    }

    /// Ends a quarantine: back to its owner, or to cooling if it has none.
    /// False if the address is in none.
    pub(super) fn pardon(&mut self, address: Ipv4Addr, now: &Now) -> bool {
        let Some(Entry::Quarantined(quarantined)) = self.entries.get(&address) else {
            return false;
        };
        match quarantined.owner.clone() {
            Some(owner) => self.put(address, Entry::Active(owner)),
            None => self.cool(address, None, now),
        }
        true
    }

    pub(super) fn stats(&self, now: &Now) -> Stats {
        let blocks: Vec<BlockStats> = self
            .blocks
            .iter()
            .map(|held| {
                let mut stats = BlockStats {
                    block: held.block,
                    retiring: held.retiring,
                    free: held.block.size().addresses(),
                    reserved: 0,
                    active: 0,
                    cooling: 0,
                    quarantined: 0,
                };
                for entry in self.entries_of(held.block) {
                    match entry {
                        Entry::Reserved(_) => stats.reserved += 1,
                        Entry::Active(_) => stats.active += 1,
                        Entry::Released(released) if !has_rested(released, now) => {
                            stats.cooling += 1;
                        }
                        Entry::Released(_) => continue,
                        Entry::Quarantined(_) => stats.quarantined += 1,
                    }
                    stats.free -= 1;
                }
                stats
            })
            .collect();
        Stats { blocks }
    }

    fn entries_of(&self, block: Block) -> impl Iterator<Item = &Entry> {
        self.entries
            .range(block.first()..=block.last())
            .map(|(_, entry)| entry)
    }

    /// Whether no address of the block is in use, cooling or quarantined.
    fn is_quiet(&self, block: Block, now: &Now) -> bool {
        self.entries_of(block).all(|entry| match entry {
            Entry::Released(released) => has_rested(released, now),
            Entry::Reserved(_) | Entry::Active(_) | Entry::Quarantined(_) => false,
        })
    }

    fn put(&mut self, address: Ipv4Addr, entry: Entry) {
        self.recorded.remove(&address);
        self.dirty.addresses.insert(address);
        self.due += 1;
        self.entries.insert(address, entry);
    }

    fn cool(&mut self, address: Ipv4Addr, last: Option<Attachment>, now: &Now) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.put(
            address,
            Entry::Released(Released {
                at: now.moment.clone(),
                sequence,
                last,
            }),
        );
        if self.serves(address) {
            self.released.push_back(address);
        }
    }

    fn serves(&self, address: Ipv4Addr) -> bool {
        self.blocks
            .iter()
            .any(|held| !held.retiring && held.block.contains(address))
    }

    fn take_unused(&mut self) -> Option<Ipv4Addr> {
        for (held, from) in self.blocks.iter().zip(&mut self.unused_from) {
            while !held.retiring && *from < held.block.size().addresses() {
                let address = Ipv4Addr::from_bits(held.block.first().to_bits() + *from);
                *from += 1;
                if !self.entries.contains_key(&address) && !self.leaving.contains(&address) {
                    return Some(address);
                }
            }
        }
        None
    }

    fn take_rested(&mut self, now: &Now) -> Result<Ipv4Addr, LedgerError> {
        let oldest = self
            .released
            .front()
            .and_then(|address| match self.entries.get(address) {
                Some(Entry::Released(released)) => Some((*address, released)),
                _ => None,
            });
        match oldest {
            Some((address, released)) if has_rested(released, now) => {
                self.released.pop_front();
                Ok(address)
            }
            oldest => {
                let stats = self.stats(now);
                if stats.serving().next().is_none() {
                    return Err(LedgerError::NoBlock);
                }
                Err(LedgerError::Full {
                    capacity: stats.capacity(),
                    blocks: stats.serving().count(),
                    used: stats.used(),
                    cooling: stats.cooling(),
                    quarantined: stats.serving().map(|block| block.quarantined).sum(),
                    next_free: oldest
                        .map(|(_, released)| COOLING.saturating_sub(now.moment.at_least_since(&released.at))),
                })
            }
        }
    }

    /// Makes the two lists that free addresses are taken from.
    fn index_free(&mut self) {
        self.unused_from = vec![0; self.blocks.len()];
        let mut released: Vec<(u64, Ipv4Addr)> = self
            .entries
            .iter()
            .filter(|(address, _)| self.serves(**address))
            .filter_map(|(address, entry)| match entry {
                Entry::Released(released) => Some((released.sequence, *address)),
                _ => None,
            })
            .collect();
        released.sort_unstable();
        self.released = released.into_iter().map(|(_, address)| address).collect();
    }
}

/// Milliseconds since 1970.
fn millis(wall: SystemTime) -> u64 {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn has_rested(released: &Released, now: &Now) -> bool {
    now.moment.at_least_since(&released.at) >= COOLING
}
