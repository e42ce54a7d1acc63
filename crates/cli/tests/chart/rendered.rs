//! What the chart renders.

use serde_json::{Value, json};

use crate::support::{INSTALL, object, objects, root, text};

/// Renders with these values.
fn render(values: &str) -> Option<Vec<Value>> {
    let args = [&INSTALL[..], &["--set", values]].concat();
    text("helm", &args).map(|yaml| objects(&yaml))
}

fn containers(objects: &[Value]) -> Vec<&Value> {
    let workloads = objects
        .iter()
        .filter_map(|object| object.pointer("/spec/template/spec"));
    workloads
        .flat_map(|pod| ["initContainers", "containers"].map(|field| pod[field].as_array()))
        .flatten()
        .flatten()
        .collect()
}

#[test]
fn the_chart_is_clean_in_the_eyes_of_helm() {
    text("helm", &["lint", "--strict", "deploy/helm/weft"]);
}

#[test]
fn the_manifests_under_version_control_are_what_the_chart_renders() {
    let manifest = std::fs::read_to_string(root().join("deploy/manifests/weft.yaml")).expect("weft.yaml");
    let command = manifest
        .lines()
        .find_map(|line| line.strip_prefix("#   helm "))
        .expect("the head names the command");
    let words: Vec<&str> = command.split_whitespace().collect();
    let Some(rendered) = text("helm", &words) else {
        return;
    };
    let body = manifest.split_once("\n---\n").expect("a document").1;
    assert_eq!(
        body.trim(),
        rendered.trim_start_matches("---\n").trim(),
        "cargo xtask chart renders it anew"
    );
}

#[test]
fn every_guides_values_render() {
    let files = std::fs::read_dir(root().join("deploy/helm/weft")).expect("the chart");
    let mut names: Vec<String> = files
        .map(|file| file.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.starts_with("values-"))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "values-aks.yaml",
            "values-k3s.yaml",
            "values-kind.yaml",
            "values-kubeadm.yaml"
        ]
    );
    for name in names {
        let values = format!("deploy/helm/weft/{name}");
        let args = [&INSTALL[..], &["--values", &values]].concat();
        let Some(yaml) = text("helm", &args) else { return };
        object(&objects(&yaml), "DaemonSet", "weft-agent");
    }
}

#[test]
fn no_container_is_privileged_or_can_write_its_root() {
    let Some(objects) = render("logFormat=json") else {
        return;
    };
    let containers = containers(&objects);
    assert_eq!(containers.len(), 3);
    for container in containers {
        let name = &container["name"];
        let context = &container["securityContext"];
        assert_eq!(context["privileged"], Value::Null, "{name}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
        if name != "agent" {
            assert_eq!(context["capabilities"]["add"], Value::Null, "{name}");
        }
    }
}

#[test]
fn probes_ask_the_loopback_whatever_address_metrics_have() {
    let Some(objects) = render("agent.metricsAddress=0.0.0.0,agent.metricsPort=9000") else {
        return;
    };
    let agent = &object(&objects, "DaemonSet", "weft-agent")["spec"]["template"]["spec"]["containers"][0];
    for probe in ["livenessProbe", "readinessProbe"] {
        assert_eq!(agent[probe]["httpGet"]["host"], "127.0.0.1", "{probe}");
    }
    let args = agent["args"].as_array().expect("args");
    assert!(
        args.contains(&json!("--metrics-address=0.0.0.0:9000")),
        "{args:?}"
    );
    assert_eq!(agent["ports"][0]["containerPort"], 9000);
}

#[test]
fn a_single_node_has_room_for_one_operator_and_who_renders_sees_no_nodes() {
    for (values, replicas) in [
        ("logFormat=json", 2),
        ("operator.replicas=1", 1),
        ("operator.replicas=3", 3),
    ] {
        let Some(objects) = render(values) else { return };
        assert_eq!(
            object(&objects, "Deployment", "weft-operator")["spec"]["replicas"],
            replicas
        );
    }
}

#[test]
fn pools_come_from_values() {
    let Some(by_pool) = render("podCIDRs={10.1.0.0/16,10.3.0.0/16},blockSize=26,excluded={10.1.0.0/24}")
    else {
        return;
    };
    assert_eq!(
        object(&by_pool, "PodPool", "default")["spec"],
        json!({"cidrs": ["10.1.0.0/16", "10.3.0.0/16"], "blockSize": 26, "excluded": ["10.1.0.0/24"]})
    );
    let Some(by_node) = render("ipam=node") else {
        return;
    };
    assert_eq!(
        object(&by_node, "PodPool", "default")["spec"],
        json!({"cidrs": ["10.244.0.0/16"], "ipam": "node"})
    );
    let extra = "extraPools[0].name=large,extraPools[0].cidrs={10.9.0.0/16},extraPools[0].blockSize=22,extraPools[0].nodeSelector.matchLabels.size=large";
    let Some(two) = render(extra) else { return };
    assert_eq!(
        object(&two, "PodPool", "large")["spec"],
        json!({"cidrs": ["10.9.0.0/16"], "blockSize": 22, "nodeSelector": {"matchLabels": {"size": "large"}}})
    );
    object(&two, "PodPool", "default");
}

#[test]
fn an_image_is_named_by_its_digest_where_one_is_given() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let Some(objects) = render(&format!(
        "image.repository=r.example/weft,image.tag=x,image.digest={digest}"
    )) else {
        return;
    };
    for container in containers(&objects) {
        assert_eq!(container["image"], format!("r.example/weft@{digest}"));
    }
}

#[test]
fn the_api_server_is_named_only_where_the_service_does_not_do() {
    let hosts = |objects: &[Value]| -> Vec<Value> {
        containers(objects)
            .into_iter()
            .flat_map(|container| container["env"].as_array().cloned().unwrap_or_default())
            .filter(|variable| variable["name"] == "KUBERNETES_SERVICE_HOST")
            .collect()
    };
    let Some(plain) = render("logFormat=json") else {
        return;
    };
    assert_eq!(hosts(&plain), Vec::<Value>::new());
    let Some(named) = render("apiServer.host=10.0.0.4") else {
        return;
    };
    assert_eq!(hosts(&named).len(), 2);
}
