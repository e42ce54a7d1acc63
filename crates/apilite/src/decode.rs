//! Request bodies: JSON, YAML or protobuf into a tree, with what a strict reader would object to.

use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// A parsed body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) object: Value,
    /// Paths of fields that came twice; the last one counts.
    pub(crate) duplicates: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

pub(crate) const BODY_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

// === impl Encoding ===

impl Encoding {
    /// From the Content-Type of a create or an update; none means JSON.
    pub(crate) fn of(content_type: Option<&str>) -> Result<Self, ApiError> {
        let media = content_type
            .unwrap_or("application/json")
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        match media {
            "application/json" | "*/*" | "" => Ok(Self::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Ok(Self::Protobuf),
            _ => Err(ApiError::unsupported_media_type(BODY_TYPES)),
        }
    }
}

/// Parses a body.
pub(crate) fn parse(body: &[u8], encoding: Encoding) -> Result<Decoded, ApiError> {
    match encoding {
        Encoding::Json => {
            let mut duplicates = Vec::new();
            let mut path = Vec::new();
            let mut reader = serde_json::Deserializer::from_slice(body);
            let tree = Tree {
                path: &mut path,
                duplicates: &mut duplicates,
            };
            let object = tree
                .deserialize(&mut reader)
                .and_then(|object| reader.end().map(|()| object));
            let object = object.map_err(|error| {
                ApiError::bad_request(format!("the object provided is unrecognized: couldn't get version/kind; json parse error: {error}"))
            })?;
            Ok(Decoded { object, duplicates })
        }
        Encoding::Protobuf => Ok(Decoded {
            object: crate::protobuf::decode(body)?,
            duplicates: Vec::new(),
        }),
        Encoding::Yaml => {
            let text = std::str::from_utf8(body)
                .map_err(|error| ApiError::bad_request(format!("yaml: invalid UTF-8: {error}")))?;
            let object = serde_saphyr::from_str(text).map_err(|error| {
                ApiError::bad_request(format!(
                    "the object provided is unrecognized: error parsing YAML: {error}"
                ))
            })?;
            Ok(Decoded {
                object,
                duplicates: Vec::new(),
            })
        }
    }
}

/// Builds a [`Value`] and notes keys that repeat.
struct Tree<'a> {
    path: &'a mut Vec<String>,
    duplicates: &'a mut Vec<String>,
}

// === impl Tree ===

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.path.push(format!("[{}]", items.len()));
            let item = access.next_element_seed(Tree {
                path: self.path,
                duplicates: self.duplicates,
            })?;
            self.path.pop();
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            self.path.push(if self.path.is_empty() {
                name.clone()
            } else {
                format!(".{name}")
            });
            let value = access.next_value_seed(Tree {
                path: self.path,
                duplicates: self.duplicates,
            })?;
            if fields.insert(name, value).is_some() {
                self.duplicates.push(self.path.concat());
            }
            self.path.pop();
        }
        Ok(Value::Object(fields))
    }
}
