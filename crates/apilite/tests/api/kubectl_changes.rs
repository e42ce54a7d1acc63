//! The real kubectl as a black box: what it makes, changes and deletes.

use serde_json::json;

use crate::kubectl::{Kubectl, str};
use crate::{Fixture, MERGE, PODS, pod};

/// What `kubectl delete` says it deleted; newer ones also say from where.
fn deleted_names(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.split_once(" deleted"))
        .map(|(name, _)| name)
        .collect()
}

const SHOP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: 'registry.example/web:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

#[tokio::test]
async fn apply_create_change_and_refuse() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    let file = kubectl.file("shop.yaml", SHOP);
    let apply = ["apply", "-f", str(&file)];
    assert_eq!(
        kubectl.ok(&apply).await,
        "deployment.apps/web created\nservice/web created\n"
    );
    assert_eq!(
        kubectl.ok(&apply).await,
        "deployment.apps/web unchanged\nservice/web unchanged\n"
    );
    std::fs::write(&file, SHOP.replace("replicas: 2", "replicas: 3")).expect("our file");
    let diff = kubectl.run(&["diff", "-f", str(&file)]).await.stdout;
    assert!(diff.contains("-  replicas: 2\n+  replicas: 3"), "{diff}");
    assert_eq!(
        kubectl.ok(&apply).await,
        "deployment.apps/web configured\nservice/web unchanged\n"
    );
    std::fs::write(&file, SHOP.replace("replicas: 2", "replicaz: 3")).expect("our file");
    let refused = kubectl.fails(&apply).await;
    assert!(
        refused.contains("strict decoding error: unknown field \"spec.replicaz\""),
        "{refused}"
    );
    std::fs::write(&file, SHOP.replace("containerPort: 80", "containerPort: 80000")).expect("our file");
    let refused = kubectl.fails(&apply).await;
    assert!(
        refused.contains("spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 80000: must be between 1 and 65535, inclusive"),
        "{refused}"
    );
    kubectl.ok(&["scale", "deployment", "web", "--replicas=5"]).await;
    assert_eq!(
        kubectl
            .ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"])
            .await,
        "5"
    );
    std::fs::write(&file, SHOP).expect("our file");
    let deleted = kubectl.ok(&["delete", "-f", str(&file)]).await;
    assert_eq!(
        deleted_names(&deleted),
        ["deployment.apps \"web\"", "service \"web\""]
    );
}

#[tokio::test]
async fn apply_a_directory_on_the_servers_side() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    let directory = kubectl.home.path().join("shop");
    std::fs::create_dir(&directory).expect("a new directory");
    std::fs::write(directory.join("shop.yaml"), SHOP).expect("our directory");
    std::fs::write(
        directory.join("settings.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: b}\n",
    )
    .expect("our directory");
    assert_eq!(
        kubectl
            .ok(&["apply", "--server-side", "-f", str(&directory)])
            .await,
        "configmap/settings serverside-applied\ndeployment.apps/web serverside-applied\nservice/web serverside-applied\n"
    );
    let changed = kubectl.file("other.yaml", SHOP.replace("replicas: 2", "replicas: 9"));
    let conflict = kubectl
        .fails(&[
            "apply",
            "--server-side",
            "--field-manager=other",
            "-f",
            str(&changed),
        ])
        .await;
    assert!(
        conflict.contains(
            "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
        ),
        "{conflict}"
    );
    kubectl
        .ok(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=other",
            "-f",
            str(&changed),
        ])
        .await;
    assert_eq!(
        kubectl
            .ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"])
            .await,
        "9"
    );
}

#[tokio::test]
async fn create_commands_and_their_protobuf_bodies() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    for (args, made) in [
        (&["create", "namespace", "team"][..], "namespace/team created\n"),
        (
            &[
                "create",
                "deployment",
                "web",
                "--image=i",
                "--replicas=2",
                "--port=80",
            ],
            "deployment.apps/web created\n",
        ),
        (
            &["create", "configmap", "c", "--from-literal=a=b"],
            "configmap/c created\n",
        ),
        (
            &["create", "secret", "generic", "s", "--from-literal=a=b"],
            "secret/s created\n",
        ),
        (
            &["create", "service", "clusterip", "web", "--tcp=80:8080"],
            "service/web created\n",
        ),
        (&["create", "serviceaccount", "sa"], "serviceaccount/sa created\n"),
        (
            &["create", "job", "j", "--image=i", "--", "true"],
            "job.batch/j created\n",
        ),
        (
            &["create", "cronjob", "cj", "--image=i", "--schedule=0 * * * *"],
            "cronjob.batch/cj created\n",
        ),
        (
            &["create", "ingress", "i", "--rule=a.example/=web:80"],
            "ingress.networking.k8s.io/i created\n",
        ),
        (
            &["create", "pdb", "p", "--selector=app=web", "--min-available=1"],
            "poddisruptionbudget.policy/p created\n",
        ),
        (
            &["create", "role", "r", "--verb=get", "--resource=pods"],
            "role.rbac.authorization.k8s.io/r created\n",
        ),
        (
            &["create", "priorityclass", "high", "--value=10"],
            "priorityclass.scheduling.k8s.io/high created\n",
        ),
        (&["run", "alone", "--image=i"], "pod/alone created\n"),
    ] {
        assert_eq!(kubectl.ok(args).await, made);
    }
    let spec = api.get(&format!("{}/web", crate::DEPLOYMENTS)).await["spec"].clone();
    assert_eq!(
        (
            &spec["replicas"],
            &spec["template"]["spec"]["containers"][0]["ports"]
        ),
        (&json!(2), &json!([{ "containerPort": 80, "protocol": "TCP" }]))
    );
    assert_eq!(
        kubectl
            .ok(&["get", "secret", "s", "-o", "jsonpath={.data.a}"])
            .await,
        "Yg=="
    );
    assert_eq!(
        kubectl
            .ok(&[
                "get",
                "service",
                "web",
                "-o",
                "jsonpath={.spec.ports[0].targetPort}"
            ])
            .await,
        "8080"
    );
}

