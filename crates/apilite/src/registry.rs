//! What is served: the built-in resources and those of applied CustomResourceDefinitions.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use crate::crd::CustomResource;

/// One served (group, version, resource).
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// `status` is a subresource: the main endpoint ignores it and the status endpoint ignores the rest.
    pub(crate) status: bool,
    pub(crate) scale: Option<Scale>,
    /// Further subresources: (name, kind of the body).
    pub(crate) actions: &'static [Action],
    pub(crate) origin: Origin,
    /// Where objects are kept; several versions of a resource share it.
    pub(crate) shelf: Shelf,
}

#[derive(Debug)]
pub(crate) enum Origin {
    /// A type of Kubernetes itself; its OpenAPI definition's name.
    BuiltIn(&'static str),
    Custom(Arc<CustomResource>),
}

/// Storage identity of a resource, whatever the version: (group, plural).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Shelf {
    pub(crate) group: String,
    pub(crate) plural: String,
}

/// JSON pointers of the scale subresource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) spec_replicas: String,
    pub(crate) status_replicas: String,
    /// A label selector in text form (custom resources) or an object (built-ins).
    pub(crate) selector: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Action {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) verbs: &'static [&'static str],
}

/// Everything served at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    resources: BTreeMap<(String, String, String), Arc<Resource>>,
}

#[derive(Debug)]
pub(crate) struct Registry {
    catalog: RwLock<Arc<Catalog>>,
}

struct BuiltIn {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    traits: u8,
    definition: &'static str,
}

const NAMESPACED: u8 = 1;
const STATUS: u8 = 2;
const SCALE: u8 = 4;

const NS: u8 = NAMESPACED;
const NS_STATUS: u8 = NAMESPACED | STATUS;
const NS_SCALE: u8 = NAMESPACED | STATUS | SCALE;

const ALL: &[&str] = &["all"];
const EXTENSIONS: &[&str] = &["api-extensions"];
const NONE: &[&str] = &[];

/// In discovery order of the real server: core first, then the groups as it ranks them.
const GROUP_ORDER: &[&str] = &[
    "",
    "events.k8s.io",
    "apps",
    "autoscaling",
    "batch",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
];

const POD_ACTIONS: &[Action] = &[
    Action {
        name: "binding",
        group: "",
        version: "v1",
        kind: "Binding",
        verbs: &["create"],
    },
    Action {
        name: "eviction",
        group: "policy",
        version: "v1",
        kind: "Eviction",
        verbs: &["create"],
    },
    Action {
        name: "log",
        group: "",
        version: "v1",
        kind: "Pod",
        verbs: &["get"],
    },
];
const NAMESPACE_ACTIONS: &[Action] = &[Action {
    name: "finalize",
    group: "",
    version: "v1",
    kind: "Namespace",
    verbs: &["update"],
}];

