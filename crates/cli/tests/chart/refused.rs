//! Values that can't work are refused before anything reaches a cluster, with a sentence that names them.

use crate::support::{INSTALL, run};

/// Values, and what the refusal has to say.
const REFUSED: [(&str, &str); 37] = [
    (
        "podCIDR=10.1.0.0/16",
        "additional properties 'podCIDR' not allowed",
    ),
    (
        "agent.privileged=true",
        "at '/agent': additional properties 'privileged' not allowed",
    ),
    (
        "operator.resources.limit.cpu=1",
        "at '/operator/resources': additional properties 'limit' not allowed",
    ),
    (
        "image.repo=x",
        "at '/image': additional properties 'repo' not allowed",
    ),
    (
        "extraPools[0].name=a,extraPools[0].cidrs={10.1.0.0/16},extraPools[0].cidr=x",
        "at '/extraPools/0': additional properties 'cidr' not allowed",
    ),
    (
        "extraPools[0].name=a",
        "at '/extraPools/0': missing property 'cidrs'",
    ),
    (
        "extraPools[0].name=Large,extraPools[0].cidrs={10.1.0.0/16}",
        "at '/extraPools/0/name'",
    ),
    (
        "podCIDRs={10.244.0/16}",
        "WEFT-1001: podCIDRs[0]: \"10.244.0/16\" is not an IPv4 range",
    ),
    ("podCIDRs={10.244.0.256/32}", "WEFT-1001: podCIDRs[0]"),
    ("podCIDRs={10.244.000.0/16}", "WEFT-1001: podCIDRs[0]"),
    ("podCIDRs={10.244.0.0}", "WEFT-1001: podCIDRs[0]"),
    ("podCIDRs={fd00::/64}", "WEFT-1001: podCIDRs[0]"),
    ("podCIDRs={}", "WEFT-1001: podCIDRs[0]: \"\" is not"),
    ("podCIDRs=10.244.0.0/16", "at '/podCIDRs': got string, want array"),
    (
        "podCIDRs={10.244.3.7/16}",
        "WEFT-1002: podCIDRs[0]: 10.244.3.7/16 has host bits set: the range it lies in is written 10.244.0.0/16",
    ),
    (
        "podCIDRs={10.0.0.0/7}",
        "WEFT-1011: podCIDRs[0]: 10.0.0.0/7 is no pod CIDR: the prefix length has to be /8 to /30",
    ),
    (
        "podCIDRs={169.254.0.0/17}",
        "WEFT-1011: podCIDRs[0]: 169.254.0.0/17 can't be a pod CIDR: it overlaps 169.254.0.0/16",
    ),
    (
        "podCIDRs={240.0.0.0/8}",
        "it overlaps 224.0.0.0/3 (multicast and reserved)",
    ),
    (
        "podCIDRs={10.244.0.0/16,10.244.255.0/24}",
        "WEFT-1003: podCIDRs[0] 10.244.0.0/16 overlaps podCIDRs[1] 10.244.255.0/24",
    ),
    (
        "serviceCIDRs={10.0.0.0/8}",
        "WEFT-1003: podCIDRs[0] 10.244.0.0/16 overlaps serviceCIDRs[0] 10.0.0.0/8",
    ),
    (
        "nodeCIDRs={10.244.0.0/20}",
        "WEFT-1003: podCIDRs[0] 10.244.0.0/16 overlaps nodeCIDRs[0] 10.244.0.0/20",
    ),
    (
        "serviceCIDRs={10.0.0.0/16},nodeCIDRs={10.0.128.0/24}",
        "WEFT-1003: serviceCIDRs[0] 10.0.0.0/16 overlaps nodeCIDRs[0]",
    ),
    ("serviceCIDRs={10.0.0.1/16}", "WEFT-1002: serviceCIDRs[0]"),
    (
        "extraPools[0].name=a,extraPools[0].cidrs={10.244.8.0/24}",
        "WEFT-1003: podCIDRs[0] 10.244.0.0/16 overlaps extraPools[0].cidrs[0] 10.244.8.0/24",
    ),
    (
        "extraPools[0].name=default,extraPools[0].cidrs={10.1.0.0/16}",
        "WEFT-1015: extraPools[0].name: there are two pools named \"default\"",
    ),
    ("blockSize=31", "at '/blockSize': maximum: got 31, want 30"),
    (
        "podCIDRs={10.244.0.0/25}",
        "WEFT-1005: a block of /24 is larger than 10.244.0.0/25",
    ),
    (
        "extraPools[0].name=a,extraPools[0].cidrs={10.1.0.0/24},extraPools[0].blockSize=23",
        "WEFT-1005: a block of /23 is larger than 10.1.0.0/24",
    ),
    (
        "ipam=node,blockSize=24",
        "WEFT-1015: ipam: node and blockSize: 24 exclude each other",
    ),
    (
        "ipam=node,retiring={10.244.0.0/16}",
        "WEFT-1015: ipam: node and retiring exclude each other",
    ),
    ("ipam=dhcp", "at '/ipam': value must be one of 'pool', 'node'"),
    (
        "retiring={10.245.0.0/16}",
        "WEFT-1016: retiring[0]: 10.245.0.0/16 is no entry of podCIDRs",
    ),
    (
        "excluded={10.243.255.0/24}",
        "WEFT-1016: excluded[0]: 10.243.255.0/24 lies in no range of podCIDRs",
    ),
    (
        "agent.metricsPort=9466",
        "WEFT-1015: agent.metricsPort and operator.metricsPort are both 9466",
    ),
    (
        "agent.vxlanPort=65536",
        "at '/agent/vxlanPort': maximum: got 65,536, want 65,535",
    ),
    (
        "agent.transport=geneve",
        "at '/agent/transport': value must be one of 'auto', 'direct', 'device'",
    ),
    ("cni.confName=10-weft.json", "at '/cni/confName'"),
];

#[test]
fn values_that_cannot_work_are_refused_with_a_sentence() {
    for (values, expected) in REFUSED {
        let args = [&INSTALL[..], &["--set", values]].concat();
        let Some(output) = run("helm", &args) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{values} was accepted");
        assert!(said.contains(expected), "{values}: {said}");
    }
}

#[test]
fn ranges_that_only_touch_are_accepted() {
    for values in [
        "podCIDRs={10.244.0.0/16,10.245.0.0/16}",
        "serviceCIDRs={10.243.0.0/16},nodeCIDRs={10.245.0.0/16}",
        "podCIDRs={10.0.0.0/9},nodeCIDRs={10.128.0.0/9}",
        "podCIDRs={10.244.0.0/26},blockSize=26",
        "excluded={10.244.255.0/24}",
        "retiring={10.244.0.0/16}",
    ] {
        let args = [&INSTALL[..], &["--set", values]].concat();
        let Some(output) = run("helm", &args) else { return };
        assert!(
            output.status.success(),
            "{values}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn an_older_kubernetes_is_refused() {
    let args = [&INSTALL[..], &["--kube-version", "1.32.9"]].concat();
    let Some(output) = run("helm", &args) else { return };
    assert!(String::from_utf8_lossy(&output.stderr).contains("chart requires kubeVersion: >=1.33.0-0"));
}
