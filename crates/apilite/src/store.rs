//! Objects, their history, and the one revision counter.
//!
//! Objects are kept as serialized JSON beside the little metadata that selection needs: a pod costs
//! about its JSON size, where a tree of maps costs ten times that. The last events of each resource are
//! kept in a ring, from which watchers are fed and past revisions are reconstructed; what fell out of
//! the ring is *compacted*.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::registry::Shelf;
use crate::selectable;

/// Namespace (empty for cluster scope) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) key: Key,
    pub(crate) uid: Box<str>,
    pub(crate) revision: u64,
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of [`selectable::fields`], in its order.
    pub(crate) fields: Box<[Box<str>]>,
    pub(crate) owners: Box<[Box<str>]>,
    /// It has a deletion timestamp.
    pub(crate) terminating: bool,
    pub(crate) json: Bytes,
}

#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Revision of the change; of a deletion, that of the deletion.
    pub(crate) revision: u64,
    pub(crate) before: Option<Arc<Stored>>,
    /// A deleted object is the last state with the deletion's revision.
    pub(crate) after: Arc<Stored>,
    pub(crate) deleted: bool,
}

#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    window: usize,
    /// Every change of every resource, for the housekeeping tasks.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    revision: u64,
    shelves: HashMap<Shelf, Contents>,
    /// Owner UID → objects that name it.
    dependents: HashMap<Box<str>, Vec<(Shelf, Key)>>,
    /// Deletions and ownership changes that the garbage collector hasn't looked at.
    pending: VecDeque<(Shelf, Change)>,
}

#[derive(Debug)]
struct Contents {
    objects: BTreeMap<Key, Arc<Stored>>,
    ring: VecDeque<Change>,
    /// Revisions below this can't be asked for any more.
    compacted: u64,
    notify: watch::Sender<u64>,
}

/// What the caller saw; a commit on anything else fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expect {
    Absent,
    Revision(u64),
}

#[derive(Debug, PartialEq)]
pub(crate) struct Conflict;

/// A revision that was compacted, or hasn't been reached.
#[derive(Debug, PartialEq)]
pub(crate) enum RevisionError {
    Compacted { oldest: u64 },
    Future { current: u64 },
}

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) items: Vec<Arc<Stored>>,
    pub(crate) revision: u64,
    /// Where to go on, if there is more.
    pub(crate) next: Option<Key>,
    /// Objects of the range after `next`, unfiltered.
    pub(crate) remaining: usize,
}

/// Which objects of a shelf to list.
#[derive(Debug, Default)]
pub(crate) struct Range<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) after: Option<&'a Key>,
    pub(crate) limit: Option<usize>,
    /// Exactly this revision, not the newest.
    pub(crate) at: Option<u64>,
}

/// What a watcher reads next.
#[derive(Debug)]
pub(crate) enum Poll {
    Changes(Vec<Change>),
    /// Nothing new up to the given revision of the whole store.
    Idle(u64),
    Compacted {
        oldest: u64,
    },
}

const BATCH: usize = 512;

/// How far revisions jump when the past is restored, so that no client has seen one of them.
const BUMP: u64 = 1_000;

// === impl Key ===

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

// === impl Stored ===

impl Stored {
    fn new(shelf: &Shelf, key: Key, object: &mut Value, revision: u64) -> Self {
        object["metadata"]["resourceVersion"] = Value::from(revision.to_string());
        let metadata = &object["metadata"];
        let labels = metadata["labels"].as_object().into_iter().flatten();
        let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
        Self {
            key,
            uid: metadata["uid"].as_str().unwrap_or_default().into(),
            revision,
            labels: labels
                .filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())))
                .collect(),
            fields: selectable::values(shelf, object),
            owners: owners
                .filter_map(|owner| owner["uid"].as_str().map(Into::into))
                .collect(),
            terminating: metadata["deletionTimestamp"].is_string(),
            json: serde_json::to_vec(object).expect("a Value serializes").into(),
        }
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(candidate, _)| **candidate == *key)
            .map(|(_, value)| &**value)
    }

    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("what was stored was serialized from a Value")
    }
}

