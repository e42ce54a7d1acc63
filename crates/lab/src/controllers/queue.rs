//! A queue of keys to work on: each key at most once in it, and never worked on twice at the same time.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// A queue of keys with the rules that Kubernetes controllers rely on.
#[derive(Debug)]
pub struct WorkQueue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    working: HashSet<K>,
    again: HashSet<K>,
    later: BTreeMap<(Instant, u64), K>,
    serial: u64,
    failures: HashMap<K, u32>,
}

// === impl WorkQueue ===

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                queued: HashSet::new(),
                working: HashSet::new(),
                again: HashSet::new(),
                later: BTreeMap::new(),
                serial: 0,
                failures: HashMap::new(),
            }),
            wake: Notify::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    /// Asks for work on `key`, now or as soon as the work under way on it ends.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.wake.notify_one();
    }

    /// Asks for work on `key` after `delay`.
    pub fn add_after(&self, key: K, delay: Duration) {
        let mut state = self.lock();
        state.serial += 1;
        let at = (Instant::now() + delay, state.serial);
        state.later.insert(at, key);
        drop(state);
        self.wake.notify_one();
    }

    /// The next key; the caller reports its end with [`done`](Self::done).
    pub async fn next(&self) -> K {
        loop {
            let next_timer = {
                let mut state = self.lock();
                state.ripen(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.later.keys().next().map(|(at, _)| *at)
            };
            match next_timer {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// Ends the work on `key`. After a failure it comes again, later each time.
    pub fn done(&self, key: &K, success: bool) {
        let mut state = self.lock();
        state.working.remove(key);
        let again = state.again.remove(key);
        if success {
            state.failures.remove(key);
        } else {
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = FIRST_DELAY
                .saturating_mul(1 << (*failures).min(10))
                .min(LONGEST_DELAY);
            *failures += 1;
            state.serial += 1;
            let at = (Instant::now() + delay, state.serial);
            state.later.insert(at, key.clone());
        }
        if again && success {
            state.add(key.clone());
        }
        drop(state);
        self.wake.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.working.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.add(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_asked_for_while_worked_on_comes_once_more() {
        let queue = WorkQueue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "b");
        queue.done(&"a", true);
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_later_each_time() {
        let queue = WorkQueue::default();
        queue.add("a");
        let mut delays = Vec::new();
        for _ in 0..4 {
            let asked = Instant::now();
            assert_eq!(queue.next().await, "a");
            delays.push(asked.elapsed().as_millis());
            queue.done(&"a", false);
        }
        assert_eq!(delays, [0, 50, 100, 200]);
    }
}
