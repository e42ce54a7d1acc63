//! A map from blocks to values that finds overlaps in O(log n).

use std::collections::BTreeMap;

use weft_model::{Block, BlockSize};

/// Blocks may overlap: every supernet of a block has one of eleven lengths and
/// is looked up by name, and every block inside it starts inside it.
#[derive(Clone, Debug)]
pub(super) struct Spans<T>(BTreeMap<Block, T>);

// === impl Spans ===

impl<T> Default for Spans<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Spans<T> {
    pub(super) fn get(&self, block: Block) -> Option<&T> {
        self.0.get(&block)
    }

    pub(super) fn get_mut(&mut self, block: Block) -> Option<&mut T> {
        self.0.get_mut(&block)
    }

    pub(super) fn insert(&mut self, block: Block, value: T) -> Option<T> {
        self.0.insert(block, value)
    }

    pub(super) fn remove(&mut self, block: Block) -> Option<T> {
        self.0.remove(&block)
    }

    /// In address order, larger blocks before those inside them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Block, &T)> {
        self.0.iter().map(|(block, value)| (*block, value))
    }

    /// Some block that shares addresses with `block`, the largest if one of
    /// them contains it.
    pub(super) fn overlapping(&self, block: Block) -> Option<Block> {
        self.all_overlapping(block).next().map(|(found, _)| found)
    }

    /// All blocks that share addresses with `block`: those that contain it,
    /// largest first, then those inside it.
    pub(super) fn all_overlapping(&self, block: Block) -> impl Iterator<Item = (Block, &T)> {
        let sizes = if self.0.is_empty() {
            0..0
        } else {
            BlockSize::MIN.prefix_len()..block.size().prefix_len()
        };
        let around = sizes
            .filter_map(|size| BlockSize::new(size).ok())
            .map(move |size| Block::containing(block.first(), size))
            .filter_map(|around| self.0.get_key_value(&around));
        let end = Block::containing(block.last(), BlockSize::MAX);
        let inside = self.0.range(block..=end);
        around.chain(inside).map(|(block, value)| (*block, value))
    }
}
