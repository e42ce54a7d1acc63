//! etcd and a real kube-apiserver in a namespace of their own, without kubelets or controllers.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::runtime::Runtime;

use crate::netns::{self, Place};
use crate::process::Process;

/// Port of the API server, in its own namespace.
const PORT: u16 = 6443;
/// Where etcd answers its clients.
const ETCD: &str = "http://127.0.0.1:2379";
/// Longest time for a control plane to become ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the components under measurement belong to. Priority and fairness treats them as it does any pod.
const GROUP: &str = "weft-scale";

/// Who talks to the API server: the bench itself, which nobody counts, and whatever is measured.
pub(super) const GENERATOR: &str = "generator";
/// The operator.
pub(super) const OPERATOR: &str = "operator";
/// All agents.
pub(super) const AGENT: &str = "agent";

/// Where the programs are.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) etcd: PathBuf,
    pub(super) apiserver: PathBuf,
}

/// A running control plane; ends with its owner.
#[derive(Debug)]
pub(super) struct ControlPlane {
    programs: Programs,
    dir: PathBuf,
    place: Place,
    address: Ipv4Addr,
    pub(super) etcd: Process,
    pub(super) apiserver: Process,
}

// === impl Programs ===

impl Programs {
    /// Finds the programs in `dir`, or says what is missing.
    pub(super) fn find(dir: &Path) -> Result<Self, String> {
        let program = |name: &str| {
            let path = dir.join(name);
            match path.is_file() {
                true => Ok(path),
                false => Err(format!("there is no {}", path.display())),
            }
        };
        Ok(Self {
            etcd: program("etcd")?,
            apiserver: program("kube-apiserver")?,
        })
    }

    /// What was measured, for the report.
    pub(super) fn versions(&self) -> Result<Vec<String>> {
        [&self.etcd, &self.apiserver]
            .into_iter()
            .map(|program| {
                let text = netns::read(Command::new(program).arg("--version"))?;
                Ok(text.lines().next().unwrap_or_default().to_owned())
            })
            .collect()
    }
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Starts etcd and the API server in `place`, whose `eth0` has `address`.
    pub(super) fn start(programs: &Programs, place: Place, address: Ipv4Addr, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        write_files(dir)?;
        let etcd = start_etcd(programs, &place, dir)?;
        let apiserver = start_apiserver(programs, &place, address, dir)?;
        Ok(Self {
            programs: programs.clone(),
            dir: dir.to_owned(),
            place,
            address,
            etcd,
            apiserver,
        })
    }

    /// Kills the API server and starts it again. Asked to end it would first wait for all watches.
    pub(super) fn restart_apiserver(&mut self) -> Result<()> {
        self.apiserver.crash()?;
        self.apiserver = start_apiserver(&self.programs, &self.place, self.address, &self.dir)?;
        Ok(())
    }

    /// A kubeconfig for `user`.
    pub(super) fn kubeconfig(&self, user: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{user}.kubeconfig"));
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "scale",
            "clusters": [{"name": "scale", "cluster": {
                "server": format!("https://{}:{PORT}", self.address),
                "certificate-authority": self.dir.join("pki/apiserver.crt"),
            }}],
            "users": [{"name": user, "user": {"token": user}}],
            "contexts": [{"name": "scale", "context": {"cluster": "scale", "user": user}}],
        });
        fs::write(&path, text.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// A client of the generator, once the API server is ready. Only for use inside the control plane's namespace.
    pub(super) fn client(&self, runtime: &Runtime) -> Result<Client> {
        let start = Instant::now();
        loop {
            // The server writes its certificate when it starts.
            let tried = self.try_client(runtime);
            match tried {
                Ok(client) => return Ok(client),
                Err(error) if start.elapsed() > PATIENCE => {
                    let log = self.dir.join("kube-apiserver.log");
                    return Err(error)
                        .with_context(|| format!("wait for the API server, see {}", log.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
            crate::interrupt::check()?;
        }
    }

    fn try_client(&self, runtime: &Runtime) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(GENERATOR)?)?;
        runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            // A list of 200,000 Pods takes a while.
            config.read_timeout = Some(Duration::from_secs(600));
            let client = Client::try_from(config)?;
            let ready = http::Request::get("/readyz").body(Vec::new())?;
            client.request_text(ready).await?;
            anyhow::Ok(client)
        })
    }

    /// A client of etcd's JSON gateway.
    pub(super) fn etcd_client() -> Result<Client> {
        Ok(Client::try_from(Config::new(ETCD.parse()?))?)
    }

    /// The file that the API server writes each request of what is measured to.
    pub(super) fn audit_log(&self) -> PathBuf {
        audit_log(&self.dir)
    }

    /// Where logs and keys are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn audit_log(dir: &Path) -> PathBuf {
    dir.join("audit.log")
}

fn write_files(dir: &Path) -> Result<()> {
    let tokens = format!(
        "{GENERATOR},{GENERATOR},1,system:masters\n{OPERATOR},{OPERATOR},2,{GROUP}\n{AGENT},{AGENT},3,{GROUP}\n"
    );
    let policy = serde_json::json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "userGroups": [GROUP]}, {"level": "None"}],
    });
    for (name, text) in [("tokens.csv", tokens), ("audit-policy.json", policy.to_string())] {
        fs::write(dir.join(name), text).with_context(|| format!("write {name}"))?;
    }
    // Signs the tokens of service accounts, of which there are none; the server does not start without.
    netns::run(
        Command::new("openssl")
            .args(["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out"])
            .arg(dir.join("service-accounts.key")),
    )
}

fn start_etcd(programs: &Programs, place: &Place, dir: &Path) -> Result<Process> {
    let mut command = place.command(&programs.etcd);
    command
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
        .args(["--quota-backend-bytes", "8589934592", "--log-level", "warn"])
        // The disk of the machine is not what is measured.
        .arg("--unsafe-no-fsync");
    Process::start("etcd", command, dir)
}

fn start_apiserver(programs: &Programs, place: &Place, address: Ipv4Addr, dir: &Path) -> Result<Process> {
    let mut command = place.command(&programs.apiserver);
    let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
    command
        .args([
            format!("--etcd-servers={ETCD}"),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={PORT}"),
            file("cert-dir", "pki"),
            file("token-auth-file", "tokens.csv"),
            file("audit-policy-file", "audit-policy.json"),
            format!("--audit-log-path={}", audit_log(dir).display()),
            file("service-account-key-file", "service-accounts.key"),
            file("service-account-signing-key-file", "service-accounts.key"),
        ])
        .args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=172.20.0.0/16",
            "--authorization-mode=RBAC",
            "--endpoint-reconciler-type=none",
            // Pods of the generator have no service account: nobody here makes one.
            "--disable-admission-plugins=ServiceAccount",
        ]);
    Process::start("kube-apiserver", command, dir)
}

/// The objects that give what is measured its rights.
pub(super) fn rights() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": GROUP},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP}],
    })
}
