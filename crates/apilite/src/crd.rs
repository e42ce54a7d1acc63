//! Custom resources: what a CustomResourceDefinition says about one version.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::core::Core;
use crate::error::FieldError;
use crate::registry::{Origin, Resource, Scale, Shelf, api_version};
use crate::store::{Expect, Range, Stored};
use crate::{names, strategy};

#[derive(Debug)]
pub(crate) struct CustomResource {
    pub(crate) storage_version: String,
    /// `openAPIV3Schema` of the version.
    pub(crate) schema: Value,
    pub(crate) columns: Vec<Column>,
    /// (field, JSON pointer) of `selectableFields`.
    pub(crate) selectable: Vec<(String, String)>,
    pub(crate) deprecation_warning: Option<String>,
}

/// One of `additionalPrinterColumns`.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    pub(crate) json_path: String,
}

// === impl Core ===

impl Core {
    /// Serves what a stored definition declares.
    pub(crate) fn definition_changed(&self, stored: &Stored) {
        let definition = stored.value();
        let shelf = shelf(&definition);
        self.registry.replace_custom(&shelf, resources(&definition));
    }

    /// Removes the objects of a removed definition, then stops serving it.
    pub(crate) fn definition_removed(&self, stored: &Stored) {
        let shelf = shelf(&stored.value());
        if let Ok(page) = self.store.list(&shelf, &Range::default(), |_| true) {
            for object in page.items {
                // Whoever wrote in between has written to a resource that is going away.
                let _ = self.store.remove(
                    &shelf,
                    &object.key,
                    Expect::Revision(object.revision),
                    object.value(),
                );
            }
        }
        self.registry.replace_custom(&shelf, Vec::new());
    }
}

