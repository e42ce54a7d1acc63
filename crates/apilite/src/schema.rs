//! Schemas of all resources: OpenAPI definitions of the built-in types, structural schemas of custom ones.
//!
//! Both are walked through [`Schema`], so that pruning, patching, field ownership and the published
//! OpenAPI documents rest on the same data.

use std::sync::OnceLock;

use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use crate::registry::{Origin, Resource};

/// A place in a schema, references resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schema<'a>(&'a Value);

/// How the items of a list belong together (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ListType<'a> {
    Atomic,
    Set,
    /// Items are told apart by these fields.
    Map(Vec<&'a str>),
}

/// Prefix of `$ref` values.
pub(crate) const REFERENCE: &str = "#/components/schemas/";

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Lists whose items are told apart by keys: (definition, field, keys). The first key is also that of
/// strategic merge patches.
#[rustfmt::skip]
const MAP_LISTS: &[(&str, &str, &[&str])] = &[
    ("io.k8s.api.admissionregistration.v1.MutatingWebhook", "matchConditions", &["name"]),
    ("io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration", "webhooks", &["name"]),
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicySpec", "matchConditions", &["name"]),
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicySpec", "variables", &["name"]),
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyStatus", "conditions", &["type"]),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhook", "matchConditions", &["name"]),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks", &["name"]),
    ("io.k8s.api.apps.v1.DaemonSetStatus", "conditions", &["type"]),
    ("io.k8s.api.apps.v1.DeploymentStatus", "conditions", &["type"]),
    ("io.k8s.api.apps.v1.ReplicaSetStatus", "conditions", &["type"]),
    ("io.k8s.api.apps.v1.StatefulSetStatus", "conditions", &["type"]),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions", &["type"]),
    ("io.k8s.api.batch.v1.JobStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.Container", "env", &["name"]),
    ("io.k8s.api.core.v1.Container", "ports", &["containerPort", "protocol"]),
    ("io.k8s.api.core.v1.Container", "volumeDevices", &["devicePath"]),
    ("io.k8s.api.core.v1.Container", "volumeMounts", &["mountPath"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "env", &["name"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "ports", &["containerPort", "protocol"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "volumeDevices", &["devicePath"]),
    ("io.k8s.api.core.v1.EphemeralContainer", "volumeMounts", &["mountPath"]),
    ("io.k8s.api.core.v1.NamespaceStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.NodeStatus", "addresses", &["type"]),
    ("io.k8s.api.core.v1.NodeStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.PodSpec", "containers", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "ephemeralContainers", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "hostAliases", &["ip"]),
    ("io.k8s.api.core.v1.PodSpec", "imagePullSecrets", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "initContainers", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "resourceClaims", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "schedulingGates", &["name"]),
    ("io.k8s.api.core.v1.PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("io.k8s.api.core.v1.PodSpec", "volumes", &["name"]),
    ("io.k8s.api.core.v1.PodStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.PodStatus", "hostIPs", &["ip"]),
    ("io.k8s.api.core.v1.PodStatus", "podIPs", &["ip"]),
    ("io.k8s.api.core.v1.PodStatus", "resourceClaimStatuses", &["name"]),
    ("io.k8s.api.core.v1.ReplicationControllerStatus", "conditions", &["type"]),
    ("io.k8s.api.core.v1.ResourceRequirements", "claims", &["name"]),
    ("io.k8s.api.core.v1.ServiceAccount", "secrets", &["name"]),
    ("io.k8s.api.core.v1.ServiceSpec", "ports", &["port", "protocol"]),
    ("io.k8s.api.core.v1.ServiceStatus", "conditions", &["type"]),
    ("io.k8s.api.policy.v1.PodDisruptionBudgetStatus", "conditions", &["type"]),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus", "conditions", &["type"]),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", &["uid"]),
];

/// Lists that are sets of scalars; the last column says whether strategic merge patches merge them.
#[rustfmt::skip]
const SET_LISTS: &[(&str, &str, bool)] = &[
    ("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec", "validationActions", false),
    ("io.k8s.api.core.v1.NodeSpec", "podCIDRs", true),
    ("io.k8s.api.discovery.v1.Endpoint", "addresses", false),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers", true),
];

/// Definitions that are replaced as a whole.
#[rustfmt::skip]
const ATOMIC: &[&str] = &[
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.discovery.v1.EndpointPort",
    "io.k8s.api.networking.v1.ServiceBackendPort",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Maps that are replaced as a whole.
#[rustfmt::skip]
const ATOMIC_FIELDS: &[(&str, &str)] = &[
    ("io.k8s.api.core.v1.PodSpec", "nodeSelector"),
    ("io.k8s.api.core.v1.ReplicationControllerSpec", "selector"),
    ("io.k8s.api.core.v1.ServiceSpec", "selector"),
];

/// Maps and unions of which a strategic merge patch may say which keys remain.
#[rustfmt::skip]
const RETAIN_KEYS: &[(&str, &str)] = &[
    ("io.k8s.api.apps.v1.DeploymentSpec", "strategy"),
    ("io.k8s.api.core.v1.PodSpec", "volumes"),
];

/// OpenAPI definitions of everything built in, by name.
pub(crate) fn definitions() -> &'static Map<String, Value> {
    static DEFINITIONS: OnceLock<Map<String, Value>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| {
        let mut definitions = generate();
        annotate(&mut definitions);
        definitions
    })
}

fn generate() -> Map<String, Value> {
    let mut settings = SchemaSettings::openapi3();
    settings.definitions_path = REFERENCE
        .trim_start_matches('#')
        .trim_end_matches('/')
        .to_owned()
        .into();
    let mut generator = settings.into_generator();
    fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
        generator.subschema_for::<T>();
    }
    macro_rules! add {
        ($($kind:path),* $(,)?) => { $(add::<$kind>(&mut generator);)* };
    }
    add!(
        api::admissionregistration::v1::MutatingWebhookConfiguration,
        api::admissionregistration::v1::ValidatingAdmissionPolicy,
        api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
        api::admissionregistration::v1::ValidatingWebhookConfiguration,
        api::apps::v1::ControllerRevision,
        api::apps::v1::DaemonSet,
        api::apps::v1::Deployment,
        api::apps::v1::ReplicaSet,
        api::apps::v1::StatefulSet,
        api::autoscaling::v1::Scale,
        api::autoscaling::v2::HorizontalPodAutoscaler,
        api::batch::v1::CronJob,
        api::batch::v1::Job,
        api::coordination::v1::Lease,
        api::core::v1::Binding,
        api::core::v1::ConfigMap,
        api::core::v1::Endpoints,
        api::core::v1::Event,
        api::core::v1::LimitRange,
        api::core::v1::Namespace,
        api::core::v1::Node,
        api::core::v1::PersistentVolume,
        api::core::v1::PersistentVolumeClaim,
        api::core::v1::Pod,
        api::core::v1::PodTemplate,
        api::core::v1::ReplicationController,
        api::core::v1::ResourceQuota,
        api::core::v1::Secret,
        api::core::v1::Service,
        api::core::v1::ServiceAccount,
        api::discovery::v1::EndpointSlice,
        api::events::v1::Event,
        api::networking::v1::Ingress,
        api::networking::v1::IngressClass,
        api::networking::v1::NetworkPolicy,
        api::policy::v1::Eviction,
        api::policy::v1::PodDisruptionBudget,
        api::rbac::v1::ClusterRole,
        api::rbac::v1::ClusterRoleBinding,
        api::rbac::v1::Role,
        api::rbac::v1::RoleBinding,
        api::scheduling::v1::PriorityClass,
        api::storage::v1::CSIDriver,
        api::storage::v1::StorageClass,
        apiextensions::CustomResourceDefinition,
    );
    generator.take_definitions(true)
}

