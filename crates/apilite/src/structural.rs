//! Structural schemas of custom resources: pruning, defaulting, validation.
//!
//! Messages follow k8s.io/apiextensions-apiserver, which validates with kube-openapi. CEL rules
//! (`x-kubernetes-validations`) are not evaluated: see `Builder::admission`.

use serde_json::{Map, Value};

use crate::error::FieldError;
use crate::schema::{ListType, Schema};
use crate::typed::join;

/// Drops undeclared fields and returns their paths.
pub(crate) fn prune(schema: Schema<'_>, value: &mut Value, path: &str, is_root: bool) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_into(schema, value, path, is_root, &mut unknown);
    unknown
}

fn prune_into(schema: Schema<'_>, value: &mut Value, path: &str, is_root: bool, unknown: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let embedded = schema.get("x-kubernetes-embedded-resource") == true;
            let implied =
                |name: &str| (is_root || embedded) && matches!(name, "apiVersion" | "kind" | "metadata");
            let keep_unknown = schema.keeps_unknown();
            let declared = |name: &str| {
                implied(name) || schema.field(name).is_some() || schema.get("additionalProperties") == true
            };
            if !keep_unknown {
                unknown.extend(
                    fields
                        .keys()
                        .filter(|name| !declared(name))
                        .map(|name| join(path, name)),
                );
                fields.retain(|name, _| declared(name));
            }
            for (name, value) in fields.iter_mut().filter(|(name, _)| !implied(name)) {
                if let Some(schema) = schema.field(name) {
                    prune_into(schema, value, &join(path, name), false, unknown);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.items() {
                for (i, item) in items.iter_mut().enumerate() {
                    prune_into(schema, item, &format!("{path}[{i}]"), false, unknown);
                }
            }
        }
        _ => {}
    }
}

/// Fills in defaults; nulls that aren't allowed but have a default give way to it.
pub(crate) fn default(schema: Schema<'_>, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, property) in schema.properties().into_iter().flatten() {
                let property = Schema::new(property);
                let default = property.get("default");
                let missing = match fields.get(name) {
                    None => true,
                    Some(Value::Null) => property.get("nullable") != true,
                    Some(_) => false,
                };
                if missing && !default.is_null() {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                if let Some(schema) = schema.field(name) {
                    default(schema, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.items() {
                for item in items {
                    default(schema, item);
                }
            }
        }
        _ => {}
    }
}

pub(crate) fn validate(schema: Schema<'_>, value: &Value, path: &str) -> Vec<FieldError> {
    let mut problems = Vec::new();
    check(schema, value, path, &mut problems);
    problems
}

fn check(schema: Schema<'_>, value: &Value, path: &str, problems: &mut Vec<FieldError>) {
    if value.is_null() && schema.get("nullable") == true {
        return;
    }
    if !right_type(schema, value) {
        let is = type_name(value);
        let wanted = if schema.int_or_string() {
            "integer,string"
        } else {
            schema.kind()
        };
        problems.push(FieldError::type_invalid(
            path,
            &Value::from(is),
            format!("{path} in body must be of type {wanted}: {is:?}"),
        ));
        return;
    }
    check_enum(schema, value, path, problems);
    match value {
        Value::String(text) => check_string(schema, text, path, problems),
        Value::Number(_) => check_number(schema, value, path, problems),
        Value::Array(items) => check_list(schema, items, path, problems),
        Value::Object(fields) => check_object(schema, fields, path, problems),
        Value::Null | Value::Bool(_) => {}
    }
    check_junctors(schema, value, path, problems);
}

fn right_type(schema: Schema<'_>, value: &Value) -> bool {
    if schema.int_or_string() {
        return value.is_i64() || value.is_u64() || value.is_string();
    }
    match schema.kind() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => true,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_enum(schema: Schema<'_>, value: &Value, path: &str, problems: &mut Vec<FieldError>) {
    if let Some(allowed) = schema.get("enum").as_array()
        && !allowed.contains(value)
    {
        let texts: Vec<String> = allowed
            .iter()
            .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        problems.push(FieldError::not_supported(path, value, &texts));
    }
}

fn check_string(schema: Schema<'_>, text: &str, path: &str, problems: &mut Vec<FieldError>) {
    let value = Value::from(text);
    if let Some(min) = schema.get("minLength").as_u64()
        && (text.chars().count() as u64) < min
    {
        problems.push(FieldError::invalid(
            path,
            &value,
            format!("{path} in body should be at least {min} chars long"),
        ));
    }
    if let Some(max) = schema.get("maxLength").as_u64()
        && text.chars().count() as u64 > max
    {
        problems.push(FieldError::too_long(
            path,
            usize::try_from(max).unwrap_or(usize::MAX),
        ));
    }
    if let Some(pattern) = schema.get("pattern").as_str()
        && let Ok(regex) = regex::Regex::new(pattern)
        && !regex.is_match(text)
    {
        problems.push(FieldError::invalid(
            path,
            &value,
            format!("{path} in body should match '{pattern}'"),
        ));
    }
    if let Some(format) = schema.get("format").as_str()
        && !format_holds(format, text)
    {
        problems.push(FieldError::invalid(
            path,
            &value,
            format!("{path} in body must be of type {format}: {text:?}"),
        ));
    }
}

/// The formats that are checked; others are notes for readers.
fn format_holds(format: &str, text: &str) -> bool {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, length)| {
            let max = match address.parse() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            length.parse::<u8>().is_ok_and(|length| length <= max)
        }),
        _ => true,
    }
}

