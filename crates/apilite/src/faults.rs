//! Faults that tests switch on while the server runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// Misbehaviour on request; everything is off at first.
#[derive(Debug)]
pub struct Faults {
    refuse: AtomicBool,
    delay_millis: AtomicU64,
    /// Generation and kind of the last interruption of the running watches.
    interruption: watch::Sender<(u64, Interruption)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Interruption {
    /// The stream just ends.
    Cut,
    /// The stream ends with an `ERROR` event, 410 Expired.
    Expire,
}

// === impl Faults ===

impl Faults {
    pub(crate) fn new() -> Self {
        Self {
            refuse: AtomicBool::new(false),
            delay_millis: AtomicU64::new(0),
            interruption: watch::Sender::new((0, Interruption::Cut)),
        }
    }

    /// While on, every request is answered 503 ServiceUnavailable. Running watches go on.
    pub fn refuse_requests(&self, on: bool) {
        self.refuse.store(on, Ordering::Relaxed);
    }

    /// Every request waits this long before it is looked at (millisecond resolution; zero for none).
    pub fn delay_requests(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.delay_millis.store(millis, Ordering::Relaxed);
    }

    /// Ends all running watches without a word, as a broken connection does.
    pub fn cut_watches(&self) {
        self.interrupt(Interruption::Cut);
    }

    /// Ends the running watches with 410 Expired. To make resuming fail too, see
    /// [`ApiServer::compact`](crate::ApiServer::compact).
    pub fn expire_watches(&self) {
        self.interrupt(Interruption::Expire);
    }

    fn interrupt(&self, kind: Interruption) {
        self.interruption
            .send_modify(|current| *current = (current.0 + 1, kind));
    }

    pub(crate) fn interruptions(&self) -> watch::Receiver<(u64, Interruption)> {
        self.interruption.subscribe()
    }

    /// Whether requests are refused now.
    pub fn refusing(&self) -> bool {
        self.refuse.load(Ordering::Relaxed)
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_millis.load(Ordering::Relaxed))
    }
}