fn annotate(definitions: &mut Map<String, Value>) {
    let mut property = |definition: &str, field: &str, notes: Value| {
        let Some(target) = definitions
            .get_mut(definition)
            .and_then(|d| d["properties"].get_mut(field))
        else {
            return;
        };
        if let (Some(target), Value::Object(notes)) = (target.as_object_mut(), notes) {
            target.extend(notes);
        }
    };
    for (definition, field, keys) in MAP_LISTS {
        let retain = RETAIN_KEYS.contains(&(definition, field));
        let strategy = if retain { "merge,retainKeys" } else { "merge" };
        property(
            definition,
            field,
            json!({
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": keys,
                "x-kubernetes-patch-merge-key": keys[0],
                "x-kubernetes-patch-strategy": strategy,
            }),
        );
    }
    for (definition, field, merged) in SET_LISTS {
        property(definition, field, json!({ "x-kubernetes-list-type": "set" }));
        if *merged {
            property(
                definition,
                field,
                json!({ "x-kubernetes-patch-strategy": "merge" }),
            );
        }
    }
    for (definition, field) in ATOMIC_FIELDS {
        property(definition, field, json!({ "x-kubernetes-map-type": "atomic" }));
    }
    property(
        "io.k8s.api.apps.v1.DeploymentSpec",
        "strategy",
        json!({ "x-kubernetes-patch-strategy": "retainKeys" }),
    );
    for definition in ATOMIC {
        if let Some(definition) = definitions.get_mut(*definition) {
            definition["x-kubernetes-map-type"] = "atomic".into();
        }
    }
}

