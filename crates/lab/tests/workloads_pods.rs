//! Pods on a node: attached, served, probed, refused, removed.

mod workloads_support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use weft_kernel::NetNs;
use weft_lab::responder::client;
use workloads_support::{LIMIT, name, phase, read, ready, with_nodes};

#[expect(
    clippy::needless_pass_by_value,
    reason = "a literal reads best without a borrow"
)]
fn pod(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec})
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "a literal reads best without a borrow"
)]
fn container(extra: Value) -> Value {
    let mut container = json!({"name": "c", "image": "nginx"});
    for (key, value) in extra.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({"containers": [container]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_attached_served_and_removed_without_a_trace() {
    let Some(cluster) = with_nodes(1, 10).await else {
        return;
    };
    cluster
        .apply(pod(
            "web",
            container(json!({"ports": [{"containerPort": 80, "hostPort": 8080}]})),
        ))
        .await;
    let pods = cluster
        .pods("web is ready", |pods| {
            pods.iter().all(|pod| ready(pod)) && !pods.is_empty()
        })
        .await;
    let status = pods[0].status.as_ref().unwrap();
    assert_eq!(status.host_ip.as_deref(), Some("10.98.0.1"));
    assert!(
        status.pod_ip.as_ref().unwrap().starts_with("10.99."),
        "{status:?}"
    );

    let namespaces = cluster.pod_namespaces();
    assert_eq!(namespaces.len(), 1, "{namespaces:?}");
    let netns = Arc::new(NetNs::named(&namespaces[0]).unwrap());
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    assert_eq!(
        client::get(&netns, local, "/hostname", &[], LIMIT)
            .await
            .unwrap()
            .body,
        "web"
    );

    let node = cluster.handle.node("node-1").unwrap();
    let sent: Value = serde_json::from_str(&read(node.dir.join("last-ADD"))).unwrap();
    assert_eq!(
        sent["runtimeConfig"],
        json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]})
    );
    let uid = pods[0].metadata.uid.clone().unwrap();
    let calls = read(node.dir.join("calls"));
    let add = calls.lines().find(|line| line.starts_with("ADD ")).unwrap();
    let id = add.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(id.len(), 64);
    assert!(add.ends_with(&format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
    )));
    let cached: Value =
        serde_json::from_str(&read(node.dir.join(format!("cni/cache/results/fake-{id}-eth0")))).unwrap();
    assert_eq!(cached["kind"], "cniCacheV1");

    drop(netns);
    cluster.delete::<Pod>("web").await;
    cluster.no_pods().await;
    assert_eq!(cluster.pod_namespaces(), Vec::<String>::new());
    let sent: Value = serde_json::from_str(&read(node.dir.join("last-DEL"))).unwrap();
    assert_eq!(sent["prevResult"], cached["result"]);
    assert_eq!(fs::read_dir(node.dir.join("sandboxes")).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(node.dir.join("cni/cache/results")).unwrap().count(),
        0
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_is_quoted_cleaned_up_after_and_tried_again() {
    let Some(cluster) = with_nodes(1, 10).await else {
        return;
    };
    let node = cluster.handle.node("node-1").unwrap();
    fs::write(node.dir.join("fail"), "").unwrap();
    cluster.apply(pod("web", container(json!({})))).await;
    let message = cluster.event("FailedCreatePodSandBox").await;
    let calls = read(node.dir.join("calls"));
    let id = calls
        .lines()
        .find(|line| line.starts_with("ADD "))
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned();
    assert_eq!(
        message,
        format!(
            "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox {id:?}: \
             plugin type=\"fake\" name=\"fake\" failed (add): no address left; block 10.99.0.0/24 is full"
        )
    );
    assert!(
        calls.lines().any(|line| line.starts_with(&format!("DEL {id} "))),
        "{calls}"
    );
    let creating = |pod: &Pod| {
        let containers = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.clone())
            .unwrap_or_default();
        let waiting = containers.first().and_then(|c| c.state.clone()?.waiting?.reason);
        phase(pod) == "Pending" && waiting.as_deref() == Some("ContainerCreating")
    };
    cluster
        .pods("web is ContainerCreating", |pods| {
            pods.iter().any(|pod| creating(pod))
        })
        .await;
    assert_eq!(cluster.pod_namespaces(), Vec::<String>::new());

    fs::remove_file(node.dir.join("fail")).unwrap();
    cluster
        .pods("web is ready", |pods| pods.iter().all(|pod| ready(pod)))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detachment_that_fails_is_tried_until_it_succeeds() {
    let Some(cluster) = with_nodes(1, 10).await else {
        return;
    };
    let node = cluster.handle.node("node-1").unwrap();
    cluster.apply(pod("web", container(json!({})))).await;
    cluster
        .pods("web is ready", |pods| pods.iter().any(|pod| ready(pod)))
        .await;
    fs::write(node.dir.join("stuck"), "").unwrap();
    cluster.delete::<Pod>("web").await;
    let message = cluster.event("FailedKillPod").await;
    assert!(
        message.contains("failed (delete): the agent is busy"),
        "{message}"
    );
    assert_eq!(cluster.pod_namespaces().len(), 1);
    fs::remove_file(node.dir.join("stuck")).unwrap();
    cluster.no_pods().await;
    assert_eq!(cluster.pod_namespaces(), Vec::<String>::new());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_refuses_what_is_bound_to_it_all_the_same() {
    let Some(cluster) = with_nodes(1, 2).await else {
        return;
    };
    for name in ["a", "b"] {
        cluster.apply(pod(name, container(json!({})))).await;
    }
    cluster
        .pods("two are ready", |pods| {
            pods.iter().filter(|pod| ready(pod)).count() == 2
        })
        .await;

    cluster.apply(pod("c", container(json!({})))).await;
    assert_eq!(
        cluster.event("FailedScheduling").await,
        "0/1 nodes are available: 1 Too many pods."
    );

    let mut bound = container(json!({}));
    bound["nodeName"] = json!("node-1");
    cluster.apply(pod("d", bound)).await;
    let pods = cluster
        .pods("d has failed", |pods| {
            pods.iter().any(|pod| phase(pod) == "Failed")
        })
        .await;
    let status = pods
        .iter()
        .find(|pod| name(pod) == "d")
        .unwrap()
        .status
        .as_ref()
        .unwrap();
    assert_eq!(status.reason.as_deref(), Some("OutOfpods"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2")
    );

    cluster.delete::<Pod>("a").await;
    cluster
        .pods("c takes the place", |pods| {
            pods.iter().any(|pod| name(pod) == "c" && ready(pod))
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_plugin_is_not_ready_says_so_and_takes_no_pods() {
    let Some(mut cluster) = with_nodes(0, 0).await else {
        return;
    };
    let node = cluster.prepare_node("node-1", 10);
    fs::write(node.dir.join("unready"), "").unwrap();
    cluster.start_kubelet(&node);
    cluster.node_ready("node-1", "False").await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client());
    let listed = nodes.list(&ListParams::default()).await.unwrap().items;
    let conditions = listed[0].status.clone().unwrap().conditions.unwrap();
    let ready_condition = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .unwrap();
    assert_eq!(
        ready_condition.message.as_deref(),
        Some(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin \
             returns error: plugin type=\"fake\" name=\"fake\" failed (status): the agent does not answer"
        )
    );
    cluster.apply(pod("web", container(json!({})))).await;
    assert_eq!(
        cluster.event("FailedScheduling").await,
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
    );
    fs::remove_file(node.dir.join("unready")).unwrap();
    cluster
        .pods("web is ready", |pods| pods.iter().any(|pod| ready(pod)))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_host_network_has_the_nodes_address_and_is_really_probed() {
    let Some(cluster) = with_nodes(1, 10).await else {
        return;
    };
    // The fake plugin makes no link, so only the host network's own address can be probed; 10.98.0.1 is put on lo.
    let node = cluster.handle.node("node-1").unwrap();
    let netns = NetNs::named(&node.netns_name).unwrap();
    let mut rtnl = weft_kernel::rtnl::Rtnl::open_in(&netns).unwrap();
    let lo = rtnl.link_index("lo").unwrap();
    let host = |port: u16| {
        let mut spec = container(json!({
            "ports": [{"containerPort": 8081}],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 1, "failureThreshold": 1},
        }));
        spec["hostNetwork"] = json!(true);
        spec
    };
    cluster.apply(pod("web", host(8081))).await;
    let message = cluster.event("Unhealthy").await;
    assert!(
        message.starts_with("Readiness probe failed: Get \"http://10.98.0.1:8081/healthz\": "),
        "{message}"
    );
    rtnl.add_address(&weft_kernel::rtnl::Address::host(lo, node.address.get()))
        .unwrap();
    let pods = cluster
        .pods("web is ready", |pods| pods.iter().any(|pod| ready(pod)))
        .await;
    assert_eq!(
        pods[0].status.as_ref().unwrap().pod_ip.as_deref(),
        Some("10.98.0.1")
    );
    assert_eq!(cluster.pod_namespaces(), Vec::<String>::new());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_comes_back_takes_its_pods_over_and_removes_what_has_no_pod() {
    let Some(mut cluster) = with_nodes(0, 0).await else {
        return;
    };
    let node = cluster.prepare_node("node-1", 10);
    let first = weft_lab::node::NodeHandle {
        stop: cluster.handle.stop.child_token(),
        ..(*node).clone()
    };
    let kubelet = tokio::spawn(weft_lab::kubelet::run(cluster.handle.clone(), Arc::new(first)));
    for name in ["kept", "gone"] {
        cluster.apply(pod(name, container(json!({})))).await;
    }
    let pods = cluster
        .pods("both are ready", |pods| {
            pods.iter().filter(|pod| ready(pod)).count() == 2
        })
        .await;
    let before = cluster.pod_namespaces();
    // As a crash does it: nothing is tidied up.
    kubelet.abort();
    let _ = kubelet.await;
    let zero = kube::api::DeleteParams {
        grace_period_seconds: Some(0),
        ..Default::default()
    };
    Api::<Pod>::namespaced(cluster.client(), "default")
        .delete("gone", &zero)
        .await
        .unwrap();

    cluster.start_kubelet(&node);
    let kept = pods.iter().find(|pod| name(pod) == "kept").unwrap();
    let wanted = loop {
        let now = cluster.pod_namespaces();
        if now.len() == 1 {
            break now;
        }
        tokio::task::yield_now().await;
    };
    assert!(before.contains(&wanted[0]), "{before:?} {wanted:?}");
    let netns = Arc::new(NetNs::named(&wanted[0]).unwrap());
    let pods = cluster
        .pods("kept still runs", |pods| pods.iter().all(|pod| ready(pod)))
        .await;
    assert_eq!(
        pods[0].status.as_ref().unwrap().pod_ip,
        kept.status.as_ref().unwrap().pod_ip
    );
    drop(netns);
    let adds = read(node.dir.join("calls"))
        .lines()
        .filter(|line| line.starts_with("ADD "))
        .count();
    assert_eq!(adds, 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_and_fifty_pods_start_on_one_node_and_go_again() {
    let Some(cluster) = with_nodes(1, 250).await else {
        return;
    };
    let begun = std::time::Instant::now();
    cluster
        .apply(workloads_support::deployment("many", 251, "nginx"))
        .await;
    let up = |pods: &[&Pod]| pods.iter().filter(|pod| ready(pod)).count() == 250;
    let pods = cluster.pods("250 are ready", up).await;
    eprintln!("250 pods ready after {:?}", begun.elapsed());
    let waiting = pods.iter().filter(|pod| !ready(pod)).count();
    assert_eq!(waiting, 1);
    assert_eq!(
        cluster.event("FailedScheduling").await,
        "0/1 nodes are available: 1 Too many pods."
    );
    assert_eq!(cluster.pod_namespaces().len(), 250);
    let begun = std::time::Instant::now();
    cluster
        .delete::<k8s_openapi::api::apps::v1::Deployment>("many")
        .await;
    cluster.no_pods().await;
    eprintln!("250 pods gone after {:?}", begun.elapsed());
    assert_eq!(cluster.pod_namespaces(), Vec::<String>::new());
    cluster.stop().await;
}
