//! What the API server refuses: the CRDs' rules, and the chart's ValidatingAdmissionPolicies, on a real kube-apiserver.

mod support;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use weft_api::{NodeNetwork, NodeSlice, PodPool, PodPoolSpec};
use weft_model::UserError;

use support::{ApiServer, message, table};

fn pool(name: &str, spec: &Value) -> PodPool {
    // The server's defaults are the type's, so that reading it first changes nothing.
    PodPool::new(name, serde_json::from_value::<PodPoolSpec>(spec.clone()).unwrap())
}

async fn refusal(api: &Api<PodPool>, pool: &PodPool) -> Option<String> {
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    api.create(&dry, pool).await.err().map(|error| message(&error))
}

#[tokio::test]
async fn what_can_never_work_is_refused_by_server_and_parser_in_the_same_words() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let pools: Api<PodPool> = Api::all(server.client.clone());
    for (spec, field, sentence) in table::bad() {
        let pool = pool("bad", &spec);
        let refused = refusal(&pools, &pool).await;
        let refused = refused.unwrap_or_else(|| panic!("the API server accepts {spec}"));
        assert!(
            refused.contains(&format!("{field}: Invalid value")) && refused.contains(sentence),
            "{spec}: the API server says {refused}"
        );
        let parsed = UserError::from(pool.spec.ranges().expect_err("the parser accepts it"));
        let said = parsed.message();
        assert!(
            said.starts_with(field) && said.contains(sentence),
            "{spec}: the parser says {said}"
        );
    }
    for (spec, said) in table::bad_by_schema() {
        let pool = pool("bad", &spec);
        let refused = refusal(&pools, &pool).await.unwrap_or_default();
        assert!(refused.contains(said), "{spec}: the API server says {refused:?}");
        assert!(pool.spec.ranges().is_err(), "{spec}: the parser accepts it");
    }
    for spec in table::good() {
        let pool = pool("good", &spec);
        assert_eq!(refusal(&pools, &pool).await, None, "{spec}");
        assert_eq!(pool.spec.ranges().err(), None, "{spec}");
    }
}

#[tokio::test]
async fn server_and_parser_agree_on_whatever_is_put_together() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let pools: Api<PodPool> = Api::all(server.client.clone());
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..600 {
        let spec = table::any(seed);
        let pool = pool("any", &spec);
        let server = refusal(&pools, &pool).await;
        let parser = pool.spec.ranges();
        assert_eq!(
            server.is_none(),
            parser.is_ok(),
            "{spec}: the API server says {server:?}, the parser {parser:?}"
        );
        *(if parser.is_ok() {
            &mut accepted
        } else {
            &mut refused
        }) += 1;
    }
    assert!(
        accepted > 50 && refused > 50,
        "{accepted} accepted, {refused} refused: the generator is lopsided"
    );
}