// === impl Schema ===

impl<'a> Schema<'a> {
    pub(crate) fn new(schema: &'a Value) -> Self {
        Self(schema)
    }

    /// The root of a resource's objects.
    pub(crate) fn of(resource: &'a Resource) -> Self {
        match &resource.origin {
            Origin::BuiltIn(name) => Self(definitions().get(*name).unwrap_or(&Value::Null)),
            Origin::Custom(custom) => Self(&custom.schema),
        }
    }

    /// `metav1.ObjectMeta`, which custom resources needn't declare.
    pub(crate) fn metadata() -> Self {
        Self(definitions().get(META).unwrap_or(&Value::Null))
    }

    /// A schema that refers to it.
    pub(crate) fn metadata_reference() -> Value {
        json!({ "$ref": format!("{REFERENCE}{META}") })
    }

    fn target(self) -> (&'a Value, Option<&'a str>) {
        // A property that adds notes to a reference has it directly or as the only part of an allOf.
        let reference = self.0["$ref"]
            .as_str()
            .or_else(|| match self.0["allOf"].as_array()?.as_slice() {
                [only] => only["$ref"].as_str(),
                _ => None,
            });
        let name = reference.and_then(|reference| reference.strip_prefix(REFERENCE));
        match name.and_then(|name| definitions().get(name)) {
            Some(target) => (target, name),
            None => (self.0, None),
        }
    }

    /// A keyword, of the place itself or of what it refers to.
    pub(crate) fn get(self, keyword: &str) -> &'a Value {
        match self.0.get(keyword) {
            Some(value) => value,
            None => &self.target().0[keyword],
        }
    }

    /// Name of the referenced definition.
    pub(crate) fn definition(self) -> Option<&'a str> {
        self.target().1
    }

    pub(crate) fn properties(self) -> Option<&'a Map<String, Value>> {
        self.get("properties").as_object()
    }

    /// Schema of a field of a struct or of a key of a map.
    pub(crate) fn field(self, name: &str) -> Option<Self> {
        if let Some(schema) = self.properties().and_then(|properties| properties.get(name)) {
            return Some(Self(schema));
        }
        self.values()
    }

    /// Schema of a map's values.
    pub(crate) fn values(self) -> Option<Self> {
        let values = self.get("additionalProperties");
        values.is_object().then_some(Self(values))
    }

    pub(crate) fn items(self) -> Option<Self> {
        let items = self.get("items");
        items.is_object().then_some(Self(items))
    }

    pub(crate) fn kind(self) -> &'a str {
        self.get("type").as_str().unwrap_or_default()
    }

    pub(crate) fn int_or_string(self) -> bool {
        self.get("x-kubernetes-int-or-string") == true
    }

    /// Anything may be below: no properties are declared, or unknown ones are kept.
    pub(crate) fn keeps_unknown(self) -> bool {
        self.get("x-kubernetes-preserve-unknown-fields") == true
    }

    pub(crate) fn list_type(self) -> ListType<'a> {
        match self.get("x-kubernetes-list-type").as_str() {
            Some("set") => ListType::Set,
            Some("map") => {
                let keys = self
                    .get("x-kubernetes-list-map-keys")
                    .as_array()
                    .into_iter()
                    .flatten();
                ListType::Map(keys.filter_map(Value::as_str).collect())
            }
            _ => ListType::Atomic,
        }
    }

    /// A map or struct that is owned and replaced as a whole.
    pub(crate) fn atomic_map(self) -> bool {
        self.get("x-kubernetes-map-type") == "atomic"
    }

    pub(crate) fn merge_key(self) -> Option<&'a str> {
        self.get("x-kubernetes-patch-merge-key").as_str()
    }

    pub(crate) fn patch_strategy(self) -> &'a str {
        self.get("x-kubernetes-patch-strategy")
            .as_str()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{ATOMIC, ATOMIC_FIELDS, MAP_LISTS, RETAIN_KEYS, SET_LISTS, definitions};

    #[test]
    fn every_note_is_about_a_field_that_exists() {
        let fields = MAP_LISTS
            .iter()
            .map(|(definition, field, _)| (definition, field))
            .chain(SET_LISTS.iter().map(|(definition, field, _)| (definition, field)))
            .chain(
                ATOMIC_FIELDS
                    .iter()
                    .chain(RETAIN_KEYS)
                    .map(|(definition, field)| (definition, field)),
            );
        for (definition, field) in fields {
            let property = definitions()
                .get(*definition)
                .and_then(|d| d["properties"].get(*field));
            assert!(property.is_some(), "{definition}.{field}");
        }
        for definition in ATOMIC {
            assert!(definitions().contains_key(*definition), "{definition}");
        }
    }
}
