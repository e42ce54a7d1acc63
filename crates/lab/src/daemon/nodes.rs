//! Nodes that come, go, reboot, and are waited for.

use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use weft_kernel::NetNs;
use weft_kernel::process::ProcessId;
use weft_model::{TransportChoice, UserError, codes};

use super::{Daemon, blocking, lost, millis};
use crate::control::{Event, Step};
use crate::machine::Machine;
use crate::node::{NodeHandle, ScaleRequest};
use crate::state::{RootLock, unusable};
use crate::supervise::Supervised;
use crate::workloads;

/// How long a node may take from power-on to Ready.
const NODE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the pods of a node that leaves may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(45);

/// A node that is switched on.
#[derive(Debug)]
pub(crate) struct RunningMachine {
    pub(crate) machine: Machine,
    pub(crate) handle: Arc<NodeHandle>,
    pub(crate) agent: Supervised,
    /// Holds the kubelet's task.
    kubelet: TaskTracker,
}

// === impl Daemon ===

impl Daemon {
    /// Adds nodes, all at the same time; `on_ready` gets the number of those that are Ready.
    pub(super) async fn add_nodes(
        self: &Arc<Self>,
        count: u32,
        on_ready: impl Fn(u32),
    ) -> Result<(), UserError> {
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
        let registered = registration.register(&machine, config.max_pods);
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
            address: machine.address.into(),
            dir: machine.dir.clone(),
            max_pods: self.lock_state().config.max_pods,
            stop: self.handle.stop.child_token(),
        });
        let transport = self.lock_state().node(&machine.node)?.transport;
        let args = machine.agent_args(&self.dir.node_kubeconfig(), transport);
        let agent = Supervised::start(machine.agent(&self.programs, args, netns), handle.stop.clone())
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
        self.machine(name)?;
        self.switch_off(name).await;
        let state = self.state();
        let machine = Machine::new(&self.dir, state.node(name)?);
        let uid = self
            .registration()
            .register(&machine, state.config.max_pods)
            .await?;
        self.ready.send_modify(|known| {
            known.insert(name.to_owned(), (uid.clone(), Err("it is starting".to_owned())));
        });
        let netns = {
            let machine = machine.clone();
            blocking(move || {
                machine.power_off()?;
                machine.power_on(&state.config)
            })
            .await?
        };
        self.boot(machine, uid, netns).await.map(drop)
    }

    /// Puts another machine in the place of a node: under the same name and address, with an empty disk and a Node
    /// object of its own, whose UID this returns. The old one's pods go with it.
    pub(crate) async fn replace(self: &Arc<Self>, name: &str) -> Result<String, UserError> {
        self.machine(name)?;
        self.switch_off(name).await;
        self.registration().delete(name).await?;
        let state = self.state();
        let machine = Machine::new(&self.dir, state.node(name)?);
        {
            let machine = machine.clone();
            blocking(move || machine.scrap()).await?;
        }
        Ok(self.start_machine(machine).await?.uid.clone())
    }

    /// Gives a node another address of the VNet, as a change of its lease does; returns the one before and the new
    /// one.
    pub(crate) async fn change_address(
        self: &Arc<Self>,
        running: &RunningMachine,
    ) -> Result<(Ipv4Addr, Ipv4Addr), UserError> {
        let name = running.handle.name.clone();
        let before = running.handle.address.get();
        let daemon = Arc::clone(self);
        let after = blocking(move || {
            let lock = RootLock::acquire()?;
            let config = daemon.state().config;
            let after = lock.free_address(&daemon.state())?;
            let machine = daemon.machine(&name)?.machine.clone();
            machine.readdress(&config, before, after)?;
            let mut state = daemon.lock_state();
            if let Some(node) = state.nodes.iter_mut().find(|node| node.name == name) {
                node.address = after;
            }
            daemon.dir.store(&state)?;
            Ok(after)
        })
        .await?;
        running.handle.address.set(after);
        Ok((before, after))
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
                .wait_for(|known| known.get(&node.name) == Some(&(node.uid.clone(), Ok(()))))
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
                    .and_then(|(_, ready)| ready.err())
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

    pub(super) async fn serve_scaling(self: Arc<Self>, mut requests: mpsc::Receiver<ScaleRequest>) {
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
    pub(super) async fn scale(
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

    /// Has nodes send to others in that way: their agents are started again, one after the other.
    pub(super) async fn set_transport(
        &self,
        transport: TransportChoice,
        nodes: &[String],
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<(), UserError> {
        for running in self.machines_of(nodes)? {
            let name = &running.handle.name;
            {
                let mut state = self.lock_state();
                if let Some(node) = state.nodes.iter_mut().find(|node| node.name == *name) {
                    node.transport = transport;
                }
                self.dir.store(&state)?;
            }
            let args = running.machine.agent_args(&self.dir.node_kubeconfig(), transport);
            running
                .agent
                .restart_with(args)
                .await
                .map_err(|error| unusable("start again", &self.programs.weft, &error))?;
            let text = format!("{name}: agent started with --transport {transport}");
            let _ = events.send(Event::Note { text });
        }
        Ok(())
    }

    fn note_agent(&self, node: &str, id: Option<ProcessId>) -> Result<(), UserError> {
        let mut state = self.lock_state();
        if let Some(node) = state.nodes.iter_mut().find(|known| known.name == node) {
            node.agent = id;
        }
        self.dir.store(&state)
    }
}
