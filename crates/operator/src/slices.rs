//! Which node stands in which NodeSlice.

use std::collections::{BTreeMap, BTreeSet};

use weft_api::NodeSliceEntry;

/// How many nodes a slice holds: 200 nodes with a block or two each make an
/// object of about 30 KiB, and 5,000 nodes 25 objects.
pub(crate) const SLICE_SIZE: usize = 200;

/// A slice that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SliceChange {
    Create(String, Vec<NodeSliceEntry>),
    Set(String, Vec<NodeSliceEntry>),
    Delete(String),
}

// === impl SliceChange ===

impl SliceChange {
    /// The slice's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Create(name, _) | Self::Set(name, _) | Self::Delete(name) => name,
        }
    }
}

/// The changes that make `slices` list exactly `nodes`.
///
/// A node stays in the slice it is in; a new one goes to the first slice with
/// room. So a change of one node touches one slice, and slices that are right,
/// in whatever order and fill, are left alone.
pub(crate) fn pack(
    slices: &BTreeMap<String, Vec<NodeSliceEntry>>,
    nodes: &BTreeMap<String, NodeSliceEntry>,
    size: usize,
) -> Vec<SliceChange> {
    let mut placed = BTreeSet::new();
    let mut packed: BTreeMap<&str, Vec<&NodeSliceEntry>> = BTreeMap::new();
    for (slice, entries) in slices {
        let mut kept = Vec::with_capacity(entries.len());
        for old in entries {
            if let Some(entry) = nodes.get(&old.name)
                && kept.len() < size
                && placed.insert(old.name.as_str())
            {
                kept.push(entry);
            }
        }
        packed.insert(slice, kept);
    }
    let mut unplaced = nodes
        .iter()
        .filter(|(name, _)| !placed.contains(name.as_str()))
        .map(|(_, entry)| entry)
        .peekable();
    for entries in packed.values_mut() {
        let room = size.saturating_sub(entries.len());
        entries.extend(unplaced.by_ref().take(room));
    }
    let mut changes: Vec<SliceChange> = packed
        .into_iter()
        .filter(|(slice, entries)| entries.is_empty() || !slices[*slice].iter().eq(entries.iter().copied()))
        .map(|(slice, entries)| {
            if entries.is_empty() {
                SliceChange::Delete(slice.to_owned())
            } else {
                SliceChange::Set(slice.to_owned(), entries.into_iter().cloned().collect())
            }
        })
        .collect();
    let mut names = (0_u32..)
        .map(|number| format!("nodes-{number}"))
        .filter(|name| !slices.contains_key(name));
    while unplaced.peek().is_some() {
        let entries = unplaced.by_ref().take(size).cloned().collect();
        changes.extend(names.next().map(|name| SliceChange::Create(name, entries)));
    }
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(node: usize, block: u8) -> NodeSliceEntry {
        NodeSliceEntry {
            name: format!("n{node}"),
            uid: format!("u{node}"),
            addresses: vec![format!("10.224.0.{node}")],
            blocks: vec![format!("10.244.{block}.0/24")],
            ..NodeSliceEntry::default()
        }
    }

    fn nodes(of: impl IntoIterator<Item = usize>) -> BTreeMap<String, NodeSliceEntry> {
        of.into_iter()
            .map(|node| (format!("n{node}"), entry(node, 0)))
            .collect()
    }

    fn done(slices: &mut BTreeMap<String, Vec<NodeSliceEntry>>, changes: &[SliceChange]) {
        for change in changes {
            match change.clone() {
                SliceChange::Create(name, entries) => {
                    assert_eq!(slices.insert(name, entries), None);
                }
                SliceChange::Set(name, entries) => {
                    assert!(slices.insert(name, entries).is_some());
                }
                SliceChange::Delete(name) => {
                    assert!(slices.remove(&name).is_some());
                }
            }
        }
    }

    #[test]
    fn nodes_fill_slices_and_a_right_set_of_slices_is_left_alone() {
        let mut slices = BTreeMap::new();
        let changes = pack(&slices, &nodes(0..5), 2);
        done(&mut slices, &changes);
        let names: Vec<Vec<&str>> = slices
            .values()
            .map(|entries| entries.iter().map(|entry| entry.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["n0", "n1"], vec!["n2", "n3"], vec!["n4"]]);
        assert_eq!(pack(&slices, &nodes(0..5), 2), []);
    }

    #[test]
    fn a_change_of_one_node_touches_its_slice_only() {
        let mut slices = BTreeMap::new();
        let changes = pack(&slices, &nodes(0..6), 2);
        done(&mut slices, &changes);
        let mut changed = nodes(0..6);
        changed.insert("n3".to_owned(), entry(3, 7));
        assert_eq!(
            pack(&slices, &changed, 2),
            [SliceChange::Set(
                "nodes-1".to_owned(),
                vec![entry(2, 0), entry(3, 7)]
            )]
        );
        changed.remove("n2");
        changed.insert("n9".to_owned(), entry(9, 0));
        assert_eq!(
            pack(&slices, &changed, 2),
            [SliceChange::Set(
                "nodes-1".to_owned(),
                vec![entry(3, 7), entry(9, 0)]
            )]
        );
    }

    #[test]
    fn the_last_node_of_a_slice_takes_the_slice_with_it() {
        let slices = BTreeMap::from([("nodes-0".to_owned(), vec![entry(0, 0)])]);
        assert_eq!(
            pack(&slices, &BTreeMap::new(), 2),
            [SliceChange::Delete("nodes-0".to_owned())]
        );
    }

    #[test]
    fn a_node_listed_twice_is_listed_once_afterwards() {
        let slices = BTreeMap::from([
            ("a".to_owned(), vec![entry(0, 0), entry(1, 0)]),
            ("b".to_owned(), vec![entry(1, 0), entry(2, 0)]),
        ]);
        assert_eq!(
            pack(&slices, &nodes(0..3), 5),
            [SliceChange::Set("b".to_owned(), vec![entry(2, 0)])]
        );
    }

    proptest! {
        #[test]
        fn slices_list_every_node_once_after_few_writes(
            steps in prop::collection::vec(prop::collection::btree_set(0..30_usize, 0..30), 1..12),
            size in 1..6_usize,
        ) {
            let mut slices = BTreeMap::new();
            let mut before = BTreeMap::new();
            for step in steps {
                let wanted = nodes(step);
                let changes = pack(&slices, &wanted, size);
                let differing = wanted.keys().filter(|name| !before.contains_key(*name)).count()
                    + before.keys().filter(|name| !wanted.contains_key(*name)).count();
                prop_assert!(changes.len() <= differing, "{changes:?}");
                done(&mut slices, &changes);
                prop_assert!(slices.values().all(|entries| (1..=size).contains(&entries.len())));
                let mut listed: Vec<NodeSliceEntry> = slices.values().flatten().cloned().collect();
                listed.sort_by(|a, b| a.name.cmp(&b.name));
                prop_assert_eq!(listed, wanted.values().cloned().collect::<Vec<_>>());
                prop_assert_eq!(pack(&slices, &wanted, size), []);
                before = wanted;
            }
        }
    }
}
