//! Services: the EndpointSlices and Endpoints that say where their pods are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as SubsetPort, EndpointSubset, Endpoints, ObjectReference, Service,
    ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::facts::{Key, Labels, PodFacts, controller_reference};
use super::template::short_hash;

/// Label with the name of the Service that a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What the label `endpointslice.kubernetes.io/managed-by` says of slices made here.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice at most.
const SLICE_SIZE: usize = 100;

/// What is to be done for a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Slices to create.
    pub create: Vec<EndpointSlice>,
    /// Slices to replace.
    pub replace: Vec<EndpointSlice>,
    /// Slices to delete.
    pub delete: Vec<Key>,
    /// Subsets of the Endpoints object of the same name, where they changed; `None` inside where the object isn't
    /// there yet.
    pub subsets: Option<Vec<EndpointSubset>>,
}

/// Ports as slices and subsets name them; pods that differ in them go to different ones.
type Ports = Vec<(Option<String>, String, i32, Option<String>)>;

/// Whether a Service selects a pod.
pub fn selects(service: &Service, pod: &PodFacts) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && service.metadata.namespace.as_deref() == Some(&pod.key.namespace)
            && selector
                .iter()
                .all(|(key, value)| pod.labels.get(key) == Some(value))
    })
}

/// Compares a Service with the pods it selects, the slices it has, and the subsets of its Endpoints.
pub fn plan(
    service: &Service,
    selected: &[Arc<PodFacts>],
    slices: &[Arc<EndpointSlice>],
    subsets: Option<&[EndpointSubset]>,
) -> Plan {
    let Some(spec) = &service.spec else {
        return Plan::default();
    };
    let selecting = spec
        .selector
        .as_ref()
        .is_some_and(|selector| !selector.is_empty());
    let external = spec.type_.as_deref() == Some("ExternalName");
    if !selecting || external || service.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let ports = spec.ports.clone().unwrap_or_default();
    let mut groups: BTreeMap<(Ports, &str), Vec<&Arc<PodFacts>>> = BTreeMap::new();
    for pod in selected
        .iter()
        .filter(|pod| !pod.phase.is_terminal() && !pod.ips.is_empty())
    {
        for family in ["IPv4", "IPv6"] {
            if address(pod, family).is_some() && families(service).contains(family) {
                groups
                    .entry((resolve(&ports, pod), family))
                    .or_default()
                    .push(pod);
            }
        }
    }
    let mut wanted: Vec<EndpointSlice> = Vec::new();
    for ((ports, family), mut pods) in groups.clone() {
        pods.sort_by(|a, b| a.key.cmp(&b.key));
        for (index, pods) in pods.chunks(SLICE_SIZE).enumerate() {
            wanted.push(slice(service, &ports, family, index, pods, publish_all));
        }
    }
    if wanted.is_empty() {
        // A service without pods has one empty slice.
        wanted.push(slice(service, &Vec::new(), "IPv4", 0, &[], publish_all));
    }
    let mut plan = Plan {
        subsets: changed_subsets(&groups, publish_all, subsets),
        ..Plan::default()
    };
    let mut known: BTreeMap<Key, &Arc<EndpointSlice>> = slices
        .iter()
        .filter(|slice| {
            slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(MANAGED_BY))
                .is_some_and(|by| by == MANAGER)
        })
        .map(|slice| (Key::of(&slice.metadata), slice))
        .collect();
    for mut slice in wanted {
        match known.remove(&Key::of(&slice.metadata)) {
            None => plan.create.push(slice),
            Some(known) if same(known, &slice) => {}
            Some(known) => {
                slice
                    .metadata
                    .resource_version
                    .clone_from(&known.metadata.resource_version);
                plan.replace.push(slice);
            }
        }
    }
    plan.delete = known.into_keys().collect();
    plan
}

fn same(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    let list = |slice: &EndpointSlice| {
        (
            slice.endpoints.clone().unwrap_or_default(),
            slice.ports.clone().unwrap_or_default(),
        )
    };
    list(a) == list(b) && a.address_type == b.address_type && a.metadata.labels == b.metadata.labels
}

fn families(service: &Service) -> BTreeSet<&str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    match families {
        Some(families) if !families.is_empty() => families.iter().map(String::as_str).collect(),
        _ => BTreeSet::from(["IPv4"]),
    }
}

fn address<'a>(pod: &'a PodFacts, family: &str) -> Option<&'a String> {
    pod.ips.iter().find(|ip| ip.contains(':') == (family == "IPv6"))
}

