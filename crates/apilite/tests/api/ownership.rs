//! Writes and who owns what they wrote: patches, server-side apply, subresources, concurrency.

use serde_json::{Value, json};

use crate::{
    APPLY, Answer, CONFIG_MAPS, DEFINITIONS, DEPLOYMENTS, Fixture, JSON_PATCH, MERGE, PODS, SERVICES,
    STRATEGIC, WIDGETS, config_map, deployment, pod, widget, widgets,
};

async fn apply(api: &Fixture, path: &str, manager: &str, object: &Value) -> Answer {
    api.patch(&format!("{path}?fieldManager={manager}"), APPLY, object)
        .await
}

#[tokio::test]
async fn metadata_is_the_servers() {
    let api = Fixture::start();
    let mut object = deployment("d", 1);
    object["metadata"]["uid"] = json!("mine");
    object["metadata"]["generation"] = json!(7);
    object["metadata"]["creationTimestamp"] = json!("2001-01-01T00:00:00Z");
    object["status"] = json!({ "replicas": 9 });
    let made = api.create(DEPLOYMENTS, &object).await;
    assert_ne!(made["metadata"]["uid"], "mine");
    assert_ne!(made["metadata"]["creationTimestamp"], "2001-01-01T00:00:00Z");
    assert_eq!(
        (&made["metadata"]["generation"], made.get("status")),
        (&json!(1), None)
    );

    let path = format!("{DEPLOYMENTS}/d");
    let labelled = api
        .patch(&path, MERGE, &json!({ "metadata": { "labels": { "a": "b" } } }))
        .await
        .body;
    assert_eq!(labelled["metadata"]["generation"], 1);
    let scaled = api
        .patch(
            &path,
            MERGE,
            &json!({ "spec": { "replicas": 2 }, "status": { "replicas": 3 } }),
        )
        .await;
    assert_eq!(
        (&scaled.body["metadata"]["generation"], scaled.body.get("status")),
        (&json!(2), None)
    );
    let status = json!({ "spec": { "replicas": 9 }, "status": { "replicas": 2 } });
    let observed = api.patch(&format!("{path}/status"), MERGE, &status).await.body;
    assert_eq!(
        (
            &observed["spec"]["replicas"],
            &observed["status"],
            &observed["metadata"]["generation"]
        ),
        (&json!(2), &json!({ "replicas": 2 }), &json!(2))
    );
    // Nothing changed, so nothing was written.
    let again = api
        .patch(&path, MERGE, &json!({ "spec": { "replicas": 2 } }))
        .await
        .body;
    assert_eq!(
        again["metadata"]["resourceVersion"],
        observed["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn the_slower_of_two_writers_hears_of_it() {
    let api = Fixture::start();
    let made = api
        .create(CONFIG_MAPS, &config_map("c", &json!({ "n": "0" })))
        .await;
    let path = format!("{CONFIG_MAPS}/c");
    let mut mine = made.clone();
    mine["data"]["n"] = json!("1");
    assert_eq!(api.put(&path, &mine).await.status, 200);
    let late = api.put(&path, &made).await;
    assert_eq!(
        (late.status, &late.body["reason"], &late.body["message"]),
        (
            409,
            &json!("Conflict"),
            &json!(
                "Operation cannot be fulfilled on configmaps \"c\": the object has been modified; please apply your changes to the latest version and try again"
            )
        )
    );
    let twice = api.post(CONFIG_MAPS, &config_map("c", &json!({}))).await;
    assert_eq!(
        (twice.status, &twice.body["reason"], &twice.body["message"]),
        (
            409,
            &json!("AlreadyExists"),
            &json!("configmaps \"c\" already exists")
        )
    );
    // Without a version the last writer wins.
    assert_eq!(
        api.put(&path, &config_map("c", &json!({ "n": "2" }))).await.body["data"]["n"],
        "2"
    );
}

#[tokio::test]
async fn a_generated_name_is_new_each_time() {
    let api = Fixture::start();
    let mut object = config_map("", &json!({}));
    object["metadata"] = json!({ "generateName": "job-" });
    let first = api.create(CONFIG_MAPS, &object).await["metadata"]["name"].clone();
    let second = api.create(CONFIG_MAPS, &object).await["metadata"]["name"].clone();
    assert_ne!(first, second);
    assert_eq!(
        first.as_str().map(|name| (name.starts_with("job-"), name.len())),
        Some((true, 9))
    );
}

#[tokio::test]
async fn a_dry_run_tells_and_does_nothing() {
    let api = Fixture::start();
    let before = api.server.revision();
    let made = api.post(&format!("{SERVICES}?dryRun=All"), &json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }] },
    })).await;
    assert_eq!(
        (made.status, &made.body["spec"]["ports"][0]["targetPort"]),
        (201, &json!(80))
    );
    assert_eq!(api.server.revision(), before);
}

