//! The process behind a lab cluster: it serves the API, plays the machines, and keeps operator and agents running.

mod admission;
mod nodes;
mod progress;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weft_api::{PodPool, PodPoolSpec};
use weft_apilite::ApiServer;
use weft_kernel::process::ProcessId;
use weft_model::{UserError, codes};

use self::progress::Progress;
use crate::control::{Event, Request, read_request, write_event};
use crate::faults::{ActiveFaults, Past};
use crate::machine::{Programs, kernel_error};
use crate::node::{ClusterHandle, NodeHandle, ScaleRequest};
use crate::registration::{Readiness, Registration};
use crate::state::{ClusterDir, ClusterState, RootLock, unusable};
use crate::supervise::{ProcessSpec, Supervised};
use crate::{vnet, workloads};

pub(crate) use self::nodes::RunningMachine;

/// What `create` waits for on the daemon's standard output.
pub(crate) const LISTENING: &str = "listening";

/// Port of the API in the VNet.
pub(crate) const API_PORT: u16 = 6443;

/// A running cluster. One per process.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) dir: ClusterDir,
    pub(crate) api: ApiServer,
    pub(crate) handle: ClusterHandle,
    pub(crate) programs: Programs,
    pub(crate) faults: ActiveFaults,
    pub(crate) past: Past,
    state: Mutex<ClusterState>,
    machines: Mutex<BTreeMap<String, Arc<RunningMachine>>>,
    nodes: watch::Sender<Vec<Arc<NodeHandle>>>,
    /// What the API says of the nodes.
    ready: watch::Sender<Readiness>,
    operator: Mutex<Option<Supervised>>,
    /// Held while the number of nodes changes.
    scaling: tokio::sync::Mutex<()>,
    progress: Progress,
}

/// Serves the cluster that `dir` describes until SIGTERM.
///
/// # Errors
/// The cluster's directory is unusable. That the cluster can't be brought up is told to those who watch.
pub async fn run(dir: ClusterDir) -> Result<(), UserError> {
    raise_descriptor_limit();
    let mut state = dir.load()?;
    let own = ProcessId::current().map_err(|error| kernel_error("the daemon", &error, "weft lab list"))?;
    state.daemon = Some(own);
    dir.store(&state)?;
    let socket = dir.control_socket();
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(|error| unusable("listen on", &socket, &error))?;
    let mut terminated =
        signal(SignalKind::terminate()).map_err(|error| unusable("watch signals for", &socket, &error))?;
    let _ = writeln!(io::stdout(), "{LISTENING}");

    let stop = CancellationToken::new();
    let (daemon, scale) = Daemon::new(dir, state, stop.clone())?;
    tokio::spawn(Arc::clone(&daemon).bring_up());
    tokio::spawn(Arc::clone(&daemon).serve_scaling(scale));
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            connection = listener.accept() => match connection {
                Ok((stream, _)) => {
                    tokio::spawn(Arc::clone(&daemon).converse(stream));
                }
                Err(error) => tracing::warn!(%error, "can't accept a connection"),
            },
        }
    }
    tracing::info!("asked to end");
    stop.cancel();
    daemon.processes_ended().await;
    Ok(())
}

// === impl Daemon ===