fn check_number(schema: Schema<'_>, value: &Value, path: &str, problems: &mut Vec<FieldError>) {
    let Some(number) = value.as_f64() else { return };
    let bound = |keyword: &str| schema.get(keyword).as_f64();
    if let Some(min) = bound("minimum") {
        let exclusive = schema.get("exclusiveMinimum") == true;
        if number < min || (exclusive && number <= min) {
            let relation = if exclusive {
                "greater than"
            } else {
                "greater than or equal to"
            };
            let detail = format!("{path} in body should be {relation} {}", schema.get("minimum"));
            problems.push(FieldError::invalid(path, value, detail));
        }
    }
    if let Some(max) = bound("maximum") {
        let exclusive = schema.get("exclusiveMaximum") == true;
        if number > max || (exclusive && number >= max) {
            let relation = if exclusive {
                "less than"
            } else {
                "less than or equal to"
            };
            let detail = format!("{path} in body should be {relation} {}", schema.get("maximum"));
            problems.push(FieldError::invalid(path, value, detail));
        }
    }
    if let Some(factor) = bound("multipleOf")
        && (number / factor).fract() != 0.0
    {
        let detail = format!(
            "{path} in body should be a multiple of {}",
            schema.get("multipleOf")
        );
        problems.push(FieldError::invalid(path, value, detail));
    }
}

fn check_list(schema: Schema<'_>, items: &[Value], path: &str, problems: &mut Vec<FieldError>) {
    let count = items.len() as u64;
    if let Some(min) = schema.get("minItems").as_u64()
        && count < min
    {
        let detail = format!("{path} in body should have at least {min} items");
        problems.push(FieldError::invalid(path, &Value::from(count), detail));
    }
    if let Some(max) = schema.get("maxItems").as_u64()
        && count > max
    {
        problems.push(FieldError::too_many(
            path,
            items.len(),
            usize::try_from(max).unwrap_or(usize::MAX),
        ));
    }
    let identities: Vec<Value> = match schema.list_type() {
        ListType::Atomic => Vec::new(),
        ListType::Set => items.to_vec(),
        ListType::Map(keys) => items
            .iter()
            .map(|item| {
                keys.iter()
                    .map(|key| ((*key).to_owned(), item[*key].clone()))
                    .collect()
            })
            .collect(),
    };
    for (i, identity) in identities.iter().enumerate() {
        if identities[..i].contains(identity) {
            problems.push(FieldError::duplicate(&format!("{path}[{i}]"), identity));
        }
    }
    if let Some(schema) = schema.items() {
        for (i, item) in items.iter().enumerate() {
            check(schema, item, &format!("{path}[{i}]"), problems);
        }
    }
}

fn check_object(schema: Schema<'_>, fields: &Map<String, Value>, path: &str, problems: &mut Vec<FieldError>) {
    for name in schema
        .get("required")
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !fields.contains_key(name) {
            problems.push(FieldError::required(&join(path, name), ""));
        }
    }
    let count = fields.len() as u64;
    if let Some(min) = schema.get("minProperties").as_u64()
        && count < min
    {
        let detail = format!("{path} in body should have at least {min} properties");
        problems.push(FieldError::invalid(path, &Value::from(count), detail));
    }
    if let Some(max) = schema.get("maxProperties").as_u64()
        && count > max
    {
        problems.push(FieldError::too_many(
            path,
            fields.len(),
            usize::try_from(max).unwrap_or(usize::MAX),
        ));
    }
    for (name, value) in fields {
        if path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        if let Some(schema) = schema.field(name) {
            check(schema, value, &join(path, name), problems);
        }
    }
}

fn check_junctors(schema: Schema<'_>, value: &Value, path: &str, problems: &mut Vec<FieldError>) {
    let holds = |part: &Value| validate(Schema::new(part), value, path).is_empty();
    let mut fail = |detail: String| problems.push(FieldError::invalid(path, value, detail));
    if let Some(parts) = schema.get("anyOf").as_array()
        && !schema.int_or_string()
        && !parts.iter().any(holds)
    {
        fail(format!(
            "{path} in body must validate at least one schema (anyOf)"
        ));
    }
    if let Some(parts) = schema.get("oneOf").as_array() {
        match parts.iter().filter(|part| holds(part)).count() {
            1 => {}
            0 => fail(format!(
                "{path} in body must validate one and only one schema (oneOf). Found none valid"
            )),
            found => fail(format!(
                "{path} in body must validate one and only one schema (oneOf). Found {found} valid alternatives"
            )),
        }
    }
    if let Some(parts) = schema.get("allOf").as_array()
        && !parts.iter().all(holds)
    {
        fail(format!("{path} in body must validate all the schemas (allOf)"));
    }
    let not = schema.get("not");
    if not.is_object() && holds(not) {
        fail(format!("{path} in body must not validate the schema (not)"));
    }
}
