//! ConfigMaps, Secrets, claims.

use serde_json::{Map, Value};

use super::{Problems, list};
use crate::error::FieldError;

/// Bytes of all values together.
const DATA_MAX: usize = 1024 * 1024;

const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

pub(super) fn config_map(object: &Value, problems: &mut Problems) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        size += data(&object[field], field, problems);
    }
    for key in object["data"].as_object().into_iter().flat_map(Map::keys) {
        if object["binaryData"].get(key).is_some() {
            problems.invalid(
                &format!("data[{key}]"),
                &Value::from(key.as_str()),
                "duplicate of key present in binaryData",
            );
        }
    }
    if size > DATA_MAX {
        problems.push(FieldError::too_long("", DATA_MAX));
    }
}

pub(super) fn secret(object: &Value, problems: &mut Problems) {
    // Base64 has four characters for three bytes.
    if data(&object["data"], "data", problems) / 4 * 3 > DATA_MAX {
        problems.push(FieldError::too_long("data", DATA_MAX));
    }
    let required: &[&str] = match object["type"].as_str() {
        Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
        Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
        Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
        _ => &[],
    };
    for key in required {
        if object["data"].get(key).is_none() {
            problems.required(&format!("data[{key}]"), "");
        }
    }
}

fn data(data: &Value, field: &str, problems: &mut Problems) -> usize {
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        let path = format!("{field}[{key}]");
        let shown = Value::from(key.as_str());
        if !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            || key.is_empty()
        {
            problems.invalid(&path, &shown, KEY);
        }
        if key == "." || key == ".." {
            problems.invalid(&path, &shown, format!("must not be '{key}'"));
        }
        size += value.as_str().map_or(0, str::len);
    }
    size
}

pub(super) fn immutable(object: &Value, old: &Value, fields: &[&str], problems: &mut Problems) {
    if old["immutable"] != true {
        return;
    }
    if object["immutable"] != true {
        problems.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        if object[*field] != old[*field] {
            problems.forbidden(field, "field is immutable when `immutable` is set");
        }
    }
}

pub(super) fn claim(spec: &Value, path: &str, problems: &mut Problems) {
    if list(&spec["accessModes"]).next().is_none() {
        problems.required(
            &format!("{path}.accessModes"),
            "at least 1 access mode is required",
        );
    }
    for (i, mode) in list(&spec["accessModes"]).enumerate() {
        let allowed = [
            "ReadOnlyMany",
            "ReadWriteMany",
            "ReadWriteOnce",
            "ReadWriteOncePod",
        ];
        problems.one_of(
            &format!("{path}.accessModes[{i}]"),
            mode,
            &allowed,
            super::Empty::Wrong,
        );
    }
    if spec["resources"]["requests"]["storage"].is_null() {
        problems.required(&format!("{path}.resources[storage]"), "");
    }
}