impl Daemon {
    fn new(
        dir: ClusterDir,
        mut state: ClusterState,
        stop: CancellationToken,
    ) -> Result<(Arc<Self>, mpsc::Receiver<ScaleRequest>), UserError> {
        let programs = Programs::find()?;
        let (nodes, watch_nodes) = watch::channel(Vec::new());
        let (scale, requests) = mpsc::channel(16);
        let api = ApiServer::builder()
            .admission(admission::judge)
            .service_cidr(&state.config.service_cidr.to_string())
            .and_then(weft_apilite::Builder::start)
            .map_err(|error| unusable("start the API of", dir.path(), &error))?;
        let on_host = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| api.serve(listener))
            .map_err(|error| unusable("listen for", dir.path(), &error))?;
        state.api_on_host = Some(on_host);
        let in_vnet = SocketAddr::from((state.api_address, API_PORT));
        write_kubeconfig(&dir.kubeconfig(), dir.name(), on_host)?;
        write_kubeconfig(&dir.node_kubeconfig(), dir.name(), in_vnet)?;
        dir.store(&state)?;
        let client = client(on_host)?;
        let handle = ClusterHandle::new(
            dir.name().to_owned(),
            client,
            dir.path().to_owned(),
            state.config.autoscaler,
            stop,
            watch_nodes,
            scale,
        );
        let daemon = Self {
            dir,
            api,
            handle,
            programs,
            faults: ActiveFaults::default(),
            past: Past::default(),
            state: Mutex::new(state),
            machines: Mutex::default(),
            nodes,
            ready: watch::Sender::default(),
            operator: Mutex::default(),
            scaling: tokio::sync::Mutex::default(),
            progress: Progress::default(),
        };
        Ok((Arc::new(daemon), requests))
    }

    /// The cluster as it is written down.
    pub(crate) fn state(&self) -> ClusterState {
        self.lock_state().clone()
    }

    /// The nodes that are switched on, in the order in which they joined.
    pub(crate) fn machines(&self) -> Vec<Arc<RunningMachine>> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock_state()
            .nodes
            .iter()
            .filter_map(|node| machines.get(&node.name).cloned())
            .collect()
    }

    /// One node that is switched on.
    pub(crate) fn machine(&self, node: &str) -> Result<Arc<RunningMachine>, UserError> {
        self.lock_state().node(node)?;
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.get(node).cloned().ok_or_else(|| {
            UserError::new(
                codes::NO_SUCH_NODE,
                format!("node {node} is being made or removed"),
                format!("weft lab status {}", self.dir.name()),
            )
        })
    }

    /// The nodes named, which have to be switched on; all that are, where none is named.
    pub(crate) fn machines_of(&self, nodes: &[String]) -> Result<Vec<Arc<RunningMachine>>, UserError> {
        if nodes.is_empty() {
            return Ok(self.machines());
        }
        nodes.iter().map(|node| self.machine(node)).collect()
    }

    /// What came of bringing the cluster up; `None` while that goes on.
    pub(crate) fn outcome(&self) -> Option<Result<(), UserError>> {
        self.progress.outcome()
    }

    /// The operator at this moment.
    pub(crate) fn operator(&self) -> Option<Supervised> {
        self.operator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn bring_up(self: Arc<Self>) {
        let outcome = self.make_everything().await;
        if let Err(error) = &outcome {
            tracing::error!(%error, "the cluster could not be brought up");
        }
        self.progress.finish(outcome);
    }

    async fn make_everything(self: &Arc<Self>) -> Result<(), UserError> {
        let config = self.state().config;
        let net = config.subnet.net();

        let step = self
            .progress
            .begin("Virtual network", format!("{} {net}", config.vnet));
        self.serve_api_in_vnet().await?;
        step.end();

        let step = self
            .progress
            .begin("Kubernetes API", self.state().api_url().unwrap_or_default());
        self.register_types().await?;
        step.end();

        let step = self.progress.begin(
            "Operator",
            format!("pool {} in blocks of {}", config.pod_cidr, config.block_size),
        );
        self.start_operator()?;
        tokio::spawn(self.registration().follow(self.ready.clone()));
        workloads::start(&self.handle);
        step.end();

        let step = self.progress.begin("Nodes", format!("0/{}", config.node_count));
        self.add_nodes(config.node_count, |ready| {
            step.detail(format!("{ready}/{}", config.node_count));
        })
        .await?;
        step.end();
        workloads::start_autoscaler(&self.handle);
        tokio::spawn(Arc::clone(self).note_past());
        Ok(())
    }

    /// Notes again and again where the API is, so that it can be put back there.
    async fn note_past(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Past::PERIOD);
        loop {
            tokio::select! {
                () = self.handle.stop.cancelled() => return,
                _ = ticks.tick() => self.past.note(self.api.revision()),
            }
        }
    }

    /// Makes the virtual network, and has the API listen in it.
    async fn serve_api_in_vnet(&self) -> Result<(), UserError> {
        let state = self.state();
        let address = state.api_address;
        let config = state.config;
        let listener = blocking(move || {
            let lock = RootLock::acquire()?;
            let failed = |error: weft_kernel::Error| {
                kernel_error(
                    &format!("VNet {}", config.vnet),
                    &error,
                    &format!("weft lab delete {}", config.name),
                )
            };
            vnet::ensure(&lock, &config.vnet, config.subnet).map_err(failed)?;
            let switch = vnet::add_api_address(&config.vnet, address).map_err(failed)?;
            let listener = switch
                .run(|| std::net::TcpListener::bind((address, API_PORT)))
                .map_err(failed)?;
            listener.map_err(|error| unusable("listen on", Path::new(&address.to_string()), &error))
        })
        .await?;
        self.api
            .serve(listener)
            .map(|_| ())
            .map_err(|error| unusable("listen on", Path::new(&address.to_string()), &error))
    }

    /// Makes Weft's types known to the API, and the pool that pods get their addresses from.
    async fn register_types(&self) -> Result<(), UserError> {
        let config = self.state().config;
        let client = &self.handle.client;
        let failed = |error: kube::Error| api_error("registering Weft's types", &error);
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in weft_api::crds() {
            definitions
                .create(&PostParams::default(), &definition)
                .await
                .map_err(failed)?;
        }
        let pool = PodPool::new(
            "default",
            PodPoolSpec {
                cidrs: vec![config.pod_cidr.to_string()],
                block_size: config.block_size.prefix_len(),
                ..PodPoolSpec::default()
            },
        );
        let pools: Api<PodPool> = Api::all(client.clone());
        pools
            .create(&PostParams::default(), &pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    fn start_operator(&self) -> Result<(), UserError> {
        let spec = ProcessSpec {
            what: "operator".to_owned(),
            cluster: self.dir.name().to_owned(),
            program: self.programs.weft.clone(),
            args: vec![
                "operator".into(),
                "--kubeconfig".into(),
                self.dir.kubeconfig().to_string_lossy().into_owned(),
                "--lease-namespace".into(),
                "kube-system".into(),
                // Other labs' operators serve theirs on the same host.
                "--metrics-address".into(),
                "127.0.0.1:0".into(),
            ],
            netns: None,
            log: self.dir.operator_log(),
        };
        let operator = Supervised::start(spec, self.handle.stop.clone())
            .map_err(|error| unusable("start", &self.programs.weft, &error))?;
        self.lock_state().operator = operator.now().id;
        *self.operator.lock().unwrap_or_else(PoisonError::into_inner) = Some(operator);
        self.store()
    }

    async fn converse(self: Arc<Self>, stream: UnixStream) {
        let Some((request, mut to)) = read_request(stream).await else {
            return;
        };
        let (events, mut outgoing) = mpsc::unbounded_channel();
        let answering = {
            let daemon = Arc::clone(&self);
            tokio::spawn(async move {
                let outcome = daemon.carry_out(request, &events).await;
                let last = match outcome {
                    Ok(()) => match daemon.report().await {
                        Ok(status) => Event::Done {
                            status: Box::new(status),
                        },
                        Err(error) => Event::Failed((&error).into()),
                    },
                    Err(error) => Event::Failed((&error).into()),
                };
                let _ = events.send(last);
            })
        };
        // Whoever asked may go away; what was begun is carried out all the same.
        while let Some(event) = outgoing.recv().await {
            if !write_event(&mut to, &event).await {
                return;
            }
        }
        let _ = answering.await;
    }

    async fn carry_out(
        self: &Arc<Self>,
        request: Request,
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<(), UserError> {
        match request {
            Request::Watch => self.progress.tell(events).await,
            Request::Status => Ok(()),
            Request::Scale { count } => self.scale(count, events).await,
            Request::Fault(request) => self.inject(request, events).await,
            Request::Transport { transport, nodes } => self.set_transport(transport, &nodes, events).await,
        }
    }

    async fn processes_ended(&self) {
        let mut supervised: Vec<Supervised> = self.operator().into_iter().collect();
        supervised.extend(self.machines().iter().map(|machine| machine.agent.clone()));
        for process in supervised {
            process.ended().await;
        }
    }

    pub(crate) fn registration(&self) -> Registration {
        Registration::new(self.handle.clone())
    }

    fn store(&self) -> Result<(), UserError> {
        self.dir.store(&self.lock_state())
    }

    fn lock_state(&self) -> MutexGuard<'_, ClusterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets this process and its children open as many files as the system allows: every connection, namespace and
/// responder of a lab is one, and the usual soft limit of 1,024 ends at a few hundred pods.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "can't raise the limit of open files; large labs may reach it");
    }
}

/// Runs what blocks away from the tasks.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, UserError> + Send + 'static,
) -> Result<T, UserError> {
    tokio::task::spawn_blocking(job)
        .await
        .unwrap_or_else(|error| Err(lost(&error.to_string())))
}