/// The service's ports as this pod serves them; one whose name the pod doesn't know is left out.
fn resolve(ports: &[ServicePort], pod: &PodFacts) -> Ports {
    ports
        .iter()
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let number = match &port.target_port {
                None => port.port,
                Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) => {
                    pod.named_ports
                        .iter()
                        .find(|(known, its, _)| known == name && *its == protocol)?
                        .2
                }
            };
            Some((port.name.clone(), protocol, number, port.app_protocol.clone()))
        })
        .collect()
}

fn slice(
    service: &Service,
    ports: &Ports,
    family: &str,
    index: usize,
    pods: &[&Arc<PodFacts>],
    publish_all: bool,
) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels: Labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
    }
    // The same content goes under the same name each time, so a slice is never made twice.
    let suffix = short_hash(format!("{ports:?} {family} {index}").as_bytes(), 5);
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{suffix}")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(
            pods.iter()
                .map(|pod| endpoint(&name, pod, family, publish_all))
                .collect(),
        ),
        ports: Some(
            ports
                .iter()
                .map(|(name, protocol, number, app_protocol)| EndpointPort {
                    // The API server stores an absent name as an empty one.
                    name: Some(name.clone().unwrap_or_default()),
                    protocol: Some(protocol.clone()),
                    port: Some(*number),
                    app_protocol: app_protocol.clone(),
                })
                .collect(),
        ),
    }
}

fn endpoint(service: &str, pod: &PodFacts, family: &str, publish_all: bool) -> Endpoint {
    let serving = pod.ready_since.is_some();
    Endpoint {
        addresses: address(pod, family).cloned().into_iter().collect(),
        conditions: Some(EndpointConditions {
            ready: Some(publish_all || (serving && !pod.deleting)),
            serving: Some(serving),
            terminating: Some(pod.deleting),
        }),
        hostname: hostname(service, pod),
        node_name: pod.node.clone(),
        target_ref: Some(reference(pod)),
        ..Endpoint::default()
    }
}

fn hostname(service: &str, pod: &PodFacts) -> Option<String> {
    pod.host_in_subdomain
        .as_ref()
        .filter(|(_, subdomain)| subdomain == service)
        .map(|(hostname, _)| hostname.clone())
}

