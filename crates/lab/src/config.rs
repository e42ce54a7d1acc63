//! What a cluster is to be, checked before anything of it exists.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use weft_model::{BlockSize, PodCidr, TransportChoice, UserError, codes, first_overlap, parse_cidr};

use crate::autoscaler;
use crate::node::NodeRange;
use crate::vnet::Subnet;

/// A cluster as it was asked for, nothing checked yet. Texts are the values of the flags of the same names.
#[derive(Clone, Debug)]
pub struct ClusterRequest {
    /// Name of the cluster.
    pub name: String,
    /// `--node-count`.
    pub node_count: u32,
    /// `--pod-cidr`.
    pub pod_cidr: String,
    /// `--block-size`.
    pub block_size: u8,
    /// `--max-pods`.
    pub max_pods: u32,
    /// `--vnet`; the cluster's own, named after it, where absent.
    pub vnet: Option<String>,
    /// `--vnet-subnet-prefix`; where absent that of the VNet if it exists, else the default.
    pub vnet_subnet_prefix: Option<String>,
    /// `--service-cidr`.
    pub service_cidr: String,
    /// `--dns-service-ip`; where absent the tenth address of the service CIDR.
    pub dns_service_ip: Option<String>,
    /// `--enable-cluster-autoscaler`.
    pub autoscaler: bool,
    /// `--min-count`.
    pub min_count: Option<u32>,
    /// `--max-count`.
    pub max_count: Option<u32>,
    /// `--scale-down-unneeded-time`; where absent [`autoscaler::Config::IDLE`].
    pub scale_down_unneeded_time: Option<Duration>,
    /// `--transport`.
    pub transport: TransportChoice,
}

/// A cluster that can be built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterConfig {
    /// Name of the cluster, a DNS label.
    pub name: String,
    /// Number of nodes to begin with.
    pub node_count: u32,
    /// The range that pods get their addresses from.
    pub pod_cidr: PodCidr,
    /// Size of the block a node gets at a time.
    pub block_size: BlockSize,
    /// Largest number of pods on a node.
    pub max_pods: u32,
    /// The virtual network of the nodes.
    pub vnet: String,
    /// The nodes' subnet in it.
    pub subnet: Subnet,
    /// The range of the Services' virtual addresses.
    pub service_cidr: Ipv4Net,
    /// The address of the cluster's DNS Service.
    pub dns_service_ip: Ipv4Addr,
    /// How the number of nodes follows the pods; absent where it doesn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaler: Option<autoscaler::Config>,
    /// How packets get from a new node to others.
    #[serde(default)]
    pub transport: TransportChoice,
}

/// Default of `--vnet-subnet-prefix`, as AKS has it.
pub const DEFAULT_SUBNET: &str = "10.224.0.0/16";

/// Largest number of nodes of a lab cluster; each is a namespace and a process.
pub const MAX_NODES: u32 = 200;

/// Bounds of `--scale-down-unneeded-time`.
pub const SCALE_DOWN_UNNEEDED: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// Bounds of `--max-pods`, as AKS has them.
pub const MAX_PODS: std::ops::RangeInclusive<u32> = 10..=250;

// === impl ClusterConfig ===

impl ClusterConfig {
    /// Checks a request. `existing_subnet` is the subnet of the VNet it names, where that exists already.
    ///
    /// # Errors
    /// The first thing found wrong, with the flag to change.
    pub fn check(
        request: &ClusterRequest,
        existing_subnet: impl FnOnce(&str) -> Option<Subnet>,
    ) -> Result<Self, UserError> {
        check_name("cluster", &request.name)?;
        let vnet = request.vnet.clone().unwrap_or_else(|| request.name.clone());
        check_name("VNet", &vnet)?;

        let pod_cidr = PodCidr::new(flag("--pod-cidr", parse_cidr(&request.pod_cidr))?)
            .map_err(|error| in_flag("--pod-cidr", &error.into()))?;
        let block_size =
            BlockSize::new(request.block_size).map_err(|error| in_flag("--block-size", &error.into()))?;
        let subnet = subnet(request, &vnet, existing_subnet(&vnet))?;
        let service_cidr = flag("--service-cidr", parse_cidr(&request.service_cidr))?;
        if service_cidr.prefix_len() <= 12 || service_cidr.prefix_len() > 28 {
            return Err(UserError::new(
                codes::OUT_OF_RANGE,
                format!(
                    "--service-cidr {service_cidr}: the prefix length has to be /13 to /28, as AKS has it"
                ),
                "leave the flag out for 10.0.0.0/16",
            ));
        }
        if let Some(overlap) = first_overlap([
            ("--pod-cidr", pod_cidr.net()),
            ("--vnet-subnet-prefix", subnet.net()),
            ("--service-cidr", service_cidr),
            ("the lab's internet", crate::vnet::INTERNET_NET),
        ]) {
            return Err(overlap.into());
        }
        let dns_service_ip = dns_service_ip(request, service_cidr)?;
        if !MAX_PODS.contains(&request.max_pods) {
            return Err(UserError::new(
                codes::OUT_OF_RANGE,
                format!(
                    "--max-pods {} is outside {} to {}",
                    request.max_pods,
                    MAX_PODS.start(),
                    MAX_PODS.end()
                ),
                "leave the flag out for 250",
            ));
        }
        let autoscaler = autoscaler(request)?;
        check_room(request, pod_cidr, block_size, subnet, autoscaler)?;
        Ok(Self {
            name: request.name.clone(),
            node_count: request.node_count,
            pod_cidr,
            block_size,
            max_pods: request.max_pods,
            vnet,
            subnet,
            service_cidr,
            dns_service_ip,
            autoscaler,
            transport: request.transport,
        })
    }

