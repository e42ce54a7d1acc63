//! The real kubectl as a black box.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::{CONFIG_MAPS, DEFINITIONS, Fixture, MERGE, PODS, config_map, pod, widgets};

/// kubectl against one server, with a home of its own (it caches discovery there).
struct Kubectl {
    server: String,
    home: tempfile::TempDir,
}

struct Output {
    ok: bool,
    stdout: String,
    stderr: String,
}

// === impl Kubectl ===

impl Kubectl {
    /// None, said aloud, where there is no kubectl.
    fn find(api: &Fixture) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|directory| directory.join("kubectl").is_file()) {
            eprintln!("SKIPPED: kubectl isn't installed");
            return None;
        }
        let home = tempfile::tempdir().expect("a temporary directory");
        Some(Self {
            server: format!("http://{}", api.address),
            home,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(["--server", &self.server])
            .args(args)
            .env("HOME", self.home.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().await.expect("kubectl starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("kubectl writes UTF-8");
        Output {
            ok: output.status.success(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Standard output of a command that has to succeed.
    async fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.ok, "kubectl {args:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Standard error of a command that has to fail.
    async fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(!output.ok, "kubectl {args:?} succeeded: {}", output.stdout);
        output.stderr
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("the directory is ours");
        path
    }
}

fn str(path: &impl AsRef<OsStr>) -> &str {
    path.as_ref().to_str().expect("temporary paths are UTF-8")
}

/// Columns of a printed table, for comparison without ages and padding.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .map(|line| line.split_whitespace().collect())
        .collect()
}

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
async fn get_in_every_form() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    let mut running = pod("front");
    running["metadata"]["labels"] = json!({ "tier": "front" });
    running["spec"]["nodeName"] = json!("n1");
    api.create(PODS, &running).await;
    api.create("/api/v1/namespaces/kube-system/pods", &pod("dns"))
        .await;
    let status = json!({ "status": {
        "phase": "Running",
        "podIP": "10.244.0.5",
        "podIPs": [{ "ip": "10.244.0.5" }],
        "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
        }],
    } });
    api.patch(&format!("{PODS}/front/status"), MERGE, &status).await;

    let wide = kubectl.ok(&["get", "pods", "-o", "wide"]).await;
    let rows = words(&wide);
    assert_eq!(
        rows[0].join(" "),
        "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES"
    );
    assert_eq!(
        (&rows[1][..4], &rows[1][5..]),
        (
            &["front", "1/1", "Running", "0"][..],
            &["10.244.0.5", "n1", "<none>", "<none>"][..]
        )
    );
    let all = kubectl
        .ok(&["get", "pods", "-A", "--sort-by=.metadata.name"])
        .await;
    let all: Vec<String> = words(&all).iter().skip(1).map(|row| row[..2].join("/")).collect();
    assert_eq!(all, ["kube-system/dns", "default/front"]);
    assert_eq!(kubectl.ok(&["get", "pods", "-o", "name"]).await, "pod/front\n");
    assert_eq!(
        kubectl
            .ok(&["get", "po", "-A", "-l", "tier in (front)", "-o", "name"])
            .await,
        "pod/front\n"
    );
    assert_eq!(
        kubectl
            .ok(&[
                "get",
                "po",
                "-A",
                "--field-selector",
                "spec.nodeName!=n1",
                "-o",
                "name"
            ])
            .await,
        "pod/dns\n"
    );
    let yaml = kubectl.ok(&["get", "pod", "front", "-o", "yaml"]).await;
    assert!(
        yaml.starts_with("apiVersion: v1\nkind: Pod\nmetadata:\n"),
        "{yaml}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&kubectl.ok(&["get", "pods", "-o", "json"]).await).expect("JSON");
    assert_eq!(
        (&json["kind"], &json["items"][0]["metadata"]["name"]),
        (&json!("List"), &json!("front"))
    );
    assert_eq!(
        kubectl.fails(&["get", "pod", "none"]).await,
        "Error from server (NotFound): pods \"none\" not found\n"
    );
    let described = kubectl.ok(&["describe", "pod", "front"]).await;
    assert!(
        words(&described).contains(&vec!["IP:", "10.244.0.5"]),
        "{described}"
    );
}

#[tokio::test]
async fn get_watches() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    let mut watching = kubectl
        .command(&["get", "configmaps", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = tokio::time::timeout(std::time::Duration::from_secs(30), lines.next_line());
        let line = line
            .await
            .expect("in time")
            .expect("readable")
            .expect("it goes on");
        line.split_whitespace()
            .take(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // The first row needs an object: kubectl says nothing of an empty list.
    api.create(CONFIG_MAPS, &config_map("one", &json!({ "a": "1" })))
        .await;
    assert_eq!(next().await, ["one", "1"]);
    api.patch(
        &format!("{CONFIG_MAPS}/one"),
        MERGE,
        &json!({ "data": { "b": "2" } }),
    )
    .await;
    assert_eq!(next().await, ["one", "2"]);
    watching.kill().await.expect("it runs");
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
async fn custom_resources_and_the_describing_commands() {
    let api = Fixture::start();
    let Some(kubectl) = Kubectl::find(&api) else {
        return;
    };
    let file = kubectl.file("crd.json", widgets().to_string());
    kubectl.ok(&["create", "-f", str(&file)]).await;
    kubectl
        .ok(&[
            "wait",
            "--for=condition=established",
            "crd/widgets.example.com",
            "--timeout=20s",
        ])
        .await;
    let file = kubectl.file(
        "w.yaml",
        "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 3}\n",
    );
    assert_eq!(
        kubectl.ok(&["apply", "-f", str(&file)]).await,
        "widget.example.com/w created\n"
    );
    let table = kubectl.ok(&["get", "wd"]).await;
    let rows = words(&table);
    assert_eq!(
        (rows[0].as_slice(), &rows[1][..2]),
        (&["NAME", "SIZE", "READY", "AGE"][..], &["w", "3"][..])
    );
    assert_eq!(
        kubectl.ok(&["scale", "wd", "w", "--replicas=2"]).await,
        "widget.example.com/w scaled\n"
    );
    std::fs::write(
        &file,
        "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 30, bogus: 1}\n",
    )
    .expect("our file");
    let refused = kubectl.fails(&["apply", "-f", str(&file)]).await;
    assert!(refused.contains("unknown field \"spec.bogus\""), "{refused}");

    let explained = kubectl.ok(&["explain", "widget.spec"]).await;
    assert!(explained.contains("size\t<integer> -required-"), "{explained}");
    let explained = kubectl.ok(&["explain", "deployment.spec.strategy"]).await;
    assert!(
        explained.contains("rollingUpdate\t<RollingUpdateDeployment>"),
        "{explained}"
    );
    let resources = kubectl.ok(&["api-resources", "--no-headers"]).await;
    assert!(
        words(&resources).contains(&vec!["widgets", "wd", "example.com/v1", "true", "Widget"]),
        "{resources}"
    );
    let versions = kubectl.ok(&["api-versions"]).await;
    assert!(
        versions.lines().any(|version| version == "example.com/v1"),
        "{versions}"
    );
    assert!(kubectl.ok(&["cluster-info"]).await.contains("is running at"));
    assert!(
        kubectl
            .ok(&["version"])
            .await
            .contains("Server Version: v1.36.0+apilite")
    );
    kubectl.ok(&["delete", "crd", "widgets.example.com"]).await;
    assert_eq!(api.send("GET", crate::WIDGETS, &[], "").await.status, 404);
    assert_eq!(api.get(DEFINITIONS).await["items"], json!([]));
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
