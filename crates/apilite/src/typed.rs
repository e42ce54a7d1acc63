//! Reading objects of built-in types as the real server's decoder does: unknown fields are dropped and
//! noted, nulls mean absent, a wrong type is an error in the words of Go's `encoding/json`.

use serde_json::{Map, Value};

use crate::schema::Schema;

/// What was noted, or the first type error.
pub(crate) fn read(schema: Schema<'_>, kind: &str, object: &mut Value) -> Result<Vec<String>, String> {
    let mut reader = Reader {
        unknown: Vec::new(),
        parent: kind.to_owned(),
    };
    reader.value(schema, object, &mut Place::default())?;
    Ok(reader.unknown)
}

/// Joins a field to a path.
pub(crate) fn join(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

struct Reader {
    unknown: Vec<String>,
    /// Name of the innermost struct, for messages.
    parent: String,
}

/// The current path, with list indices and without.
#[derive(Clone, Default)]
struct Place {
    full: String,
    go: String,
}

// === impl Place ===

impl Place {
    fn field(&self, name: &str) -> Self {
        Self {
            full: join(&self.full, name),
            go: join(&self.go, name),
        }
    }

    fn item(&self, index: usize) -> Self {
        Self {
            full: format!("{}[{index}]", self.full),
            go: self.go.clone(),
        }
    }
}

// === impl Reader ===

impl Reader {
    fn value(&mut self, schema: Schema<'_>, value: &mut Value, place: &mut Place) -> Result<(), String> {
        if schema
            .definition()
            .is_some_and(|name| name.ends_with(".Quantity"))
        {
            return self.quantity(value);
        }
        if schema.int_or_string() {
            return match value {
                Value::String(_) => Ok(()),
                Value::Number(number) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
                other => Err(self.mismatch(other, place, "int32")),
            };
        }
        match schema.kind() {
            "object" => self.object(schema, value, place),
            "array" => {
                let Value::Array(items) = value else {
                    return Err(self.mismatch(value, place, &go_type(schema)));
                };
                if let Some(schema) = schema.items() {
                    for (index, item) in items.iter_mut().enumerate() {
                        self.value(schema, item, &mut place.item(index))?;
                    }
                }
                Ok(())
            }
            "string" => self.string(schema, value, place),
            "boolean" if !value.is_boolean() => Err(self.mismatch(value, place, "bool")),
            "integer" => {
                let bits = schema.get("format").as_str().unwrap_or("int64");
                let fits = match value {
                    Value::Number(number) if bits == "int32" => {
                        number.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
                    }
                    Value::Number(number) => number.as_i64().is_some(),
                    _ => false,
                };
                if fits {
                    Ok(())
                } else {
                    Err(self.mismatch(value, place, bits))
                }
            }
            "number" if !value.is_number() => Err(self.mismatch(value, place, "float64")),
            _ => Ok(()),
        }
    }

    fn object(&mut self, schema: Schema<'_>, value: &mut Value, place: &mut Place) -> Result<(), String> {
        let Value::Object(fields) = value else {
            // A JSON value of any kind is declared as an object without properties.
            if schema.properties().is_none() && schema.values().is_none() {
                return Ok(());
            }
            return Err(self.mismatch(value, place, &go_type(schema)));
        };
        if let Some(values) = schema.values() {
            fields.retain(|_, value| !value.is_null());
            for (key, value) in fields.iter_mut() {
                self.value(values, value, &mut place.field(key))?;
            }
            return Ok(());
        }
        let Some(properties) = schema.properties() else {
            return Ok(());
        };
        let name = schema.definition().and_then(|name| name.rsplit('.').next());
        let outer = name.map(|name| std::mem::replace(&mut self.parent, name.to_owned()));
        self.fields(properties, fields, place)?;
        if let Some(outer) = outer {
            self.parent = outer;
        }
        Ok(())
    }

    fn fields(
        &mut self,
        properties: &Map<String, Value>,
        fields: &mut Map<String, Value>,
        place: &Place,
    ) -> Result<(), String> {
        for name in fields.keys().filter(|name| !properties.contains_key(*name)) {
            self.unknown.push(join(&place.full, name));
        }
        fields.retain(|name, value| properties.contains_key(name) && !value.is_null());
        for (name, value) in fields.iter_mut() {
            self.value(Schema::new(&properties[name]), value, &mut place.field(name))?;
        }
        Ok(())
    }

    fn string(&self, schema: Schema<'_>, value: &mut Value, place: &Place) -> Result<(), String> {
        let Value::String(text) = value else {
            return Err(match schema.get("format").as_str() {
                Some("date-time") => format!(
                    "parsing time {:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {:?} as \"2006\"",
                    value.to_string(),
                    value.to_string()
                ),
                Some("byte") => self.mismatch(value, place, "[]uint8"),
                _ => self.mismatch(value, place, "string"),
            });
        };
        match schema.get("format").as_str() {
            Some("date-time") if text.parse::<jiff::Timestamp>().is_err() => Err(format!(
                "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
            )),
            Some("byte") => match illegal_base64(text) {
                Some(at) => Err(format!("illegal base64 data at input byte {at}")),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Quantities may come as numbers and are kept as text.
    fn quantity(&self, value: &mut Value) -> Result<(), String> {
        let text = match value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        if crate::quantity::parse(&text).is_none() {
            return Err(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                    .to_owned(),
            );
        }
        *value = Value::from(text);
        Ok(())
    }

    fn mismatch(&self, value: &Value, place: &Place, wanted: &str) -> String {
        let is = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            // Go names the literal where a number has the right kind but doesn't fit.
            Value::Number(number) if wanted.starts_with("int") => format!("number {number}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        format!(
            "json: cannot unmarshal {is} into Go struct field {}.{} of type {wanted}",
            self.parent, place.go
        )
    }
}

/// The Go type of a schema, as error messages name it.
fn go_type(schema: Schema<'_>) -> String {
    if let Some(name) = schema.definition() {
        let mut parts = name.rsplit('.');
        let kind = parts.next().unwrap_or_default();
        return format!("{}.{kind}", parts.next().unwrap_or_default());
    }
    match schema.kind() {
        "array" => format!("[]{}", schema.items().map_or_else(String::new, go_type)),
        "object" => match schema.values() {
            Some(values) => format!("map[string]{}", go_type(values)),
            None => "interface {}".to_owned(),
        },
        "integer" => schema.get("format").as_str().unwrap_or("int64").to_owned(),
        "boolean" => "bool".to_owned(),
        "number" => "float64".to_owned(),
        _ => "string".to_owned(),
    }
}

/// Where standard base64 (padded) goes wrong.
fn illegal_base64(text: &str) -> Option<usize> {
    let bytes: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let data = bytes.iter().rposition(|b| *b != b'=').map_or(0, |last| last + 1);
    let wrong = |b: &u8| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'));
    if let Some(at) = bytes[..data].iter().position(wrong) {
        return Some(at);
    }
    (!bytes.len().is_multiple_of(4) || bytes.len() - data > 2).then_some(bytes.len() - bytes.len() % 4)
}
