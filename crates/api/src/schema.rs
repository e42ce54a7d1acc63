//! Schemas shared by the types: what the API server checks by itself.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::{BlockUse, IdentityEntry, PoolRange};

/// An IPv4 range; host bits are left to the operator, which names the canonical form.
const CIDR_PATTERN: &str = concat!(
    r"^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}",
    r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])/(3[0-2]|[12]?[0-9])$"
);

/// At most `max_items` ranges, none twice.
fn cidrs(min_items: u32, max_items: u32) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": min_items,
        "maxItems": max_items,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": 18,
            "pattern": CIDR_PATTERN,
        },
    })
}

/// The ranges of a pool: at least one.
pub(crate) fn pool_cidrs(_: &mut SchemaGenerator) -> Schema {
    cidrs(1, 256)
}

/// A list of ranges that may be empty.
pub(crate) fn optional_cidrs(_: &mut SchemaGenerator) -> Schema {
    cidrs(0, 1024)
}

/// Entries of a pool's ranges.
pub(crate) fn retiring_cidrs(_: &mut SchemaGenerator) -> Schema {
    cidrs(0, 256)
}

/// How a node's pods are reached. Without a default in the schema: the API
/// server would write it into every entry.
pub(crate) fn routing(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "enum": ["overlay", "native"],
    })
}

/// The ranges of a pool's status: one entry per range.
pub(crate) fn pool_ranges(generator: &mut SchemaGenerator) -> Schema {
    keyed(generator.subschema_for::<PoolRange>(), "cidr", 256)
}

/// The blocks of a node's status: one entry per block.
pub(crate) fn block_uses(generator: &mut SchemaGenerator) -> Schema {
    keyed(generator.subschema_for::<BlockUse>(), "cidr", 1024)
}

/// The identities of a slice: one entry per number.
pub(crate) fn identities(generator: &mut SchemaGenerator) -> Schema {
    keyed(generator.subschema_for::<IdentityEntry>(), "id", 1000)
}

/// A list of at most `max_items` objects that `key` tells apart.
#[expect(clippy::needless_pass_by_value, reason = "the macro takes it")]
fn keyed(items: Schema, key: &str, max_items: u32) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": max_items,
        "items": items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
    })
}

/// One range.
pub(crate) fn cidr(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 18,
        "pattern": CIDR_PATTERN,
    })
}

/// Kubernetes conditions: a list with one entry per type.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let condition = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>();
    json_schema!({
        "type": "array",
        "items": condition,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Makes of a derived schema one that an API server has nothing to say about
/// and that `kubectl explain` shows well: no `uint` formats, which OpenAPI does
/// not have, and paragraphs instead of the source's lines.
pub(crate) fn tidy(schema: &mut JSONSchemaProps) {
    if schema
        .format
        .as_deref()
        .is_some_and(|format| format.starts_with("uint"))
    {
        schema.format = Some("int32".to_owned());
    }
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<String> = description
            .split("\n\n")
            .map(|paragraph| paragraph.replace('\n', " "))
            .collect();
        *description = paragraphs.join("\n\n");
    }
    schema
        .properties
        .iter_mut()
        .flatten()
        .for_each(|(_, property)| tidy(property));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}
