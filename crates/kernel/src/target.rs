//! Bringing a part of the kernel to a wanted state, whatever it is in now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use crate::error::{Error, Result};

/// A part of the kernel that is a table: values under keys, read back as they
/// were written. A value holds exactly what Weft manages, so that equal values
/// mean that nothing has to be done.
pub trait Target {
    /// What tells entries apart.
    type Key: Ord + Clone + Debug;
    /// What an entry holds besides its key.
    type Value: Eq + Clone + Debug;

    /// All entries that are Weft's.
    ///
    /// # Errors
    /// They can't be read; nothing is known then.
    fn list(&mut self) -> Result<BTreeMap<Self::Key, Self::Value>>;

    /// Makes or replaces an entry.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn apply(&mut self, key: &Self::Key, value: &Self::Value) -> Result<()>;

    /// Removes an entry. One that is gone already is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn remove(&mut self, key: &Self::Key) -> Result<()>;
}

/// What [`reconcile`] did, keys in order.
#[derive(Debug)]
pub struct Outcome<K> {
    /// Entries that were missing.
    pub added: Vec<K>,
    /// Entries that had another value.
    pub changed: Vec<K>,
    /// Entries that nobody wants.
    pub removed: Vec<K>,
    /// Entries that are still not as wanted, and why.
    pub failed: Vec<(K, Error)>,
}

/// How a target differs from what is desired, keys in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differences<K> {
    /// Entries that are missing.
    pub missing: Vec<K>,
    /// Entries that have another value.
    pub changed: Vec<K>,
    /// Entries that nobody wants.
    pub extra: Vec<K>,
}

/// How `target` differs from `desired`. Changes nothing.
///
/// # Errors
/// The target can't be listed.
pub fn compare<T: Target>(
    target: &mut T,
    desired: &BTreeMap<T::Key, T::Value>,
) -> Result<Differences<T::Key>> {
    let actual = target.list()?;
    let mut found = Differences::default();
    for (key, value) in desired {
        match actual.get(key) {
            Some(held) if held == value => {}
            Some(_) => found.changed.push(key.clone()),
            None => found.missing.push(key.clone()),
        }
    }
    found.extra = actual
        .into_keys()
        .filter(|key| !desired.contains_key(key))
        .collect();
    Ok(found)
}

/// Makes `target` hold `desired` and nothing else of Weft's.
///
/// New values are in place before old entries go. An entry that fails does not
/// keep the others from being tried.
///
/// # Errors
/// The target can't be listed; nothing was changed then.
pub fn reconcile<T: Target>(target: &mut T, desired: &BTreeMap<T::Key, T::Value>) -> Result<Outcome<T::Key>> {
    let Differences {
        missing,
        changed,
        extra,
    } = compare(target, desired)?;
    let mut outcome = Outcome::default();
    let put = missing.into_iter().map(|key| (key, true));
    for (key, new) in put.chain(changed.into_iter().map(|key| (key, false))) {
        let applied = desired
            .get(&key)
            .map_or(Ok(()), |value| target.apply(&key, value));
        match applied {
            Ok(()) if new => outcome.added.push(key),
            Ok(()) => outcome.changed.push(key),
            Err(error) => outcome.failed.push((key, error)),
        }
    }
    for key in extra {
        match target.remove(&key) {
            Ok(()) => outcome.removed.push(key),
            Err(error) => outcome.failed.push((key, error)),
        }
    }
    Ok(outcome)
}

/// A target in memory, for tests of what decides and not of the kernel.
#[derive(Clone, Debug)]
pub struct FakeTarget<K, V> {
    /// What it holds.
    pub entries: BTreeMap<K, V>,
    /// Keys whose changes fail with `EIO`.
    pub broken: BTreeSet<K>,
}

// === impl Outcome ===

impl<K> Outcome<K> {
    /// Whether the target was as wanted before.
    pub fn is_unchanged(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty() && self.failed.is_empty()
    }

    /// Whether the target is as wanted now.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }
}

impl<K> Default for Outcome<K> {
    fn default() -> Self {
        Self {
            added: Vec::new(),
            changed: Vec::new(),
            removed: Vec::new(),
            failed: Vec::new(),
        }
    }
}

// === impl Differences ===

impl<K> Differences<K> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.extra.is_empty()
    }
}

impl<K> Default for Differences<K> {
    fn default() -> Self {
        Self {
            missing: Vec::new(),
            changed: Vec::new(),
            extra: Vec::new(),
        }
    }
}

// === impl FakeTarget ===

impl<K: Ord + Debug, V> FakeTarget<K, V> {
    fn check(&self, operation: &'static str, key: &K) -> Result<()> {
        if self.broken.contains(key) {
            return Err(Error::new(
                operation,
                format_args!("{key:?}"),
                rustix::io::Errno::IO,
            ));
        }
        Ok(())
    }
}

impl<K, V> Default for FakeTarget<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            broken: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Clone + Debug, V: Eq + Clone + Debug> Target for FakeTarget<K, V> {
    type Key = K;
    type Value = V;

    fn list(&mut self) -> Result<BTreeMap<K, V>> {
        Ok(self.entries.clone())
    }

    fn apply(&mut self, key: &K, value: &V) -> Result<()> {
        self.check("apply", key)?;
        self.entries.insert(key.clone(), value.clone());
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<()> {
        self.check("remove", key)?;
        self.entries.remove(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(pairs: &[(u8, &'static str)]) -> BTreeMap<u8, &'static str> {
        pairs.iter().copied().collect()
    }

    #[test]
    fn every_kind_of_difference_is_repaired_and_told_apart() {
        let mut target = FakeTarget {
            entries: entries(&[(1, "same"), (2, "old"), (3, "stale")]),
            ..FakeTarget::default()
        };
        let desired = entries(&[(1, "same"), (2, "new"), (4, "missing")]);
        let before = target.entries.clone();
        let found = compare(&mut target, &desired).unwrap();
        assert_eq!(
            (found.missing, found.changed, found.extra),
            (vec![4], vec![2], vec![3])
        );
        assert_eq!(target.entries, before, "looking changes nothing");
        let outcome = reconcile(&mut target, &desired).unwrap();
        assert_eq!(target.entries, desired);
        assert_eq!(
            (
                outcome.added,
                outcome.changed,
                outcome.removed,
                outcome.failed.len()
            ),
            (vec![4], vec![2], vec![3], 0)
        );
        assert!(reconcile(&mut target, &desired).unwrap().is_unchanged());
    }

    #[test]
    fn entries_that_fail_do_not_stop_the_others_and_are_tried_again() {
        let mut target = FakeTarget {
            entries: entries(&[(1, "stale"), (5, "stale")]),
            broken: [1, 3].into(),
        };
        let desired = entries(&[(2, "a"), (3, "b"), (4, "c")]);
        let outcome = reconcile(&mut target, &desired).unwrap();
        let failed: Vec<u8> = outcome.failed.iter().map(|(key, _)| *key).collect();
        assert_eq!(
            (outcome.added, outcome.removed, failed),
            (vec![2, 4], vec![5], vec![3, 1])
        );

        target.broken.clear();
        let outcome = reconcile(&mut target, &desired).unwrap();
        assert!(outcome.is_complete());
        assert_eq!(target.entries, desired);
    }
}
