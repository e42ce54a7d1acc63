//! Waiting: for blocks to come, and for an attachment that another request works on.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use weft_model::AttachmentKey;

/// A counter that waiting threads watch.
#[derive(Debug, Default)]
pub(super) struct Granted {
    generation: Mutex<u64>,
    moved: Condvar,
}

/// Attachments that a request is at work on. A runtime that lost patience sends DEL while ADD still runs.
#[derive(Debug, Default)]
pub(super) struct Busy {
    keys: Mutex<BTreeSet<AttachmentKey>>,
    freed: Condvar,
}

pub(super) struct Hold<'a> {
    busy: &'a Busy,
    key: AttachmentKey,
}

// === impl Granted ===

impl Granted {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn generation(&self) -> u64 {
        *self.lock()
    }

    pub(super) fn signal(&self) {
        *self.lock() += 1;
        self.moved.notify_all();
    }

    /// Whether the generation moved on before `deadline`.
    pub(super) fn wait_beyond(&self, generation: u64, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let (current, _) = self
            .moved
            .wait_timeout_while(self.lock(), left, |current| *current == generation)
            .unwrap_or_else(PoisonError::into_inner);
        *current != generation
    }
}

// === impl Busy ===

impl Busy {
    /// Waits until no other request works on `key`.
    pub(super) fn hold(&self, key: &AttachmentKey) -> Hold<'_> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self
            .freed
            .wait_while(keys, |keys| keys.contains(key))
            .unwrap_or_else(PoisonError::into_inner);
        keys.insert(key.clone());
        Hold {
            busy: self,
            key: key.clone(),
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.busy
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
        self.busy.freed.notify_all();
    }
}
