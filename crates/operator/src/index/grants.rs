//! Who holds which block: given, retired, taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_model::{Block, NodeName, NodeUid};

use super::{Action, Held, Index, MAX_BLOCKS, MAX_NOTED, Network, Plan, Shortage, vacated};
use crate::lease::Note;

/// What became of the nodes that ask for blocks and did not get all.
#[derive(Default)]
pub(super) struct Grants {
    pub(super) shortages: BTreeMap<NodeUid, Shortage>,
    /// Their turn comes when what is granted now is written.
    pub(super) postponed: BTreeSet<NodeUid>,
}

// === impl Index ===

impl Index {
    pub(super) fn claim(&mut self, uid: &NodeUid, held: &Held) {
        let blocks = self.held.entry(uid.clone()).or_default();
        if !blocks.iter().any(|known| known.block == held.block) {
            blocks.push(held.clone());
            self.allocator.claim(&held.pool, held.block, uid);
        }
    }

    fn release(&mut self, uid: &NodeUid, release: impl Fn(&Held) -> bool) {
        let Some(blocks) = self.held.get_mut(uid) else {
            return;
        };
        blocks.retain(|held| {
            let released = release(held);
            if released {
                self.allocator.release(held.block, uid);
                self.leaving.remove(&(uid.clone(), held.block));
            }
            !released
        });
        if blocks.is_empty() {
            self.held.remove(uid);
        }
    }

