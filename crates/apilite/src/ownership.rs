//! Sets of fields, as `metadata.managedFields` keeps them (FieldsV1 of sigs.k8s.io/structured-merge-diff).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{ListType, Schema};

/// A tree of path elements in their serialized form: `f:<field>`, `k:<keys>`, `v:<value>`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FieldSet {
    /// The path that leads here is in the set.
    pub(crate) member: bool,
    pub(crate) children: BTreeMap<String, FieldSet>,
}

/// Paths that the server sets and nobody owns.
const UNOWNED: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:deletionTimestamp"],
    &["f:metadata", "f:deletionGracePeriodSeconds"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
];

// === impl FieldSet ===

impl FieldSet {
    fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// All fields that an object sets.
    pub(crate) fn of(schema: Schema<'_>, object: &Value) -> Self {
        let mut set = fields_of(schema, object);
        set.member = false;
        set.without_unowned()
    }

    /// Fields that differ between two states of an object: (added or changed, removed).
    pub(crate) fn differences(schema: Schema<'_>, old: &Value, new: &Value) -> (Self, Self) {
        let mut changed = Self::default();
        let mut removed = Self::default();
        compare(schema, Some(old), Some(new), &mut changed, &mut removed);
        changed.member = false;
        removed.member = false;
        (changed.without_unowned(), removed.without_unowned())
    }

    fn without_unowned(mut self) -> Self {
        for path in UNOWNED {
            self.remove_path(path);
        }
        self
    }

    pub(crate) fn remove_path(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.children.remove(*last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(*first) {
                    child.remove_path(rest);
                    if child.is_empty() {
                        self.children.remove(*first);
                    }
                }
            }
        }
    }

    /// Keeps only what is below one of these top-level fields.
    pub(crate) fn retain_top(&mut self, keep: impl Fn(&str) -> bool) {
        self.children.retain(|name, _| keep(name));
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.member |= other.member;
        for (element, child) in &other.children {
            let entry = out.children.entry(element.clone()).or_default();
            *entry = entry.union(child);
        }
        out
    }

    pub(crate) fn difference(&self, other: &Self) -> Self {
        let mut out = Self {
            member: self.member && !other.member,
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            let left = match other.children.get(element) {
                Some(other) => child.difference(other),
                None => child.clone(),
            };
            if !left.is_empty() {
                out.children.insert(element.clone(), left);
            }
        }
        out
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut out = Self {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            if let Some(other) = other.children.get(element) {
                let both = child.intersection(other);
                if !both.is_empty() {
                    out.children.insert(element.clone(), both);
                }
            }
        }
        out
    }

    /// The member paths as messages print them: `.spec.containers[name="c"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, path: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(path.to_owned());
        }
        for (element, child) in &self.children {
            let printed = match element.split_once(':') {
                Some(("f", name)) => format!(".{name}"),
                Some(("v", value)) => format!("[={value}]"),
                Some(("k", keys)) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let keys: Vec<String> =
                        keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    format!("[{}]", keys.join(","))
                }
                _ => element.clone(),
            };
            child.collect(&format!("{path}{printed}"), out);
        }
    }

    /// Reads FieldsV1.
    pub(crate) fn parse(fields: &Value) -> Self {
        let mut set = Self::default();
        for (element, child) in fields.as_object().into_iter().flatten() {
            if element == "." {
                set.member = true;
                continue;
            }
            let mut parsed = Self::parse(child);
            if parsed.children.is_empty() {
                parsed.member = true;
            }
            set.children.insert(element.clone(), parsed);
        }
        set
    }

    /// Writes FieldsV1.
    pub(crate) fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            out.insert(element.clone(), child.to_json());
        }
        Value::Object(out)
    }
}

