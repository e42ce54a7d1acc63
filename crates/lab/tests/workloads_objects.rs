//! Objects that become pods: rollouts, ordinals, one pod a node, jobs, endpoints, and nodes for pods without room.

mod workloads_support;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use serde_json::{Value, json};
use weft_lab::autoscaler::{self, Config};
use weft_lab::node::{NodeHandle, NodeRange, ScaleRequest};
use workloads_support::{TestCluster, cluster, deployment, name, phase, ready, until, with_nodes};

fn names(pods: &[Pod]) -> Vec<&str> {
    let mut names: Vec<&str> = pods.iter().map(name).collect();
    names.sort_unstable();
    names
}

fn image(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers.first()?.image.as_deref()
}

fn workload(kind: &str, version: &str, name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 80}]}]},
        }},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_scales_and_goes() {
    let Some(cluster) = with_nodes(2, 20).await else {
        return;
    };
    cluster.apply(deployment("web", 4, "nginx:1")).await;
    let all = |count: usize, wanted: &'static str| {
        move |pods: &[&Pod]| {
            pods.len() == count && pods.iter().all(|pod| ready(pod) && image(pod) == Some(wanted))
        }
    };
    let pods = cluster.pods("four of version 1", all(4, "nginx:1")).await;
    let mut nodes: Vec<_> = pods
        .iter()
        .map(|pod| pod.spec.as_ref().unwrap().node_name.clone().unwrap())
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["node-1", "node-1", "node-2", "node-2"]);

    cluster.apply(deployment("web", 4, "nginx:2")).await;
    cluster.pods("four of version 2", all(4, "nginx:2")).await;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client(), "default");
    let rolled = |deployment: &Deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        let reason = status
            .conditions
            .into_iter()
            .flatten()
            .find(|c| c.type_ == "Progressing")
            .and_then(|c| c.reason);
        status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == Some(4)
            && status.available_replicas == Some(4)
            && reason.as_deref() == Some("NewReplicaSetAvailable")
    };
    let web = until(deployments, "the rollout is over", |all| {
        all.iter().all(|web| rolled(web))
    })
    .await;
    assert_eq!(
        web[0].metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"],
        "2"
    );
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client(), "default");
    assert_eq!(sets.list(&Default::default()).await.unwrap().items.len(), 2);

    cluster.apply(deployment("web", 1, "nginx:2")).await;
    cluster.pods("one of version 2", all(1, "nginx:2")).await;
    cluster.delete::<Deployment>("web").await;
    cluster.no_pods().await;
    until(sets, "no ReplicaSets", |sets| sets.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_keeps_its_names() {
    let Some(cluster) = with_nodes(1, 20).await else {
        return;
    };
    let set = |replicas: i32| {
        workload(
            "StatefulSet",
            "apps/v1",
            "db",
            &json!({"replicas": replicas, "serviceName": "db"}),
        )
    };
    cluster.apply(set(3)).await;
    let all_ready =
        |count: usize| move |pods: &[&Pod]| pods.len() == count && pods.iter().all(|pod| ready(pod));
    let pods = cluster.pods("three are ready", all_ready(3)).await;
    assert_eq!(names(&pods), ["db-0", "db-1", "db-2"]);
    let starts: Vec<_> = ["db-0", "db-1", "db-2"]
        .iter()
        .map(|wanted| pods.iter().find(|pod| name(pod) == *wanted).unwrap())
        .map(|pod| {
            pod.metadata
                .resource_version
                .as_ref()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .collect();
    assert!(starts.is_sorted(), "{starts:?}");

    let old = pods
        .iter()
        .find(|pod| name(pod) == "db-1")
        .unwrap()
        .metadata
        .uid
        .clone();
    cluster.delete::<Pod>("db-1").await;
    let again =
        |pods: &[&Pod]| pods.len() == 3 && pods.iter().all(|pod| ready(pod) && pod.metadata.uid != old);
    cluster.pods("db-1 is there again", again).await;
    cluster.apply(set(1)).await;
    let pods = cluster.pods("one is left", all_ready(1)).await;
    assert_eq!(names(&pods), ["db-0"]);
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client(), "default");
    until(sets, "status", |sets| {
        sets.iter().all(|set| {
            let status = set.status.clone().unwrap_or_default();
            (
                status.replicas,
                status.ready_replicas,
                status.current_revision == status.update_revision,
            ) == (1, Some(1), true)
        })
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_has_one_pod_on_every_node_and_on_every_new_one() {
    let Some(mut cluster) = with_nodes(2, 20).await else {
        return;
    };
    cluster
        .apply(workload("DaemonSet", "apps/v1", "agent", &json!({})))
        .await;
    let on = |count: usize| {
        move |pods: &[&Pod]| {
            let mut nodes: Vec<_> = pods
                .iter()
                .filter(|pod| ready(pod))
                .map(|pod| &pod.spec.as_ref().unwrap().node_name)
                .collect();
            nodes.sort();
            nodes.dedup();
            nodes.len() == count && pods.len() == count
        }
    };
    cluster.pods("one on each of two nodes", on(2)).await;
    cluster.add_node("node-3", 20).await;
    cluster.pods("one on each of three nodes", on(3)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_to_its_end() {
    let Some(cluster) = with_nodes(1, 20).await else {
        return;
    };
    let mut job = workload(
        "Job",
        "batch/v1",
        "load",
        &json!({"completions": 3, "parallelism": 2}),
    );
    job["spec"].as_object_mut().unwrap().remove("selector");
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    job["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["sleep", "0.1"]);
    cluster.apply(job).await;
    let jobs: Api<Job> = Api::namespaced(cluster.client(), "default");
    let complete = |job: &Job| {
        let status = job.status.clone().unwrap_or_default();
        status.succeeded == Some(3)
            && status
                .conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Complete")
    };
    until(jobs, "the job is complete", |jobs| {
        jobs.iter().any(|job| complete(job))
    })
    .await;
    let pods = cluster.pods("three pods", |pods| pods.len() == 3).await;
    assert!(pods.iter().all(|pod| phase(pod) == "Succeeded"));
    let gone = async {
        while !cluster.pod_namespaces().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(workloads_support::LIMIT, gone)
        .await
        .expect("ended pods have no namespace");
    cluster.delete::<Job>("load").await;
    cluster.no_pods().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_knows_its_ready_pods() {
    let Some(cluster) = with_nodes(1, 20).await else {
        return;
    };
    cluster
        .apply(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 8080, "targetPort": "http"}]},
        }))
        .await;
    cluster.apply(deployment("web", 2, "nginx")).await;
    let pods = cluster
        .pods("two are ready", |pods| {
            pods.iter().filter(|pod| ready(pod)).count() == 2
        })
        .await;
    let mut wanted: Vec<String> = pods
        .iter()
        .map(|pod| pod.status.clone().unwrap().pod_ip.unwrap())
        .collect();
    wanted.sort();

    let addresses = |slices: &[&EndpointSlice]| {
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let ready =
            endpoints.filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true));
        let mut addresses: Vec<String> = ready.flat_map(|endpoint| endpoint.addresses.clone()).collect();
        addresses.sort();
        addresses
    };
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client(), "default");
    let labelled = |slices: &[&EndpointSlice]| -> Vec<EndpointSlice> {
        let of_web = |slice: &EndpointSlice| {
            slice
                .metadata
                .labels
                .as_ref()
                .is_some_and(|l| l.get("kubernetes.io/service-name").is_some_and(|n| n == "web"))
        };
        slices
            .iter()
            .filter(|slice| of_web(slice))
            .map(|slice| (*slice).clone())
            .collect()
    };
    let listed = until(slices.clone(), "both are in the slice", |slices| {
        let of_web = labelled(slices);
        addresses(&of_web.iter().collect::<Vec<_>>()) == wanted
    })
    .await;
    let of_web = labelled(&listed.iter().collect::<Vec<_>>());
    assert_eq!(of_web[0].ports.as_ref().unwrap()[0].port, Some(80));
    let endpoints: Api<Endpoints> = Api::namespaced(cluster.client(), "default");
    let both = |endpoints: &Endpoints| {
        let addresses = endpoints
            .subsets
            .iter()
            .flatten()
            .flat_map(|subset| subset.addresses.iter().flatten());
        let mut ips: Vec<String> = addresses.map(|address| address.ip.clone()).collect();
        ips.sort();
        ips == wanted
    };
    until(endpoints.clone(), "both are in the Endpoints", |all| {
        all.iter().any(|endpoints| both(endpoints))
    })
    .await;

    cluster.delete::<Deployment>("web").await;
    until(slices.clone(), "nobody is in the slice", |slices| {
        let of_web = labelled(slices);
        !of_web.is_empty() && addresses(&of_web.iter().collect::<Vec<_>>()).is_empty()
    })
    .await;
    cluster.delete::<k8s_openapi::api::core::v1::Service>("web").await;
    until(slices, "the slice is gone", |slices| labelled(slices).is_empty()).await;
    until(endpoints, "the Endpoints are gone", |all| {
        all.iter().all(|e| e.metadata.name.as_deref() != Some("web"))
    })
    .await;
    cluster.stop().await;
}

/// Plays the owner of the nodes: adds and removes them as the autoscaler asks.
async fn answer(cluster: &mut TestCluster, request: ScaleRequest, added: &mut Vec<Arc<NodeHandle>>) {
    match request {
        ScaleRequest::Up { reply } => {
            let node = cluster.add_node(&format!("node-{}", added.len() + 2), 5).await;
            added.push(Arc::clone(&node));
            let _ = reply.send(Ok(node));
        }
        ScaleRequest::Down { node, reply } => {
            let nodes: Api<Node> = Api::all(cluster.client());
            cluster.handle.node(&node).unwrap().stop.cancel();
            nodes.delete(&node, &Default::default()).await.unwrap();
            added.retain(|known| known.name != node);
            let _ = reply.send(Ok(()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_for_pods_without_room_and_go_when_nobody_needs_them() {
    let config = Config {
        range: NodeRange { min: 1, max: 3 },
        idle: std::time::Duration::from_millis(500),
    };
    let Some(mut cluster) = cluster(Some(config)).await else {
        return;
    };
    cluster.add_node("node-1", 5).await;
    let handle = cluster.handle.clone();
    let autoscaler = tokio::spawn(async move {
        autoscaler::run_with(handle.client.clone(), &handle, config, handle.stop.clone()).await;
    });
    let mut requests = cluster.scale.take().unwrap();
    let mut added = Vec::new();

    cluster.apply(deployment("web", 20, "nginx")).await;
    for _ in 0..2 {
        let request = requests.recv().await.unwrap();
        answer(&mut cluster, request, &mut added).await;
    }
    let pods = cluster
        .pods("fifteen of twenty run", |pods| {
            pods.iter().filter(|pod| ready(pod)).count() == 15
        })
        .await;
    assert_eq!(pods.len(), 20);
    // The pods may have come in one burst or in several.
    let triggered = cluster.events("TriggeredScaleUp").await;
    assert!(
        triggered
            .iter()
            .any(|message| message.starts_with("pod triggered scale-up: [{default 1->")),
        "{triggered:?}"
    );
    assert_eq!(
        cluster.event("NotTriggerScaleUp").await,
        "pod didn't trigger scale-up: 1 max node group size reached"
    );

    cluster.delete::<Deployment>("web").await;
    for _ in 0..2 {
        let request = requests.recv().await.unwrap();
        answer(&mut cluster, request, &mut added).await;
    }
    let nodes: Api<Node> = Api::all(cluster.client());
    let left = until(nodes, "one node is left", |nodes| nodes.len() == 1).await;
    assert_eq!(left[0].metadata.name.as_deref(), Some("node-1"));
    cluster.handle.stop.cancel();
    autoscaler.await.unwrap();
    cluster.stop().await;
}
