use std::collections::BTreeSet;
use std::path::Path;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use weft_api::{Ipam, PodPoolSpec};
use weft_model::codes;

use super::objects::{Changes, all, describe, kind, resource};
use super::preflight::{Facts, NodeFacts};

fn shipped() -> Vec<DynamicObject> {
    all(&Changes::default(), None).unwrap()
}

fn find<'a>(objects: &'a [DynamicObject], wanted: &str, name: &str) -> &'a DynamicObject {
    objects
        .iter()
        .find(|object| kind(object) == wanted && object.name_any() == name)
        .unwrap_or_else(|| panic!("no {wanted} {name}"))
}

#[test]
fn what_others_need_comes_first_and_what_runs_last() {
    let objects = shipped();
    let position = |wanted: &str| objects.iter().position(|object| kind(object) == wanted).unwrap();
    let order = [
        "Namespace",
        "CustomResourceDefinition",
        "ServiceAccount",
        "PodPool",
        "Deployment",
        "DaemonSet",
    ];
    let positions: Vec<usize> = order.into_iter().map(position).collect();
    assert!(positions.is_sorted(), "{positions:?}");
    assert_eq!(kind(objects.last().unwrap()), "DaemonSet");
    assert_eq!(
        describe(objects.last().unwrap()),
        "DaemonSet weft-system/weft-agent"
    );
}

#[test]
fn plurals_of_all_kinds_follow_the_rule() {
    let plurals: BTreeSet<String> = shipped().iter().map(|object| resource(object).plural).collect();
    for plural in [
        "daemonsets",
        "clusterroles",
        "podpools",
        "poddisruptionbudgets",
        "customresourcedefinitions",
    ] {
        assert!(plurals.contains(plural), "{plural} of {plurals:?}");
    }
}

#[test]
fn flags_change_what_they_name_and_nothing_else() {
    let changes = Changes {
        pod_cidrs: vec!["10.9.0.0/16".parse().unwrap(), "10.11.0.0/16".parse().unwrap()],
        block_size: Some(weft_model::BlockSize::new(26).unwrap()),
        ipam: None,
        image: Some("r.example/weft:1".into()),
        cni_bin_dir: Some("/k3s/bin".into()),
        cni_conf_dir: Some("/k3s/net.d".into()),
        ..Changes::default()
    };
    let changed = all(&changes, None).unwrap();
    assert_eq!(
        find(&changed, "PodPool", "default").data["spec"],
        json!({"cidrs": ["10.9.0.0/16", "10.11.0.0/16"], "blockSize": 26})
    );
    let undo = |mut object: DynamicObject| {
        let shipped = find(&shipped(), kind(&object), &object.name_any()).clone();
        if kind(&object) == "PodPool" {
            return (shipped.clone(), shipped);
        }
        let text = serde_json::to_string(&object.data).unwrap();
        let image = shipped.data.pointer("/spec/template/spec/containers/0/image");
        let text = text
            .replace(
                "r.example/weft:1",
                image.and_then(Value::as_str).unwrap_or_default(),
            )
            .replace("/k3s/bin", "/opt/cni/bin")
            .replace("/k3s/net.d", "/etc/cni/net.d");
        assert!(!text.contains("r.example") && !text.contains("/k3s"));
        object.data = serde_json::from_str(&text).unwrap();
        (object, shipped)
    };
    for (object, shipped) in changed.into_iter().map(undo) {
        assert_eq!(object, shipped);
    }
    let agent = all(&changes, None).unwrap();
    let agent = &find(&agent, "DaemonSet", "weft-agent").data["spec"]["template"]["spec"];
    assert_eq!(agent["initContainers"][0]["image"], "r.example/weft:1");
    assert_eq!(agent["containers"][0]["image"], "r.example/weft:1");
}

