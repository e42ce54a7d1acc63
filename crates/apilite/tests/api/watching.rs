//! Watches, as clients resume and lose them.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::{Value, json};
use weft_apilite::{ApiServer, Body};

use crate::{CONFIG_MAPS, Fixture, MERGE, PODS, config_map, pod};

/// A running watch, read event by event.
struct Events {
    body: Body,
    pending: Vec<u8>,
}

// === impl Events ===

impl Events {
    async fn open(api: &Fixture, path: &str) -> Self {
        Self::open_as(api, path, "application/json").await
    }

    async fn open_as(api: &Fixture, path: &str, accept: &str) -> Self {
        let request = http::Request::get(path)
            .header("accept", accept)
            .body(http_body_util::Full::<bytes::Bytes>::default())
            .expect("a valid request");
        let response = api.server.handle(request).await;
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body(),
            pending: Vec::new(),
        }
    }

    /// The next event; None once the stream has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event is JSON"));
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame());
            let frame = frame
                .await
                .expect("something happens in time")?
                .expect("bodies don't fail");
            self.pending.extend(frame.into_data().expect("data only"));
        }
    }

    /// Type and object's name of the next event.
    async fn step(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

fn step(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_from_a_list_misses_nothing_and_repeats_nothing() {
    let api = Fixture::start();
    api.create(CONFIG_MAPS, &config_map("before", &json!({}))).await;
    let list = api.get(CONFIG_MAPS).await;
    let from = list["metadata"]["resourceVersion"]
        .as_str()
        .expect("lists have versions")
        .to_owned();
    api.create(CONFIG_MAPS, &config_map("a", &json!({}))).await;
    let mut events = Events::open(&api, &format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}")).await;
    assert_eq!(events.step().await, step("ADDED", "a"));
    api.patch(
        &format!("{CONFIG_MAPS}/a"),
        MERGE,
        &json!({ "data": { "k": "v" } }),
    )
    .await;
    assert_eq!(events.step().await, step("MODIFIED", "a"));
    api.delete(&format!("{CONFIG_MAPS}/a"), &json!({})).await;
    let gone = events.next().await.expect("an event");
    assert_eq!(gone["type"], "DELETED");
    // The deletion has a version of its own, from which a client can resume.
    assert_eq!(
        gone["object"]["metadata"]["resourceVersion"],
        api.server.revision().to_string()
    );
}

#[tokio::test]
async fn an_object_that_leaves_the_selection_is_deleted_for_that_watcher() {
    let api = Fixture::start();
    api.create(PODS, &pod("p")).await;
    let path = format!(
        "{PODS}?watch=1&resourceVersion={}&fieldSelector=spec.nodeName%3Dn1",
        api.server.revision()
    );
    let mut events = Events::open(&api, &path).await;
    let label = format!(
        "{PODS}?watch=1&resourceVersion={}&labelSelector=a%3Db",
        api.server.revision()
    );
    let mut labelled = Events::open(&api, &label).await;
    let binding = json!({ "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n1" } });
    api.post(&format!("{PODS}/p/binding"), &binding).await;
    assert_eq!(events.step().await, step("ADDED", "p"));
    let labels = |labels: Value| json!({ "metadata": { "labels": labels } });
    api.patch(&format!("{PODS}/p"), MERGE, &labels(json!({ "a": "b" })))
        .await;
    assert_eq!(labelled.step().await, step("ADDED", "p"));
    api.patch(&format!("{PODS}/p"), MERGE, &labels(json!({ "a": "c" })))
        .await;
    assert_eq!(labelled.step().await, step("DELETED", "p"));
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let api = Fixture::start();
    api.create(CONFIG_MAPS, &config_map("a", &json!({}))).await;
    for version in ["", "&resourceVersion=0"] {
        let mut events = Events::open(&api, &format!("{CONFIG_MAPS}?watch=true{version}")).await;
        assert_eq!(events.step().await, step("ADDED", "a"));
    }
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_bookmark() {
    let api = Fixture::start();
    for name in ["a", "b"] {
        api.create(CONFIG_MAPS, &config_map(name, &json!({}))).await;
    }
    let path = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut events = Events::open(&api, &path).await;
    assert_eq!(events.step().await, step("ADDED", "a"));
    assert_eq!(events.step().await, step("ADDED", "b"));
    let end = events.next().await.expect("a bookmark");
    assert_eq!(
        (
            &end["type"],
            &end["object"]["metadata"]["annotations"],
            &end["object"]["metadata"]["resourceVersion"]
        ),
        (
            &json!("BOOKMARK"),
            &json!({ "k8s.io/initial-events-end": "true" }),
            &json!(api.server.revision().to_string())
        )
    );
    api.create(CONFIG_MAPS, &config_map("c", &json!({}))).await;
    assert_eq!(events.step().await, step("ADDED", "c"));

    let wrong = format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true");
    let refused = api.send("GET", &wrong, &[], "").await;
    assert_eq!(
        refused.body["message"],
        "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
    );
}

#[tokio::test]
async fn bookmarks_carry_the_newest_version_over_quiet_times() {
    let api = Fixture::with(ApiServer::builder().bookmark_interval(Duration::from_millis(20)));
    let from = api.server.revision();
    let path = format!("{PODS}?watch=1&allowWatchBookmarks=true&resourceVersion={from}");
    let mut events = Events::open(&api, &path).await;
    // Something else changes.
    api.create(CONFIG_MAPS, &config_map("a", &json!({}))).await;
    let newest = api.server.revision();
    let reached = loop {
        let event = events.next().await.expect("a bookmark");
        assert_eq!(
            (&event["type"], &event["object"]["kind"]),
            (&json!("BOOKMARK"), &json!("Pod"))
        );
        let version = event["object"]["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|text| text.parse().ok());
        if version >= Some(newest) {
            break version;
        }
    };
    assert_eq!(reached, Some(newest));
}

#[tokio::test]
async fn a_version_that_was_compacted_is_gone() {
    let api = Fixture::with(ApiServer::builder().watch_window(2));
    let from = api.server.revision();
    for name in ["a", "b", "c", "d"] {
        api.create(CONFIG_MAPS, &config_map(name, &json!({}))).await;
    }
    let mut events = Events::open(&api, &format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}")).await;
    let error = events.next().await.expect("an error");
    assert_eq!(
        (
            &error["type"],
            &error["object"]["code"],
            &error["object"]["reason"],
            &error["object"]["message"]
        ),
        (
            &json!("ERROR"),
            &json!(410),
            &json!("Expired"),
            &json!(format!("too old resource version: {from} ({})", from + 2))
        )
    );
    assert_eq!(events.next().await, None);
    // What the window still holds can be resumed from.
    let mut events = Events::open(
        &api,
        &format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", from + 2),
    )
    .await;
    assert_eq!(events.step().await, step("ADDED", "c"));
}

#[tokio::test]
async fn faults_end_watches_with_and_without_a_word() {
    let api = Fixture::start();
    let path = format!("{PODS}?watch=1&resourceVersion={}", api.server.revision());
    let mut expired = Events::open(&api, &path).await;
    api.server.faults().expire_watches();
    assert_eq!(expired.next().await.expect("an error")["object"]["code"], 410);
    assert_eq!(expired.next().await, None);
    let mut cut = Events::open(&api, &path).await;
    api.server.faults().cut_watches();
    assert_eq!(cut.next().await, None);
}

#[tokio::test]
async fn a_watch_lasts_as_long_as_it_was_asked_to() {
    let api = Fixture::start();
    let mut events = Events::open(
        &api,
        &format!(
            "{PODS}?watch=1&timeoutSeconds=1&resourceVersion={}",
            api.server.revision()
        ),
    )
    .await;
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_table_watch_names_its_columns_once() {
    let api = Fixture::start();
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = format!("{PODS}?watch=1&resourceVersion={}", api.server.revision());
    let mut events = Events::open_as(&api, &path, table).await;
    for name in ["a", "b"] {
        api.create(PODS, &pod(name)).await;
    }
    let (first, second) = (
        events.next().await.expect("one"),
        events.next().await.expect("two"),
    );
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    assert_eq!(second["object"]["columnDefinitions"], Value::Null);
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn a_restored_past_is_told_to_watchers_by_an_expiry_and_by_new_revisions() {
    let api = Fixture::start();
    let service = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"clusterIP": "10.0.0.9", "ports": [{"port": 80}]},
        })
    };
    let services = "/api/v1/namespaces/default/services";
    api.create(CONFIG_MAPS, &config_map("kept", &json!({"k": "then"})))
        .await;
    api.create(CONFIG_MAPS, &config_map("deleted", &json!({}))).await;
    let then = api.server.revision();
    api.patch(
        &format!("{CONFIG_MAPS}/kept"),
        MERGE,
        &json!({"data": {"k": "now"}}),
    )
    .await;
    api.delete(&format!("{CONFIG_MAPS}/deleted"), &json!({})).await;
    api.create(CONFIG_MAPS, &config_map("made", &json!({}))).await;
    api.create(services, &service("made")).await;
    let now = api.server.revision();
    let mut events = Events::open(&api, &format!("{CONFIG_MAPS}?watch=1&resourceVersion={now}")).await;

    assert_eq!(
        api.server.rewind(now + 1),
        Err(weft_apilite::RewindError::Future { current: now })
    );
    api.server.rewind(then).unwrap();
    let list = api.get(CONFIG_MAPS).await;
    let items: Vec<_> = list["items"].as_array().unwrap().iter().collect();
    let shown: Vec<_> = items
        .iter()
        .map(|item| (item["metadata"]["name"].as_str().unwrap(), &item["data"]["k"]))
        .collect();
    assert_eq!(shown, [("deleted", &Value::Null), ("kept", &json!("then"))]);
    // No client has seen this version, and the one it saw last can't be resumed from.
    let version: u64 = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(version > now);
    let event = events.next().await.expect("the watch says that it is over");
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(events.next().await, None);
    // The address of the Service that never was is free.
    api.create(services, &service("other")).await;
    assert_eq!(
        api.server.rewind(then),
        Err(weft_apilite::RewindError::Compacted { oldest: version })
    );
}