#[tokio::test]
async fn a_range_that_nodes_have_blocks_of_stays_until_it_is_drained() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let pools: Api<PodPool> = Api::all(server.client.clone());
    let spec = json!({"cidrs": ["10.244.0.0/16", "10.245.0.0/16", "10.246.0.0/23"]});
    pools
        .create(&PostParams::default(), &pool("p", &spec))
        .await
        .unwrap();
    let used = |allocated: u32| {
        json!({"status": {"capacity": 514, "allocated": allocated, "ranges": [
            {"cidr": "10.244.0.0/16", "capacity": 256, "allocated": allocated},
            {"cidr": "10.245.0.0/16", "capacity": 256, "allocated": 0},
            {"cidr": "10.246.0.0/23", "capacity": 2, "allocated": 0},
        ]}})
    };
    let status = |allocated| Patch::Merge(used(allocated));
    pools
        .patch_status("p", &PatchParams::default(), &status(3))
        .await
        .unwrap();

    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let change = async |spec: Value| {
        let changed = pools.patch("p", &dry, &Patch::Merge(json!({"spec": spec}))).await;
        changed.err().map(|error| message(&error))
    };
    let in_use = "spec.cidrs: Invalid value: 10.244.0.0/16 is in use: 3 of its blocks belong to nodes; keep it in \
                  spec.cidrs, put it into spec.retiring and drain it until status.ranges counts 0";
    for cidrs in [
        json!(["10.245.0.0/16"]),
        json!(["10.244.0.0/17"]),
        json!(["10.244.0.0/17", "10.244.128.0/18"]),
        // Cut up, but through the middle of blocks.
        json!([
            "10.244.0.0/17",
            "10.244.128.0/18",
            "10.244.192.0/19",
            "10.244.224.0/20",
            "10.244.240.0/21",
            "10.244.248.0/22",
            "10.244.252.0/23",
            "10.244.254.0/24",
            "10.244.255.0/25",
            "10.244.255.128/25"
        ]),
    ] {
        let refused = change(json!({"cidrs": cidrs})).await.unwrap_or_default();
        assert!(refused.contains(in_use), "{cidrs}: {refused:?}");
    }
    for spec in [
        json!({"cidrs": ["10.244.0.0/16"]}),
        json!({"cidrs": ["10.244.0.0/15"]}),
        json!({"cidrs": ["10.244.0.0/17", "10.244.128.0/17"], "retiring": ["10.244.128.0/17"]}),
        json!({"cidrs": ["10.244.0.0/16", "10.9.0.0/16"], "retiring": ["10.244.0.0/16"]}),
        json!({"blockSize": 26}),
    ] {
        assert_eq!(change(spec.clone()).await, None, "{spec}");
    }
    let refused = change(json!({"ipam": "node"})).await.unwrap_or_default();
    assert!(
        refused.contains(
            "spec.ipam: Invalid value: ipam can't become node while 3 blocks of the pool belong to nodes"
        ),
        "{refused:?}"
    );

    pools
        .patch_status("p", &PatchParams::default(), &status(0))
        .await
        .unwrap();
    assert_eq!(change(json!({"cidrs": ["10.245.0.0/16"]})).await, None);
    assert_eq!(change(json!({"ipam": "node"})).await, None);
}

