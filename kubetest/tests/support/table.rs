//! Pools that work and pools that can't.

use serde_json::{Value, json};

/// Specifications with one thing wrong, the field at fault, and what both API server and parser say about it.
pub fn bad() -> Vec<(Value, &'static str, &'static str)> {
    let cidrs = |cidrs: &[&str]| json!({"cidrs": cidrs});
    let with = |name: &str, value: Value| json!({"cidrs": ["10.244.0.0/16"], name: value});
    vec![
        (
            cidrs(&["10.244.0/16"]),
            "spec.cidrs[0]",
            "\"10.244.0/16\" is not an IPv4 range",
        ),
        (
            cidrs(&["10.244.0.0"]),
            "spec.cidrs[0]",
            "\"10.244.0.0\" is not an IPv4 range",
        ),
        (
            cidrs(&["10.244.0.0/33"]),
            "spec.cidrs[0]",
            "\"10.244.0.0/33\" is not an IPv4 range",
        ),
        (
            cidrs(&["010.244.0.0/16"]),
            "spec.cidrs[0]",
            "\"010.244.0.0/16\" is not an IPv4 range",
        ),
        (
            cidrs(&["10.244.0.0/016"]),
            "spec.cidrs[0]",
            "\"10.244.0.0/016\" is not an IPv4 range",
        ),
        (
            cidrs(&["10.0.0.0/8", ""]),
            "spec.cidrs[1]",
            "\"\" is not an IPv4 range",
        ),
        (
            cidrs(&["fd00::/64"]),
            "spec.cidrs[0]",
            "\"fd00::/64\" is not an IPv4 range",
        ),
        (
            cidrs(&["::ffff:10.244.0.0/112"]),
            "spec.cidrs[0]",
            "is not an IPv4 range",
        ),
        (
            cidrs(&["10.243.0.0/16", "10.244.3.7/16"]),
            "spec.cidrs[1]",
            "10.244.3.7/16 has host bits set: the range it lies in is written 10.244.0.0/16",
        ),
        (
            cidrs(&["10.0.0.0/7"]),
            "spec.cidrs[0]",
            "10.0.0.0/7 is no pod CIDR: the prefix length has to be /8 to /30",
        ),
        (
            cidrs(&["10.244.0.0/31"]),
            "spec.cidrs[0]",
            "10.244.0.0/31 is no pod CIDR",
        ),
        (
            cidrs(&["0.0.0.0/8"]),
            "spec.cidrs[0]",
            "it overlaps 0.0.0.0/8 (\"this network\")",
        ),
        (
            cidrs(&["127.9.0.0/16"]),
            "spec.cidrs[0]",
            "it overlaps 127.0.0.0/8 (loopback)",
        ),
        (
            cidrs(&["169.0.0.0/8"]),
            "spec.cidrs[0]",
            "169.0.0.0/8 can't be a pod CIDR: it overlaps 169.254.0.0/16 (link-local",
        ),
        (
            cidrs(&["240.1.0.0/16"]),
            "spec.cidrs[0]",
            "it overlaps 224.0.0.0/3 (multicast and reserved)",
        ),
        (
            cidrs(&["10.244.0.0/16", "10.1.0.0/16", "10.244.3.0/24"]),
            "spec.cidrs",
            "10.244.0.0/16 overlaps 10.244.3.0/24",
        ),
        (
            cidrs(&["10.244.0.0/25", "10.245.0.0/26"]),
            "spec.blockSize",
            "a block of /24 is larger than 10.244.0.0/25, the largest range of the pool",
        ),
        (
            with("excluded", json!(["10.244.0.0/24", "x"])),
            "spec.excluded[1]",
            "\"x\" is not an IPv4 range",
        ),
        (
            with("excluded", json!(["10.244.0.9/24"])),
            "spec.excluded[0]",
            "10.244.0.9/24 has host bits set",
        ),
        (
            with("excluded", json!(["10.244.0.0/24", "10.245.0.0/24"])),
            "spec.excluded",
            "10.245.0.0/24 excludes nothing: it lies in no entry of spec.cidrs",
        ),
        (
            with("nonMasqueradeCIDRs", json!(["10.1"])),
            "spec.nonMasqueradeCIDRs[0]",
            "\"10.1\" is not an IPv4 range",
        ),
        (
            with("retiring", json!(["10.244.0.0/17"])),
            "spec.retiring",
            "10.244.0.0/17 is no entry of spec.cidrs",
        ),
        (
            json!({"cidrs": ["10.244.0.0/16"], "ipam": "node", "retiring": ["10.244.0.0/16"]}),
            "spec.retiring",
            "a range can't retire under ipam node",
        ),
        (
            with(
                "nodeSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "In", "values": []}]}),
            ),
            "spec.nodeSelector.matchExpressions[1]",
            "operator In of b needs values",
        ),
        (
            with(
                "nodeSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}),
            ),
            "spec.nodeSelector.matchExpressions[0]",
            "operator Exists of a takes no values",
        ),
    ]
}