#[tokio::test]
async fn the_patch_kinds_differ_as_they_should() {
    let api = Fixture::start();
    api.create(DEPLOYMENTS, &deployment("d", 1)).await;
    let path = format!("{DEPLOYMENTS}/d");
    let images = |object: &Value| -> Vec<String> {
        let containers = object["spec"]["template"]["spec"]["containers"].as_array();
        containers
            .into_iter()
            .flatten()
            .map(|c| {
                format!(
                    "{}={}",
                    c["name"].as_str().unwrap_or_default(),
                    c["image"].as_str().unwrap_or_default()
                )
            })
            .collect()
    };
    let containers = |items: Value| json!({ "spec": { "template": { "spec": { "containers": items } } } });
    let added = api
        .patch(
            &path,
            STRATEGIC,
            &containers(json!([{ "name": "side", "image": "s" }])),
        )
        .await
        .body;
    assert_eq!(images(&added), ["c=registry.example/app:1", "side=s"]);
    let removed = api
        .patch(
            &path,
            STRATEGIC,
            &containers(json!([{ "name": "c", "$patch": "delete" }])),
        )
        .await
        .body;
    assert_eq!(images(&removed), ["side=s"]);
    let ordered = json!({ "spec": { "template": { "spec": {
        "$setElementOrder/containers": [{ "name": "first" }, { "name": "side" }],
        "containers": [{ "name": "first", "image": "f" }],
    } } } });
    assert_eq!(
        images(&api.patch(&path, STRATEGIC, &ordered).await.body),
        ["first=f", "side=s"]
    );
    let replaced = api
        .patch(
            &path,
            MERGE,
            &containers(json!([{ "name": "only", "image": "o" }])),
        )
        .await
        .body;
    assert_eq!(images(&replaced), ["only=o"]);
    let operations = json!([
        { "op": "test", "path": "/spec/replicas", "value": 1 },
        { "op": "replace", "path": "/spec/replicas", "value": 5 },
        { "op": "add", "path": "/metadata/labels", "value": { "a": "b" } },
    ]);
    let patched = api.patch(&path, JSON_PATCH, &operations).await.body;
    assert_eq!(
        (&patched["spec"]["replicas"], &patched["metadata"]["labels"]),
        (&json!(5), &json!({ "a": "b" }))
    );
    let failed = api.patch(&path, JSON_PATCH, &operations).await;
    assert_eq!((failed.status, &failed.body["reason"]), (422, &json!("Invalid")));

    api.create(DEFINITIONS, &widgets()).await;
    api.create(WIDGETS, &widget("w", &json!({ "size": 1 }))).await;
    let unsupported = api.patch(&format!("{WIDGETS}/w"), STRATEGIC, &json!({})).await;
    assert_eq!(
        (unsupported.status, &unsupported.body["reason"]),
        (415, &json!("UnsupportedMediaType"))
    );
}