/// The error that a request to the cluster's API failed.
pub(crate) fn api_error(what: &str, error: &kube::Error) -> UserError {
    let code = match error {
        kube::Error::Api(_) => codes::API_REJECTED,
        _ => codes::API_UNREACHABLE,
    };
    UserError::new(code, format!("{what}: {error}"), "weft lab list")
}

fn lost(what: &str) -> UserError {
    UserError::new(
        codes::LAB_START_FAILED,
        format!("{what} ended before it was done"),
        "weft lab list",
    )
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn client(api: SocketAddr) -> Result<kube::Client, UserError> {
    let unusable = |error: &dyn std::fmt::Display| {
        UserError::new(
            codes::API_UNREACHABLE,
            format!("can't speak to {api}: {error}"),
            "weft lab list",
        )
    };
    let url = format!("http://{api}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| unusable(&error))?;
    let mut config = kube::Config::new(url);
    config.default_namespace = "default".to_owned();
    kube::Client::try_from(config).map_err(|error| unusable(&error))
}

fn write_kubeconfig(path: &Path, cluster: &str, api: SocketAddr) -> Result<(), UserError> {
    let name = format!("weft-{cluster}");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": format!("http://{api}")}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "users": [{"name": name, "user": {}}],
    });
    let text = serde_json::to_string_pretty(&config).map_err(|error| unusable("write", path, &error))?;
    fs::write(path, text).map_err(|error| unusable("write", path, &error))
}