#[tokio::test]
async fn an_agent_writes_the_status_of_its_own_node_and_nothing_else() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    server.apply_template("admission-agent.yaml");
    // All rights, so that it is the policy that refuses and not RBAC.
    server.kubectl(
        &[
            "create",
            "clusterrolebinding",
            "all",
            "--clusterrole=cluster-admin",
            "--serviceaccount=weft-system:weft-agent",
        ],
        "",
    );
    let networks: Api<NodeNetwork> = Api::all(server.client.clone());
    for node in ["n1", "n2"] {
        server.kubectl(
            &["create", "-f", "-"],
            &json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
            })
            .to_string(),
        );
        let network = json!({"nodeUID": format!("uid-{node}")});
        networks
            .create(
                &PostParams::default(),
                &NodeNetwork::new(node, serde_json::from_value(network).unwrap()),
            )
            .await
            .unwrap();
    }
    let allocation = json!({"status": {"allocation": {
        "type": "BlocksGranted", "status": "True", "reason": "Granted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }}});
    networks
        .patch_status("n1", &PatchParams::default(), &Patch::Merge(&allocation))
        .await
        .unwrap();
    let agent = server.with_token(&token(&server.client, Some("n1")).await);
    let unbound = server.with_token(&token(&server.client, None).await);
    let write = async |client: &Client, node: &str, status: Value| {
        let networks: Api<NodeNetwork> = Api::all(client.clone());
        let patch = Patch::Merge(json!({"status": status}));
        let written = networks.patch_status(node, &PatchParams::default(), &patch).await;
        written.err().map(|error| message(&error))
    };
    // A policy is in force some moments after it is made.
    while write(&unbound, "n1", json!({"mtu": 1400})).await.is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    assert_eq!(write(&agent, "n1", json!({"mtu": 1450})).await, None);
    let refused = write(&agent, "n2", json!({"mtu": 1450}))
        .await
        .unwrap_or_default();
    assert!(
        refused.contains("the token is of node n1, the object is n2"),
        "{refused:?}"
    );
    let refused = write(&unbound, "n1", json!({"mtu": 1450}))
        .await
        .unwrap_or_default();
    assert!(
        refused.contains("the token is bound to no node, the object is n1"),
        "{refused:?}"
    );
    for changed in [
        json!({"allocation": null}),
        json!({"allocation": {"status": "False"}}),
    ] {
        let refused = write(&agent, "n1", changed).await.unwrap_or_default();
        assert!(
            refused.contains("status.allocation is written by weft-operator"),
            "{refused:?}"
        );
    }

    let networks: Api<NodeNetwork> = Api::all(agent.clone());
    let blocks = Patch::Merge(json!({"spec": {"blocks": [{"cidr": "10.244.0.0/24", "pool": "default"}]}}));
    let pools: Api<PodPool> = Api::all(agent.clone());
    let new_pool = pool("p", &json!({"cidrs": ["10.244.0.0/16"]}));
    for (what, tried) in [
        (
            "UPDATE nodenetworks",
            networks
                .patch("n1", &PatchParams::default(), &blocks)
                .await
                .map(drop),
        ),
        (
            "DELETE nodenetworks",
            networks.delete("n1", &DeleteParams::default()).await.map(drop),
        ),
        (
            "CREATE podpools",
            pools.create(&PostParams::default(), &new_pool).await.map(drop),
        ),
    ] {
        let refused = message(&tried.unwrap_err());
        let said = format!("weft-agent may UPDATE nodenetworks/status and nothing else, not {what}");
        assert!(refused.contains(&said), "{refused:?}");
    }
    // The operator and people are not judged by it.
    assert_eq!(write(&server.client, "n2", json!({"mtu": 1450})).await, None);
}

#[tokio::test]
async fn the_operator_changes_one_taint_and_one_condition_of_a_node_and_nothing_else() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    server.apply_template("admission-operator.yaml");
    // All rights, so that it is the policy that refuses and not RBAC.
    server.kubectl(
        &[
            "create",
            "clusterrolebinding",
            "all",
            "--clusterrole=cluster-admin",
            "--serviceaccount=weft-system:weft-operator",
        ],
        "",
    );
    let nodes: Api<Node> = Api::all(server.client.clone());
    let node = json!({
        "metadata": {"name": "n1", "labels": {"zone": "a"}},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"], "taints": [
            {"key": "other", "effect": "NoExecute"},
            {"key": "weft.dev/agent-not-ready", "effect": "NoSchedule"},
        ]},
    });
    let node: Node = serde_json::from_value(node).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "10.224.0.4"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    nodes
        .patch_status("n1", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();

    let operator = server.with_token(&bound_token(&server.client, "weft-operator", None).await);
    let nodes: Api<Node> = Api::all(operator);
    let write = async |status: bool, change: Value| {
        let params = PatchParams::default();
        let written = if status {
            nodes.patch_status("n1", &params, &Patch::Strategic(change)).await
        } else {
            nodes.patch("n1", &params, &Patch::Merge(change)).await
        };
        written.err().map(|error| message(&error))
    };
    // A policy is in force some moments after it is made.
    let mut attempts = 0;
    while write(
        false,
        json!({"metadata": {"annotations": {"attempt": attempts.to_string()}}}),
    )
    .await
    .is_none()
    {
        attempts += 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    let other = json!({"key": "other", "effect": "NoExecute"});
    let ours = json!({"key": "weft.dev/agent-not-ready", "effect": "NoSchedule"});
    // The server's own, of a new node.
    let new = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    for taints in [
        json!([other, new]),
        json!([other, new, ours]),
        json!([ours, other, new]),
    ] {
        assert_eq!(
            write(false, json!({"spec": {"taints": taints}})).await,
            None,
            "{taints}"
        );
    }
    for status in ["True", "False"] {
        let condition = json!({"type": "NetworkUnavailable", "status": status, "reason": "WeftReady"});
        let change = json!({"status": {"conditions": [condition]}});
        assert_eq!(write(true, change).await, None);
    }
    for (status, change, said) in [
        (
            false,
            json!({"spec": {"unschedulable": true}}),
            "of a Node's spec weft-operator may change the taint weft.dev/agent-not-ready and nothing else",
        ),
        (
            false,
            json!({"spec": {"providerID": "x"}}),
            "of a Node's spec weft-operator may change the taint",
        ),
        (
            false,
            json!({"spec": {"taints": [ours, new]}}),
            "of a Node's taints weft-operator may change weft.dev/agent-not-ready and no other",
        ),
        (
            false,
            json!({"spec": {"taints": [ours, {"key": "other", "effect": "NoSchedule"}, new]}}),
            "of a Node's taints",
        ),
        (
            false,
            json!({"metadata": {"labels": {"zone": "b"}}}),
            "weft-operator may not change a Node's metadata",
        ),
        (
            true,
            json!({"metadata": {"annotations": {"a": "b"}}}),
            "weft-operator may not change a Node's metadata",
        ),
        (
            true,
            json!({"status": {"capacity": {"cpu": "64"}}}),
            "of a Node's status weft-operator may change the condition NetworkUnavailable and nothing else",
        ),
        (
            true,
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.224.0.9"}]}}),
            "of a Node's status",
        ),
        (
            true,
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
            "of a Node's conditions weft-operator may change NetworkUnavailable and no other",
        ),
    ] {
        let refused = write(status, change.clone()).await.unwrap_or_default();
        assert!(refused.contains(said), "{change}: {refused:?}");
    }
    let refused = nodes.delete("n1", &DeleteParams::default()).await.map(drop);
    let refused = message(&refused.unwrap_err());
    assert!(
        refused.contains("weft-operator may UPDATE nodes and nodes/status, not DELETE nodes"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_new_range_is_refused_beside_what_it_overlaps() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    server.apply_template("admission-pools.yaml");
    let pools: Api<PodPool> = Api::all(server.client.clone());
    let first = pool("first", &json!({"cidrs": ["10.244.0.0/16", "10.250.0.0/16"]}));
    pools.create(&PostParams::default(), &first).await.unwrap();
    let slices: Api<NodeSlice> = Api::all(server.client.clone());
    // A node that came later, inside a range that is there already.
    let nodes = json!([
        {"name": "n1", "uid": "u1", "addresses": ["10.224.0.4"], "blocks": []},
        {"name": "n2", "uid": "u2", "addresses": ["10.224.0.5", "10.250.7.7"], "blocks": []},
    ]);
    let slice = NodeSlice::new("s", serde_json::from_value(json!({"nodes": nodes})).unwrap());
    slices.create(&PostParams::default(), &slice).await.unwrap();
    let expected = [
        (
            "10.244.7.0/24",
            "10.244.7.0/24 overlaps 10.244.0.0/16 of PodPool first: ",
        ),
        (
            "10.96.0.0/12",
            "10.96.0.0/12 overlaps 10.96.0.0/16 of ServiceCIDR kubernetes: ",
        ),
        (
            "10.224.0.0/16",
            "10.224.0.0/16 holds 10.224.0.4, the address of node n1: ",
        ),
    ];
    for (cidr, said) in expected {
        let second = pool("second", &json!({"cidrs": ["10.9.0.0/16", cidr]}));
        let refused = support::until(async || refusal(&pools, &second).await).await;
        assert!(refused.contains(said), "{refused:?}");
    }
    assert_eq!(
        refusal(&pools, &pool("second", &json!({"cidrs": ["10.9.0.0/16"]}))).await,
        None
    );

    // What overlapped later stands in the way of no other change, and a pool does not overlap itself.
    let grown = Patch::Merge(json!({"spec": {"cidrs": ["10.244.0.0/15", "10.250.0.0/16"]}}));
    pools
        .patch("first", &PatchParams::default(), &grown)
        .await
        .unwrap();
    let labels = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"blockSize": 25}}));
    pools
        .patch("first", &PatchParams::default(), &labels)
        .await
        .unwrap();
    let grown = Patch::Merge(json!({"spec": {"cidrs": ["10.244.0.0/15", "10.250.0.0/16", "10.224.0.0/16"]}}));
    let refused = pools.patch("first", &PatchParams::default(), &grown).await;
    let refused = message(&refused.unwrap_err());
    assert!(refused.contains("10.224.0.0/16 holds 10.224.0.4"), "{refused}");
}

/// A token of the agent's service account: of a pod on that node, or of no pod.
async fn token(client: &Client, node: Option<&str>) -> String {
    bound_token(client, "weft-agent", node).await
}

/// A token of one of Weft's service accounts: of a pod on that node, or of no pod.
async fn bound_token(client: &Client, account: &str, node: Option<&str>) -> String {
    let bound_object_ref = match node {
        Some(node) => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), "weft-system");
            let pod = json!({
                "metadata": {"name": "agent"},
                "spec": {
                    "serviceAccountName": account,
                    "nodeName": node,
                    "containers": [{"name": "agent", "image": "weft"}],
                },
            });
            let pod = serde_json::from_value(pod).unwrap();
            let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
            Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name,
                uid: pod.metadata.uid,
            })
        }
        None => None,
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "weft-system");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            bound_object_ref,
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let given = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await;
    given.unwrap().status.unwrap().token.unwrap()
}