#[rustfmt::skip]
const BUILT_INS: &[BuiltIn] = &[
    b("", "v1", "ConfigMap", "configmaps", &["cm"], NONE, NS, "io.k8s.api.core.v1.ConfigMap"),
    b("", "v1", "Endpoints", "endpoints", &["ep"], NONE, NS, "io.k8s.api.core.v1.Endpoints"),
    b("", "v1", "Event", "events", &["ev"], NONE, NS, "io.k8s.api.core.v1.Event"),
    b("", "v1", "LimitRange", "limitranges", &["limits"], NONE, NS, "io.k8s.api.core.v1.LimitRange"),
    b("", "v1", "Namespace", "namespaces", &["ns"], NONE, STATUS, "io.k8s.api.core.v1.Namespace"),
    b("", "v1", "Node", "nodes", &["no"], NONE, STATUS, "io.k8s.api.core.v1.Node"),
    b("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", &["pvc"], NONE, NS_STATUS, "io.k8s.api.core.v1.PersistentVolumeClaim"),
    b("", "v1", "PersistentVolume", "persistentvolumes", &["pv"], NONE, STATUS, "io.k8s.api.core.v1.PersistentVolume"),
    b("", "v1", "Pod", "pods", &["po"], ALL, NS_STATUS, "io.k8s.api.core.v1.Pod"),
    b("", "v1", "PodTemplate", "podtemplates", NONE, NONE, NS, "io.k8s.api.core.v1.PodTemplate"),
    b("", "v1", "ReplicationController", "replicationcontrollers", &["rc"], ALL, NS_SCALE, "io.k8s.api.core.v1.ReplicationController"),
    b("", "v1", "ResourceQuota", "resourcequotas", &["quota"], NONE, NS_STATUS, "io.k8s.api.core.v1.ResourceQuota"),
    b("", "v1", "Secret", "secrets", NONE, NONE, NS, "io.k8s.api.core.v1.Secret"),
    b("", "v1", "ServiceAccount", "serviceaccounts", &["sa"], NONE, NS, "io.k8s.api.core.v1.ServiceAccount"),
    b("", "v1", "Service", "services", &["svc"], ALL, NS_STATUS, "io.k8s.api.core.v1.Service"),
    b("events.k8s.io", "v1", "Event", "events", &["ev"], NONE, NS, "io.k8s.api.events.v1.Event"),
    b("apps", "v1", "ControllerRevision", "controllerrevisions", NONE, NONE, NS, "io.k8s.api.apps.v1.ControllerRevision"),
    b("apps", "v1", "DaemonSet", "daemonsets", &["ds"], ALL, NS_STATUS, "io.k8s.api.apps.v1.DaemonSet"),
    b("apps", "v1", "Deployment", "deployments", &["deploy"], ALL, NS_SCALE, "io.k8s.api.apps.v1.Deployment"),
    b("apps", "v1", "ReplicaSet", "replicasets", &["rs"], ALL, NS_SCALE, "io.k8s.api.apps.v1.ReplicaSet"),
    b("apps", "v1", "StatefulSet", "statefulsets", &["sts"], ALL, NS_SCALE, "io.k8s.api.apps.v1.StatefulSet"),
    b("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", &["hpa"], ALL, NS_STATUS, "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"),
    b("batch", "v1", "CronJob", "cronjobs", &["cj"], ALL, NS_STATUS, "io.k8s.api.batch.v1.CronJob"),
    b("batch", "v1", "Job", "jobs", NONE, ALL, NS_STATUS, "io.k8s.api.batch.v1.Job"),
    b("networking.k8s.io", "v1", "IngressClass", "ingressclasses", NONE, NONE, 0, "io.k8s.api.networking.v1.IngressClass"),
    b("networking.k8s.io", "v1", "Ingress", "ingresses", &["ing"], NONE, NS_STATUS, "io.k8s.api.networking.v1.Ingress"),
    b("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", &["netpol"], NONE, NS, "io.k8s.api.networking.v1.NetworkPolicy"),
    b("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", &["pdb"], NONE, NS_STATUS, "io.k8s.api.policy.v1.PodDisruptionBudget"),
    b("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", NONE, NONE, 0, "io.k8s.api.rbac.v1.ClusterRoleBinding"),
    b("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", NONE, NONE, 0, "io.k8s.api.rbac.v1.ClusterRole"),
    b("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", NONE, NONE, NS, "io.k8s.api.rbac.v1.RoleBinding"),
    b("rbac.authorization.k8s.io", "v1", "Role", "roles", NONE, NONE, NS, "io.k8s.api.rbac.v1.Role"),
    b("storage.k8s.io", "v1", "CSIDriver", "csidrivers", NONE, NONE, 0, "io.k8s.api.storage.v1.CSIDriver"),
    b("storage.k8s.io", "v1", "StorageClass", "storageclasses", &["sc"], NONE, 0, "io.k8s.api.storage.v1.StorageClass"),
    b("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", NONE, EXTENSIONS, 0, "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration"),
    b("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", NONE, EXTENSIONS, STATUS, "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy"),
    b("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", NONE, EXTENSIONS, 0, "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding"),
    b("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", NONE, EXTENSIONS, 0, "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration"),
    b("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", &["crd", "crds"], EXTENSIONS, STATUS, "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"),
    b("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", &["pc"], NONE, 0, "io.k8s.api.scheduling.v1.PriorityClass"),
    b("coordination.k8s.io", "v1", "Lease", "leases", NONE, NONE, NS, "io.k8s.api.coordination.v1.Lease"),
    b("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", NONE, NONE, NS, "io.k8s.api.discovery.v1.EndpointSlice"),
];

#[expect(clippy::too_many_arguments, reason = "one row of the table above")]
const fn b(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    traits: u8,
    definition: &'static str,
) -> BuiltIn {
    BuiltIn {
        group,
        version,
        kind,
        plural,
        short,
        categories,
        traits,
        definition,
    }
}

// === impl Resource ===

impl Resource {
    /// `pods`, `deployments.apps`: how messages name the resource.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// Fields that the CRD makes selectable: (field, JSON pointer).
    pub(crate) fn custom_fields(&self) -> &[(String, String)] {
        self.custom().map_or(&[], |custom| &custom.selectable)
    }

    /// Stored objects are already in this version's form.
    pub(crate) fn shows_as_stored(&self) -> bool {
        match &self.origin {
            Origin::BuiltIn(_) => self.shelf.group == self.group,
            Origin::Custom(custom) => custom.storage_version == self.version,
        }
    }

    pub(crate) fn custom(&self) -> Option<&CustomResource> {
        match &self.origin {
            Origin::BuiltIn(_) => None,
            Origin::Custom(custom) => Some(custom),
        }
    }
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

// === impl Shelf ===

impl Shelf {
    pub(crate) fn new(group: &str, plural: &str) -> Self {
        Self {
            group: group.to_owned(),
            plural: plural.to_owned(),
        }
    }
}

// === impl Catalog ===

impl Catalog {
    fn built_in() -> Self {
        let mut catalog = Self::default();
        for row in BUILT_INS {
            catalog.add(Arc::new(row.resource()));
        }
        catalog
    }