#[tokio::test]
async fn applying_creates_updates_and_gives_up_what_is_left_out() {
    let api = Fixture::start();
    let path = format!("{CONFIG_MAPS}/c");
    let made = apply(
        &api,
        &path,
        "a",
        &config_map("c", &json!({ "one": "1", "two": "2" })),
    )
    .await;
    assert_eq!(made.status, 201);
    let other = apply(&api, &path, "b", &config_map("c", &json!({ "three": "3" }))).await;
    assert_eq!(
        (other.status, &other.body["data"]),
        (200, &json!({ "one": "1", "two": "2", "three": "3" }))
    );
    let less = apply(&api, &path, "a", &config_map("c", &json!({ "one": "1" }))).await;
    assert_eq!(less.body["data"], json!({ "one": "1", "three": "3" }));
    let again = apply(&api, &path, "a", &config_map("c", &json!({ "one": "1" }))).await;
    assert_eq!(
        again.body["metadata"]["resourceVersion"],
        less.body["metadata"]["resourceVersion"]
    );
    let managers: Vec<(&Value, &Value)> = again.body["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| (&entry["manager"], &entry["fieldsV1"]))
        .collect();
    assert_eq!(
        managers,
        [
            (&json!("b"), &json!({ "f:data": { "f:three": {} } })),
            (&json!("a"), &json!({ "f:data": { "f:one": {} } })),
        ]
    );
}

#[tokio::test]
async fn appliers_that_disagree_conflict_until_one_insists() {
    let api = Fixture::start();
    let path = format!("{CONFIG_MAPS}/c");
    apply(&api, &path, "a", &config_map("c", &json!({ "k": "a", "l": "a" }))).await;
    let refused = apply(&api, &path, "b", &config_map("c", &json!({ "k": "b" }))).await;
    assert_eq!(
        (
            refused.status,
            &refused.body["message"],
            &refused.body["details"]["causes"]
        ),
        (
            409,
            &json!("Apply failed with 1 conflict: conflict with \"a\" using v1: .data.k"),
            &json!([{
                "reason": "FieldManagerConflict",
                "message": "conflict with \"a\" using v1",
                "field": ".data.k",
            }])
        )
    );
    let forced = apply(
        &api,
        &path,
        "b&force=true",
        &config_map("c", &json!({ "k": "b" })),
    )
    .await;
    assert_eq!(
        (forced.status, &forced.body["data"]),
        (200, &json!({ "k": "b", "l": "a" }))
    );
    // An update takes ownership without asking.
    api.patch(
        &format!("{path}?fieldManager=hand"),
        MERGE,
        &json!({ "data": { "k": "hand" } }),
    )
    .await;
    let refused = apply(&api, &path, "b", &config_map("c", &json!({ "k": "b" }))).await;
    let message = refused.body["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("Apply failed with 1 conflict: conflict with \"hand\" using v1 at "),
        "{message}"
    );
    // What both agree on is shared.
    assert_eq!(
        apply(&api, &path, "b", &config_map("c", &json!({ "k": "hand" })))
            .await
            .status,
        200
    );

    let nameless = api.patch(&path, APPLY, &config_map("c", &json!({}))).await;
    assert_eq!(
        nameless.body["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
}

#[tokio::test]
async fn applied_lists_merge_by_their_keys() {
    let api = Fixture::start();
    api.create(DEFINITIONS, &widgets()).await;
    let path = format!("{WIDGETS}/w");
    let spec = |parts: Value| widget("w", &json!({ "size": 1, "parts": parts }));
    apply(&api, &path, "a", &spec(json!([{ "name": "x", "count": 1 }]))).await;
    let both = apply(&api, &path, "b", &spec(json!([{ "name": "y" }])))
        .await
        .body;
    assert_eq!(
        both["spec"]["parts"],
        json!([{ "name": "x", "count": 1 }, { "name": "y" }])
    );
    let gone = apply(&api, &path, "a", &spec(json!([]))).await.body;
    assert_eq!(gone["spec"]["parts"], json!([{ "name": "y" }]));
    let undeclared = apply(&api, &path, "a", &widget("w", &json!({ "size": 1, "bogus": 1 }))).await;
    assert_eq!(
        (undeclared.status, &undeclared.body["message"]),
        (
            500,
            &json!(
                "failed to create typed patch object (default/w; example.com/v1, Kind=Widget): .spec.bogus: field not declared in schema"
            )
        )
    );
}

#[tokio::test]
async fn applied_status_is_a_world_of_its_own() {
    let api = Fixture::start();
    api.create(DEFINITIONS, &widgets()).await;
    let path = format!("{WIDGETS}/w");
    let mut object = widget("w", &json!({ "size": 1 }));
    object["status"] = json!({ "phase": "Done" });
    let made = apply(&api, &path, "a", &object).await.body;
    assert_eq!(made.get("status"), None);
    let status = json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "w" }, "status": { "phase": "Done" },
    });
    let done = apply(&api, &format!("{path}/status"), "a", &status).await.body;
    assert_eq!(
        (&done["spec"]["size"], &done["status"]),
        (&json!(1), &json!({ "phase": "Done" }))
    );
    let changed = apply(&api, &path, "a", &widget("w", &json!({ "size": 2 })))
        .await
        .body;
    assert_eq!(
        (&changed["spec"]["size"], &changed["status"]),
        (&json!(2), &json!({ "phase": "Done" }))
    );
}

#[tokio::test]
async fn custom_objects_are_pruned_defaulted_and_scaled() {
    let api = Fixture::start();
    let made = api.create(DEFINITIONS, &widgets()).await;
    let established = made["status"]["conditions"].as_array().into_iter().flatten();
    assert!(
        established
            .into_iter()
            .any(|c| c["type"] == "Established" && c["status"] == "True")
    );
    let spec = json!({ "size": 2, "bogus": 1, "free": { "any": [1] }, "port": "http" });
    let made = api.create(WIDGETS, &widget("w", &spec)).await;
    assert_eq!(
        made["spec"],
        json!({ "size": 2, "color": "red", "free": { "any": [1] }, "port": "http" })
    );
    let scale = api
        .patch(
            &format!("{WIDGETS}/w/scale"),
            MERGE,
            &json!({ "spec": { "replicas": 4 } }),
        )
        .await;
    assert_eq!(
        (scale.status, &scale.body["kind"], &scale.body["spec"]),
        (200, &json!("Scale"), &json!({ "replicas": 4 }))
    );
    assert_eq!(api.get(&format!("{WIDGETS}/w")).await["spec"]["replicas"], 4);
    let unversioned = api
        .put(&format!("{WIDGETS}/w"), &widget("w", &json!({ "size": 3 })))
        .await;
    assert_eq!(
        unversioned.body["details"]["causes"][0]["message"],
        "Invalid value: 0: must be specified for an update"
    );
}

