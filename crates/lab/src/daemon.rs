//! The process behind a lab cluster: it serves the API, plays the machines, and keeps operator and agents running.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_api::{PodPool, PodPoolSpec};
use weft_apilite::ApiServer;
use weft_kernel::NetNs;
use weft_kernel::process::ProcessId;
use weft_model::{UserError, codes};

use crate::control::{Event, Request, Step, read_request, write_event};
use crate::faults::ActiveFaults;
use crate::machine::{Machine, Programs, kernel_error};
use crate::node::{ClusterHandle, NodeHandle, ScaleRequest};
use crate::registration::{Readiness, Registration};
use crate::state::{ClusterDir, ClusterState, RootLock, unusable};
use crate::supervise::{ProcessSpec, Supervised};
use crate::{vnet, workloads};

/// What `create` waits for on the daemon's standard output.
pub(crate) const LISTENING: &str = "listening";

/// Port of the API in the VNet.
pub(crate) const API_PORT: u16 = 6443;

/// How long a node may take from power-on to Ready.
const NODE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the pods of a node that leaves may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(45);

/// A running cluster. One per process.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) dir: ClusterDir,
    api: ApiServer,
    pub(crate) handle: ClusterHandle,
    pub(crate) programs: Programs,
    pub(crate) faults: ActiveFaults,
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

/// A node that is switched on.
#[derive(Debug)]
pub(crate) struct RunningMachine {
    pub(crate) machine: Machine,
    pub(crate) handle: Arc<NodeHandle>,
    pub(crate) agent: Supervised,
    /// Holds the kubelet's task.
    kubelet: TaskTracker,
}

/// The steps of bringing the cluster up, for whoever asks, whenever.
#[derive(Debug)]
struct Progress {
    log: watch::Sender<ProgressLog>,
}

#[derive(Clone, Debug, Default)]
struct ProgressLog {
    steps: Vec<Step>,
    outcome: Option<Result<(), UserError>>,
}

