//! A kube-apiserver alone, with the chart's definitions.

pub mod table;

use std::future::Future;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tempfile::TempDir;
use weft_kubetest::cache::Cache;
use weft_kubetest::control_plane::{ControlPlane, Controllers, Options, Place};

pub struct ApiServer {
    // Ends before its directory goes.
    plane: ControlPlane,
    cache: Cache,
    config: Config,
    pub client: Client,
    _dir: TempDir,
}

impl ApiServer {
    /// `None`, and a line that says so, where the programs are not built.
    pub async fn start() -> Option<Self> {
        let named = std::env::var_os("WEFT_KUBE_CACHE").map(PathBuf::from);
        let dir = named.map_or_else(weft_kubetest::build::default_dir, Ok);
        let cache = match dir.and_then(|dir| Cache::open(&dir)) {
            Ok(cache) => cache,
            Err(error) => {
                eprintln!("skipped: {error:#}");
                return None;
            }
        };
        let dir = tempfile::Builder::new()
            .prefix("weft-admission-")
            .tempdir()
            .unwrap();
        let options = Options {
            dir: dir.path().to_owned(),
            place: Place::Loopback(free_ports()),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            controllers: Controllers::None,
            apiserver_args: Vec::new(),
            context: "admission".to_owned(),
        };
        let plane = ControlPlane::start(&cache, options).await.unwrap();
        let kubeconfig = Kubeconfig::read_from(plane.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        let server = Self {
            plane,
            cache,
            config,
            client,
            _dir: dir,
        };
        let crds = chart().join("crds");
        server.kubectl(&["apply", "-f", crds.to_str().unwrap()], "");
        server.kubectl(&["wait", "--for=condition=Established", "crd", "--all"], "");
        server.kubectl(&["create", "namespace", "weft-system"], "");
        for account in ["weft-agent", "weft-operator"] {
            server.kubectl(&["create", "serviceaccount", "-n", "weft-system", account], "");
        }
        Some(server)
    }

    /// Runs kubectl with all rights and something on its standard input.
    pub fn kubectl(&self, args: &[&str], input: &str) {
        let mut child = Command::new(self.cache.program("kubectl"))
            .arg("--kubeconfig")
            .arg(self.plane.kubeconfig())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "kubectl {args:?}");
    }

    /// Applies a template of the chart in which nothing varies but labels and the namespace.
    pub fn apply_template(&self, name: &str) {
        let text = std::fs::read_to_string(chart().join("templates").join(name)).unwrap();
        let text: String = text
            .lines()
            .filter(|line| !line.contains("include \"weft.labels\""))
            .map(|line| line.replace("{{ .Release.Namespace }}", "weft-system") + "\n")
            .collect();
        assert!(!text.contains("{{"), "{name} has more that varies:\n{text}");
        self.kubectl(&["apply", "-f", "-"], &text);
    }

    /// A client with that bearer token and no certificate.
    pub fn with_token(&self, token: &str) -> Client {
        let mut config = self.config.clone();
        config.auth_info = kube::config::AuthInfo {
            token: Some(token.to_owned().into()),
            ..kube::config::AuthInfo::default()
        };
        Client::try_from(config).unwrap()
    }
}

/// What the server says of a request it refuses.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("{other}"),
    }
}

/// What comes once the server's caches have caught up.
pub async fn until<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    for _ in 0..200 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing came in 200 attempts");
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weft")
}

/// The first of six ports in a row that nothing listens on.
fn free_ports() -> u16 {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        if port < u16::MAX - 6
            && (port + 1..port + 6).all(|next| TcpListener::bind((Ipv4Addr::LOCALHOST, next)).is_ok())
        {
            return port;
        }
    }
}
