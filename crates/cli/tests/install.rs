//! `weft install` and `weft uninstall` against a Kubernetes API without nodes.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weft_apilite::ApiServer;

/// An API server, and the kubeconfig that leads to it.
struct Cluster {
    url: String,
    kubeconfig: PathBuf,
    runtime: Runtime,
    _server: ApiServer,
}

// === impl Cluster ===

impl Cluster {
    fn start(test: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let (server, address) = runtime.block_on(async {
            let server = ApiServer::builder().start().unwrap();
            let address = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
            (server, address)
        });
        let url = format!("http://{address}");
        let kubeconfig =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self {
            url,
            kubeconfig,
            runtime,
            _server: server,
        }
    }

    fn weft(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(args)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .output()
            .unwrap()
    }

    /// What `weft` printed on both streams; it has to succeed.
    fn weft_ok(&self, args: &[&str]) -> String {
        let output = self.weft(args);
        let said = said(&output);
        assert!(output.status.success(), "weft {}: {said}", args.join(" "));
        said
    }

    fn request(
        &self,
        method: http::Method,
        path: &str,
        kind: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        self.runtime.block_on(async {
            let client = kube::Client::try_from(kube::Config::new(self.url.parse().unwrap())).unwrap();
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .header("content-type", kind)
                .body(body.to_string().into_bytes())
                .unwrap();
            client.request(request).await
        })
    }

    fn create(&self, path: &str, body: &Value) -> Value {
        self.request(http::Method::POST, path, "application/json", body)
            .unwrap()
    }

    fn get(&self, path: &str) -> Result<Value, kube::Error> {
        self.request(http::Method::GET, path, "application/json", &Value::Null)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

fn said(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams
        .map(|stream| String::from_utf8_lossy(stream).into_owned())
        .concat()
}

const POOL: &str = "/apis/weft.dev/v1alpha1/podpools/default";
const AGENT: &str = "/apis/apps/v1/namespaces/weft-system/daemonsets/weft-agent";

#[test]
fn a_second_installation_changes_nothing() {
    let cluster = Cluster::start("twice");
    let first = cluster.weft_ok(&[
        "install",
        "--no-wait",
        "--pod-cidr",
        "10.60.0.0/16",
        "--image",
        "r.example/weft:1",
    ]);
    assert!(
        first.contains("created   DaemonSet weft-system/weft-agent"),
        "{first}"
    );
    assert!(first.contains("created   PodPool default"), "{first}");
    let second = cluster.weft_ok(&["install", "--no-wait", "--image", "r.example/weft:1"]);
    let changed: Vec<&str> = second
        .lines()
        .filter(|line| line.starts_with("created") || line.starts_with("changed"))
        .collect();
    assert_eq!(changed, Vec::<&str>::new());
    assert!(
        second.contains("PodPool default is there and left as it is"),
        "{second}"
    );
    assert_eq!(
        cluster.get(POOL).unwrap()["spec"]["cidrs"],
        json!(["10.60.0.0/16"])
    );
    assert_eq!(
        cluster.get(AGENT).unwrap()["spec"]["template"]["spec"]["containers"][0]["image"],
        "r.example/weft:1"
    );
}

#[test]
fn beside_another_pod_network_nothing_is_applied() {
    let cluster = Cluster::start("beside");
    let labels = json!({"app": "calico"});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "calico-node"},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    });
    cluster.create("/apis/apps/v1/namespaces/kube-system/daemonsets", &set);
    let output = cluster.weft(&["install", "--no-wait"]);
    assert!(!output.status.success());
    assert!(
        said(&output)
            .contains("error[WEFT-1606]: DaemonSet kube-system/calico-node is there, which is Calico"),
        "{}",
        said(&output)
    );
    assert!(cluster.get("/api/v1/namespaces/weft-system").is_err());
}

#[test]
fn a_pod_cidr_that_holds_a_node_is_refused() {
    let cluster = Cluster::start("overlap");
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.244.7.1"}]},
    });
    cluster.create("/api/v1/nodes", &node);
    let status = json!({"status": node["status"]});
    cluster
        .request(
            http::Method::PATCH,
            "/api/v1/nodes/n1/status",
            "application/merge-patch+json",
            &status,
        )
        .unwrap();
    let output = cluster.weft(&["install", "--no-wait"]);
    assert!(
        said(&output)
            .contains("error[WEFT-1003]: pod CIDR 10.244.0.0/16 overlaps address 10.244.7.1 of node n1"),
        "{}",
        said(&output)
    );
}

#[test]
fn pods_with_addresses_of_weft_keep_it_installed() {
    let cluster = Cluster::start("inuse");
    cluster.weft_ok(&["install", "--no-wait"]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    cluster.create("/api/v1/namespaces/default/pods", &pod);
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.3.9"}});
    cluster
        .request(
            http::Method::PATCH,
            "/api/v1/namespaces/default/pods/web/status",
            "application/merge-patch+json",
            &status,
        )
        .unwrap();
    let output = cluster.weft(&["uninstall"]);
    assert!(!output.status.success());
    assert!(
        said(&output).contains("error[WEFT-1608]: 1 pod(s) have addresses of Weft, such as default/web"),
        "{}",
        said(&output)
    );
    cluster.get(AGENT).unwrap();
}

#[test]
fn a_dry_run_prints_objects_and_needs_no_cluster() {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args([
            "install",
            "--dry-run",
            "--kubeconfig",
            "/nowhere",
            "--ipam",
            "node",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let pool = objects.iter().find(|object| object["kind"] == "PodPool").unwrap();
    assert_eq!(pool["spec"], json!({"cidrs": ["10.244.0.0/16"], "ipam": "node"}));
    assert!(
        objects
            .iter()
            .any(|object| object["kind"] == "CustomResourceDefinition")
    );
}

#[test]
fn a_block_size_beside_ranges_of_nodes_is_refused() {
    let cluster = Cluster::start("sizes");
    let output = cluster.weft(&["install", "--ipam", "node", "--block-size", "24"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("error[WEFT-1015]: --ipam node and --block-size 24 exclude each other"));
}
