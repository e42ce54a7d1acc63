//! Discovery, negotiation, tables, paging: what generic clients rely on.

use serde_json::{Value, json};

use crate::{CONFIG_MAPS, DEFINITIONS, Fixture, PODS, SERVICES, WIDGETS, config_map, pod, widget, widgets};

const TABLE: (&str, &str) = (
    "accept",
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
);

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

#[tokio::test]
async fn every_resource_is_discovered_in_both_ways_and_described_by_openapi() {
    let api = Fixture::start();
    api.create(DEFINITIONS, &widgets()).await;
    let accept = (
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    );
    let index = api.get("/openapi/v3").await;
    let mut seen = Vec::new();
    for root in ["/api", "/apis"] {
        let aggregated = api.send("GET", root, &[accept], "").await;
        assert_eq!(
            aggregated.headers["content-type"],
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        );
        for group in aggregated.body["items"].as_array().into_iter().flatten() {
            for version in group["versions"].as_array().into_iter().flatten() {
                let version_name = version["version"].as_str().unwrap_or_default();
                let path = match group["metadata"]["name"].as_str() {
                    None => format!("api/{version_name}"),
                    Some(group) => format!("apis/{group}/{version_name}"),
                };
                let legacy = api.get(&format!("/{path}")).await;
                let schemas = api
                    .get(
                        index["paths"][&path]["serverRelativeURL"]
                            .as_str()
                            .unwrap_or_default(),
                    )
                    .await;
                for resource in version["resources"].as_array().into_iter().flatten() {
                    let row = legacy["resources"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .find(|row| row["name"] == resource["resource"])
                        .unwrap_or_else(|| panic!("{resource} isn't in /{path}"));
                    assert_eq!(
                        (&row["kind"], &row["verbs"], row.get("shortNames")),
                        (
                            &resource["responseKind"]["kind"],
                            &resource["verbs"],
                            resource.get("shortNames")
                        )
                    );
                    let described = schemas["components"]["schemas"]
                        .as_object()
                        .into_iter()
                        .flatten()
                        .any(|(_, schema)| {
                            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
                            kinds
                                .into_iter()
                                .flatten()
                                .any(|kind| *kind == resource["responseKind"])
                        });
                    assert!(described, "{resource} has no schema");
                    seen.push(resource["resource"].as_str().unwrap_or_default().to_owned());
                }
            }
        }
    }
    for resource in [
        "pods",
        "deployments",
        "endpointslices",
        "customresourcedefinitions",
        "widgets",
    ] {
        assert!(
            seen.iter().any(|name| name == resource),
            "{resource} wasn't discovered"
        );
    }
}

#[tokio::test]
async fn the_accept_header_decides_the_form() {
    let api = Fixture::start();
    api.create(PODS, &pod("p")).await;
    let get = async |accept: &str| {
        api.send("GET", &format!("{PODS}/p"), &[("accept", accept)], "")
            .await
    };
    assert_eq!(
        get("application/vnd.kubernetes.protobuf,application/json")
            .await
            .body["kind"],
        "Pod"
    );
    let refused = get("application/vnd.kubernetes.protobuf").await;
    assert_eq!(
        (refused.status, &refused.body["reason"]),
        (406, &json!("NotAcceptable"))
    );
    let partial = get("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
        .await
        .body;
    assert_eq!(
        (&partial["kind"], partial.get("spec")),
        (&json!("PartialObjectMetadata"), None)
    );
    let yaml = get("application/yaml").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(
        yaml.body.as_str().is_some_and(|text| text.contains("kind: Pod")),
        "{}",
        yaml.body
    );
}

#[tokio::test]
async fn yaml_bodies_are_read() {
    let api = Fixture::start();
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: written}\ndata: {a: b}\n";
    let made = api
        .send("POST", CONFIG_MAPS, &[("content-type", "application/yaml")], body)
        .await;
    assert_eq!((made.status, &made.body["data"]), (201, &json!({ "a": "b" })));
    let broken = api
        .send(
            "POST",
            CONFIG_MAPS,
            &[("content-type", "application/yaml")],
            "a: [",
        )
        .await;
    assert_eq!(broken.status, 400);
}

#[tokio::test]
async fn tables_have_the_columns_kubectl_prints() {
    let api = Fixture::start();
    api.create(DEFINITIONS, &widgets()).await;
    api.create(WIDGETS, &widget("w", &json!({ "size": 3 }))).await;
    let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    assert_eq!(
        api.patch(&format!("{WIDGETS}/w/status"), crate::MERGE, &status)
            .await
            .status,
        200
    );
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "s" },
        "spec": { "type": "NodePort", "selector": { "app": "a" }, "ports": [{ "port": 80 }] },
    });
    api.create(SERVICES, &service).await;
    api.create(PODS, &pod("p")).await;
    let table = async |path: &str| {
        let body = api.send("GET", path, &[TABLE], "").await.body;
        let columns: Vec<String> = body["columnDefinitions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|column| column["name"].as_str().map(str::to_owned))
            .collect();
        // Ages change while one looks.
        let cells = body["rows"][0]["cells"].as_array().into_iter().flatten().cloned();
        let cells: Vec<Value> = columns
            .iter()
            .zip(cells)
            .filter(|(column, _)| *column != "Age")
            .map(|(_, cell)| cell)
            .collect();
        (columns.join(" | "), Value::from(cells))
    };
    assert_eq!(
        table(PODS).await,
        (
            "Name | Ready | Status | Restarts | Age | IP | Node | Nominated Node | Readiness Gates"
                .to_owned(),
            json!(["p", "0/1", "Pending", "0", "<none>", "<none>", "<none>", "<none>"])
        )
    );
    assert_eq!(
        table(SERVICES).await,
        (
            "Name | Type | Cluster-IP | External-IP | Port(s) | Age | Selector".to_owned(),
            json!(["s", "NodePort", "10.0.1.1", "<none>", "80:30000/TCP", "app=a"])
        )
    );
    assert_eq!(
        table(WIDGETS).await,
        ("Name | Size | Ready | Age".to_owned(), json!(["w", 3, "True"]))
    );
}