#[test]
fn a_node_selector_is_that_of_agents_and_pool_and_portmap_is_chained_as_the_chart_does_it() {
    let changes = Changes {
        node_labels: [("weft.dev/network".to_owned(), "weft".to_owned())].into(),
        chain_portmap: true,
        one_node: true,
        ..Changes::default()
    };
    let changed = all(&changes, None).unwrap();
    assert_eq!(
        find(&changed, "PodPool", "default").data["spec"]["nodeSelector"],
        json!({"matchLabels": {"weft.dev/network": "weft"}})
    );
    let pod = &find(&changed, "DaemonSet", "weft-agent").data["spec"]["template"]["spec"];
    assert_eq!(
        pod["nodeSelector"],
        json!({"kubernetes.io/os": "linux", "weft.dev/network": "weft"})
    );
    let agent = &pod["containers"][0];
    let args = agent["args"].as_array().unwrap();
    assert!(args.ends_with(&[json!("--cni-chain=portmap"), json!("--cni-bin-dir=/host/cni/bin")]));
    let mounts = agent["volumeMounts"].as_array().unwrap();
    assert!(mounts.contains(&json!({"name": "cni-bin", "mountPath": "/host/cni/bin", "readOnly": true})));
    let operator = find(&changed, "Deployment", "weft-operator");
    assert_eq!(operator.data["spec"]["replicas"], 1);
    assert_eq!(
        operator.data["spec"]["template"]["spec"]["nodeSelector"],
        json!({"kubernetes.io/os": "linux"})
    );
}

#[test]
fn with_ranges_of_nodes_the_pool_has_no_block_size() {
    let changes = Changes {
        ipam: Some(Ipam::Node),
        ..Changes::default()
    };
    assert_eq!(
        find(&all(&changes, None).unwrap(), "PodPool", "default").data["spec"],
        json!({"cidrs": ["10.244.0.0/16"], "ipam": "node"})
    );
}

#[test]
fn a_pool_that_is_there_keeps_what_no_flag_names() {
    let grown =
        json!({"cidrs": ["10.9.0.0/16", "10.11.0.0/16"], "retiring": ["10.9.0.0/16"], "blockSize": 25});
    let existing: PodPoolSpec = serde_json::from_value(grown).unwrap();
    let changes = Changes {
        node_labels: [("weft.dev/network".to_owned(), "weft".to_owned())].into(),
        ..Changes::default()
    };
    let spec = &find(&all(&changes, Some(&existing)).unwrap(), "PodPool", "default").data["spec"].clone();
    assert_eq!(spec["cidrs"], json!(["10.9.0.0/16", "10.11.0.0/16"]));
    assert_eq!(spec["retiring"], json!(["10.9.0.0/16"]));
    assert_eq!(spec["blockSize"], json!(25));
    assert_eq!(
        spec["nodeSelector"],
        json!({"matchLabels": {"weft.dev/network": "weft"}})
    );
}

fn facts() -> Facts {
    Facts {
        minor: 33,
        daemonsets: vec![("kube-system".into(), "kube-proxy".into())],
        nodes: vec![NodeFacts {
            name: "n1".into(),
            addresses: vec!["10.224.0.4".parse().unwrap()],
            pod_cidrs: vec!["10.244.3.0/24".parse().unwrap()],
            flannel: false,
        }],
        service_cidrs: vec!["10.0.0.0/16".parse().unwrap(), "10.0.128.0/20".parse().unwrap()],
    }
}

#[test]
fn a_cluster_that_fits_is_accepted() {
    for ipam in [Ipam::Pool, Ipam::Node] {
        assert_eq!(facts().judge(&["10.244.0.0/16".parse().unwrap()], ipam), Ok(()));
    }
}