#[tokio::test]
async fn change_commands() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    let file = kubectl.file("shop.yaml", SHOP);
    kubectl.ok(&["apply", "-f", str(&file)]).await;
    assert_eq!(
        kubectl.ok(&["label", "deploy", "web", "tier=front"]).await,
        "deployment.apps/web labeled\n"
    );
    assert_eq!(
        kubectl.ok(&["annotate", "deploy", "web", "note=x"]).await,
        "deployment.apps/web annotated\n"
    );
    kubectl
        .ok(&["set", "image", "deploy/web", "c=registry.example/web:2"])
        .await;
    let add = r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s"}]}}}}"#;
    kubectl.ok(&["patch", "deploy", "web", "-p", add]).await;
    kubectl
        .ok(&[
            "patch",
            "deploy",
            "web",
            "--type=merge",
            "-p",
            r#"{"spec":{"replicas":4}}"#,
        ])
        .await;
    let operations = r#"[{"op":"remove","path":"/metadata/labels/tier"}]"#;
    kubectl
        .ok(&["patch", "deploy", "web", "--type=json", "-p", operations])
        .await;
    let shown = "jsonpath={.metadata.labels} {.spec.replicas} {.spec.template.spec.containers[*].image}";
    assert_eq!(
        kubectl.ok(&["get", "deploy", "web", "-o", shown]).await,
        "{\"app\":\"web\"} 4 registry.example/web:2 s"
    );
    let mut edit = kubectl.command(&["edit", "deploy", "web"]);
    let edited = edit
        .env("EDITOR", "sed -i s/replicas:.4/replicas:\\ 6/")
        .output()
        .await
        .expect("kubectl starts");
    assert_eq!(
        String::from_utf8_lossy(&edited.stdout),
        "deployment.apps/web edited\n"
    );
    kubectl.ok(&["rollout", "restart", "deploy/web"]).await;
    let status = json!({ "status": {
        "observedGeneration": 9, "replicas": 6, "updatedReplicas": 6, "readyReplicas": 6, "availableReplicas": 6,
        "conditions": [{ "type": "Available", "status": "True", "reason": "r", "message": "m" }],
    } });
    api.patch(&format!("{}/web/status", crate::DEPLOYMENTS), MERGE, &status)
        .await;
    assert_eq!(
        kubectl
            .ok(&["rollout", "status", "deploy/web", "--timeout=20s"])
            .await,
        "deployment \"web\" successfully rolled out\n"
    );
    assert_eq!(
        kubectl
            .ok(&["wait", "--for=condition=available", "deploy/web", "--timeout=20s"])
            .await,
        "deployment.apps/web condition met\n"
    );
    let deleted = kubectl.ok(&["delete", "deploy,svc", "--all"]).await;
    assert_eq!(
        deleted_names(&deleted),
        ["deployment.apps \"web\"", "service \"web\""]
    );
}

#[tokio::test]
async fn nodes_are_cordoned_and_drained() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    api.create(
        "/api/v1/nodes",
        &json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }),
    )
    .await;
    let mut running = pod("p");
    running["spec"]["nodeName"] = json!("n1");
    running["spec"]["terminationGracePeriodSeconds"] = json!(0);
    api.create(PODS, &running).await;
    kubectl.ok(&["taint", "node", "n1", "a=b:NoSchedule"]).await;
    kubectl.ok(&["drain", "n1", "--force", "--timeout=20s"]).await;
    assert_eq!(api.get(PODS).await["items"], json!([]));
    let node = api.get("/api/v1/nodes/n1").await;
    assert_eq!(
        (&node["spec"]["unschedulable"], &node["spec"]["taints"][0]["key"]),
        (&json!(true), &json!("a"))
    );
    assert_eq!(kubectl.ok(&["uncordon", "n1"]).await, "node/n1 uncordoned\n");
}