/// Serves the cluster that `dir` describes until SIGTERM.
///
/// # Errors
/// The cluster's directory is unusable. That the cluster can't be brought up is told to those who watch.
pub async fn run(dir: ClusterDir) -> Result<(), UserError> {
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
            state: Mutex::new(state),
            machines: Mutex::default(),
            nodes,
            ready: watch::Sender::default(),
            operator: Mutex::default(),
            scaling: tokio::sync::Mutex::default(),
            progress: Progress {
                log: watch::Sender::default(),
            },
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

    /// What came of bringing the cluster up; `None` while that goes on.
    pub(crate) fn outcome(&self) -> Option<Result<(), UserError>> {
        self.progress.log.borrow().outcome.clone()
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
        self.progress.log.send_modify(|log| log.outcome = Some(outcome));
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
        Ok(())
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
                node_selector: None,
                excluded: Vec::new(),
                non_masquerade_cidrs: Vec::new(),
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

    /// Adds nodes, all at the same time; `on_ready` gets the number of those that are Ready.
    async fn add_nodes(self: &Arc<Self>, count: u32, on_ready: impl Fn(u32)) -> Result<(), UserError> {
        let mut joining = JoinSet::new();
        for _ in 0..count {
            joining.spawn(Arc::clone(self).add_node());
        }
        let mut ready = 0;
        while let Some(joined) = joining.join_next().await {
            joined.map_err(|error| lost(&format!("adding a node: {error}")))??;
            ready += 1;
            on_ready(ready);
        }
        Ok(())
    }

    /// Adds one node and waits until it is Ready. A node that does not get there is taken away again.
    async fn add_node(self: Arc<Self>) -> Result<Arc<NodeHandle>, UserError> {
        let daemon = Arc::clone(&self);
        let node = blocking(move || {
            let lock = RootLock::acquire()?;
            lock.add_node(&daemon.dir, &mut daemon.lock_state())
        })
        .await?;
        let machine = Machine::new(&self.dir, &node);
        match self.start_machine(machine).await {
            Ok(handle) => Ok(handle),
            Err(error) => {
                if let Err(left) = self.remove_machine(&node.name).await {
                    tracing::warn!(node = node.name, error = %left, "a node that failed could not be removed");
                }
                Err(error)
            }
        }
    }

    async fn start_machine(self: &Arc<Self>, machine: Machine) -> Result<Arc<NodeHandle>, UserError> {
        let config = self.state().config;
        let registration = self.registration();
        let registered = registration.register(&machine);
        let netns = {
            let (daemon, machine, config) = (Arc::clone(self), machine.clone(), config.clone());
            blocking(move || {
                machine.install(&daemon.programs)?;
                machine.power_on(&config)
            })
        };
        let (uid, netns) = tokio::try_join!(registered, netns)?;
        self.boot(machine, uid, netns).await
    }

    /// Starts what runs on a machine that is switched on, and waits until its node is Ready.
    async fn boot(
        self: &Arc<Self>,
        machine: Machine,
        uid: String,
        netns: NetNs,
    ) -> Result<Arc<NodeHandle>, UserError> {
        let handle = Arc::new(NodeHandle {
            name: machine.node.clone(),
            uid,
            netns_name: machine.netns_name.clone(),
            address: machine.address,
            dir: machine.dir.clone(),
            max_pods: self.lock_state().config.max_pods,
            stop: self.handle.stop.child_token(),
        });
        let agent = Supervised::start(
            machine.agent(&self.programs, &self.dir.node_kubeconfig(), netns),
            handle.stop.clone(),
        )
        .map_err(|error| unusable("start", &self.programs.weft, &error))?;
        let running = Arc::new(RunningMachine {
            machine,
            handle: Arc::clone(&handle),
            agent: agent.clone(),
            kubelet: workloads::start_node(&self.handle, &handle),
        });
        self.machines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle.name.clone(), running);
        tokio::spawn(Arc::clone(self).note_agents(handle.name.clone(), agent));
        self.nodes.send_modify(|nodes| nodes.push(Arc::clone(&handle)));
        self.wait_ready(&handle).await?;
        Ok(handle)
    }

    /// Takes the power from a node and gives it back: processes, links, pins and pods' namespaces are gone, the disk
    /// and the Node object stay.
    pub(crate) async fn reboot(self: &Arc<Self>, name: &str) -> Result<(), UserError> {
        let running = self.machine(name)?;
        self.switch_off(name).await;
        self.ready.send_modify(|known| {
            known.insert(name.to_owned(), Err("it is starting".to_owned()));
        });
        let config = self.state().config;
        let machine = running.machine.clone();
        let netns = blocking(move || {
            machine.power_off()?;
            machine.power_on(&config)
        })
        .await?;
        self.boot(running.machine.clone(), running.handle.uid.clone(), netns)
            .await
            .map(drop)
    }

    /// Ends the processes of a node; it is none of the cluster's running nodes any more.
    async fn switch_off(&self, name: &str) {
        let running = self
            .machines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        self.nodes
            .send_modify(|nodes| nodes.retain(|node| node.name != name));
        if let Some(running) = running {
            running.handle.stop.cancel();
            running.agent.ended().await;
            running.kubelet.wait().await;
        }
    }

    async fn wait_ready(&self, node: &NodeHandle) -> Result<(), UserError> {
        let mut ready = self.ready.subscribe();
        let is_ready = async {
            let now = ready
                .wait_for(|known| matches!(known.get(&node.name), Some(Ok(()))))
                .await;
            now.map(drop)
        };
        match tokio::time::timeout(NODE_TIMEOUT, is_ready).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(lost(&format!("node {}", node.name))),
            Err(_) => {
                let why = self
                    .ready
                    .borrow()
                    .get(&node.name)
                    .cloned()
                    .and_then(Result::err)
                    .unwrap_or_default();
                Err(UserError::new(
                    codes::LAB_TIMEOUT,
                    format!(
                        "node {} is not Ready after {} s: {why}",
                        node.name,
                        NODE_TIMEOUT.as_secs()
                    ),
                    format!("look at {}", node.dir.join("agent.log").display()),
                ))
            }
        }
    }

    /// Writes down under which process ID a node's agent runs.
    async fn note_agents(self: Arc<Self>, node: String, agent: Supervised) {
        let mut process = agent.watch();
        loop {
            let id = process.borrow_and_update().id;
            if let Err(error) = self.note_agent(&node, id) {
                tracing::warn!(node, %error, "can't write down a process");
            }
            if process.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes a node out of the cluster: its pods first, then the Node, then the machine.
    pub(crate) async fn remove_node(self: &Arc<Self>, name: &str) -> Result<(), UserError> {
        let registration = self.registration();
        self.lock_state().node(name)?;
        registration.drain(name, DRAIN_TIMEOUT).await?;
        self.remove_machine(name).await
    }

    async fn remove_machine(self: &Arc<Self>, name: &str) -> Result<(), UserError> {
        self.switch_off(name).await;
        self.registration().delete(name).await?;
        let state = self.state();
        let machine = Machine::new(&self.dir, state.node(name)?);
        blocking(move || machine.scrap()).await?;
        self.lock_state().nodes.retain(|node| node.name != name);
        self.store()
    }

    async fn serve_scaling(self: Arc<Self>, mut requests: mpsc::Receiver<ScaleRequest>) {
        while let Some(request) = requests.recv().await {
            let daemon = Arc::clone(&self);
            tokio::spawn(async move {
                match request {
                    ScaleRequest::Up { reply } => {
                        let added = Arc::clone(&daemon).add_node().await;
                        let _ = reply.send(added.map_err(|error| error.message().to_owned()));
                    }
                    ScaleRequest::Down { node, reply } => {
                        let removed = daemon.remove_node(&node).await;
                        let _ = reply.send(removed.map_err(|error| error.message().to_owned()));
                    }
                }
            });
        }
    }

    /// Has that many nodes; the youngest go first.
    async fn scale(
        self: &Arc<Self>,
        count: u32,
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<(), UserError> {
        let _alone = self.scaling.lock().await;
        let state = self.state();
        state.config.check_node_count(count)?;
        let have = u32::try_from(state.nodes.len()).unwrap_or(u32::MAX);
        if have == count {
            let _ = events.send(Event::Note {
                text: format!("there are {count} nodes already"),
            });
            return Ok(());
        }
        let began = Instant::now();
        let tell = |detail: String, done: bool| {
            let done_ms = done.then(|| millis(began));
            let what = if count > have {
                "Adding nodes"
            } else {
                "Removing nodes"
            }
            .to_owned();
            let _ = events.send(Event::Step(Step {
                what,
                detail,
                done_ms,
            }));
        };
        let change = count.abs_diff(have);
        tell(format!("0/{change}"), false);
        if count > have {
            self.add_nodes(change, |ready| tell(format!("{ready}/{change}"), false))
                .await?;
        } else {
            let leaving = state.nodes.iter().rev().take(change as usize);
            let mut removing = JoinSet::new();
            for node in leaving {
                let (daemon, name) = (Arc::clone(self), node.name.clone());
                removing.spawn(async move { daemon.remove_node(&name).await });
            }
            let mut gone = 0;
            while let Some(removed) = removing.join_next().await {
                removed.map_err(|error| lost(&format!("removing a node: {error}")))??;
                gone += 1;
                tell(format!("{gone}/{change}"), false);
            }
        }
        tell(format!("{change}/{change}"), true);
        Ok(())
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
        }
    }

    async fn processes_ended(&self) {
        let mut supervised: Vec<Supervised> = self.operator().into_iter().collect();
        supervised.extend(self.machines().iter().map(|machine| machine.agent.clone()));
        for process in supervised {
            process.ended().await;
        }
    }

    fn registration(&self) -> Registration {
        Registration::new(self.handle.clone())
    }

    fn note_agent(&self, node: &str, id: Option<ProcessId>) -> Result<(), UserError> {
        let mut state = self.lock_state();
        if let Some(node) = state.nodes.iter_mut().find(|known| known.name == node) {
            node.agent = id;
        }
        self.dir.store(&state)
    }

    fn store(&self) -> Result<(), UserError> {
        self.dir.store(&self.lock_state())
    }

    fn lock_state(&self) -> MutexGuard<'_, ClusterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Progress ===

impl Progress {
    fn begin(&self, what: &'static str, detail: String) -> OpenStep<'_> {
        let step = Step {
            what: what.to_owned(),
            detail,
            done_ms: None,
        };
        self.log.send_modify(|log| log.steps.push(step));
        OpenStep {
            progress: self,
            began: Instant::now(),
        }
    }

    /// Tells all steps, those to come too, and returns the outcome.
    async fn tell(&self, events: &mpsc::UnboundedSender<Event>) -> Result<(), UserError> {
        let mut log = self.log.subscribe();
        let mut told: Vec<Step> = Vec::new();
        loop {
            let now = log.borrow_and_update().clone();
            for (at, step) in now.steps.iter().enumerate() {
                if told.get(at) != Some(step) {
                    let _ = events.send(Event::Step(step.clone()));
                }
            }
            told = now.steps;
            if let Some(outcome) = now.outcome {
                return outcome;
            }
            if log.changed().await.is_err() {
                return Err(lost("the cluster's progress"));
            }
        }
    }
}

/// The step that is under way.
struct OpenStep<'a> {
    progress: &'a Progress,
    began: Instant,
}

// === impl OpenStep ===

impl OpenStep<'_> {
    fn detail(&self, detail: String) {
        self.change(|step| step.detail = detail);
    }

    fn end(self) {
        let done = millis(self.began);
        self.change(|step| step.done_ms = Some(done));
    }

    fn change(&self, change: impl FnOnce(&mut Step)) {
        self.progress.log.send_modify(|log| {
            if let Some(step) = log.steps.last_mut() {
                change(step);
            }
        });
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