    /// Blocks that the agent of a node has addresses of, although the node does not hold them.
    pub(super) fn unheld<'a>(&self, network: &'a Network) -> impl Iterator<Item = Block> + use<'a> {
        let held: BTreeSet<Block> = self
            .held
            .get(&network.node_uid)
            .into_iter()
            .flatten()
            .map(|held| held.block)
            .collect();
        let uses = network.uses.iter();
        uses.filter(move |(block, counted)| {
            counted.used.saturating_add(counted.cooling) > 0 && !held.contains(block)
        })
        .map(|(block, _)| *block)
    }

    /// Gives nodes the blocks that their agents have addresses of and no other node holds. An API that was restored to
    /// an older state does not know of them, and a Node that was deleted and registered anew has another UID while its
    /// pods run on.
    pub(super) fn adopt(&mut self) {
        let mut found: Vec<(NodeUid, Block)> = Vec::new();
        for (name, node) in &self.nodes {
            if let Some(network) = self.network_of(name, node) {
                found.extend(self.unheld(network).map(|block| (node.uid.clone(), block)));
            }
        }
        for (uid, block) in found {
            let Some(pool) = self.pools.giving(block).map(str::to_owned) else {
                continue;
            };
            // What a node that is gone held is kept from others, and from nobody who has pods there.
            while let Some(other) = self.allocator.other_owner(block, &uid)
                && other.block == block
                && !self.names.contains_key(&other.owner)
            {
                self.release(&other.owner, |held| held.block == block);
            }
            match self.allocator.other_owner(block, &uid) {
                None => {
                    tracing::warn!(%block, node = self.name_of(&uid), "a node has pods in a block that it was not given; now it is");
                    let held = Held {
                        block,
                        pool,
                        retiring: false,
                    };
                    self.claim(&uid, &held);
                }
                Some(other) => {
                    if self.disputed.insert((uid.clone(), block)) {
                        tracing::error!(
                            %block,
                            node = self.name_of(&uid),
                            holds = %other.block,
                            other = self.name_of(&other.owner),
                            "a node has pods in a block that another node holds; next: drain the first"
                        );
                    }
                }
            }
        }
    }

    /// A NodeNetwork that goes takes contested blocks with it, and nothing
    /// else: its node, if it lives, still has pods with the other addresses.
    pub(super) fn forget_network(&mut self, name: &NodeName) {
        let Some(network) = self.networks.get(name) else {
            return;
        };
        let uid = network.node_uid.clone();
        let held = self.held.get(&uid).into_iter().flatten();
        let contested: BTreeSet<Block> = held
            .map(|held| held.block)
            .filter(|block| self.allocator.other_owner(*block, &uid).is_some())
            .collect();
        self.release(&uid, |held| contested.contains(&held.block));
    }

    /// Frees the blocks that the node's NodeNetwork shows no more.
    pub(super) fn release_left(&mut self, network: &Network) {
        let uid = &network.node_uid;
        let left: BTreeSet<Block> = self
            .held
            .get(uid)
            .into_iter()
            .flatten()
            .map(|held| held.block)
            .filter(|block| !network.shows(*block) && self.leaving.contains(&(uid.clone(), *block)))
            .collect();
        if !left.is_empty() {
            self.release(uid, |held| left.contains(&held.block));
        }
    }

    /// Takes back the blocks of nodes that left Weft for the network they had before: no pool selects the node, and
    /// somebody deleted its NodeNetwork. Only of blocks that stay the node's all the same, because they are its
    /// `spec.podCIDRs`; others might be given to another node while pods of this one have their addresses.
    pub(super) fn return_native_blocks(&mut self) {
        let mut left: Vec<(NodeUid, Vec<Block>)> = Vec::new();
        for (name, node) in &self.nodes {
            let shown = self.networks.get(name);
            if let Some(held) = self.held.get(&node.uid)
                && shown.is_none_or(|network| network.node_uid != node.uid)
                && !self.pools.any_selects(node)
            {
                let native = self.pools.native_blocks(node);
                let own = held
                    .iter()
                    .filter(|held| self.pools.is_of_node_ipam(&held.pool) && native.contains(&held.block));
                left.push((node.uid.clone(), own.map(|held| held.block).collect()));
            }
        }
        for (uid, own) in left {
            self.release(&uid, |held| own.contains(&held.block));
        }
    }

    /// Takes back the blocks of nodes that are gone for the grace.
    pub(super) fn return_blocks(&mut self, now: Duration, plan: &mut Plan) {
        self.gone.retain(|uid, _| !self.names.contains_key(uid));
        self.unready.retain(|uid, _| self.names.contains_key(uid));
        self.rangeless.retain(|uid, _| self.names.contains_key(uid));
        let shown = self.networks.values().map(|network| &network.node_uid);
        for uid in self.held.keys().chain(shown) {
            if !self.names.contains_key(uid) {
                self.gone.entry(uid.clone()).or_insert(now);
            }
        }
        let mut over: Vec<NodeUid> = Vec::new();
        for (uid, since) in &self.gone {
            let until = *since + self.pace.grace;
            if until <= now {
                over.push(uid.clone());
            } else {
                plan.wake_at(until);
            }
        }
        if !over.is_empty() {
            let shown: BTreeSet<&NodeUid> = self.networks.values().map(|network| &network.node_uid).collect();
            over.retain(|uid| !shown.contains(uid));
        }
        for uid in over {
            self.gone.remove(&uid);
            self.release(&uid, |_| true);
        }
        let mut room = None;
        for (name, network) in self.networks.iter().filter(|(_, network)| !network.deleting) {
            let over = (self.gone.get(&network.node_uid)).is_none_or(|since| *since + self.pace.grace <= now);
            let unwanted = match self.nodes.get(name) {
                Some(node) if node.uid == network.node_uid => false,
                Some(_) if over => true,
                // Its name is wanted for the node's own NodeNetwork. Its blocks rest in the note meanwhile.
                Some(_) => {
                    let room = room.get_or_insert_with(|| self.room(now));
                    let left = room.checked_sub(network.blocks.len());
                    *room = left.unwrap_or(*room);
                    left.is_some()
                }
                None => over,
            };
            if unwanted {
                plan.actions.push(Action::DeleteNetwork {
                    name: name.clone(),
                    object_uid: network.object_uid.clone(),
                });
            }
        }
    }

    /// Gives blocks to the nodes that ask for some, first to those without any.
    pub(super) fn grant(&mut self, now: Duration) -> Grants {
        self.pools.begin_grants(&self.addresses);
        let mut room = None;
        let mut grants = Grants::default();
        for only_first in [true, false] {
            for (name, node) in &self.nodes {
                if only_first && self.held.contains_key(&node.uid) {
                    continue;
                }
                let network = self.network_of(name, node);
                let wanted = network.map_or(1, |network| network.wanted as usize);
                let wanted = if only_first {
                    1
                } else {
                    wanted.clamp(1, MAX_BLOCKS)
                };
                loop {
                    let held = self.held.get(&node.uid).map_or(&[][..], Vec::as_slice);
                    let has = held.len();
                    // What is to be retired needs a replacement before.
                    let lasting = only_first || held.iter().any(|held| !self.pools.is_stale(held, node));
                    if (has >= wanted && lasting) || has >= MAX_BLOCKS {
                        break;
                    }
                    let room = room.get_or_insert_with(|| self.room(now));
                    if *room == 0 {
                        grants.postponed.insert(node.uid.clone());
                        break;
                    }
                    match self.pools.allocate(node, held, &self.names, &mut self.allocator) {
                        Ok(held) => {
                            *room -= 1;
                            self.held.entry(node.uid.clone()).or_default().push(held);
                        }
                        Err(mut shortage) => {
                            if has > 0 {
                                shortage.message = if lasting {
                                    format!("has {has} of {wanted} blocks: {}", shortage.message)
                                } else {
                                    format!("has no block that lasts: {}", shortage.message)
                                };
                            }
                            grants.shortages.insert(node.uid.clone(), shortage);
                            break;
                        }
                    }
                }
            }
        }
        grants
    }

    /// Marks the blocks that their nodes shall give up, and notes which of them are given up.
    pub(super) fn retire(&mut self) {
        for (name, node) in &self.nodes {
            let Some(blocks) = self.held.get_mut(&node.uid) else {
                continue;
            };
            if !(blocks.iter()).any(|held| held.retiring || self.pools.is_stale(held, node)) {
                continue;
            }
            let network =
                (self.networks.get(name)).filter(|network| network.node_uid == node.uid && !network.deleting);
            let lasting: Vec<Block> = blocks
                .iter()
                .filter(|held| !self.pools.is_stale(held, node))
                .map(|held| held.block)
                .collect();
            let replaced = network.is_some_and(|network| lasting.iter().any(|block| network.shows(*block)));
            for held in blocks
                .iter_mut()
                .filter(|held| !lasting.is_empty() || held.retiring)
            {
                held.retiring = !lasting.is_empty() && !lasting.contains(&held.block);
                let key = (node.uid.clone(), held.block);
                if !held.retiring {
                    self.leaving.remove(&key);
                    continue;
                }
                let marked = network.is_some_and(|network| network.blocks.contains(held));
                let empty = network
                    .and_then(|network| network.uses.get(&held.block))
                    .is_some_and(vacated);
                if marked && replaced && empty {
                    self.leaving.insert(key);
                }
            }
        }
    }

    /// The blocks that a node's NodeNetwork should show.
    pub(super) fn staying(&self, uid: &NodeUid) -> impl Iterator<Item = &Held> {
        let held = self.held.get(uid).into_iter().flatten();
        held.filter(|held| !held.retiring || !self.leaving.contains(&(uid.clone(), held.block)))
    }

    /// What nobody but this operator knows once the plan's actions are done, or before.
    pub(super) fn unshown(&self, now: Duration, plan: &Plan) -> Note {
        let leaving = plan.actions.iter().filter_map(|action| match action {
            Action::DeleteNetwork { name, .. } => Some(name),
            _ => None,
        });
        let mut note = Note::default();
        for (uid, held) in self.unshown_blocks(now, &leaving.collect()) {
            note.add(&held.pool, uid.as_str(), held.block.to_string());
        }
        note
    }

    /// How many blocks more may be noted.
    fn room(&self, now: Duration) -> usize {
        MAX_NOTED.saturating_sub(self.unshown_blocks(now, &BTreeSet::new()).len())
    }

    fn unshown_blocks(&self, now: Duration, leaving: &BTreeSet<&NodeName>) -> Vec<(&NodeUid, &Held)> {
        let networks: BTreeMap<&NodeUid, &Network> = self
            .networks
            .iter()
            .filter(|(name, network)| !network.deleting && !leaving.contains(name))
            .map(|(_, network)| (&network.node_uid, network))
            .collect();
        let over = |uid: &NodeUid| {
            let since = self.gone.get(uid);
            since.is_some_and(|since| *since + self.pace.grace <= now)
        };
        self.held
            .iter()
            .filter(|(uid, _)| !over(uid))
            .flat_map(|(uid, blocks)| blocks.iter().map(move |held| (uid, held)))
            .filter(|(uid, held)| !networks.get(uid).is_some_and(|network| network.shows(held.block)))
            .collect()
    }
}
