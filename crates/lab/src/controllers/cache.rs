//! A small index of objects fed by a watch and by the answers to our own writes.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::facts::{Key, NodeFacts, PodFacts, version};
use super::feed::Change;

/// How many deleted objects are remembered, so that a late answer can't bring one back.
const REMEMBERED: usize = 4096;

/// An object that a [`Cache`] can hold.
pub trait Entry {
    /// Namespace and name.
    fn key(&self) -> Key;
    /// UID.
    fn uid(&self) -> &str;
    /// `resourceVersion` as a number.
    fn version(&self) -> u64;
}

/// Objects of one kind by namespace and name.
///
/// What arrives is compared by version, so the answer to a write and the watch event of the same write may come in
/// either order, and by UID, so that neither revives what the other has seen deleted.
#[derive(Debug)]
pub struct Cache<T> {
    objects: BTreeMap<Key, Arc<T>>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

/// What [`Cache::apply`] changed.
#[derive(Debug)]
pub enum Applied<T> {
    /// The object is older than what is known, or known to be deleted.
    Ignored,
    /// The object was stored; it took the place of another version where there is one.
    Stored(Option<Arc<T>>),
}

// === impl Cache ===

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            gone: HashSet::new(),
            gone_order: VecDeque::new(),
        }
    }
}

impl<T: Entry> Cache<T> {
    /// Stores an object unless a newer version is known or it is known to be deleted.
    pub fn apply(&mut self, object: T) -> Applied<T> {
        if self.gone.contains(object.uid()) {
            return Applied::Ignored;
        }
        let key = object.key();
        if let Some(known) = self.objects.get(&key)
            && known.uid() == object.uid()
            && known.version() >= object.version()
            && object.version() != 0
        {
            return Applied::Ignored;
        }
        Applied::Stored(self.objects.insert(key, Arc::new(object)))
    }

    /// Forgets an object for good; returns what was known of it.
    pub fn delete(&mut self, key: &Key, uid: &str) -> Option<Arc<T>> {
        self.bury(uid);
        if self.objects.get(key).is_some_and(|known| known.uid() == uid) {
            return self.objects.remove(key);
        }
        None
    }

    /// Takes a complete listing; returns what was known and is not in it.
    ///
    /// An object newer than everything listed was made after the listing and stays.
    pub fn reset(&mut self, listed: Vec<T>) -> Vec<Arc<T>> {
        let newest = listed.iter().map(Entry::version).max().unwrap_or(0);
        let uids: HashSet<String> = listed.iter().map(|object| object.uid().to_owned()).collect();
        let vanished: Vec<Arc<T>> = self
            .objects
            .values()
            .filter(|known| !uids.contains(known.uid()) && (newest == 0 || known.version() <= newest))
            .cloned()
            .collect();
        for object in &vanished {
            self.delete(&object.key(), object.uid());
        }
        for object in listed {
            self.apply(object);
        }
        vanished
    }

    /// Takes over a change, for readers who only look at what the cache holds then. Returns whether it was a complete
    /// listing.
    pub fn take(&mut self, change: Change<T>) -> bool {
        match change {
            Change::Applied(object) => drop(self.apply(object)),
            Change::Deleted(object) => drop(self.delete(&object.key(), object.uid())),
            Change::Listed(objects) => {
                self.reset(objects);
                return true;
            }
        }
        false
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<&Arc<T>> {
        self.objects.get(key)
    }

    /// All objects, by namespace and name.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.objects.values()
    }

    /// The objects of one namespace.
    pub fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<T>> {
        self.objects
            .range(Key::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, object)| object)
    }

    fn bury(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
            if self.gone_order.len() > REMEMBERED
                && let Some(oldest) = self.gone_order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
    }
}

// === impl Entry ===

impl Entry for PodFacts {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn uid(&self) -> &str {
        &self.uid
    }
    fn version(&self) -> u64 {
        self.version
    }
}

impl Entry for NodeFacts {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn uid(&self) -> &str {
        &self.uid
    }
    fn version(&self) -> u64 {
        self.version
    }
}

impl<K: Metadata<Ty = ObjectMeta>> Entry for K {
    fn key(&self) -> Key {
        Key::of(self.metadata())
    }
    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or("")
    }
    fn version(&self) -> u64 {
        version(self.metadata())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some("ns".into()),
                name: Some(name.into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn versions(cache: &Cache<ConfigMap>) -> Vec<(String, u64)> {
        cache
            .values()
            .map(|object| (object.key().name, object.version()))
            .collect()
    }

    #[test]
    fn an_answer_that_comes_after_its_watch_event_changes_nothing() {
        let mut cache = Cache::default();
        cache.apply(object("a", "1", 7));
        assert!(matches!(cache.apply(object("a", "1", 5)), Applied::Ignored));
        assert_eq!(versions(&cache), [("a".into(), 7)]);
    }

    #[test]
    fn a_late_answer_does_not_revive_a_deleted_object() {
        let mut cache = Cache::default();
        cache.delete(&Key::new("ns", "a"), "1");
        assert!(matches!(cache.apply(object("a", "1", 5)), Applied::Ignored));
        assert!(matches!(cache.apply(object("a", "2", 9)), Applied::Stored(None)));
        assert_eq!(versions(&cache), [("a".into(), 9)]);
    }

    #[test]
    fn a_listing_removes_what_it_lacks_but_not_what_is_newer() {
        let mut cache = Cache::default();
        cache.apply(object("old", "1", 3));
        cache.apply(object("kept", "2", 4));
        cache.apply(object("newer", "3", 20));
        let vanished = cache.reset(vec![object("kept", "2", 10)]);
        assert_eq!(
            vanished
                .iter()
                .map(|object| object.key().name)
                .collect::<Vec<_>>(),
            ["old"]
        );
        assert_eq!(versions(&cache), [("kept".into(), 10), ("newer".into(), 20)]);
    }
}