    /// Whether the cluster may have `count` nodes, as `weft lab scale` asks.
    ///
    /// # Errors
    /// The bound that would be crossed.
    pub fn check_node_count(&self, count: u32) -> Result<(), UserError> {
        if let Some(autoscaler::Config { range, .. }) = self.autoscaler
            && !(range.min..=range.max).contains(&count)
        {
            return Err(UserError::new(
                codes::NODE_COUNT,
                format!(
                    "--node-count {count} is outside the autoscaler's --min-count {} to --max-count {}",
                    range.min, range.max
                ),
                format!("choose {} to {} nodes", range.min, range.max),
            ));
        }
        check_count(count, self.pod_cidr, self.block_size, self.subnet)
    }
}

/// Checks the name of a cluster, VNet or node: a DNS label (RFC 1123), 1 to 63 characters.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(what: &str, name: &str) -> Result<(), UserError> {
    let wrong = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > 63 {
        format!("is {} characters long, a DNS label has at most 63", name.len())
    } else if let Some(bad) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        format!("holds {bad:?}, a DNS label has only a-z, 0-9 and '-'")
    } else if name.starts_with('-') || name.ends_with('-') {
        "begins or ends with '-', a DNS label may not".to_owned()
    } else {
        return Ok(());
    };
    let suggestion = suggest_name(name);
    Err(UserError::new(
        codes::INVALID_NAME,
        format!("{what} name {name:?} {wrong}"),
        format!("use a name such as {suggestion:?}"),
    ))
}