#[tokio::test]
async fn services_get_addresses_and_ports_and_give_them_back() {
    let api = Fixture::with(
        weft_apilite::ApiServer::builder()
            .service_cidr("10.96.0.0/28")
            .expect("a CIDR"),
    );
    let service = |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    let ports = json!([{ "port": 80 }]);
    let mut addresses = Vec::new();
    for i in 0..14 {
        let made = api
            .create(SERVICES, &service(&format!("s{i}"), json!({ "ports": ports })))
            .await;
        addresses.push(made["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned());
    }
    addresses.sort_by_key(|address| address.parse::<std::net::Ipv4Addr>().ok());
    let expected: Vec<String> = (1..=14).map(|i| format!("10.96.0.{i}")).collect();
    assert_eq!(addresses, expected);
    let full = api
        .post(SERVICES, &service("full", json!({ "ports": ports })))
        .await;
    assert_eq!(
        full.body["details"]["causes"][0]["message"],
        "Invalid value: []: failed to allocate a serviceIP: range is full"
    );
    let freed = api.get(&format!("{SERVICES}/s3")).await["spec"]["clusterIP"].clone();
    api.delete(&format!("{SERVICES}/s3"), &json!({})).await;
    let reused = api
        .create(
            SERVICES,
            &service("again", json!({ "clusterIP": freed, "ports": ports })),
        )
        .await;
    assert_eq!(reused["spec"]["clusterIPs"], json!([freed]));
    let headless = api
        .create(
            SERVICES,
            &service("headless", json!({ "clusterIP": "None", "ports": ports })),
        )
        .await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));

    let node_ports = |object: &Value| object["spec"]["ports"][0]["nodePort"].clone();
    let promoted = api
        .patch(
            &format!("{SERVICES}/s0"),
            MERGE,
            &json!({ "spec": { "type": "NodePort" } }),
        )
        .await
        .body;
    assert_eq!(node_ports(&promoted), 30_000);
    let demoted = api
        .patch(
            &format!("{SERVICES}/s0"),
            MERGE,
            &json!({ "spec": { "type": "ClusterIP" } }),
        )
        .await
        .body;
    assert_eq!(node_ports(&demoted), Value::Null);
    let other = api
        .patch(
            &format!("{SERVICES}/s1"),
            MERGE,
            &json!({ "spec": { "type": "NodePort" } }),
        )
        .await
        .body;
    assert_eq!(node_ports(&other), 30_000);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let api = Fixture::start();
    api.create(PODS, &pod("p")).await;
    let bind = async |node: &str| {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": "p" },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        api.post(&format!("{PODS}/p/binding"), &binding).await
    };
    assert_eq!(bind("n1").await.status, 201);
    let bound = api.get(&format!("{PODS}/p")).await;
    assert_eq!(
        (
            &bound["spec"]["nodeName"],
            &bound["status"]["conditions"][0]["type"]
        ),
        (&json!("n1"), &json!("PodScheduled"))
    );
    let twice = bind("n2").await;
    assert_eq!(
        (twice.status, &twice.body["message"]),
        (
            409,
            &json!(
                "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
            )
        )
    );
}

#[tokio::test]
async fn both_event_apis_show_the_same_objects() {
    let api = Fixture::start();
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": "e" },
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "weft",
        "reportingInstance": "weft-1",
        "action": "Testing",
        "reason": "Tested",
        "note": "it was tested",
        "type": "Normal",
        "regarding": { "kind": "Node", "name": "n1" },
    });
    let made = api.create(events, &event).await;
    assert_eq!(
        (&made["apiVersion"], &made["note"]),
        (&json!("events.k8s.io/v1"), &json!("it was tested"))
    );
    let core = api
        .get("/api/v1/events?fieldSelector=involvedObject.name%3Dn1")
        .await["items"][0]
        .clone();
    assert_eq!(
        (
            &core["apiVersion"],
            &core["message"],
            &core["involvedObject"]["name"],
            &core["reportingComponent"]
        ),
        (
            &json!("v1"),
            &json!("it was tested"),
            &json!("n1"),
            &json!("weft")
        )
    );
}
