//! What speaks against an installation, found before anything is changed.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use weft_api::Ipam;
use weft_model::{UserError, codes, first_overlap};

use super::cluster::{list, refused};

/// DaemonSets by which other pod networks are known, and those networks' names.
const OTHERS: [(&str, &str); 14] = [
    ("antrea-agent", "Antrea"),
    ("aws-node", "the Amazon VPC CNI"),
    ("azure-cns", "Azure CNI"),
    ("calico-node", "Calico"),
    ("canal", "Canal"),
    ("cilium", "Cilium"),
    ("kindnet", "kindnet"),
    ("kube-flannel", "flannel"),
    ("kube-flannel-ds", "flannel"),
    ("kube-ovn-cni", "Kube-OVN"),
    ("kube-router", "kube-router"),
    ("ovnkube-node", "OVN-Kubernetes"),
    ("rke2-canal", "Canal"),
    ("weave-net", "Weave Net"),
];

/// flannel's mark on a node, also of the one inside of k3s, which is no DaemonSet.
const FLANNEL: &str = "flannel.alpha.coreos.com/backend-type";

/// What the cluster is like.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Minor version of Kubernetes 1.
    pub(super) minor: u32,
    /// Namespace and name of each DaemonSet.
    pub(super) daemonsets: Vec<(String, String)>,
    pub(super) nodes: Vec<NodeFacts>,
    pub(super) service_cidrs: Vec<Ipv4Net>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) pod_cidrs: Vec<Ipv4Net>,
    pub(super) flannel: bool,
}

// === impl Facts ===

impl Facts {
    /// Asks the cluster.
    pub(super) async fn read(client: &Client) -> Result<Self, UserError> {
        let params = ListParams::default();
        let version = client
            .apiserver_version()
            .await
            .map_err(|error| refused("read the version", &error))?;
        // Some vendors write "33+".
        let minor = version.minor.trim_end_matches(|c: char| !c.is_ascii_digit());
        let daemonsets: Vec<DaemonSet> = list(Api::all(client.clone()), "daemonsets", &params).await?;
        let nodes: Vec<Node> = list(Api::all(client.clone()), "nodes", &params).await?;
        let ranges: Vec<ServiceCIDR> = list(Api::all(client.clone()), "servicecidrs", &params).await?;
        let mut service_cidrs: Vec<Ipv4Net> = ranges
            .into_iter()
            .filter_map(|range| range.spec)
            .filter_map(|spec| spec.cidrs)
            .flatten()
            .filter_map(|text| text.parse().ok())
            .collect();
        if service_cidrs.is_empty() {
            // At least one of its addresses is known.
            let services: Api<Service> = Api::namespaced(client.clone(), "default");
            let kubernetes = services
                .get_opt("kubernetes")
                .await
                .map_err(|error| refused("get services", &error))?;
            let address = kubernetes.and_then(|service| service.spec?.cluster_ip?.parse().ok());
            service_cidrs.extend(address.map(|address: Ipv4Addr| Ipv4Net::from(address)));
        }
        Ok(Self {
            minor: minor.parse().unwrap_or(0),
            daemonsets: daemonsets
                .iter()
                .map(|set| (set.namespace().unwrap_or_default(), set.name_any()))
                .collect(),
            nodes: nodes.iter().map(NodeFacts::of).collect(),
            service_cidrs,
        })
    }

