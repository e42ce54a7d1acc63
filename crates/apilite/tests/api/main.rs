//! The server as its clients meet it: the `kube` client, `kubectl`, plain requests.

mod client;
mod collection;
mod kubectl;
mod kubectl_changes;
mod ownership;
mod protocol;
mod validation;
mod watching;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use weft_apilite::{ApiServer, Builder};

/// A server of its own for one test, on a loopback port.
struct Fixture {
    server: ApiServer,
    address: SocketAddr,
    client: kube::Client,
}

/// Status code, headers and body of an answer.
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Value,
}

// === impl Fixture ===

impl Fixture {
    fn start() -> Self {
        Self::with(ApiServer::builder())
    }

    fn with(builder: Builder) -> Self {
        let server = builder.start().expect("in a runtime");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = server.serve(listener).expect("a listener of loopback");
        let uri = format!("http://{address}").parse().expect("an address is a URI");
        let client = kube::Client::try_from(kube::Config::new(uri)).expect("no TLS to set up");
        Self {
            server,
            address,
            client,
        }
    }

    /// One request in process.
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<String>,
    ) -> Answer {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.into())).expect("a valid request");
        let (parts, body) = self.server.handle(request).await.into_parts();
        let body = body.collect().await.expect("bodies don't fail").to_bytes();
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body).into_owned()));
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    async fn get(&self, path: &str) -> Value {
        self.send("GET", path, &[], "").await.body
    }

    async fn post(&self, path: &str, object: &Value) -> Answer {
        self.send(
            "POST",
            path,
            &[("content-type", "application/json")],
            object.to_string(),
        )
        .await
    }

    /// Creates an object that has to be fine.
    async fn create(&self, path: &str, object: &Value) -> Value {
        let answer = self.post(path, object).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body
    }

    async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send(
            "PUT",
            path,
            &[("content-type", "application/json")],
            object.to_string(),
        )
        .await
    }

    async fn patch(&self, path: &str, kind: &str, patch: &Value) -> Answer {
        self.send("PATCH", path, &[("content-type", kind)], patch.to_string())
            .await
    }

    async fn delete(&self, path: &str, options: &Value) -> Answer {
        self.send(
            "DELETE",
            path,
            &[("content-type", "application/json")],
            options.to_string(),
        )
        .await
    }

    /// Lets the server's own tasks work until a path answers with a given status.
    async fn until_status(&self, path: &str, status: u16) {
        let wait = async {
            while self.send("GET", path, &[], "").await.status != status {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), wait)
            .await
            .unwrap_or_else(|_| panic!("{path} never answered {status}"));
    }
}

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

const PODS: &str = "/api/v1/namespaces/default/pods";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "registry.example/app:1" }] },
    })
}

fn config_map(name: &str, data: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "registry.example/app:1" }] },
            },
        },
    })
}

/// A namespaced custom resource with a status, a scale, columns and a schema that says something.
fn widgets() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": { "plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"] },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": {
                    "status": {},
                    "scale": { "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas" },
                },
                "additionalPrinterColumns": [
                    { "name": "Size", "type": "integer", "jsonPath": ".spec.size" },
                    {
                        "name": "Ready",
                        "type": "string",
                        "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status",
                    },
                    { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
                ],
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "spec": {
                            "type": "object",
                            "required": ["size"],
                            "properties": {
                                "size": { "type": "integer", "minimum": 1, "maximum": 10 },
                                "color": { "type": "string", "enum": ["red", "green"], "default": "red" },
                                "replicas": { "type": "integer" },
                                "cidrs": {
                                    "type": "array",
                                    "maxItems": 2,
                                    "x-kubernetes-list-type": "set",
                                    "items": { "type": "string", "pattern": "^[0-9./]+$" },
                                },
                                "parts": {
                                    "type": "array",
                                    "x-kubernetes-list-type": "map",
                                    "x-kubernetes-list-map-keys": ["name"],
                                    "items": {
                                        "type": "object",
                                        "required": ["name"],
                                        "properties": {
                                            "name": { "type": "string" },
                                            "count": { "type": "integer" },
                                        },
                                    },
                                },
                                "port": { "x-kubernetes-int-or-string": true },
                                "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                            },
                        },
                        "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                    },
                } },
            }],
        },
    })
}

fn widget(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": name }, "spec": spec })
}
