//! The `kube` client and its watchers.

use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Discovery, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_apilite::ApiServer;

use crate::{Fixture, config_map, deployment, pod, widget, widgets};

fn typed<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).expect("the object has the type's form")
}

/// Reads a watcher until its objects are all there, then hands out names.
async fn initial<K: ResourceExt>(
    stream: &mut (impl Stream<Item = watcher::Result<watcher::Event<K>>> + Unpin),
) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        match stream.next().await.expect("watchers don't end") {
            Ok(watcher::Event::InitApply(object)) => names.push(object.name_any()),
            Ok(watcher::Event::InitDone) => return names,
            Ok(_) | Err(_) => {}
        }
    }
}

/// The name of the next applied or deleted object.
async fn next<K: ResourceExt>(
    stream: &mut (impl Stream<Item = watcher::Result<watcher::Event<K>>> + Unpin),
) -> (&'static str, String) {
    loop {
        match stream.next().await.expect("watchers don't end") {
            Ok(watcher::Event::Apply(object)) => return ("apply", object.name_any()),
            Ok(watcher::Event::Delete(object)) => return ("delete", object.name_any()),
            Ok(_) | Err(_) => {}
        }
    }
}

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() -> kube::Result<()> {
    let api = Fixture::start();
    let pods: Api<Pod> = Api::default_namespaced(api.client.clone());
    let made = pods.create(&PostParams::default(), &typed(pod("p"))).await?;
    assert_eq!(
        made.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()),
        Some("Always")
    );
    let status = json!({ "status": { "phase": "Running", "podIP": "10.244.0.5" } });
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    let running = pods
        .list(&ListParams::default().fields("status.phase=Running"))
        .await?;
    assert_eq!(
        running
            .items
            .iter()
            .map(ResourceExt::name_any)
            .collect::<Vec<_>>(),
        ["p"]
    );
    let metadata = pods.get_metadata("p").await?;
    assert_eq!(metadata.metadata.uid, made.metadata.uid);
    assert!(pods.delete("p", &DeleteParams::default()).await?.is_left());
    assert!(pods.get_opt("p").await?.is_none());
    let Err(kube::Error::Api(status)) = pods.get("p").await else {
        panic!("it is gone")
    };
    assert_eq!(
        (status.code, status.reason.as_str(), status.message.as_str()),
        (404, "NotFound", "pods \"p\" not found")
    );
    Ok(())
}

#[tokio::test]
async fn apply_by_force_and_replace_with_a_stale_version() -> kube::Result<()> {
    let api = Fixture::start();
    let deployments: Api<Deployment> = Api::default_namespaced(api.client.clone());
    let force = PatchParams::apply("weft").force();
    let made = deployments
        .patch("d", &force, &Patch::Apply(deployment("d", 1)))
        .await?;
    let applied = deployments
        .patch("d", &force, &Patch::Apply(deployment("d", 3)))
        .await?;
    assert_eq!(
        (made.metadata.generation, applied.metadata.generation),
        (Some(1), Some(2))
    );
    let scale = deployments.get_scale("d").await?;
    assert_eq!(
        (
            scale.spec.and_then(|spec| spec.replicas),
            scale.status.and_then(|status| status.selector)
        ),
        (Some(3), Some("app=d".to_owned()))
    );
    let Err(kube::Error::Api(status)) = deployments.replace("d", &PostParams::default(), &made).await else {
        panic!("the version is stale")
    };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    Ok(())
}

#[tokio::test]
async fn a_watcher_pages_through_the_list_and_follows() -> kube::Result<()> {
    let api = Fixture::start();
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client.clone());
    for name in ["a", "b", "c"] {
        maps.create(&PostParams::default(), &typed(config_map(name, &json!({}))))
            .await?;
    }
    let mut stream = watcher(maps.clone(), watcher::Config::default().page_size(2)).boxed();
    assert_eq!(initial(&mut stream).await, ["a", "b", "c"]);
    maps.delete("b", &DeleteParams::default()).await?;
    assert_eq!(next(&mut stream).await, ("delete", "b".to_owned()));
    maps.create(&PostParams::default(), &typed(config_map("d", &json!({}))))
        .await?;
    assert_eq!(next(&mut stream).await, ("apply", "d".to_owned()));
    Ok(())
}

