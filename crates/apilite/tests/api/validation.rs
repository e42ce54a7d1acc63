//! What is refused, and in which words.

use serde_json::{Value, json};

use crate::{
    CONFIG_MAPS, DEFINITIONS, DEPLOYMENTS, Fixture, PODS, SERVICES, WIDGETS, config_map, deployment, pod,
    widget, widgets,
};

/// A change to a valid object, and the causes of the 422 that it earns: (reason, field, message).
struct Case {
    path: &'static str,
    object: Value,
    causes: &'static [(&'static str, &'static str, &'static str)],
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    object.pointer_mut(parent).expect("the parent is there")[field] = value;
    object
}

fn service(spec: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s" }, "spec": spec })
}

fn policy(rule: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "p" },
        "spec": { "podSelector": {}, "ingress": [rule] },
    })
}

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";

fn cases() -> Vec<Case> {
    let port = |port: Value| with(pod("p"), "/spec/containers/0/ports", json!([port]));
    vec![
        Case {
            path: PODS,
            object: with(pod("p"), "/metadata/name", json!("Upper_case")),
            causes: &[(
                "FieldValueInvalid",
                "metadata.name",
                "Invalid value: \"Upper_case\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            )],
        },
        Case {
            path: PODS,
            object: with(pod("p"), "/metadata", json!({})),
            causes: &[(
                "FieldValueRequired",
                "metadata.name",
                "Required value: name or generateName is required",
            )],
        },
        Case {
            path: PODS,
            object: with(pod("p"), "/metadata/labels", json!({ "a": "-b" })),
            causes: &[(
                "FieldValueInvalid",
                "metadata.labels",
                "Invalid value: \"-b\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            )],
        },
        Case {
            path: PODS,
            object: with(pod("p"), "/spec/containers", json!([])),
            causes: &[("FieldValueRequired", "spec.containers", "Required value")],
        },
        Case {
            path: PODS,
            object: with(
                pod("p"),
                "/spec/containers",
                json!([{ "name": "c" }, { "name": "c", "image": "i" }]),
            ),
            causes: &[
                ("FieldValueRequired", "spec.containers[0].image", "Required value"),
                (
                    "FieldValueDuplicate",
                    "spec.containers[1].name",
                    "Duplicate value: \"c\"",
                ),
            ],
        },
        Case {
            path: PODS,
            object: port(json!({ "containerPort": 70_000 })),
            causes: &[(
                "FieldValueInvalid",
                "spec.containers[0].ports[0].containerPort",
                "Invalid value: 70000: must be between 1 and 65535, inclusive",
            )],
        },
        Case {
            path: PODS,
            object: port(json!({ "containerPort": 80, "protocol": "tcp" })),
            causes: &[(
                "FieldValueNotSupported",
                "spec.containers[0].ports[0].protocol",
                "Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            )],
        },
        Case {
            path: PODS,
            object: with(
                pod("p"),
                "/spec/containers/0/resources",
                json!({ "requests": { "cpu": "2" }, "limits": { "cpu": "1" } }),
            ),
            causes: &[(
                "FieldValueInvalid",
                "spec.containers[0].resources.requests",
                "Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            )],
        },
        Case {
            path: PODS,
            object: with(
                pod("p"),
                "/spec/containers/0/volumeMounts",
                json!([{ "name": "data", "mountPath": "/data" }]),
            ),
            causes: &[(
                "FieldValueNotFound",
                "spec.containers[0].volumeMounts[0].name",
                "Not found: \"data\"",
            )],
        },
        Case {
            path: DEPLOYMENTS,
            object: with(
                deployment("d", 1),
                "/spec/template/metadata/labels",
                json!({ "app": "other" }),
            ),
            causes: &[(
                "FieldValueInvalid",
                "spec.template.metadata.labels",
                "Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`",
            )],
        },
        Case {
            path: DEPLOYMENTS,
            object: deployment("d", -1),
            causes: &[(
                "FieldValueInvalid",
                "spec.replicas",
                "Invalid value: -1: must be greater than or equal to 0",
            )],
        },
        Case {
            path: DEPLOYMENTS,
            object: with(deployment("d", 1), "/spec/selector", Value::Null),
            causes: &[("FieldValueRequired", "spec.selector", "Required value")],
        },
        Case {
            path: DEPLOYMENTS,
            object: with(
                deployment("d", 1),
                "/spec/template/spec/restartPolicy",
                json!("Never"),
            ),
            causes: &[(
                "FieldValueNotSupported",
                "spec.template.spec.restartPolicy",
                "Unsupported value: \"Never\": supported values: \"Always\"",
            )],
        },
        Case {
            path: JOBS,
            object: json!({
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": { "name": "j" },
                "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
            }),
            causes: &[(
                "FieldValueRequired",
                "spec.template.spec.restartPolicy",
                "Required value: valid values: \"OnFailure\", \"Never\"",
            )],
        },
        Case {
            path: SERVICES,
            object: service(&json!({})),
            causes: &[("FieldValueRequired", "spec.ports", "Required value")],
        },
        Case {
            path: SERVICES,
            object: service(&json!({ "ports": [{ "port": 0 }] })),
            causes: &[
                (
                    "FieldValueInvalid",
                    "spec.ports[0].port",
                    "Invalid value: 0: must be between 1 and 65535, inclusive",
                ),
                (
                    "FieldValueInvalid",
                    "spec.ports[0].targetPort",
                    "Invalid value: 0: must be between 1 and 65535, inclusive",
                ),
            ],
        },
        Case {
            path: SERVICES,
            object: service(&json!({ "clusterIP": "192.168.1.1", "ports": [{ "port": 80 }] })),
            causes: &[(
                "FieldValueInvalid",
                "spec.clusterIPs",
                "Invalid value: [\"192.168.1.1\"]: failed to allocate IP 192.168.1.1: the provided IP (192.168.1.1) is not in the valid range. The range of valid IPs is 10.0.0.0/16",
            )],
        },
        Case {
            path: SERVICES,
            object: service(&json!({ "ports": [{ "port": 80, "nodePort": 30_080 }] })),
            causes: &[(
                "FieldValueForbidden",
                "spec.ports[0].nodePort",
                "Forbidden: may not be used when `type` is 'ClusterIP'",
            )],
        },
        Case {
            path: POLICIES,
            object: policy(&json!({ "from": [{ "ipBlock": { "cidr": "10.0.0.0" } }] })),
            causes: &[(
                "FieldValueInvalid",
                "spec.ingress[0].from[0].ipBlock.cidr",
                "Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            )],
        },
        Case {
            path: POLICIES,
            object: policy(&json!({
                "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "11.0.0.0/16"] } }],
            })),
            causes: &[
                (
                    "FieldValueInvalid",
                    "spec.ingress[0].from[0].ipBlock.except[0]",
                    "Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                ),
                (
                    "FieldValueInvalid",
                    "spec.ingress[0].from[0].ipBlock.except[1]",
                    "Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                ),
            ],
        },
        Case {
            path: POLICIES,
            object: policy(
                &json!({ "from": [{ "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } }, {}] }),
            ),
            causes: &[
                (
                    "FieldValueForbidden",
                    "spec.ingress[0].from[0]",
                    "Forbidden: may not specify both ipBlock and another peer",
                ),
                (
                    "FieldValueRequired",
                    "spec.ingress[0].from[1]",
                    "Required value: must specify a peer",
                ),
            ],
        },
        Case {
            path: POLICIES,
            object: policy(&json!({ "ports": [{ "port": 90, "endPort": 80 }] })),
            causes: &[(
                "FieldValueInvalid",
                "spec.ingress[0].ports[0].endPort",
                "Invalid value: 80: must be greater than or equal to `port`",
            )],
        },
        Case {
            path: CONFIG_MAPS,
            object: config_map("c", &json!({ "a b": "c" })),
            causes: &[(
                "FieldValueInvalid",
                "data[a b]",
                "Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            )],
        },
        Case {
            path: WIDGETS,
            object: widget(
                "w",
                &json!({ "size": 30, "color": "blue", "cidrs": ["a", "a"], "port": true }),
            ),
            causes: &[
                ("FieldValueDuplicate", "spec.cidrs[1]", "Duplicate value: \"a\""),
                (
                    "FieldValueInvalid",
                    "spec.cidrs[0]",
                    "Invalid value: \"a\": spec.cidrs[0] in body should match '^[0-9./]+$'",
                ),
                (
                    "FieldValueInvalid",
                    "spec.cidrs[1]",
                    "Invalid value: \"a\": spec.cidrs[1] in body should match '^[0-9./]+$'",
                ),
                (
                    "FieldValueNotSupported",
                    "spec.color",
                    "Unsupported value: \"blue\": supported values: \"red\", \"green\"",
                ),
                (
                    "FieldValueTypeInvalid",
                    "spec.port",
                    "Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
                ),
                (
                    "FieldValueInvalid",
                    "spec.size",
                    "Invalid value: 30: spec.size in body should be less than or equal to 10",
                ),
            ],
        },
        Case {
            path: WIDGETS,
            object: widget("w", &json!({ "parts": [{ "count": 1 }] })),
            causes: &[
                ("FieldValueRequired", "spec.size", "Required value"),
                ("FieldValueRequired", "spec.parts[0].name", "Required value"),
            ],
        },
        Case {
            path: DEFINITIONS,
            object: with(widgets(), "/metadata/name", json!("gadgets.example.com")),
            causes: &[(
                "FieldValueInvalid",
                "metadata.name",
                "Invalid value: \"gadgets.example.com\": must be spec.names.plural+\".\"+spec.group",
            )],
        },
    ]
}

#[tokio::test]
async fn an_invalid_object_is_refused_with_every_cause_and_not_stored() {
    let api = Fixture::start();
    api.create(DEFINITIONS, &widgets()).await;
    let before = api.server.revision();
    for case in cases() {
        let answer = api.post(case.path, &case.object).await;
        let (status, body) = (answer.status, answer.body);
        let causes: Vec<(&str, &str, &str)> = body["details"]["causes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|cause| {
                let text = |field: &str| cause[field].as_str().unwrap_or_default();
                (text("reason"), text("field"), text("message"))
            })
            .collect();
        assert_eq!(
            (status, causes.as_slice()),
            (422, case.causes),
            "{}: {body}",
            case.object
        );
        assert_eq!((&body["reason"], &body["code"]), (&json!("Invalid"), &json!(422)));
    }
    assert_eq!(api.server.revision(), before);
}

#[tokio::test]
async fn one_problem_and_several_read_as_with_the_real_server() {
    let api = Fixture::start();
    let message = |body: Value| body["message"].as_str().unwrap_or_default().to_owned();
    let one = api
        .post(PODS, &with(pod("p"), "/spec/containers", json!([])))
        .await;
    assert_eq!(
        message(one.body),
        "Pod \"p\" is invalid: spec.containers: Required value"
    );
    let two = api
        .post(
            DEPLOYMENTS,
            &with(deployment("d", -1), "/spec/selector", Value::Null),
        )
        .await;
    assert_eq!(
        message(two.body),
        "Deployment.apps \"d\" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.selector: Required value]"
    );
}

#[tokio::test]
async fn unknown_repeated_and_mistyped_fields_are_handled_as_asked() {
    let api = Fixture::start();
    let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"replicas":1,"replicas":2,"foo":1,
        "selector":{"matchLabels":{"app":"d"}},"template":{"metadata":{"labels":{"app":"d"}},
        "spec":{"containers":[{"name":"c","image":"i","bar":true}]}}}}"#;
    let send = async |validation: &str| {
        let path = format!("{DEPLOYMENTS}?fieldValidation={validation}&dryRun=All");
        api.send("POST", &path, &[("content-type", "application/json")], body)
            .await
    };
    let strict = send("Strict").await;
    assert_eq!(strict.status, 400);
    assert_eq!(
        strict.body["message"],
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: duplicate field \"spec.replicas\", unknown field \"spec.foo\", unknown field \"spec.template.spec.containers[0].bar\""
    );
    let warned = send("Warn").await;
    let warnings: Vec<&str> = warned
        .headers
        .get_all("warning")
        .iter()
        .map(|value| value.to_str().unwrap_or_default())
        .collect();
    assert_eq!(
        (warned.status, warnings.as_slice()),
        (
            201,
            &[
                "299 - \"duplicate field \\\"spec.replicas\\\"\"",
                "299 - \"unknown field \\\"spec.foo\\\"\"",
                "299 - \"unknown field \\\"spec.template.spec.containers[0].bar\\\"\"",
            ][..]
        )
    );
    assert_eq!(
        (&warned.body["spec"]["replicas"], warned.body["spec"].get("foo")),
        (&json!(2), None)
    );
    let ignored = send("Ignore").await;
    assert_eq!((ignored.status, ignored.headers.get("warning")), (201, None));

    let mistyped = with(deployment("d", 1), "/spec/replicas", json!("one"));
    let answer = api.post(DEPLOYMENTS, &mistyped).await;
    assert_eq!(
        (answer.status, answer.body["message"].as_str()),
        (
            400,
            Some(
                "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
            )
        )
    );
}

#[tokio::test]
async fn bodies_that_are_no_objects_of_the_resource_are_bad_requests() {
    let api = Fixture::start();
    let post = async |body: &str| {
        api.send("POST", PODS, &[("content-type", "application/json")], body)
            .await
    };
    for body in ["{", "", "[]", "\"text\""] {
        let answer = post(body).await;
        assert_eq!(
            (answer.status, &answer.body["reason"]),
            (400, &json!("BadRequest")),
            "{body:?}"
        );
    }
    let wrong_kind = api.post(PODS, &deployment("d", 1)).await;
    assert_eq!(
        wrong_kind.body["message"],
        "the API version in the data (apps/v1) does not match the expected API version (v1)"
    );
    let text = api
        .send(
            "POST",
            PODS,
            &[("content-type", "text/plain")],
            pod("p").to_string(),
        )
        .await;
    assert_eq!(
        (text.status, &text.body["reason"]),
        (415, &json!("UnsupportedMediaType"))
    );
    let elsewhere = with(pod("p"), "/metadata/namespace", json!("kube-system"));
    assert_eq!(
        api.post(PODS, &elsewhere).await.body["message"],
        "the namespace of the provided object does not match the namespace sent on the request"
    );
    let nowhere = api.post("/api/v1/namespaces/none/pods", &pod("p")).await;
    assert_eq!(
        (nowhere.status, &nowhere.body["message"]),
        (404, &json!("namespaces \"none\" not found"))
    );
}

#[tokio::test]
async fn what_is_immutable_stays() {
    let api = Fixture::start();
    api.create(PODS, &pod("p")).await;
    api.create(DEPLOYMENTS, &deployment("d", 1)).await;
    api.create(SERVICES, &service(&json!({ "ports": [{ "port": 80 }] })))
        .await;
    let refused = async |path: String, patch: Value| {
        let answer = api.patch(&path, crate::MERGE, &patch).await;
        assert_eq!(answer.status, 422, "{}", answer.body);
        answer.body["details"]["causes"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let pod_spec = refused(format!("{PODS}/p"), json!({ "spec": { "hostNetwork": true } })).await;
    assert!(
        pod_spec.starts_with("Forbidden: pod updates may not change fields other than"),
        "{pod_spec}"
    );
    assert_eq!(
        refused(format!("{PODS}/p"), json!({ "spec": { "nodeName": "n" } })).await,
        pod_spec
    );
    let image = json!({ "spec": { "containers": [{ "name": "c", "image": "registry.example/app:2" }] } });
    assert_eq!(
        api.patch(&format!("{PODS}/p"), crate::STRATEGIC, &image)
            .await
            .status,
        200
    );
    assert_eq!(
        refused(
            format!("{DEPLOYMENTS}/d"),
            json!({ "spec": {
                "selector": { "matchLabels": { "a": "b" } },
                "template": { "metadata": { "labels": { "a": "b" } } },
            } })
        )
        .await,
        "Invalid value: {\"matchLabels\":{\"a\":\"b\",\"app\":\"d\"}}: field is immutable"
    );
    assert_eq!(
        refused(
            format!("{SERVICES}/s"),
            json!({ "spec": { "clusterIP": "10.0.9.9", "clusterIPs": ["10.0.9.9"] } })
        )
        .await,
        "Invalid value: [\"10.0.9.9\"]: may not change once set"
    );
}