fn shelf(definition: &Value) -> Shelf {
    let spec = &definition["spec"];
    Shelf::new(text(&spec["group"]), text(&spec["names"]["plural"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// The served versions of a definition.
fn resources(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions.iter().find(|version| version["storage"] == true);
    let storage_version = storage.map_or("", |version| text(&version["name"]));
    let served = versions.iter().filter(|version| version["served"] == true);
    served
        .map(|version| resource(spec, version, storage_version))
        .collect()
}

fn resource(spec: &Value, version: &Value, storage_version: &str) -> Resource {
    let names = &spec["names"];
    let group = text(&spec["group"]);
    let kind = text(&names["kind"]);
    let subresources = &version["subresources"];
    let scale = subresources["scale"].as_object().map(|scale| Scale {
        spec_replicas: pointer(scale.get("specReplicasPath").map_or("", text)),
        status_replicas: pointer(scale.get("statusReplicasPath").map_or("", text)),
        selector: scale
            .get("labelSelectorPath")
            .and_then(Value::as_str)
            .map(pointer),
    });
    let deprecation_warning = (version["deprecated"] == true).then(|| {
        version["deprecationWarning"].as_str().map_or_else(
            || {
                format!(
                    "{} {kind} is deprecated",
                    api_version(group, text(&version["name"]))
                )
            },
            str::to_owned,
        )
    });
    let custom = CustomResource {
        storage_version: storage_version.to_owned(),
        schema: version["schema"]["openAPIV3Schema"].clone(),
        columns: columns(&version["additionalPrinterColumns"]),
        selectable: version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|field| field["jsonPath"].as_str())
            .map(|path| (path.trim_start_matches('.').to_owned(), pointer(path)))
            .collect(),
        deprecation_warning,
    };
    Resource {
        group: group.to_owned(),
        version: text(&version["name"]).to_owned(),
        kind: kind.to_owned(),
        list_kind: text(&names["listKind"]).to_owned(),
        plural: text(&names["plural"]).to_owned(),
        singular: text(&names["singular"]).to_owned(),
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        status: subresources["status"].is_object(),
        scale,
        actions: &[],
        origin: Origin::Custom(Arc::new(custom)),
        shelf: Shelf::new(group, text(&names["plural"])),
    }
}

fn columns(declared: &Value) -> Vec<Column> {
    let Some(declared) = declared.as_array() else {
        return vec![Column {
            name: "Age".to_owned(),
            kind: "date".to_owned(),
            format: String::new(),
            description:
                "CreationTimestamp is a timestamp representing the server time when this object was created."
                    .to_owned(),
            priority: 0,
            json_path: ".metadata.creationTimestamp".to_owned(),
        }];
    };
    declared
        .iter()
        .map(|column| Column {
            name: text(&column["name"]).to_owned(),
            kind: text(&column["type"]).to_owned(),
            format: text(&column["format"]).to_owned(),
            description: text(&column["description"]).to_owned(),
            priority: column["priority"].as_i64().unwrap_or_default(),
            json_path: text(&column["jsonPath"]).to_owned(),
        })
        .collect()
}

/// A simple JSONPath (`.spec.replicas`) as a JSON pointer.
fn pointer(path: &str) -> String {
    path.split('.')
        .filter(|part| !part.is_empty())
        .fold(String::new(), |out, part| {
            format!("{out}/{}", part.replace('~', "~0").replace('/', "~1"))
        })
}

/// Fills in what a definition leaves to the server.
pub(crate) fn default(definition: &mut Value) {
    let spec = &mut definition["spec"];
    let kind = text(&spec["names"]["kind"]).to_owned();
    if text(&spec["names"]["singular"]).is_empty() {
        spec["names"]["singular"] = Value::from(kind.to_lowercase());
    }
    if text(&spec["names"]["listKind"]).is_empty() && !kind.is_empty() {
        spec["names"]["listKind"] = Value::from(format!("{kind}List"));
    }
    if spec["conversion"].is_null() {
        spec["conversion"] = json!({ "strategy": "None" });
    }
}

/// The status that the controllers of the real server arrive at.
pub(crate) fn settle_status(definition: &mut Value) {
    let old = definition["status"].take();
    let condition = |kind: &str, reason: &str, message: &str| {
        let before = old["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == kind);
        let since = before.map_or_else(
            || Value::from(strategy::now()),
            |c| c["lastTransitionTime"].clone(),
        );
        json!({ "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": since })
    };
    let mut stored = strings(&old["storedVersions"]);
    for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
        if version["storage"] == true && !stored.iter().any(|name| name == text(&version["name"])) {
            stored.push(text(&version["name"]).to_owned());
        }
    }
    let conditions = [
        condition("NamesAccepted", "NoConflicts", "no conflicts found"),
        condition(
            "Established",
            "InitialNamesAccepted",
            "the initial names have been accepted",
        ),
    ];
    definition["status"] = json!({
        "acceptedNames": definition["spec"]["names"],
        "conditions": conditions,
        "storedVersions": stored,
    });
}

pub(crate) fn validate(definition: &Value) -> Vec<FieldError> {
    let mut problems = Vec::new();
    let spec = &definition["spec"];
    let group = text(&spec["group"]);
    let plural = text(&spec["names"]["plural"]);
    let expected = format!("{plural}.{group}");
    if text(&definition["metadata"]["name"]) != expected {
        problems.push(FieldError::invalid(
            "metadata.name",
            &definition["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if group.is_empty() {
        problems.push(FieldError::required("spec.group", ""));
    } else {
        let invalid = names::dns1123_subdomain(group);
        problems.extend(
            invalid
                .into_iter()
                .map(|why| FieldError::invalid("spec.group", &spec["group"], why)),
        );
        if !group.contains('.') {
            problems.push(FieldError::invalid(
                "spec.group",
                &spec["group"],
                "should be a domain with at least one dot",
            ));
        }
    }
    match text(&spec["scope"]) {
        "" => problems.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        _ => problems.push(FieldError::not_supported(
            "spec.scope",
            &spec["scope"],
            &["Cluster", "Namespaced"],
        )),
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        let path = format!("spec.names.{field}");
        let name = text(&spec["names"][field]);
        if name.is_empty() {
            problems.push(FieldError::required(&path, ""));
            continue;
        }
        let lower = name.to_lowercase();
        let invalid = names::dns1035_label(&lower);
        problems.extend(
            invalid
                .into_iter()
                .map(|why| FieldError::invalid(&path, &spec["names"][field], why)),
        );
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions
        .iter()
        .filter(|version| version["storage"] == true)
        .count();
    if storage != 1 {
        problems.push(FieldError::invalid(
            "spec.versions",
            &spec["versions"],
            "must have exactly one version marked as storage version",
        ));
    }
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let invalid = names::dns1035_label(text(&version["name"]));
        let invalid = invalid
            .into_iter()
            .map(|why| FieldError::invalid(&format!("{path}.name"), &version["name"], why));
        problems.extend(invalid);
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            problems.push(FieldError::required(
                &format!("{path}.schema.openAPIV3Schema"),
                "schemas are required",
            ));
        } else if schema["type"] != "object" {
            problems.push(FieldError::invalid(
                &format!("{path}.schema.openAPIV3Schema.type"),
                &schema["type"],
                "must be object at the root",
            ));
        }
    }
    problems
}