fn reference(pod: &PodFacts) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.clone()),
        name: Some(pod.key.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The subsets of the Endpoints object, where they differ from those it has.
fn changed_subsets(
    groups: &BTreeMap<(Ports, &str), Vec<&Arc<PodFacts>>>,
    publish_all: bool,
    known: Option<&[EndpointSubset]>,
) -> Option<Vec<EndpointSubset>> {
    let mut subsets = Vec::new();
    for ((ports, family), pods) in groups.iter().filter(|((_, family), _)| *family == "IPv4") {
        let addresses = |ready: bool| -> Option<Vec<EndpointAddress>> {
            let mut pods: Vec<_> = pods
                .iter()
                .filter(|pod| (publish_all || (pod.ready_since.is_some() && !pod.deleting)) == ready)
                .filter(|pod| ready || !pod.deleting)
                .collect();
            pods.sort_by(|a, b| a.key.cmp(&b.key));
            let addresses: Vec<EndpointAddress> = pods
                .into_iter()
                .map(|pod| EndpointAddress {
                    ip: address(pod, family).cloned().unwrap_or_default(),
                    node_name: pod.node.clone(),
                    target_ref: Some(reference(pod)),
                    hostname: None,
                })
                .collect();
            (!addresses.is_empty()).then_some(addresses)
        };
        let (ready, not_ready) = (addresses(true), addresses(false));
        if ready.is_none() && not_ready.is_none() {
            continue;
        }
        let ports: Vec<SubsetPort> = ports
            .iter()
            .map(|(name, protocol, number, app_protocol)| SubsetPort {
                name: name.clone(),
                protocol: Some(protocol.clone()),
                port: *number,
                app_protocol: app_protocol.clone(),
            })
            .collect();
        subsets.push(EndpointSubset {
            addresses: ready,
            not_ready_addresses: not_ready,
            ports: (!ports.is_empty()).then_some(ports),
        });
    }
    (known != Some(&subsets)).then_some(subsets)
}

/// The Endpoints object of a Service.
pub fn endpoints(service: &Service, subsets: Vec<EndpointSubset>) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(
        "endpoints.kubernetes.io/managed-by".to_owned(),
        "endpoint-controller".to_owned(),
    );
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: None,
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(
        clippy::needless_pass_by_value,
        reason = "a literal reads best without a borrow"
    )]
    fn service(extra: Value) -> Service {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        });
        for (key, value) in extra.as_object().cloned().unwrap_or_default() {
            service["spec"][key] = value;
        }
        serde_json::from_value(service).unwrap()
    }

    fn pod(name: &str, ip: &str, port: i32, ready: bool) -> Arc<PodFacts> {
        let pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web",
                     "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}],
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(PodFacts::of(&serde_json::from_value(pod).unwrap()))
    }

    /// `port: ip(ready,serving,terminating) …` of each slice.
    fn shape(slices: &[EndpointSlice]) -> Vec<String> {
        let endpoint = |endpoint: &Endpoint| {
            let flag = |value: Option<bool>| if value == Some(true) { '+' } else { '-' };
            let conditions = endpoint.conditions.as_ref().unwrap();
            format!(
                "{} {}{}{}",
                endpoint.addresses[0],
                flag(conditions.ready),
                flag(conditions.serving),
                flag(conditions.terminating)
            )
        };
        slices
            .iter()
            .map(|slice| {
                let ports: Vec<String> = slice
                    .ports
                    .iter()
                    .flatten()
                    .map(|port| port.port.unwrap().to_string())
                    .collect();
                let endpoints: Vec<String> = slice.endpoints.iter().flatten().map(endpoint).collect();
                format!("{}: {}", ports.join(","), endpoints.join(" "))
            })
            .collect()
    }

    #[test]
    fn named_ports_are_resolved_per_pod_and_pods_that_differ_go_to_slices_of_their_own() {
        let pods = [
            pod("a", "10.0.0.1", 8080, true),
            pod("b", "10.0.0.2", 9090, true),
            pod("c", "10.0.0.3", 8080, false),
        ];
        let plan = plan(&service(json!({})), &pods, &[], None);
        assert_eq!(
            shape(&plan.create),
            ["8080: 10.0.0.1 ++- 10.0.0.3 ---", "9090: 10.0.0.2 ++-"]
        );
        assert_eq!(
            plan.create[0].endpoints.as_ref().unwrap()[0].hostname.as_deref(),
            Some("a")
        );
        let subsets = plan.subsets.unwrap();
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.3");
        assert_eq!(subsets.len(), 2);
    }

    #[test]
    fn what_is_right_already_is_left_alone_and_what_is_left_over_goes() {
        let pods = [pod("a", "10.0.0.1", 8080, true)];
        let first = plan(&service(json!({})), &pods, &[], None);
        let slices: Vec<_> = first.create.into_iter().map(Arc::new).collect();
        assert_eq!(
            plan(&service(json!({})), &pods, &slices, first.subsets.as_deref()),
            Plan::default()
        );

        let moved = [pod("b", "10.0.0.2", 9090, true)];
        let second = plan(&service(json!({})), &moved, &slices, None);
        assert_eq!(shape(&second.create), ["9090: 10.0.0.2 ++-"]);
        assert_eq!(second.delete, [Key::of(&slices[0].metadata)]);
    }

    #[test]
    fn not_ready_pods_are_published_where_the_service_says_so() {
        let pods = [pod("a", "10.0.0.1", 8080, false)];
        let plan = plan(
            &service(json!({"publishNotReadyAddresses": true})),
            &pods,
            &[],
            None,
        );
        assert_eq!(shape(&plan.create), ["8080: 10.0.0.1 +--"]);
    }

    #[test]
    fn a_service_without_a_selector_is_not_ours() {
        assert_eq!(
            plan(&service(json!({"selector": null})), &[], &[], None),
            Plan::default()
        );
        assert_eq!(shape(&plan(&service(json!({})), &[], &[], None).create), [": "]);
    }

    #[test]
    fn a_hundred_pods_fill_a_slice() {
        let pods: Vec<_> = (0..150)
            .map(|number| pod(&format!("p{number:03}"), &format!("10.0.0.{number}"), 80, true))
            .collect();
        let plan = plan(&service(json!({"clusterIP": "None"})), &pods, &[], None);
        let sizes: Vec<usize> = plan
            .create
            .iter()
            .map(|slice| slice.endpoints.as_ref().unwrap().len())
            .collect();
        assert_eq!(sizes, [100, 50]);
        assert!(
            plan.create[0]
                .metadata
                .labels
                .as_ref()
                .unwrap()
                .contains_key("service.kubernetes.io/headless")
        );
    }
}
