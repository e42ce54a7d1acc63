//! Deletion: grace, finalizers, propagation, preconditions, namespaces.

use serde_json::{Value, json};

use crate::{CONFIG_MAPS, DEFINITIONS, Fixture, MERGE, PODS, WIDGETS, config_map, pod, widget, widgets};

fn owned(name: &str, owner: &Value, block: bool) -> Value {
    let mut object = config_map(name, &json!({}));
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": block,
    }]);
    object
}

#[tokio::test]
async fn a_running_pod_dies_in_two_steps_and_an_unassigned_one_at_once() {
    let api = Fixture::start();
    let mut running = pod("running");
    running["spec"]["nodeName"] = json!("n1");
    api.create(PODS, &running).await;
    api.create(PODS, &pod("waiting")).await;

    let first = api.delete(&format!("{PODS}/running"), &json!({})).await.body;
    assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(first["metadata"]["deletionTimestamp"].is_string());
    let shorter = api
        .delete(&format!("{PODS}/running"), &json!({ "gracePeriodSeconds": 5 }))
        .await
        .body;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    // The kubelet's last word.
    api.delete(&format!("{PODS}/running"), &json!({ "gracePeriodSeconds": 0 }))
        .await;
    assert_eq!(
        api.send("GET", &format!("{PODS}/running"), &[], "").await.status,
        404
    );

    api.delete(&format!("{PODS}/waiting"), &json!({})).await;
    assert_eq!(
        api.send("GET", &format!("{PODS}/waiting"), &[], "").await.status,
        404
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_and_the_last_one_lets_it_go() {
    let api = Fixture::start();
    let mut object = config_map("held", &json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.create(CONFIG_MAPS, &object).await;
    let path = format!("{CONFIG_MAPS}/held");
    let deleted = api.delete(&path, &json!({})).await.body;
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
    let more = json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/more"] } });
    assert_eq!(
        api.patch(&path, MERGE, &more).await.body["details"]["causes"][0]["message"],
        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/more\"}"
    );
    let none = json!({ "metadata": { "finalizers": null } });
    assert_eq!(api.patch(&path, MERGE, &none).await.status, 200);
    assert_eq!(api.send("GET", &path, &[], "").await.status, 404);
}

#[tokio::test]
async fn preconditions_guard_a_deletion() {
    let api = Fixture::start();
    let made = api.create(CONFIG_MAPS, &config_map("c", &json!({}))).await;
    let path = format!("{CONFIG_MAPS}/c");
    let refused = api
        .delete(&path, &json!({ "preconditions": { "uid": "other" } }))
        .await;
    let uid = made["metadata"]["uid"].as_str().unwrap_or_default();
    assert_eq!(
        (refused.status, refused.body["message"].as_str()),
        (
            409,
            Some(
                format!("Operation cannot be fulfilled on configmaps \"c\": Precondition failed: UID in precondition: other, UID in object meta: {uid}")
                    .as_str()
            )
        )
    );
    let done = api
        .delete(&path, &json!({ "preconditions": { "uid": uid } }))
        .await;
    assert_eq!(
        (done.status, &done.body["status"], &done.body["details"]),
        (
            200,
            &json!("Success"),
            &json!({ "name": "c", "kind": "configmaps", "uid": uid })
        )
    );
}

#[tokio::test]
async fn dependents_follow_their_owner_in_the_background() {
    let api = Fixture::start();
    let owner = api.create(CONFIG_MAPS, &config_map("owner", &json!({}))).await;
    let child = api.create(CONFIG_MAPS, &owned("child", &owner, true)).await;
    api.create(CONFIG_MAPS, &owned("grandchild", &child, true)).await;
    api.delete(
        &format!("{CONFIG_MAPS}/owner"),
        &json!({ "propagationPolicy": "Background" }),
    )
    .await;
    for name in ["child", "grandchild"] {
        api.until_status(&format!("{CONFIG_MAPS}/{name}"), 404).await;
    }
}

#[tokio::test]
async fn an_owner_deleted_in_the_foreground_goes_last() {
    let api = Fixture::start();
    let owner = api.create(CONFIG_MAPS, &config_map("owner", &json!({}))).await;
    let mut child = owned("child", &owner, true);
    child["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.create(CONFIG_MAPS, &child).await;
    let path = format!("{CONFIG_MAPS}/owner");
    let deleted = api
        .delete(&path, &json!({ "propagationPolicy": "Foreground" }))
        .await
        .body;
    assert_eq!(deleted["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    // The child is asked to go, and holds its owner.
    let child_path = format!("{CONFIG_MAPS}/child");
    while !api.get(&child_path).await["metadata"]["deletionTimestamp"].is_string() {
        tokio::task::yield_now().await;
    }
    assert_eq!(api.send("GET", &path, &[], "").await.status, 200);
    api.patch(&child_path, MERGE, &json!({ "metadata": { "finalizers": [] } }))
        .await;
    api.until_status(&path, 404).await;
}

#[tokio::test]
async fn orphans_stay_without_their_owner() {
    let api = Fixture::start();
    let owner = api.create(CONFIG_MAPS, &config_map("owner", &json!({}))).await;
    api.create(CONFIG_MAPS, &owned("child", &owner, true)).await;
    api.delete(
        &format!("{CONFIG_MAPS}/owner"),
        &json!({ "propagationPolicy": "Orphan" }),
    )
    .await;
    api.until_status(&format!("{CONFIG_MAPS}/owner"), 404).await;
    let child = api.get(&format!("{CONFIG_MAPS}/child")).await;
    assert_eq!(child["metadata"].get("ownerReferences"), None);
}

#[tokio::test]
async fn an_object_whose_owner_never_was_is_collected() {
    let api = Fixture::start();
    let ghost = json!({ "metadata": { "name": "ghost", "uid": "11111111-1111-4111-8111-111111111111" } });
    api.create(CONFIG_MAPS, &owned("child", &ghost, false)).await;
    api.until_status(&format!("{CONFIG_MAPS}/child"), 404).await;
}

#[tokio::test]
async fn a_namespace_takes_its_content_along_and_accepts_nothing_new() {
    let api = Fixture::start();
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "team" } });
    api.create("/api/v1/namespaces", &namespace).await;
    let mut held = config_map("held", &json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.create("/api/v1/namespaces/team/configmaps", &held).await;
    api.create("/api/v1/namespaces/team/pods", &pod("p")).await;

    let deleted = api.delete("/api/v1/namespaces/team", &json!({})).await.body;
    assert_eq!(deleted["status"]["phase"], "Terminating");
    let refused = api.post("/api/v1/namespaces/team/pods", &pod("q")).await;
    assert_eq!(
        (refused.status, &refused.body["message"]),
        (
            403,
            &json!(
                "pods \"q\" is forbidden: unable to create new content in namespace team because it is being terminated"
            )
        )
    );
    api.until_status("/api/v1/namespaces/team/pods/p", 404).await;
    assert_eq!(
        api.send("GET", "/api/v1/namespaces/team", &[], "").await.status,
        200
    );
    let release = json!({ "metadata": { "finalizers": [] } });
    api.patch("/api/v1/namespaces/team/configmaps/held", MERGE, &release)
        .await;
    api.until_status("/api/v1/namespaces/team", 404).await;

    let kept = api.delete("/api/v1/namespaces/kube-system", &json!({})).await;
    assert_eq!(
        (kept.status, &kept.body["message"]),
        (
            403,
            &json!("namespaces \"kube-system\" is forbidden: this namespace may not be deleted")
        )
    );
}

#[tokio::test]
async fn a_definition_takes_its_objects_along() {
    let api = Fixture::start();
    api.create(DEFINITIONS, &widgets()).await;
    api.create(WIDGETS, &widget("w", &json!({ "size": 1 }))).await;
    api.delete(&format!("{DEFINITIONS}/widgets.example.com"), &json!({}))
        .await;
    assert_eq!(api.send("GET", WIDGETS, &[], "").await.status, 404);
    api.create(DEFINITIONS, &widgets()).await;
    assert_eq!(api.get(WIDGETS).await["items"], json!([]));
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let api = Fixture::start();
    for (name, keep) in [("a", "no"), ("b", "yes"), ("c", "no")] {
        let mut object = config_map(name, &json!({}));
        object["metadata"]["labels"] = json!({ "keep": keep });
        api.create(CONFIG_MAPS, &object).await;
    }
    api.delete(&format!("{CONFIG_MAPS}?labelSelector=keep%3Dno"), &json!({}))
        .await;
    let left = api.get(CONFIG_MAPS).await;
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn an_eviction_respects_an_exhausted_budget() {
    let api = Fixture::start();
    let mut running = pod("p");
    running["metadata"]["labels"] = json!({ "app": "a" });
    running["spec"]["nodeName"] = json!("n1");
    api.create(PODS, &running).await;
    api.patch(
        &format!("{PODS}/p/status"),
        MERGE,
        &json!({ "status": { "phase": "Running" } }),
    )
    .await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": { "name": "b" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "a" } } },
    });
    api.create(budgets, &budget).await;
    let allowed = async |count: i64| {
        let status = json!({ "status": { "disruptionsAllowed": count } });
        assert_eq!(
            api.patch(&format!("{budgets}/b/status"), MERGE, &status)
                .await
                .status,
            200
        );
    };
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "p" } });
    allowed(0).await;
    let refused = api.post(&format!("{PODS}/p/eviction"), &eviction).await;
    assert_eq!(
        (refused.status, &refused.body["reason"]),
        (429, &json!("TooManyRequests"))
    );
    allowed(1).await;
    assert_eq!(
        api.post(&format!("{PODS}/p/eviction"), &eviction).await.status,
        201
    );
    assert!(api.get(&format!("{PODS}/p")).await["metadata"]["deletionTimestamp"].is_string());
}
