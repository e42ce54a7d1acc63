//! Schemas shared by the types: what the API server checks by itself.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::{BlockUse, IdentityEntry, PoolRange, rules};

/// An IPv4 range, in what only programs write.
const CIDR_PATTERN: &str = concat!(
    r"^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}",
    r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])/(3[0-2]|[12]?[0-9])$"
);

/// The ranges of a pool: at least one, none twice, all apart.
pub(crate) fn pool_cidrs(_: &mut SchemaGenerator) -> Schema {
    let mut schema = ranges(1, 128, &rules::pod_range());
    schema.insert("x-kubernetes-validations".to_owned(), rules::apart().into());
    schema
}

/// A list of ranges that may be empty.
pub(crate) fn optional_cidrs(_: &mut SchemaGenerator) -> Schema {
    ranges(0, 256, &rules::range())
}

/// Entries of a pool's ranges, which have rules there.
pub(crate) fn retiring_cidrs(_: &mut SchemaGenerator) -> Schema {
    ranges(0, 128, &[])
}

/// At most `max_items` ranges, none twice.
fn ranges(min_items: u32, max_items: u32, rules: &[Value]) -> Schema {
    let mut items = json!({
        "type": "string",
        "maxLength": 64,
    });
    if !rules.is_empty() {
        items["x-kubernetes-validations"] = rules.into();
    }
    json_schema!({
        "type": "array",
        "minItems": min_items,
        "maxItems": max_items,
        "x-kubernetes-list-type": "set",
        "items": items,
    })
}

/// A label selector whose operators and values fit each other.
pub(crate) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "description": "Labels a node has to have, all of them.",
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": { "type": "string", "maxLength": 63 },
            },
            "matchExpressions": {
                "description": "Requirements a node has to meet, all of them.",
                "type": "array",
                "maxItems": 64,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {
                            "description": "The label's key.",
                            "type": "string",
                            "maxLength": 317,
                        },
                        "operator": {
                            "description": "How the label's value relates to `values`.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "The values, for In and NotIn.",
                            "type": "array",
                            "maxItems": 256,
                            "x-kubernetes-list-type": "atomic",
                            "items": { "type": "string", "maxLength": 63 },
                        },
                    },
                    "x-kubernetes-validations": rules::selector_expression(),
                },
            },
        },
    })
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
    keyed(&generator.subschema_for::<PoolRange>(), "cidr", 128)
}

/// The blocks of a node's status: one entry per block.
pub(crate) fn block_uses(generator: &mut SchemaGenerator) -> Schema {
    keyed(&generator.subschema_for::<BlockUse>(), "cidr", 1024)
}

/// The identities of a slice: one entry per number.
pub(crate) fn identities(generator: &mut SchemaGenerator) -> Schema {
    keyed(&generator.subschema_for::<IdentityEntry>(), "id", 1000)
}

/// Conditions, one per type.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    keyed(&one_condition(), "type", 16)
}

/// A condition, or none.
pub(crate) fn optional_condition(_: &mut SchemaGenerator) -> Schema {
    let mut schema = one_condition();
    schema.insert("nullable".to_owned(), true.into());
    schema
}

/// A list of at most `max_items` objects that `key` tells apart.
fn keyed(items: &Schema, key: &str, max_items: u32) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": max_items,
        "items": items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
    })
}

/// A condition as Kubernetes' own types have it (`metav1.Condition`), with the limits its documentation states.
fn one_condition() -> Schema {
    json_schema!({
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {
                "description": "What the condition is about, in CamelCase.",
                "type": "string",
                "maxLength": 316,
                "pattern": "^[A-Z][A-Za-z0-9]*$",
            },
            "status": {
                "description": "Whether it holds.",
                "type": "string",
                "enum": ["True", "False", "Unknown"],
            },
            "reason": {
                "description": "Why, in one CamelCase word for programs.",
                "type": "string",
                "minLength": 1,
                "maxLength": 1024,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            "message": {
                "description": "Why, in a sentence for people.",
                "type": "string",
                "maxLength": 32768,
            },
            "lastTransitionTime": {
                "description": "Since when the status is what it is.",
                "type": "string",
                "format": "date-time",
            },
            "observedGeneration": {
                "description": "The generation of the object it was found for.",
                "type": "integer",
                "format": "int64",
                "minimum": 0,
            },
        },
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