    /// Judges an installation with these pod CIDRs.
    ///
    /// # Errors
    /// The first reason against it.
    pub(super) fn judge(&self, pod_cidrs: &[Ipv4Net], ipam: Ipam) -> Result<(), UserError> {
        if self.minor < 33 {
            return Err(UserError::new(
                codes::KUBERNETES_TOO_OLD,
                format!("the cluster is Kubernetes 1.{}", self.minor),
                "upgrade the cluster to 1.33 or later",
            ));
        }
        self.other_network()?;
        if let Some(overlap) = first_overlap(pod_cidrs.iter().map(|cidr| ((), *cidr))) {
            return Err(overlaps(
                &format!("pod CIDR {}", overlap.first.1),
                &format!("pod CIDR {}", overlap.second.1),
            ));
        }
        // Ranges of services may overlap one another.
        for cidr in pod_cidrs {
            let service = self
                .service_cidrs
                .iter()
                .find(|service| service.contains(cidr) || cidr.contains(*service));
            if let Some(service) = service {
                return Err(overlaps(
                    &format!("pod CIDR {cidr}"),
                    &format!("service CIDR {service}"),
                ));
            }
        }
        for node in &self.nodes {
            for address in &node.addresses {
                if let Some(cidr) = pod_cidrs.iter().find(|cidr| cidr.contains(address)) {
                    return Err(overlaps(
                        &format!("pod CIDR {cidr}"),
                        &format!("address {address} of node {}", node.name),
                    ));
                }
            }
        }
        match ipam {
            Ipam::Node => self.judge_node_ranges(pod_cidrs),
            Ipam::Pool => Ok(()),
        }
    }

    fn other_network(&self) -> Result<(), UserError> {
        let next = "take the other network away first";
        for (namespace, name) in &self.daemonsets {
            if let Some((_, network)) = OTHERS.iter().find(|(known, _)| known == name) {
                return Err(UserError::new(
                    codes::OTHER_NETWORK,
                    format!("DaemonSet {namespace}/{name} is there, which is {network}"),
                    next,
                ));
            }
        }
        match self.nodes.iter().find(|node| node.flannel) {
            Some(node) => Err(UserError::new(
                codes::OTHER_NETWORK,
                format!("node {} has flannel's annotation {FLANNEL}", node.name),
                "k3s: --flannel-backend=none on all servers; else kubectl annotate node/NODE \
                 flannel.alpha.coreos.com/backend-type- once flannel is gone",
            )),
            None => Ok(()),
        }
    }

    fn judge_node_ranges(&self, pod_cidrs: &[Ipv4Net]) -> Result<(), UserError> {
        for node in &self.nodes {
            if node.pod_cidrs.is_empty() {
                return Err(UserError::new(
                    codes::CONFLICTING_FLAGS,
                    format!(
                        "node {} has no spec.podCIDRs, and --ipam node means to use them",
                        node.name
                    ),
                    "start kube-controller-manager with --allocate-node-cidrs, or use --ipam pool",
                ));
            }
            let outside = node
                .pod_cidrs
                .iter()
                .find(|range| !pod_cidrs.iter().any(|cidr| cidr.contains(*range)));
            if let Some(range) = outside {
                return Err(UserError::new(
                    codes::ADDRESS_OUTSIDE_RANGE,
                    format!(
                        "spec.podCIDRs of node {} has {range}, which lies in no pod CIDR",
                        node.name
                    ),
                    "name kube-controller-manager's --cluster-cidr with --pod-cidr",
                ));
            }
        }
        Ok(())
    }

    /// Worth knowing, and no reason against it.
    pub(super) fn notes(&self, ipam: Ipam) -> Vec<String> {
        let mut notes = Vec::new();
        if ipam == Ipam::Pool
            && let Some(node) = self.nodes.iter().find(|node| !node.pod_cidrs.is_empty())
        {
            notes.push(format!(
                "nodes have spec.podCIDRs, such as {} {}; Weft does not use them but with --ipam node",
                node.name, node.pod_cidrs[0]
            ));
        }
        notes
    }
}

// === impl NodeFacts ===

impl NodeFacts {
    fn of(node: &Node) -> Self {
        let addresses = node
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let ranges = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
        Self {
            name: node.name_any(),
            addresses: addresses
                .filter_map(|address| match address.address.parse() {
                    Ok(IpAddr::V4(address)) => Some(address),
                    _ => None,
                })
                .collect(),
            pod_cidrs: ranges.filter_map(|range| range.parse().ok()).collect(),
            flannel: node.annotations().contains_key(FLANNEL),
        }
    }
}

fn overlaps(one: &str, other: &str) -> UserError {
    UserError::new(
        codes::CIDR_OVERLAP,
        format!("{one} overlaps {other}"),
        "choose another range with --pod-cidr",
    )
}
