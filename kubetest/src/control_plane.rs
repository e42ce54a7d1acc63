//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler: in a namespace of their own, or on loopback.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use kube::config::{KubeConfigOptions, Kubeconfig};
use weft_kernel::NetNs;
use weft_kernel::process::{Enter, enter};

use crate::cache::Cache;
use crate::pki::{Pki, Subject};

/// What a control plane is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps data, certificates and logs.
    pub dir: PathBuf,
    /// Where it answers.
    pub place: Place,
    /// Range of the Services.
    pub service_cidr: Ipv4Net,
    /// Which parts run.
    pub controllers: Controllers,
    /// More flags of kube-apiserver.
    pub apiserver_args: Vec<String>,
    /// Name of the context in kubeconfigs.
    pub context: String,
}

/// Where a control plane answers.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a network namespace, under this address and the standard ports.
    Netns(String, Ipv4Addr),
    /// On 127.0.0.1: the API on this port, the rest on the five that follow.
    Loopback(u16),
}

/// What runs beside etcd and kube-apiserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Controllers {
    /// Nothing.
    None,
    /// kube-controller-manager with more flags, and kube-scheduler.
    All(Vec<String>),
}

/// A control plane that runs. The processes end when it is dropped, unless [`detach`](Self::detach)ed.
#[derive(Debug)]
pub struct ControlPlane {
    options: Options,
    cache: Cache,
    pki: Pki,
    children: Vec<(&'static str, Child)>,
}

/// Ports of one control plane.
#[derive(Clone, Copy, Debug)]
struct Ports {
    api: u16,
    etcd: u16,
    etcd_peer: u16,
    controller_manager: u16,
    scheduler: u16,
}

/// How long the API server may take to be ready.
const READY: Duration = Duration::from_secs(120);

// === impl ControlPlane ===

impl ControlPlane {
    /// Starts all of it and returns once the API is ready.
    ///
    /// # Errors
    /// A program is missing or ended: with the path of its log.
    pub async fn start(cache: &Cache, options: Options) -> Result<Self> {
        let pki = sign(&options)?;
        let mut control_plane = Self {
            options,
            cache: cache.clone(),
            pki,
            children: Vec::new(),
        };
        control_plane.run_etcd()?;
        control_plane.run_apiserver()?;
        control_plane.ready().await?;
        if let Controllers::All(args) = control_plane.options.controllers.clone() {
            // It ends at once where the API server has not made its roles yet, hence after the rest is ready.
            control_plane.run_controllers(&args)?;
        }
        Ok(control_plane)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig(&self.options.dir)
    }

    /// A client with all rights.
    ///
    /// # Errors
    /// The kubeconfig can't be read.
    pub async fn client(&self) -> Result<kube::Client> {
        client(&self.kubeconfig()).await
    }

    /// Process numbers by program.
    pub fn pids(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.children.iter().map(|(name, child)| (*name, child.id()))
    }

    /// Leaves the processes running when this handle goes.
    pub fn detach(mut self) {
        self.children.clear();
    }

    fn run_etcd(&mut self) -> Result<()> {
        let ports = self.ports();
        let client = format!("http://127.0.0.1:{}", ports.etcd);
        let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
        let mut command = self.command("etcd");
        command
            .arg("--data-dir")
            .arg(self.options.dir.join("etcd"))
            // A cluster for tests outlives no power cut.
            .args(["--unsafe-no-fsync", "--log-level=warn"])
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .arg(format!("--initial-cluster=default={peer}"))
            .args(["--quota-backend-bytes=8589934592"]);
        self.run("etcd", command)
    }