#[test]
fn what_speaks_against_an_installation_is_named() {
    let other = |name: &str| Facts {
        daemonsets: vec![("kube-system".into(), name.into())],
        ..facts()
    };
    let node = |change: fn(&mut NodeFacts)| {
        let mut facts = facts();
        change(&mut facts.nodes[0]);
        facts
    };
    let cases = [
        (
            Facts { minor: 32, ..facts() },
            "10.244.0.0/16",
            Ipam::Pool,
            codes::KUBERNETES_TOO_OLD,
            "Kubernetes 1.32",
        ),
        (
            other("calico-node"),
            "10.244.0.0/16",
            Ipam::Pool,
            codes::OTHER_NETWORK,
            "DaemonSet kube-system/calico-node is there, which is Calico",
        ),
        (
            other("azure-cns"),
            "10.244.0.0/16",
            Ipam::Pool,
            codes::OTHER_NETWORK,
            "Azure CNI",
        ),
        (
            node(|node| node.flannel = true),
            "10.244.0.0/16",
            Ipam::Pool,
            codes::OTHER_NETWORK,
            "node n1 has flannel's annotation",
        ),
        (
            facts(),
            "10.0.64.0/18",
            Ipam::Pool,
            codes::CIDR_OVERLAP,
            "pod CIDR 10.0.64.0/18 overlaps service CIDR 10.0.0.0/16",
        ),
        (
            facts(),
            "10.224.0.0/12",
            Ipam::Pool,
            codes::CIDR_OVERLAP,
            "pod CIDR 10.224.0.0/12 overlaps address 10.224.0.4 of node n1",
        ),
        (
            facts(),
            "10.245.0.0/16",
            Ipam::Node,
            codes::ADDRESS_OUTSIDE_RANGE,
            "spec.podCIDRs of node n1 has 10.244.3.0/24",
        ),
        (
            node(|node| node.pod_cidrs.clear()),
            "10.244.0.0/16",
            Ipam::Node,
            codes::CONFLICTING_FLAGS,
            "node n1 has no spec.podCIDRs",
        ),
    ];
    for (facts, cidr, ipam, code, message) in cases {
        let error = facts.judge(&[cidr.parse().unwrap()], ipam).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(message), "{error}");
    }
    let twice = ["10.244.0.0/16".parse().unwrap(), "10.244.8.0/24".parse().unwrap()];
    assert_eq!(
        facts().judge(&twice, Ipam::Pool).unwrap_err().code(),
        codes::CIDR_OVERLAP
    );
}

/// Rows of the tables in SECURITY.md whose first cell is wanted, without the last cell, which says why.
fn documented(wanted: fn(&str) -> bool) -> BTreeSet<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../SECURITY.md");
    let text = std::fs::read_to_string(file).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| {
            line.split(" | ")
                .map(|cell| cell.replace('`', ""))
                .collect::<Vec<_>>()
        })
        .filter(|cells| wanted(&cells[0]))
        .map(|mut cells| {
            cells.pop();
            cells
        })
        .collect()
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_right_is_documented_and_no_other_is_given() {
    let objects = shipped();
    let mut given = BTreeSet::new();
    let roles = objects.iter().filter(|object| kind(object).ends_with("Role"));
    for role in roles {
        let name = role.name_any();
        let binding = find(&objects, &format!("{}Binding", kind(role)), &name);
        assert_eq!(binding.data["roleRef"]["name"], name.as_str());
        assert_eq!(binding.data["subjects"].as_array().unwrap().len(), 1);
        let subject = binding.data["subjects"][0]["name"].as_str().unwrap();
        let scope = role.namespace().unwrap_or_else(|| "cluster".into());
        for rule in role.data["rules"].as_array().unwrap() {
            let group = texts(&rule["apiGroups"]).join(" ");
            let names = texts(&rule["resourceNames"]);
            for resource in texts(&rule["resources"]) {
                let mut shown = if group.is_empty() {
                    resource
                } else {
                    format!("{resource}.{group}")
                };
                if !names.is_empty() {
                    shown = format!("{shown} {}", names.join(" "));
                }
                given.insert(vec![
                    subject.to_owned(),
                    scope.clone(),
                    shown,
                    texts(&rule["verbs"]).join(" "),
                ]);
            }
        }
    }
    assert_eq!(
        given,
        documented(|subject| ["weft-agent", "weft-operator"].contains(&subject))
    );
    for right in &given {
        assert!(
            !right[2].contains("secrets") && !right[2].contains('*') && !right[3].contains('*'),
            "{right:?}"
        );
        let writes = right[3]
            .split(' ')
            .any(|verb| !["get", "list", "watch"].contains(&verb));
        assert!(
            right[0] != "weft-agent" || !writes || right[2] == "nodenetworks/status.weft.dev",
            "{right:?}"
        );
    }
}

#[test]
fn every_capability_is_documented_and_no_other_is_given() {
    let objects = shipped();
    let pods = objects
        .iter()
        .filter_map(|object| object.data.pointer("/spec/template/spec"));
    let containers = pods.flat_map(|pod| [&pod["initContainers"], &pod["containers"]]);
    let mut given = BTreeSet::new();
    for container in containers.flat_map(|list| list.as_array().into_iter().flatten()) {
        for name in texts(&container["securityContext"]["capabilities"]["add"]) {
            given.insert(vec![
                format!("CAP_{name}"),
                container["name"].as_str().unwrap().to_owned(),
            ]);
        }
    }
    assert_eq!(given, documented(|subject| subject.starts_with("CAP_")));
}