// === impl Store ===

impl Store {
    /// `window` is how many changes per resource stay available to watchers.
    pub(crate) fn new(window: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                revision: 1,
                shelves: HashMap::new(),
                dependents: HashMap::new(),
                pending: VecDeque::new(),
            }),
            window: window.max(1),
            changed: watch::Sender::new(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while held")
    }

    pub(crate) fn revision(&self) -> u64 {
        self.lock().revision
    }

    pub(crate) fn get(&self, shelf: &Shelf, key: &Key) -> Option<Arc<Stored>> {
        self.lock().shelves.get(shelf)?.objects.get(key).cloned()
    }

    pub(crate) fn is_empty(&self, shelf: &Shelf, namespace: &str) -> bool {
        let range = Range {
            namespace,
            limit: Some(1),
            ..Range::default()
        };
        self.list(shelf, &range, |_| true)
            .is_ok_and(|page| page.items.is_empty())
    }

    /// Objects that name `uid` as an owner.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(Shelf, Arc<Stored>)> {
        let inner = self.lock();
        let keys = inner.dependents.get(uid).into_iter().flatten();
        keys.filter_map(|(shelf, key)| {
            let stored = inner.shelves.get(shelf)?.objects.get(key)?;
            Some((shelf.clone(), Arc::clone(stored)))
        })
        .collect()
    }

    /// Stores a new state of an object; its `metadata.resourceVersion` is set here.
    pub(crate) fn put(
        &self,
        shelf: &Shelf,
        key: &Key,
        expect: Expect,
        mut object: Value,
    ) -> Result<Arc<Stored>, Conflict> {
        let mut inner = self.lock();
        let before = inner.check(shelf, key, expect)?;
        let revision = inner.revision + 1;
        let after = Arc::new(Stored::new(shelf, key.clone(), &mut object, revision));
        let change = Change {
            revision,
            before,
            after: Arc::clone(&after),
            deleted: false,
        };
        inner.record(shelf, change, self.window);
        self.changed.send_replace(revision);
        Ok(after)
    }

    /// Removes an object; `last` is its final state as watchers see it.
    pub(crate) fn remove(
        &self,
        shelf: &Shelf,
        key: &Key,
        expect: Expect,
        mut last: Value,
    ) -> Result<Arc<Stored>, Conflict> {
        let mut inner = self.lock();
        let Some(before) = inner.check(shelf, key, expect)? else {
            return Err(Conflict);
        };
        let revision = inner.revision + 1;
        let after = Arc::new(Stored::new(shelf, key.clone(), &mut last, revision));
        let change = Change {
            revision,
            before: Some(before),
            after: Arc::clone(&after),
            deleted: true,
        };
        inner.record(shelf, change, self.window);
        self.changed.send_replace(revision);
        Ok(after)
    }

    /// Objects in the order of (namespace, name) that `keep` accepts.
    pub(crate) fn list(
        &self,
        shelf: &Shelf,
        range: &Range<'_>,
        keep: impl Fn(&Stored) -> bool,
    ) -> Result<Page, RevisionError> {
        let inner = self.lock();
        let current = inner.revision;
        let revision = range.at.unwrap_or(current);
        if revision > current {
            return Err(RevisionError::Future { current });
        }
        let mut page = Page {
            items: Vec::new(),
            revision,
            next: None,
            remaining: 0,
        };
        let Some(contents) = inner.shelves.get(shelf) else {
            return Ok(page);
        };
        if revision < contents.compacted {
            return Err(RevisionError::Compacted {
                oldest: contents.compacted,
            });
        }
        let start = match range.after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(Key::new(range.namespace, "")),
        };
        let mut items = contents
            .at(revision, start)
            .take_while(|stored| range.namespace.is_empty() || *stored.key.namespace == *range.namespace);
        while let Some(stored) = items.next() {
            if !keep(&stored) {
                continue;
            }
            let full = range.limit.is_some_and(|limit| page.items.len() + 1 >= limit);
            page.items.push(stored);
            if full {
                page.remaining = items.count();
                page.next = page
                    .items
                    .last()
                    .filter(|_| page.remaining > 0)
                    .map(|last| last.key.clone());
                break;
            }
        }
        Ok(page)
    }

    /// Changes of a shelf after a revision, at most a batch of them.
    pub(crate) fn changes(&self, shelf: &Shelf, after: u64) -> Poll {
        let inner = self.lock();
        let Some(contents) = inner.shelves.get(shelf) else {
            return Poll::Idle(inner.revision);
        };
        if after < contents.compacted {
            return Poll::Compacted {
                oldest: contents.compacted,
            };
        }
        let first = contents.ring.partition_point(|change| change.revision <= after);
        if first == contents.ring.len() {
            return Poll::Idle(inner.revision);
        }
        Poll::Changes(contents.ring.iter().skip(first).take(BATCH).cloned().collect())
    }

    /// Wakes when a shelf changes.
    pub(crate) fn subscribe(&self, shelf: &Shelf) -> watch::Receiver<u64> {
        let mut inner = self.lock();
        inner.contents(shelf).notify.subscribe()
    }

    /// Wakes when anything changes.
    pub(crate) fn subscribe_all(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Forgets all history: every watch from before now, and every past revision, is gone.
    pub(crate) fn compact(&self) {
        let mut inner = self.lock();
        inner.revision += 1;
        let revision = inner.revision;
        for contents in inner.shelves.values_mut() {
            contents.ring.clear();
            contents.compacted = revision;
            contents.notify.send_replace(revision);
        }
        self.changed.send_replace(revision);
    }

    /// Puts every object back to what it was at `revision` and forgets all history, as a backup of etcd that is
    /// restored with `--bump-revision --mark-compacted` does: revisions go on from beyond all that were ever seen, and
    /// who watches has to list anew.
    ///
    /// # Errors
    /// The history of a resource does not reach back so far. Nothing has changed then.
    pub(crate) fn rewind(&self, revision: u64) -> Result<(), RevisionError> {
        let mut inner = self.lock();
        let current = inner.revision;
        if revision > current {
            return Err(RevisionError::Future { current });
        }
        if let Some(oldest) = inner.shelves.values().map(|contents| contents.compacted).max()
            && revision < oldest
        {
            return Err(RevisionError::Compacted { oldest });
        }
        let now = current + BUMP;
        inner.revision = now;
        inner.dependents.clear();
        inner.pending.clear();
        let mut restored = Vec::new();
        for (shelf, contents) in &mut inner.shelves {
            contents.objects = contents
                .at(revision, Bound::Unbounded)
                .map(|stored| (stored.key.clone(), stored))
                .collect();
            contents.ring.clear();
            contents.compacted = now;
            restored.extend(
                contents
                    .objects
                    .values()
                    .map(|stored| (shelf.clone(), Arc::clone(stored))),
            );
            contents.notify.send_replace(now);
        }
        for (shelf, after) in restored {
            let change = Change {
                revision: now,
                before: None,
                after,
                deleted: false,
            };
            inner.note_owners(&shelf, &change);
        }
        self.changed.send_replace(now);
        Ok(())
    }

    /// What happened since the last call, for the garbage collector.
    pub(crate) fn take_pending(&self) -> Vec<(Shelf, Change)> {
        self.lock().pending.drain(..).collect()
    }
}

