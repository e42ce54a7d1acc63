//! How many pods a node takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places for pods on a node.
#[derive(Debug)]
pub(super) struct Slots {
    used: AtomicUsize,
    capacity: u32,
}

/// A place taken by a pod, free again when dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Slots>);

// === impl Slots ===

impl Slots {
    pub(super) fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            capacity,
        })
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Takes a place; where none is left, how many are used.
    pub(super) fn take(self: &Arc<Self>) -> Result<Slot, usize> {
        let capacity = self.capacity as usize;
        self.used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                (used < capacity).then_some(used + 1)
            })
            .map(|_| Slot(Arc::clone(self)))
    }

    /// Takes a place even where none is left: the pod runs already.
    pub(super) fn take_anyway(self: &Arc<Self>) -> Slot {
        self.used.fetch_add(1, Ordering::SeqCst);
        Slot(Arc::clone(self))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_node_says_how_full_and_a_place_given_back_is_free() {
        let slots = Slots::new(2);
        let first = slots.take();
        let second = slots.take();
        assert_eq!(slots.take().err(), Some(2));
        drop(first);
        assert!(slots.take().is_ok());
        drop(second);
    }
}
