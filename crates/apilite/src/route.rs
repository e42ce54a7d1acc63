//! From a request's path and query to what it asks for.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::ApiError;
use crate::registry::{Catalog, Resource};

/// A resource request's address.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) resource: Arc<Resource>,
    /// Empty for cluster scope and for lists over all namespaces.
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Route {
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/{group}`
    Group(String),
    /// `/api/v1`, `/apis/{group}/{version}`
    Resources {
        group: String,
        version: String,
    },
    Target(Target),
    Version,
    Healthy,
    /// `/openapi/v3`, or a document below it.
    OpenApiV3(Option<String>),
    OpenApiV2,
    Root,
}

/// Decoded query parameters; the first of a repeated one counts.
#[derive(Debug, Default)]
pub(crate) struct Query(HashMap<String, String>);

// === impl Route ===

impl Route {
    pub(crate) fn parse(path: &str, catalog: &Catalog) -> Result<Self, ApiError> {
        let decoded: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode(part, false))
            .collect();
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        match parts.as_slice() {
            [] => Ok(Self::Root),
            ["version"] => Ok(Self::Version),
            ["healthz" | "livez" | "readyz", ..] => Ok(Self::Healthy),
            ["openapi", "v2"] => Ok(Self::OpenApiV2),
            ["openapi", "v3"] => Ok(Self::OpenApiV3(None)),
            ["openapi", "v3", rest @ ..] => Ok(Self::OpenApiV3(Some(rest.join("/")))),
            ["api"] => Ok(Self::CoreVersions),
            ["apis"] => Ok(Self::Groups),
            ["apis", group] => Ok(Self::Group((*group).to_owned())),
            ["api", version] => Ok(Self::Resources {
                group: String::new(),
                version: (*version).to_owned(),
            }),
            ["apis", group, version] => Ok(Self::Resources {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
            }),
            ["api", version, rest @ ..] => Self::target(catalog, "", version, rest),
            ["apis", group, version, rest @ ..] => Self::target(catalog, group, version, rest),
            _ => Err(ApiError::no_such_path()),
        }
    }

    fn target(catalog: &Catalog, group: &str, version: &str, rest: &[&str]) -> Result<Self, ApiError> {
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] if group.is_empty() => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            _ => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, None, None),
            [plural, name] => (*plural, Some(*name), None),
            [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
            _ => return Err(ApiError::no_such_path()),
        };
        let resource = catalog
            .find(group, version, plural)
            .ok_or_else(ApiError::no_such_path)?;
        let misplaced = if resource.namespaced {
            namespace.is_empty() && name.is_some()
        } else {
            !namespace.is_empty()
        };
        if misplaced {
            return Err(ApiError::no_such_path());
        }
        Ok(Self::Target(Target {
            resource: Arc::clone(resource),
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
            subresource: subresource.map(str::to_owned),
        }))
    }
}

// === impl Query ===

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let mut params = HashMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            params
                .entry(percent_decode(name, true))
                .or_insert_with(|| percent_decode(value, true));
        }
        Self(params)
    }

    /// A parameter that is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Any value but a false one means true, also none at all, as the real server reads flags.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let value = self.0.get(name).map(String::as_str);
        !matches!(value, None | Some("0" | "false" | "False" | "FALSE" | "f" | "F"))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let parse = |value: &str| {
            value.parse().map_err(|_| {
                ApiError::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax"))
            })
        };
        self.get(name).map(parse).transpose()
    }
}

/// Undoes %xx, and `+` for a space where `plus` says so.
fn percent_decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes
            .get(i + 1..i + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[i], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) if plus => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