/// How a value is taken apart.
pub(crate) enum Parts<'a> {
    /// Owned as a whole.
    Whole,
    Fields(&'a Map<String, Value>),
    Items(Vec<(String, &'a Value)>),
}

/// Takes a value apart as its schema says.
pub(crate) fn parts<'a>(schema: Schema<'_>, value: &'a Value) -> Parts<'a> {
    match value {
        Value::Object(fields) if !schema.atomic_map() => Parts::Fields(fields),
        Value::Array(items) => match schema.list_type() {
            ListType::Atomic => Parts::Whole,
            ListType::Set => Parts::Items(items.iter().map(|item| (format!("v:{item}"), item)).collect()),
            ListType::Map(keys) => Parts::Items(
                items
                    .iter()
                    .map(|item| (format!("k:{}", identity(schema, &keys, item)), item))
                    .collect(),
            ),
        },
        _ => Parts::Whole,
    }
}

/// The keys of an item of an associative list, defaults filled in.
pub(crate) fn identity(schema: Schema<'_>, keys: &[&str], item: &Value) -> Value {
    let mut out = Map::new();
    for key in keys {
        let declared = schema
            .items()
            .and_then(|items| items.field(key))
            .map(|field| field.get("default"));
        let value = match (item.get(*key), declared) {
            (Some(value), _) if !value.is_null() => value.clone(),
            (_, Some(default)) if !default.is_null() => default.clone(),
            // The one key of built-in types that has a default.
            _ if *key == "protocol" => Value::from("TCP"),
            _ => continue,
        };
        out.insert((*key).to_owned(), value);
    }
    Value::Object(out)
}

/// The schema below a path element.
pub(crate) fn below<'a>(schema: Schema<'a>, element: &str) -> Schema<'a> {
    let found = match element.split_once(':') {
        Some(("f", name)) => schema
            .field(name)
            .or_else(|| (name == "metadata").then(Schema::metadata)),
        _ => schema.items(),
    };
    found.unwrap_or(Schema::new(&Value::Null))
}

fn fields_of(schema: Schema<'_>, value: &Value) -> FieldSet {
    match parts(schema, value) {
        Parts::Whole => FieldSet::leaf(),
        Parts::Fields(fields) if fields.is_empty() => FieldSet::leaf(),
        Parts::Fields(fields) => FieldSet {
            member: false,
            children: fields
                .iter()
                .map(|(name, value)| {
                    let element = format!("f:{name}");
                    let set = fields_of(below(schema, &element), value);
                    (element, set)
                })
                .collect(),
        },
        Parts::Items(items) if items.is_empty() => FieldSet::leaf(),
        Parts::Items(items) => FieldSet {
            member: false,
            children: items
                .into_iter()
                .map(|(element, item)| {
                    let mut set = fields_of(below(schema, &element), item);
                    // An item is itself owned, so that it can be removed.
                    set.member = true;
                    (element, set)
                })
                .collect(),
        },
    }
}

fn compare(
    schema: Schema<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    let (old, new) = match (old, new) {
        (None, None) => return,
        (None, Some(new)) => {
            *changed = fields_of(schema, new);
            return;
        }
        (Some(old), None) => {
            *removed = fields_of(schema, old);
            return;
        }
        (Some(old), Some(new)) if old == new => return,
        (Some(old), Some(new)) => (old, new),
    };
    let (Some(old), Some(new)) = (children(schema, old), children(schema, new)) else {
        *changed = fields_of(schema, new);
        return;
    };
    let elements: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for element in elements {
        let (mut c, mut r) = (FieldSet::default(), FieldSet::default());
        let schema = below(schema, element);
        compare(
            schema,
            old.get(element).copied(),
            new.get(element).copied(),
            &mut c,
            &mut r,
        );
        if !c.is_empty() {
            changed.children.insert(element.clone(), c);
        }
        if !r.is_empty() {
            removed.children.insert(element.clone(), r);
        }
    }
}

fn children<'a>(schema: Schema<'_>, value: &'a Value) -> Option<BTreeMap<String, &'a Value>> {
    match parts(schema, value) {
        Parts::Whole => None,
        Parts::Fields(fields) => Some(
            fields
                .iter()
                .map(|(name, value)| (format!("f:{name}"), value))
                .collect(),
        ),
        Parts::Items(items) => Some(items.into_iter().collect()),
    }
}