// === impl Inner ===

impl Inner {
    fn contents(&mut self, shelf: &Shelf) -> &mut Contents {
        self.shelves.entry(shelf.clone()).or_insert_with(|| Contents {
            objects: BTreeMap::new(),
            ring: VecDeque::new(),
            compacted: 0,
            notify: watch::Sender::new(0),
        })
    }

    fn check(&self, shelf: &Shelf, key: &Key, expect: Expect) -> Result<Option<Arc<Stored>>, Conflict> {
        let current = self
            .shelves
            .get(shelf)
            .and_then(|contents| contents.objects.get(key));
        match (expect, current) {
            (Expect::Absent, None) => Ok(None),
            (Expect::Revision(revision), Some(stored)) if stored.revision == revision => {
                Ok(Some(Arc::clone(stored)))
            }
            _ => Err(Conflict),
        }
    }

    fn record(&mut self, shelf: &Shelf, change: Change, window: usize) {
        self.revision = change.revision;
        self.note_owners(shelf, &change);
        let contents = self.contents(shelf);
        if change.deleted {
            contents.objects.remove(&change.after.key);
        } else {
            contents
                .objects
                .insert(change.after.key.clone(), Arc::clone(&change.after));
        }
        let revision = change.revision;
        contents.ring.push_back(change);
        if contents.ring.len() > window
            && let Some(oldest) = contents.ring.pop_front()
        {
            contents.compacted = oldest.revision;
        }
        contents.notify.send_replace(revision);
    }

