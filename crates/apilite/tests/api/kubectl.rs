//! The real kubectl as a black box: what it shows. What it changes is in kubectl_changes.rs.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::{CONFIG_MAPS, DEFINITIONS, Fixture, MERGE, PODS, config_map, pod, widgets};

/// kubectl against one server, with a home of its own (it caches discovery there).
pub(crate) struct Kubectl {
    server: String,
    pub(crate) home: tempfile::TempDir,
}

pub(crate) struct Output {
    ok: bool,
    pub(crate) stdout: String,
    stderr: String,
}

// === impl Kubectl ===

impl Kubectl {
    /// None, said aloud, where there is no kubectl.
    pub(crate) fn find(api: &Fixture) -> Option<Self> {
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

    pub(crate) fn command(&self, args: &[&str]) -> Command {
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

    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().await.expect("kubectl starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("kubectl writes UTF-8");
        Output {
            ok: output.status.success(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Standard output of a command that has to succeed.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.ok, "kubectl {args:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Standard error of a command that has to fail.
    pub(crate) async fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(!output.ok, "kubectl {args:?} succeeded: {}", output.stdout);
        output.stderr
    }

    pub(crate) fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("the directory is ours");
        path
    }
}

pub(crate) fn str(path: &impl AsRef<OsStr>) -> &str {
    path.as_ref().to_str().expect("temporary paths are UTF-8")
}

/// Columns of a printed table, for comparison without ages and padding.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .map(|line| line.split_whitespace().collect())
        .collect()
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