#[tokio::test]
async fn a_chunked_list_shows_one_moment_and_says_when_it_no_longer_can() {
    let api = Fixture::start();
    for name in ["a", "b", "c", "d"] {
        api.create(CONFIG_MAPS, &config_map(name, &json!({}))).await;
    }
    let first = api.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a", "b"], &json!(2))
    );
    let token = first["metadata"]["continue"]
        .as_str()
        .expect("there is more")
        .to_owned();
    api.delete(&format!("{CONFIG_MAPS}/c"), &json!({})).await;
    api.create(CONFIG_MAPS, &config_map("cc", &json!({}))).await;
    let rest = api.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await;
    assert_eq!(
        (
            names(&rest),
            &rest["metadata"]["resourceVersion"],
            rest["metadata"].get("continue")
        ),
        (vec!["c", "d"], &first["metadata"]["resourceVersion"], None)
    );

    api.server.compact();
    let late = api
        .send("GET", &format!("{CONFIG_MAPS}?limit=2&continue={token}"), &[], "")
        .await;
    assert_eq!((late.status, &late.body["reason"]), (410, &json!("Expired")));
    let inconsistent = late.body["metadata"]["continue"]
        .as_str()
        .expect("a way on")
        .to_owned();
    let rest = api
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={inconsistent}"))
        .await;
    assert_eq!(names(&rest), ["cc", "d"]);
}

#[tokio::test]
async fn lists_are_selected_by_labels_fields_and_revisions() {
    let api = Fixture::start();
    for (name, tier) in [("a", "web"), ("b", "db"), ("c", "")] {
        let mut object = pod(name);
        if !tier.is_empty() {
            object["metadata"]["labels"] = json!({ "tier": tier });
        }
        if name == "a" {
            object["spec"]["nodeName"] = json!("n1");
        }
        api.create(PODS, &object).await;
    }
    let list = async |query: &str| {
        let body = api.get(&format!("/api/v1/pods?{query}")).await;
        names(&body).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (query, expected) in [
        ("labelSelector=tier%3Dweb", &["a"][..]),
        ("labelSelector=tier+in+(web,db),tier!%3Ddb", &["a"]),
        ("labelSelector=!tier", &["c"]),
        ("labelSelector=tier", &["a", "b"]),
        ("labelSelector=tier+notin+(web)", &["b", "c"]),
        ("fieldSelector=spec.nodeName%3Dn1", &["a"]),
        ("fieldSelector=spec.nodeName!%3Dn1,metadata.name!%3Db", &["c"]),
        (
            "fieldSelector=status.phase%3DPending,metadata.namespace%3Ddefault",
            &["a", "b", "c"],
        ),
    ] {
        assert_eq!(list(query).await, expected, "{query}");
    }
    let unknown = api
        .send("GET", &format!("{PODS}?fieldSelector=spec.foo%3D1"), &[], "")
        .await;
    assert_eq!(
        (unknown.status, &unknown.body["message"]),
        (400, &json!("field label not supported: spec.foo"))
    );
    let future = format!("{PODS}?resourceVersion={}", api.server.revision() + 100);
    let future = api.send("GET", &future, &[], "").await;
    assert_eq!((future.status, &future.body["reason"]), (504, &json!("Timeout")));
}

#[tokio::test]
async fn faults_refuse_and_recover() {
    let api = Fixture::start();
    api.server.faults().refuse_requests(true);
    let refused = api.send("GET", PODS, &[], "").await;
    assert_eq!(
        (refused.status, &refused.body["reason"]),
        (503, &json!("ServiceUnavailable"))
    );
    api.server.faults().refuse_requests(false);
    assert_eq!(api.send("GET", PODS, &[], "").await.status, 200);
}

#[tokio::test]
async fn shutting_down_ends_watches_and_connections() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let api = Fixture::start();
    let mut stream = tokio::net::TcpStream::connect(api.address)
        .await
        .expect("it listens");
    // A connection that was not accepted yet would be reset by the kernel.
    stream
        .write_all(b"GET /version HTTP/1.1\r\nHost: api\r\n\r\n")
        .await
        .expect("it reads");
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.expect("it answers");
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    api.server.shutdown().await;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("closed in order");
    assert!(tokio::net::TcpStream::connect(api.address).await.is_err());
}