fn suggest_name(name: &str) -> String {
    let cleaned: String = name
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    match cleaned.trim_matches('-') {
        "" => "blue".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

fn subnet(request: &ClusterRequest, vnet: &str, existing: Option<Subnet>) -> Result<Subnet, UserError> {
    const FLAG: &str = "--vnet-subnet-prefix";
    let asked = match &request.vnet_subnet_prefix {
        Some(text) => {
            let net = flag(FLAG, parse_cidr(text))?;
            Some(Subnet::new(net).map_err(|sentence| {
                UserError::new(
                    codes::OUT_OF_RANGE,
                    sentence,
                    "leave the flag out for 10.224.0.0/16",
                )
            })?)
        }
        None => None,
    };
    match (asked, existing) {
        (Some(asked), Some(existing)) if asked != existing => Err(UserError::new(
            codes::VNET_MISMATCH,
            format!(
                "{FLAG} {}: VNet {vnet} exists with the subnet {}",
                asked.net(),
                existing.net()
            ),
            "leave the flag out, or choose another --vnet",
        )),
        (Some(subnet), _) | (None, Some(subnet)) => Ok(subnet),
        (None, None) => {
            let net = flag(FLAG, parse_cidr(DEFAULT_SUBNET))?;
            Subnet::new(net)
                .map_err(|sentence| UserError::new(codes::OUT_OF_RANGE, sentence, "give a subnet"))
        }
    }
}

fn dns_service_ip(request: &ClusterRequest, service_cidr: Ipv4Net) -> Result<Ipv4Addr, UserError> {
    let base = u32::from(service_cidr.network());
    let default = Ipv4Addr::from(base + 10);
    let Some(text) = &request.dns_service_ip else {
        return Ok(default);
    };
    let wrong = |sentence: String| {
        UserError::new(
            codes::ADDRESS_OUTSIDE_RANGE,
            sentence,
            format!("leave the flag out for {default}"),
        )
    };
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| wrong(format!("--dns-service-ip {text:?} is not an IPv4 address")))?;
    if !service_cidr.contains(&address) {
        return Err(wrong(format!(
            "--dns-service-ip {address} lies outside --service-cidr {service_cidr}"
        )));
    }
    if u32::from(address) <= base + 1 || address == service_cidr.broadcast() {
        return Err(wrong(format!(
            "--dns-service-ip {address}: the first address of {service_cidr} is the API server's, and the range's \
             own first and last can't be used"
        )));
    }
    Ok(address)
}

fn autoscaler(request: &ClusterRequest) -> Result<Option<autoscaler::Config>, UserError> {
    if !request.autoscaler {
        let given = [
            ("--min-count", request.min_count.is_some()),
            ("--max-count", request.max_count.is_some()),
            (
                "--scale-down-unneeded-time",
                request.scale_down_unneeded_time.is_some(),
            ),
        ];
        return match given.into_iter().find(|(_, given)| *given) {
            None => Ok(None),
            Some((flag, _)) => Err(UserError::new(
                codes::CONFLICTING_FLAGS,
                format!("{flag} is about the cluster autoscaler, which is off"),
                "add --enable-cluster-autoscaler",
            )),
        };
    }
    let (min, max) = (request.min_count.unwrap_or(1), request.max_count.unwrap_or(10));
    let wrong = |sentence: String, next: String| Err(UserError::new(codes::NODE_COUNT, sentence, next));
    if min > max {
        return wrong(
            format!("--min-count {min} is greater than --max-count {max}"),
            format!("swap them: --min-count {max} --max-count {min}"),
        );
    }
    if min == 0 {
        return wrong(
            "--min-count 0: a cluster keeps at least one node".into(),
            "use --min-count 1".into(),
        );
    }
    if !(min..=max).contains(&request.node_count) {
        return wrong(
            format!(
                "--node-count {} is outside --min-count {min} to --max-count {max}",
                request.node_count
            ),
            format!("use --node-count {}", request.node_count.clamp(min, max)),
        );
    }
    let idle = request
        .scale_down_unneeded_time
        .unwrap_or(autoscaler::Config::IDLE);
    if !SCALE_DOWN_UNNEEDED.contains(&idle) {
        return Err(UserError::new(
            codes::OUT_OF_RANGE,
            format!(
                "--scale-down-unneeded-time {idle:?} is outside {:?} to {:?}",
                SCALE_DOWN_UNNEEDED.start(),
                SCALE_DOWN_UNNEEDED.end()
            ),
            format!("leave the flag out for {:?}", autoscaler::Config::IDLE),
        ));
    }
    Ok(Some(autoscaler::Config {
        range: NodeRange { min, max },
        idle,
    }))
}

fn check_room(
    request: &ClusterRequest,
    pod_cidr: PodCidr,
    block_size: BlockSize,
    subnet: Subnet,
    autoscaler: Option<autoscaler::Config>,
) -> Result<(), UserError> {
    let blocks = pod_cidr.blocks(block_size);
    if blocks == 0 {
        return Err(UserError::new(
            codes::BLOCK_LARGER_THAN_POOL,
            format!("--block-size {block_size} is larger than the whole of --pod-cidr {pod_cidr}"),
            format!(
                "use --block-size {} or a larger pod CIDR",
                (pod_cidr.net().prefix_len() + 2).clamp(20, 30)
            ),
        ));
    }
    check_count(request.node_count, pod_cidr, block_size, subnet)?;
    match autoscaler {
        Some(config) => check_count(config.range.max, pod_cidr, block_size, subnet),
        None => Ok(()),
    }
}

fn check_count(
    count: u32,
    pod_cidr: PodCidr,
    block_size: BlockSize,
    subnet: Subnet,
) -> Result<(), UserError> {
    if count == 0 || count > MAX_NODES {
        return Err(UserError::new(
            codes::NODE_COUNT,
            format!("{count} nodes: a lab cluster has 1 to {MAX_NODES}"),
            "use --node-count 2",
        ));
    }
    let blocks = pod_cidr.blocks(block_size);
    if count > blocks {
        return Err(UserError::new(
            codes::POOL_TOO_SMALL,
            format!(
                "{count} nodes need {count} blocks, but --pod-cidr {pod_cidr} holds {blocks} of --block-size {block_size}"
            ),
            "use a larger pod CIDR, smaller blocks (a greater --block-size) or fewer nodes",
        ));
    }
    let room = subnet.node_room();
    if count > room {
        return Err(UserError::new(
            codes::VNET_FULL,
            format!(
                "{count} nodes, but the VNet subnet {} has room for {room}",
                subnet.net()
            ),
            "use a larger --vnet-subnet-prefix or fewer nodes",
        ));
    }
    Ok(())
}

fn flag<T, E: Into<UserError>>(name: &str, value: Result<T, E>) -> Result<T, UserError> {
    value.map_err(|error| in_flag(name, &error.into()))
}

fn in_flag(name: &str, error: &UserError) -> UserError {
    UserError::new(error.code(), format!("{name}: {}", error.message()), error.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ClusterRequest {
        ClusterRequest {
            name: "blue".to_owned(),
            node_count: 2,
            pod_cidr: "10.244.0.0/16".to_owned(),
            block_size: 24,
            max_pods: 250,
            vnet: None,
            vnet_subnet_prefix: None,
            service_cidr: "10.0.0.0/16".to_owned(),
            dns_service_ip: None,
            autoscaler: false,
            min_count: None,
            max_count: None,
            scale_down_unneeded_time: None,
            transport: TransportChoice::Auto,
        }
    }

    #[test]
    fn the_defaults_make_a_cluster_with_a_vnet_of_its_own() {
        let config = ClusterConfig::check(&request(), |_| None).unwrap();
        assert_eq!(
            config,
            ClusterConfig {
                name: "blue".to_owned(),
                node_count: 2,
                pod_cidr: "10.244.0.0/16".parse().unwrap(),
                block_size: BlockSize::new(24).unwrap(),
                max_pods: 250,
                vnet: "blue".to_owned(),
                subnet: Subnet::new("10.224.0.0/16".parse().unwrap()).unwrap(),
                service_cidr: "10.0.0.0/16".parse().unwrap(),
                dns_service_ip: Ipv4Addr::new(10, 0, 0, 10),
                autoscaler: None,
                transport: TransportChoice::Auto,
            }
        );
    }

    #[test]
    fn a_vnet_that_exists_brings_its_subnet_along() {
        let existing = Subnet::new("10.225.0.0/16".parse().unwrap()).unwrap();
        let shared = ClusterRequest {
            vnet: Some("hub".to_owned()),
            ..request()
        };
        assert_eq!(
            ClusterConfig::check(&shared, |_| Some(existing)).unwrap().subnet,
            existing
        );
        let other = ClusterRequest {
            vnet_subnet_prefix: Some("10.224.0.0/16".to_owned()),
            ..shared
        };
        let error = ClusterConfig::check(&other, |_| Some(existing)).unwrap_err();
        assert_eq!(error.code(), codes::VNET_MISMATCH);
    }

    #[test]
    fn the_autoscaler_bounds_the_number_of_nodes_for_good() {
        let bounded = ClusterRequest {
            autoscaler: true,
            min_count: Some(2),
            max_count: Some(5),
            ..request()
        };
        let config = ClusterConfig::check(&bounded, |_| None).unwrap();
        assert_eq!(
            config.autoscaler,
            Some(autoscaler::Config {
                range: NodeRange { min: 2, max: 5 },
                idle: autoscaler::Config::IDLE,
            })
        );
        let codes = [1, 2, 5, 6].map(|count| config.check_node_count(count).err().map(|error| error.code()));
        assert_eq!(
            codes,
            [Some(codes::NODE_COUNT), None, None, Some(codes::NODE_COUNT)]
        );
    }

    #[test]
    fn the_pod_cidr_has_a_block_for_every_node_the_autoscaler_may_make() {
        let small = ClusterRequest {
            pod_cidr: "10.244.0.0/22".to_owned(),
            autoscaler: true,
            min_count: Some(2),
            max_count: Some(5),
            ..request()
        };
        let error = ClusterConfig::check(&small, |_| None).unwrap_err();
        assert_eq!(error.code(), codes::POOL_TOO_SMALL);
        let enough = ClusterRequest {
            block_size: 25,
            ..small
        };
        assert!(ClusterConfig::check(&enough, |_| None).is_ok());
    }

    #[test]
    fn a_wrong_name_is_answered_with_a_right_one() {
        for (name, suggestion) in [
            ("Blue Cluster", "blue-cluster"),
            ("-a-", "a"),
            ("", "blue"),
            ("___", "blue"),
        ] {
            let error = check_name("cluster", name).unwrap_err();
            assert_eq!(error.next(), format!("use a name such as {suggestion:?}"));
            assert!(check_name("cluster", suggestion).is_ok());
        }
    }
}