    /// Indexes the change, and leaves it to the garbage collector where that may have something to do.
    fn note_owners(&mut self, shelf: &Shelf, change: &Change) {
        self.index_owners(shelf, change);
        let owned_anew = change
            .before
            .as_ref()
            .is_none_or(|before| before.owners != change.after.owners)
            && !change.after.owners.is_empty();
        if change.deleted || owned_anew || change.after.terminating {
            self.pending.push_back((shelf.clone(), change.clone()));
        }
    }

    fn index_owners(&mut self, shelf: &Shelf, change: &Change) {
        let before = change.before.as_ref().map_or(&[][..], |stored| &stored.owners);
        let after = if change.deleted {
            &[][..]
        } else {
            &change.after.owners
        };
        if before == after {
            return;
        }
        let entry = (shelf.clone(), change.after.key.clone());
        for uid in before {
            if let Some(entries) = self.dependents.get_mut(uid) {
                entries.retain(|candidate| *candidate != entry);
                if entries.is_empty() {
                    self.dependents.remove(uid);
                }
            }
        }
        for uid in after {
            self.dependents
                .entry(uid.clone())
                .or_default()
                .push(entry.clone());
        }
    }
}

// === impl Contents ===

impl Contents {
    /// The objects from `start` on, as they were at a revision the ring still covers.
    fn at(&self, revision: u64, start: Bound<Key>) -> impl Iterator<Item = Arc<Stored>> {
        let mut past: BTreeMap<&Key, Option<&Arc<Stored>>> = BTreeMap::new();
        for change in self
            .ring
            .iter()
            .rev()
            .take_while(|change| change.revision > revision)
        {
            past.insert(&change.after.key, change.before.as_ref());
        }
        let after_start = |key: &Key| match &start {
            Bound::Included(first) => key >= first,
            Bound::Excluded(last) => key > last,
            Bound::Unbounded => true,
        };
        past.retain(|key, _| after_start(key));
        let mut past = past.into_iter().peekable();
        let mut present = self.objects.range((start, Bound::Unbounded)).peekable();
        std::iter::from_fn(move || {
            loop {
                let order = match (past.peek(), present.peek()) {
                    (None, _) => std::cmp::Ordering::Greater,
                    (Some(_), None) => std::cmp::Ordering::Less,
                    (Some((past, _)), Some((present, _))) => (*past).cmp(present),
                };
                if order.is_eq() {
                    present.next();
                }
                if order.is_gt() {
                    return present.next().map(|(_, stored)| Arc::clone(stored));
                }
                if let Some((_, Some(stored))) = past.next() {
                    return Some(Arc::clone(stored));
                }
            }
        })
    }
}