#[tokio::test]
async fn a_watcher_resumes_a_cut_watch_and_lists_again_after_compaction() -> kube::Result<()> {
    let api = Fixture::start();
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client.clone());
    let create = async |name: &str| {
        maps.create(&PostParams::default(), &typed(config_map(name, &json!({}))))
            .await
            .map(|_| ())
    };
    create("a").await?;
    let mut stream = watcher(maps.clone(), watcher::Config::default())
        .default_backoff()
        .boxed();
    assert_eq!(initial(&mut stream).await, ["a"]);
    api.server.faults().cut_watches();
    create("b").await?;
    assert_eq!(next(&mut stream).await, ("apply", "b".to_owned()));

    // It resumes from a version that is compacted meanwhile: the list is the only way on.
    api.server.faults().cut_watches();
    create("c").await?;
    api.server.compact();
    assert_eq!(initial(&mut stream).await, ["a", "b", "c"]);
    create("d").await?;
    assert_eq!(next(&mut stream).await, ("apply", "d".to_owned()));
    Ok(())
}

#[tokio::test]
async fn a_streaming_watcher_needs_no_list() -> kube::Result<()> {
    let api = Fixture::with(ApiServer::builder().watch_window(1));
    let nodes: Api<Node> = Api::all(api.client.clone());
    for name in ["n1", "n2"] {
        nodes
            .create(
                &PostParams::default(),
                &typed(json!({ "metadata": { "name": name } })),
            )
            .await?;
    }
    let mut stream = watcher(nodes.clone(), watcher::Config::default().streaming_lists()).boxed();
    assert_eq!(initial(&mut stream).await, ["n1", "n2"]);
    nodes
        .create(
            &PostParams::default(),
            &typed(json!({ "metadata": { "name": "n3" } })),
        )
        .await?;
    assert_eq!(next(&mut stream).await, ("apply", "n3".to_owned()));
    Ok(())
}

#[tokio::test]
async fn custom_resources_are_served_as_soon_as_they_are_defined() -> kube::Result<()> {
    let api = Fixture::start();
    let definitions: Api<CustomResourceDefinition> = Api::all(api.client.clone());
    definitions
        .patch(
            "widgets.example.com",
            &PatchParams::apply("weft").force(),
            &Patch::Apply(widgets()),
        )
        .await?;
    let discovery = Discovery::new(api.client.clone()).run().await?;
    let gvk = GroupVersionKind::gvk("example.com", "v1", "Widget");
    let (found, _) = discovery.resolve_gvk(&gvk).expect("it is discovered");
    assert_eq!(found, ApiResource::from_gvk(&gvk));

    let widgets: Api<DynamicObject> = Api::default_namespaced_with(api.client.clone(), &found);
    let mut stream = watcher(widgets.clone(), watcher::Config::default()).boxed();
    assert_eq!(initial(&mut stream).await, Vec::<String>::new());
    let made = widgets
        .create(&PostParams::default(), &typed(widget("w", &json!({ "size": 2 }))))
        .await?;
    assert_eq!(made.data["spec"], json!({ "size": 2, "color": "red" }));
    assert_eq!(next(&mut stream).await, ("apply", "w".to_owned()));
    let Err(kube::Error::Api(status)) = widgets
        .create(&PostParams::default(), &typed(widget("x", &json!({ "size": 0 }))))
        .await
    else {
        panic!("the size is too small")
    };
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            422,
            "Widget.example.com \"x\" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"
        )
    );
    Ok(())
}