/// What the schema refuses before any rule, in words of the API server's own.
pub fn bad_by_schema() -> Vec<(Value, &'static str)> {
    let with = |name: &str, value: Value| json!({"cidrs": ["10.244.0.0/16"], name: value});
    vec![
        (
            json!({"cidrs": []}),
            "spec.cidrs in body should have at least 1 items",
        ),
        (
            json!({"cidrs": ["10.244.0.0/16", "10.244.0.0/16"]}),
            "spec.cidrs[1]: Duplicate value: \"10.244.0.0/16\"",
        ),
        (
            with("blockSize", json!(19)),
            "spec.blockSize in body should be greater than or equal to 20",
        ),
        (
            with("blockSize", json!(31)),
            "spec.blockSize in body should be less than or equal to 30",
        ),
        (
            with(
                "nodeSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "Equals"}]}),
            ),
            "spec.nodeSelector.matchExpressions[0].operator: Unsupported value: \"Equals\"",
        ),
    ]
}

/// Specifications that work.
pub fn good() -> Vec<Value> {
    vec![
        json!({"cidrs": ["10.244.0.0/16"]}),
        json!({"cidrs": ["10.0.0.0/8"], "blockSize": 30}),
        json!({"cidrs": ["10.244.0.0/30"], "blockSize": 30}),
        // A block fits into one of them.
        json!({"cidrs": ["10.244.0.0/28", "10.245.0.0/24"]}),
        // Neighbours.
        json!({"cidrs": ["10.244.0.0/17", "10.244.128.0/17"], "retiring": ["10.244.128.0/17"]}),
        json!({"cidrs": ["10.244.0.0/16"], "retiring": ["10.244.0.0/16"]}),
        json!({"cidrs": ["10.244.0.0/16"], "excluded": ["10.244.0.0/24", "10.244.0.0/28", "10.244.0.0/15"]}),
        json!({"cidrs": ["10.244.0.0/16"], "nonMasqueradeCIDRs": ["0.0.0.0/0", "192.168.1.1/32"]}),
        json!({"cidrs": ["10.244.0.0/26"], "ipam": "node"}),
        json!({"cidrs": ["100.64.0.0/10"], "nodeSelector": {"matchLabels": {"pool": "a"}}}),
        json!({"cidrs": ["10.244.0.0/16"], "nodeSelector": {"matchExpressions": [
            {"key": "a", "operator": "In", "values": ["b"]}, {"key": "c", "operator": "DoesNotExist"},
        ]}}),
        // The longest lists the schema allows, at the cost they have.
        json!({
            "cidrs": (0..128).map(|i| format!("10.{i}.0.0/16")).collect::<Vec<_>>(),
            "retiring": (0..128).map(|i| format!("10.{i}.0.0/16")).collect::<Vec<_>>(),
            "excluded": (0..256).map(|i| format!("10.127.{i}.0/24")).collect::<Vec<_>>(),
            "nonMasqueradeCIDRs": (0..256).map(|i| format!("192.168.{i}.0/24")).collect::<Vec<_>>(),
        }),
    ]
}

/// A specification put together from parts that mostly fit; the same for the same seed.
pub fn any(seed: u64) -> Value {
    const CIDRS: [&str; 16] = [
        "10.244.0.0/16",
        "10.245.0.0/16",
        "10.246.0.0/15",
        "10.244.7.0/24",
        "10.250.0.0/24",
        "172.16.0.0/12",
        "172.17.0.0/25",
        "100.64.0.0/10",
        "192.168.0.0/26",
        "10.248.0.0/14",
        "10.8.0.0/30",
        "10.9.0.1/24",
        "169.254.0.0/16",
        "10.0.0.0/31",
        "10.1.0.0",
        "224.0.0.0/8",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut below = |end: usize| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) >> 33).unwrap() % end
    };
    // The last five are bad; most specifications shall get past them.
    let mut pick = |most: usize| -> Vec<&str> {
        let kinds = if below(6) == 0 { CIDRS.len() } else { 11 };
        let mut picked: Vec<&str> = (0..below(most + 1)).map(|_| CIDRS[below(kinds)]).collect();
        if below(8) != 0 {
            picked.sort_unstable();
            picked.dedup();
        }
        picked
    };
    let cidrs = pick(4);
    let mut spec = json!({
        "cidrs": cidrs,
        "excluded": pick(1),
        "nonMasqueradeCIDRs": pick(2),
    });
    spec["retiring"] = if below(4) == 0 {
        json!([CIDRS[below(11)]])
    } else {
        json!([])
    };
    if below(3) == 0
        && let Some(first) = cidrs.first()
    {
        spec["retiring"] = json!([first]);
    }
    spec["ipam"] = json!(["pool", "pool", "node"][below(3)]);
    spec["blockSize"] = json!(20 + below(11));
    spec
}
