//! Strategic merge patches, as k8s.io/apimachinery `pkg/util/strategicpatch` applies them.
//!
//! Which lists merge, and by which key, comes from the schema.

use serde_json::{Map, Value};

use crate::schema::Schema;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies a patch; the error says what is wrong with it.
pub(crate) fn merge(schema: Schema<'_>, object: &mut Value, patch: &Value) -> Result<(), String> {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return Ok(());
    };
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("replace") => {
            *object = without_directives(&Value::Object(patch.clone()));
            return Ok(());
        }
        Some("delete") => {
            *object = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => return Err(format!("Unknown patch type: {other} in map: {patch:?}")),
    }
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(fields) = object.as_object_mut() else {
        return Ok(());
    };
    if let Some(kept) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        fields.retain(|name, _| kept.iter().any(|one| one == name));
    }
    for (name, value) in patch {
        if name == DIRECTIVE || name == RETAIN_KEYS || name.starts_with(ORDER) {
            continue;
        }
        if let Some(name) = name.strip_prefix(DELETE_PRIMITIVES) {
            if let (Some(Value::Array(items)), Some(gone)) = (fields.get_mut(name), value.as_array()) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        let schema = schema.field(name).unwrap_or(Schema::new(&Value::Null));
        match value {
            Value::Null => {
                fields.remove(name);
            }
            Value::Object(_) if fields.get(name).is_some_and(Value::is_object) => {
                merge(schema, &mut fields[name], value)?;
            }
            Value::Array(items) if schema.patch_strategy().contains("merge") => {
                let list = fields
                    .entry(name.clone())
                    .or_insert_with(|| Value::Array(Vec::new()));
                if !list.is_array() {
                    *list = Value::Array(Vec::new());
                }
                let Some(list) = list.as_array_mut() else { continue };
                match schema.merge_key() {
                    Some(key) => merge_list(schema, key, list, items)?,
                    None => {
                        for item in items {
                            if !list.contains(item) {
                                list.push(item.clone());
                            }
                        }
                    }
                }
            }
            other => {
                fields.insert(name.clone(), without_directives(other));
            }
        }
    }
    for (name, order) in patch {
        let Some(field) = name.strip_prefix(ORDER) else {
            continue;
        };
        let key = schema.field(field).and_then(Schema::merge_key);
        if let (Some(Value::Array(items)), Some(order)) = (fields.get_mut(field), order.as_array()) {
            reorder(items, order, key);
        }
    }
    Ok(())
}

fn merge_list(schema: Schema<'_>, key: &str, list: &mut Vec<Value>, patch: &[Value]) -> Result<(), String> {
    let item_schema = schema.items().unwrap_or(Schema::new(&Value::Null));
    if patch.iter().any(|item| item[DIRECTIVE] == "replace") {
        *list = patch
            .iter()
            .filter(|item| item[DIRECTIVE] != "replace")
            .map(without_directives)
            .collect();
        return Ok(());
    }
    for item in patch {
        let identity = &item[key];
        if identity.is_null() {
            return Err(format!("map: {item} does not contain declared merge key: {key}"));
        }
        if item[DIRECTIVE] == "delete" {
            list.retain(|known| known[key] != *identity);
            continue;
        }
        match list.iter_mut().find(|known| known[key] == *identity) {
            Some(known) => merge(item_schema, known, item)?,
            None => list.push(without_directives(item)),
        }
    }
    Ok(())
}

/// Items named in `order` come in that order; the others stay behind the item they stood behind.
fn reorder(items: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let identity = |item: &Value| key.map_or_else(|| item.clone(), |key| item[key].clone());
    let wanted: Vec<Value> = order.iter().map(identity).collect();
    let before = std::mem::take(items);
    let mut placed: Vec<Value> = wanted
        .iter()
        .filter_map(|wanted| before.iter().find(|item| identity(item) == *wanted).cloned())
        .collect();
    for (i, item) in before.iter().enumerate() {
        if wanted.contains(&identity(item)) {
            continue;
        }
        let after = i.checked_sub(1).map(|i| identity(&before[i]));
        let at = after
            .and_then(|after| placed.iter().position(|item| identity(item) == after))
            .map_or(0, |position| position + 1);
        placed.insert(at, item.clone());
    }
    *items = placed;
}

/// What a patch adds that wasn't there: its directives have nothing to act on, nulls nothing to delete.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
            .map(|(name, value)| (name.clone(), without_directives(value)))
            .collect(),
        Value::Array(items) => items
            .iter()
            .filter(|item| item[DIRECTIVE] != "delete")
            .map(without_directives)
            .collect(),
        other => other.clone(),
    }
}