    fn run_apiserver(&mut self) -> Result<()> {
        let address = self.address();
        let file =
            |flag: &str, name: &str, kind: &str| format!("--{flag}={}", self.pki.path(name, kind).display());
        let mut command = self.command("kube-apiserver");
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports().etcd))
            .arg(format!("--advertise-address={address}"))
            .arg(format!("--secure-port={}", self.ports().api))
            .arg(format!(
                "--service-cluster-ip-range={}",
                self.options.service_cidr
            ))
            .args([
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
            ])
            .args([
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
            ])
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(file("service-account-key-file", "sa", "pub"))
            .arg(file("service-account-signing-key-file", "sa", "key"))
            .arg(file("client-ca-file", "ca", "crt"))
            .arg(file("tls-cert-file", "apiserver", "crt"))
            .arg(file("tls-private-key-file", "apiserver", "key"))
            .arg(file("kubelet-certificate-authority", "ca", "crt"))
            .arg(file("kubelet-client-certificate", "apiserver-client", "crt"))
            .arg(file("kubelet-client-key", "apiserver-client", "key"))
            .arg(file("requestheader-client-ca-file", "front-proxy-ca", "crt"))
            .arg(file("proxy-client-cert-file", "front-proxy-client", "crt"))
            .arg(file("proxy-client-key-file", "front-proxy-client", "key"))
            .args([
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            ]);
        if let Place::Loopback(_) = self.options.place {
            // An Endpoints object must not name a loopback address.
            command.args(["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"]);
        }
        command.args(&self.options.apiserver_args);
        self.run("kube-apiserver", command)
    }

    fn run_controllers(&mut self, args: &[String]) -> Result<()> {
        let bind = match self.options.place {
            Place::Loopback(_) => "--bind-address=127.0.0.1",
            Place::Netns(..) => "--bind-address=0.0.0.0",
        };
        let with_kubeconfig = |command: &mut Command, name: &str| {
            for flag in [
                "kubeconfig",
                "authentication-kubeconfig",
                "authorization-kubeconfig",
            ] {
                command.arg(format!(
                    "--{flag}={}",
                    self.pki.path(name, "kubeconfig").display()
                ));
            }
            command.args(["--leader-elect=false", bind]);
        };
        let mut manager = self.command("kube-controller-manager");
        with_kubeconfig(&mut manager, "controller-manager");
        manager
            .arg(format!("--secure-port={}", self.ports().controller_manager))
            .arg("--use-service-account-credentials")
            .arg(format!(
                "--service-account-private-key-file={}",
                self.pki.path("sa", "key").display()
            ))
            .arg(format!("--root-ca-file={}", self.pki.path("ca", "crt").display()))
            .arg(format!(
                "--cluster-signing-cert-file={}",
                self.pki.path("ca", "crt").display()
            ))
            .arg(format!(
                "--cluster-signing-key-file={}",
                self.pki.path("ca", "key").display()
            ))
            .args(args);
        let mut scheduler = self.command("kube-scheduler");
        with_kubeconfig(&mut scheduler, "scheduler");
        scheduler.arg(format!("--secure-port={}", self.ports().scheduler));
        self.run("kube-controller-manager", manager)?;
        self.run("kube-scheduler", scheduler)
    }

    /// Waits until the API is ready, or a program ended.
    async fn ready(&mut self) -> Result<()> {
        let client = self.client().await?;
        let began = Instant::now();
        loop {
            let request = http_get("/readyz")?;
            if client.request_text(request).await.is_ok() {
                return Ok(());
            }
            for (name, child) in &mut self.children {
                if let Some(status) = child.try_wait().with_context(|| format!("look at {name}"))? {
                    let log = log(&self.options.dir, name);
                    bail!(
                        "{name} ended with {status}: {}\n  next: less {}",
                        last_line(&log),
                        log.display()
                    );
                }
            }
            if began.elapsed() > READY {
                let log = log(&self.options.dir, "kube-apiserver");
                bail!(
                    "the API server is not ready after {} s: {}\n  next: less {}",
                    READY.as_secs(),
                    last_line(&log),
                    log.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn command(&self, program: &str) -> Command {
        Command::new(self.cache.program(program))
    }

    fn run(&mut self, name: &'static str, mut command: Command) -> Result<()> {
        let path = log(&self.options.dir, name);
        let file = fs::create_dir_all(self.options.dir.join("logs"))
            .and_then(|()| fs::File::create(&path))
            .with_context(|| format!("create {}", path.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let netns = match &self.options.place {
            Place::Netns(name, _) => NetNs::named(name)?,
            Place::Loopback(_) => NetNs::current()?,
        };
        enter(
            &mut command,
            &netns,
            Enter {
                new_session: true,
                ..Enter::default()
            },
        )?;
        let child = command
            .spawn()
            .with_context(|| format!("start {}", self.cache.program(name).display()))?;
        self.children.push((name, child));
        Ok(())
    }

    fn ports(&self) -> Ports {
        match self.options.place {
            Place::Netns(..) => Ports {
                api: 6443,
                etcd: 2379,
                etcd_peer: 2380,
                controller_manager: 10257,
                scheduler: 10259,
            },
            Place::Loopback(api) => Ports {
                api,
                etcd: api + 1,
                etcd_peer: api + 2,
                controller_manager: api + 3,
                scheduler: api + 4,
            },
        }
    }

    fn address(&self) -> Ipv4Addr {
        self.options.place.address()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for (_, child) in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

// === impl Place ===

impl Place {
    fn address(&self) -> Ipv4Addr {
        match self {
            Self::Netns(_, address) => *address,
            Self::Loopback(_) => Ipv4Addr::LOCALHOST,
        }
    }

    /// Where the API answers.
    pub fn server(&self) -> String {
        let port = match self {
            Self::Netns(..) => 6443,
            Self::Loopback(port) => *port,
        };
        format!("https://{}:{port}", self.address())
    }
}

/// The administrator's kubeconfig of the control plane in that directory.
pub fn kubeconfig(dir: &Path) -> PathBuf {
    dir.join("kubeconfig")
}

/// The log of a program of the control plane in that directory.
pub fn log(dir: &Path, program: &str) -> PathBuf {
    dir.join("logs").join(format!("{program}.log"))
}

/// A client by a kubeconfig.
///
/// # Errors
/// It can't be read.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// A request without a body.
///
/// # Errors
/// The path is none.
pub fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// The last line that is not empty, for an error that shall say why.
pub fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("its log is empty")
        .chars()
        .take(300)
        .collect()
}

/// Makes all certificates and kubeconfigs of a control plane.
fn sign(options: &Options) -> Result<Pki> {
    let pki = Pki::create(&options.dir.join("pki"))?;
    let first_service = Ipv4Addr::from(u32::from(options.service_cidr.network()) + 1);
    let names: Vec<String> = [options.place.address(), Ipv4Addr::LOCALHOST, first_service]
        .map(|address| IpAddr::from(address).to_string())
        .into_iter()
        .chain(
            [
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
            ]
            .map(str::to_owned),
        )
        .collect();
    let masters = Some("system:masters");
    pki.sign(
        "apiserver",
        Subject {
            name: "kube-apiserver",
            group: None,
        },
        &names,
    )?;
    for (file, name, group) in [
        ("apiserver-client", "kube-apiserver-kubelet-client", masters),
        ("front-proxy-client", "front-proxy-client", None),
        ("admin", "admin", masters),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("proxy", "system:kube-proxy", None),
    ] {
        pki.sign(file, Subject { name, group }, &[])?;
    }
    let server = options.place.server();
    for name in ["controller-manager", "scheduler"] {
        pki.kubeconfig(name, &server, &options.context, &pki.path(name, "kubeconfig"))?;
    }
    pki.kubeconfig("admin", &server, &options.context, &kubeconfig(&options.dir))?;
    Ok(pki)
}
