//! A page about the types for people, from what the API server gets.

use std::fmt::Write;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

const HEAD: &str = "<!-- Generated from crates/api; see crates/api/tests/generated. -->

# The types

What `kubectl explain` says, on one page. All are cluster-wide, of group `weft.dev`, version `v1alpha1`; `kubectl get weft` lists the objects of all. \
People write `spec` of PodPools and nothing else: the operator writes NodeNetworks, slices and the pools' status, and each agent the status of its own node.
Beyond what the tables say, CEL rules in the definitions and the chart's ValidatingAdmissionPolicies refuse what can never work, with the field, the value and the reason.
";

/// The page.
pub(super) fn page(crds: &[CustomResourceDefinition]) -> String {
    let mut page = HEAD.to_owned();
    for crd in crds {
        kind(&mut page, crd).expect("a String takes all");
    }
    page
}

fn kind(page: &mut String, crd: &CustomResourceDefinition) -> std::fmt::Result {
    let names = &crd.spec.names;
    let short = names.short_names.iter().flatten().cloned().collect::<Vec<_>>();
    let version = &crd.spec.versions[0];
    let schema = version
        .schema
        .as_ref()
        .and_then(|schema| schema.open_api_v3_schema.as_ref());
    let schema = schema.expect("a schema");
    writeln!(page, "\n## {}\n", names.kind)?;
    writeln!(
        page,
        "`kubectl get {}`, in short `{}`. {}",
        names.plural,
        short.join("`, `"),
        text(schema)
    )?;
    writeln!(page, "\n| column | |\n|---|---|")?;
    for column in version.additional_printer_columns.iter().flatten() {
        let wide = if column.priority.unwrap_or(0) > 0 {
            " (with `--output wide`)"
        } else {
            ""
        };
        let told = column.description.clone().unwrap_or_default();
        writeln!(
            page,
            "| {} | {}{wide} |",
            column.name.to_uppercase(),
            told.replace('|', "\\|")
        )?;
    }
    writeln!(page, "\n| field | type | |\n|---|---|---|")?;
    for (name, property) in schema.properties.iter().flatten() {
        if !["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            fields(page, name, property, required(schema, name))?;
        }
    }
    Ok(())
}

/// A row for the field and one for each below it.
fn fields(page: &mut String, path: &str, schema: &JSONSchemaProps, needed: bool) -> std::fmt::Result {
    let mut told = text(schema);
    if needed {
        told = format!("Required. {told}");
    }
    if let Some(default) = &schema.default {
        write!(told, " Default: `{}`.", default.0)?;
    }
    let bounds = [("from", schema.minimum), ("to", schema.maximum)];
    let bounds: Vec<String> = bounds
        .into_iter()
        .filter_map(|(word, bound)| Some(format!("{word} {}", bound?)))
        .collect();
    if !bounds.is_empty() {
        write!(told, " {}.", capital(&bounds.join(" ")))?;
    }
    if let Some(values) = &schema.enum_ {
        let values: Vec<String> = values.iter().map(|value| format!("`{}`", value.0)).collect();
        write!(told, " One of {}.", values.join(", "))?;
    }
    if let Some(most) = schema.max_items {
        write!(told, " At most {most} entries.")?;
    }
    writeln!(page, "| `{path}` | {} | {} |", type_of(schema), told.trim())?;
    let (inner, path) = match items(schema) {
        Some(inner) => (inner, format!("{path}[]")),
        None => (schema, path.to_owned()),
    };
    for (name, property) in inner.properties.iter().flatten() {
        fields(page, &format!("{path}.{name}"), property, required(inner, name))?;
    }
    Ok(())
}

fn type_of(schema: &JSONSchemaProps) -> String {
    let own = schema.type_.clone().unwrap_or_else(|| "any".to_owned());
    match items(schema) {
        Some(inner) => format!("list of {}", type_of(inner)),
        None => own,
    }
}

fn items(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(inner) => Some(inner),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

fn required(schema: &JSONSchemaProps, name: &str) -> bool {
    schema.required.iter().flatten().any(|required| required == name)
}

/// The description as one line of a table.
fn text(schema: &JSONSchemaProps) -> String {
    let text = schema.description.clone().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(rest).collect()
}
