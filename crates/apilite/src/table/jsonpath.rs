//! The simple JSONPaths of printer columns: fields, indices, and filters on equality.

use serde_json::Value;

/// The first value at a path such as `.status.conditions[?(@.type=="Ready")].status`.
pub(super) fn find<'a>(path: &str, object: &'a Value) -> Option<&'a Value> {
    let mut found = vec![object];
    let mut rest = path
        .trim()
        .trim_start_matches('{')
        .trim_end_matches('}')
        .trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            let inner = after[..end].trim();
            rest = &after[end + 1..];
            found = found.into_iter().flat_map(|value| index(inner, value)).collect();
        } else {
            let after = rest.strip_prefix('.').unwrap_or(rest);
            let (field, left) = field(after);
            rest = left;
            if field.is_empty() {
                continue;
            }
            found = found
                .into_iter()
                .flat_map(|value| {
                    if field == "*" {
                        children(value)
                    } else {
                        value.get(&field).into_iter().collect()
                    }
                })
                .collect();
        }
        if found.is_empty() {
            return None;
        }
    }
    found.into_iter().next().filter(|value| !value.is_null())
}

/// Where the bracket closes, strings skipped.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// A field name, in which `\.` is a dot.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn index<'a>(inner: &str, value: &'a Value) -> Vec<&'a Value> {
    if inner == "*" {
        return children(value);
    }
    if let Some(key) = unquoted(inner) {
        return value.get(key).into_iter().collect();
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let Some((path, wanted)) = condition.split_once("==") else {
            return Vec::new();
        };
        let path = path.trim().trim_start_matches('@');
        let wanted = wanted.trim();
        let holds = |item: &&Value| match (find(path, item), unquoted(wanted)) {
            (Some(Value::String(text)), Some(wanted)) => text == wanted,
            (Some(other), None) => serde_json::from_str::<Value>(wanted).is_ok_and(|wanted| *other == wanted),
            _ => false,
        };
        return value.as_array().into_iter().flatten().filter(holds).collect();
    }
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    match inner.parse::<isize>() {
        Ok(i) if i < 0 => items
            .len()
            .checked_add_signed(i)
            .and_then(|i| items.get(i))
            .into_iter()
            .collect(),
        Ok(i) => items.get(i.unsigned_abs()).into_iter().collect(),
        Err(_) => Vec::new(),
    }
}

fn unquoted(text: &str) -> Option<&str> {
    let inner = |quote| {
        text.strip_prefix(quote)
            .and_then(|rest: &str| rest.strip_suffix(quote))
    };
    inner('\'').or_else(|| inner('"'))
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::find;

    #[test]
    fn paths_lead_to_the_first_match() {
        let object = json!({
            "spec": { "items": [{ "n": 1 }, { "n": 2 }], "a.b": "dotted" },
            "status": { "conditions": [
                { "type": "Other", "status": "False" },
                { "type": "Ready", "status": "True", "count": 3 },
            ] },
        });
        for (path, value) in [
            (".spec.items[1].n", Some(json!(2))),
            (".spec.items[-1].n", Some(json!(2))),
            (".spec.items[*].n", Some(json!(1))),
            (".spec.a\\.b", Some(json!("dotted"))),
            (".spec['a.b']", Some(json!("dotted"))),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                Some(json!("True")),
            ),
            (
                ".status.conditions[?(@.type=='Ready')].status",
                Some(json!("True")),
            ),
            (".status.conditions[?(@.count==3)].type", Some(json!("Ready"))),
            (".status.conditions[?(@.type==\"None\")].status", None),
            (".spec.items[9].n", None),
            (".spec.missing.deep", None),
        ] {
            assert_eq!(find(path, &object).cloned(), value, "{path}");
        }
    }
}
