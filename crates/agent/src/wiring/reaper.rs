//! Removing interfaces off the path of a DEL.
//!
//! The kernel waits for readers of the old state (RCU) when it removes an interface, some 20 ms, whether it is one or
//! many. So a DEL only puts it into a group, and one request removes all that came together (`rtnl_group_dellink` in
//! net/core/rtnetlink.c). Until then the pod at the other end can neither send nor be reached: it has neither an
//! endpoint in the datapath nor a route. What an agent that ends does not get to, the next one's first pass removes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use weft_kernel::rtnl::{Link, Rtnl};

/// The group of interfaces that are about to go. 0 is everybody's; others give theirs small numbers.
pub const DOOMED: u32 = u32::from_be_bytes(*b"weft");

/// The group of interfaces whose ADD is under way. It leaves the group when the attachment is on disk, right before the
/// runtime hears of it: what an agent that starts finds in it belongs to no pod.
pub const UNFINISHED: u32 = u32::from_be_bytes(*b"wefa");

/// How long a removal waits for others to come.
const GATHER: Duration = Duration::from_millis(100);

/// Removes what is in the group [`DOOMED`], in the namespace of the thread that made it.
#[derive(Debug)]
pub(super) struct Reaper {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How often something was put into the group, and up to which of those times it was removed.
    doomed: u64,
    removed: u64,
    over: bool,
}

// === impl Reaper ===

impl Reaper {
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        // It inherits the namespace.
        let started = thread::Builder::new()
            .name("reaper".into())
            .spawn(move || theirs.work());
        if let Err(error) = started {
            // Passes go on removing them.
            tracing::error!(%error, "cannot start the thread that removes interfaces");
        }
        Self { shared }
    }

    /// Has the link removed soon, with others.
    pub(super) fn doom(&self, node: &mut Rtnl, index: u32) -> Result<(), weft_kernel::Error> {
        node.set_group(index, DOOMED)?;
        self.wake();
        Ok(())
    }

    /// Has what is in the group removed soon.
    pub(super) fn wake(&self) {
        self.shared.lock().doomed += 1;
        self.shared.changed.notify_all();
    }

    /// Whether links are about to be removed.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        state.doomed != state.removed
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

/// Whether the link is about to go.
pub fn is_doomed(link: &Link) -> bool {
    link.group == DOOMED
}

/// Whether the link's ADD is under way, or never ended.
pub fn is_unfinished(link: &Link) -> bool {
    link.group == UNFINISHED
}

// === impl Shared ===

impl Shared {
    fn work(&self) {
        while let Some(doomed) = self.next() {
            if let Err(error) = Rtnl::open().and_then(|mut node| node.delete_group(DOOMED)) {
                tracing::error!(%error, "cannot remove the interfaces of pods that are gone; the next pass tries again");
            }
            self.lock().removed = doomed;
        }
    }

    /// Waits until there is something to remove and others had time to come; `None` when it is over.
    fn next(&self) -> Option<u64> {
        let mut state = self.lock();
        while state.doomed == state.removed && !state.over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let gathering = |state: &mut State| !state.over;
        let (state, _) = self
            .changed
            .wait_timeout_while(state, GATHER, gathering)
            .unwrap_or_else(PoisonError::into_inner);
        (!state.over).then_some(state.doomed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