    fn add(&mut self, resource: Arc<Resource>) {
        let key = (
            resource.group.clone(),
            resource.version.clone(),
            resource.plural.clone(),
        );
        self.resources.insert(key, resource);
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    pub(crate) fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.of(group, version).find(|resource| resource.kind == kind)
    }

    /// A kind in whatever version it is served, the preferred one first.
    pub(crate) fn find_group_kind(&self, group: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.versions(group)
            .into_iter()
            .find_map(|version| self.find_kind(group, &version, kind))
    }

    pub(crate) fn of(&self, group: &str, version: &str) -> impl Iterator<Item = &Arc<Resource>> {
        let (group, version) = (group.to_owned(), version.to_owned());
        self.resources
            .values()
            .filter(move |resource| resource.group == group && resource.version == version)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// Group names in discovery order, the core group (empty) first.
    pub(crate) fn groups(&self) -> Vec<String> {
        let mut groups: Vec<String> = self.resources.keys().map(|(group, _, _)| group.clone()).collect();
        groups.dedup();
        let rank = |group: &String| {
            GROUP_ORDER
                .iter()
                .position(|known| known == group)
                .unwrap_or(GROUP_ORDER.len())
        };
        groups.sort_by_key(|group| (rank(group), group.clone()));
        groups
    }

    /// Versions of a group, the preferred one first (GA before beta before alpha, higher first).
    pub(crate) fn versions(&self, group: &str) -> Vec<String> {
        let mut versions: Vec<String> = self
            .resources
            .keys()
            .filter(|(candidate, _, _)| candidate == group)
            .map(|(_, version, _)| version.clone())
            .collect();
        versions.dedup();
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        versions
    }
}

/// Orders versions as k8s.io/apimachinery `pkg/version.CompareKubeAwareVersionStrings`.
fn version_rank(version: &str) -> (u8, u32, u32) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let tail = &rest[digits..];
        if tail.is_empty() {
            return Some((3, major, 0));
        }
        for (stage, name) in [(2, "beta"), (1, "alpha")] {
            if let Some(minor) = tail.strip_prefix(name) {
                return Some((stage, major, minor.parse().ok()?));
            }
        }
        None
    };
    parse().unwrap_or((0, 0, 0))
}

// === impl Registry ===

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            catalog: RwLock::new(Arc::new(Catalog::built_in())),
        }
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().expect("no panic while held"))
    }

    /// Replaces all served versions of a custom resource; none if it is gone or not established.
    pub(crate) fn replace_custom(&self, shelf: &Shelf, versions: Vec<Resource>) {
        let mut guard = self.catalog.write().expect("no panic while held");
        let mut next = Catalog::clone(&guard);
        next.resources
            .retain(|_, resource| resource.shelf != *shelf || resource.custom().is_none());
        for resource in versions {
            next.add(Arc::new(resource));
        }
        *guard = Arc::new(next);
    }
}

// === impl BuiltIn ===

impl BuiltIn {
    fn resource(&self) -> Resource {
        let scale = (self.traits & SCALE != 0).then(|| Scale {
            spec_replicas: "/spec/replicas".to_owned(),
            status_replicas: "/status/replicas".to_owned(),
            selector: Some("/spec/selector".to_owned()),
        });
        // Both Event APIs show the same objects, kept in their core form.
        let shelf = match self.group {
            "events.k8s.io" => Shelf::new("", self.plural),
            group => Shelf::new(group, self.plural),
        };
        Resource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            kind: self.kind.to_owned(),
            list_kind: format!("{}List", self.kind),
            plural: self.plural.to_owned(),
            singular: self.kind.to_lowercase(),
            short_names: self.short.iter().map(|&name| name.to_owned()).collect(),
            categories: self.categories.iter().map(|&name| name.to_owned()).collect(),
            namespaced: self.traits & NAMESPACED != 0,
            status: self.traits & STATUS != 0,
            scale,
            actions: match (self.group, self.plural) {
                ("", "pods") => POD_ACTIONS,
                ("", "namespaces") => NAMESPACE_ACTIONS,
                _ => &[],
            },
            origin: Origin::BuiltIn(self.definition),
            shelf,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Catalog, Origin, version_rank};

    #[test]
    fn every_built_in_type_has_a_definition() {
        for resource in Catalog::built_in().all() {
            let Origin::BuiltIn(name) = resource.origin else {
                panic!("{resource:?} isn't built in")
            };
            assert!(crate::schema::definitions().contains_key(name), "{name}");
        }
    }

    #[test]
    fn stable_versions_come_before_beta_and_alpha() {
        let mut versions = ["v1alpha1", "foo", "v2beta1", "v1", "v10", "v1beta2", "v2"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]
        );
    }
}
