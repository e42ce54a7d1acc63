//! Things that break, on purpose.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use weft_kernel::NetNs;
use weft_kernel::nft::Nft;
use weft_kernel::process::Signal;
use weft_kernel::rtnl::Rtnl;
use weft_model::{UserError, codes};

use crate::control::Event;
use crate::daemon::{Daemon, RunningMachine, blocking};
use crate::machine::kernel_error;
use crate::vnet::{self, VnetNames};

/// What to break, or to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRequest {
    /// The kind of fault.
    pub kind: FaultKind,
    /// On which nodes; all, where none is named.
    pub nodes: Vec<String>,
    /// Percentage for loss, bytes for mtu.
    pub value: Option<u32>,
    /// Mend it after that many milliseconds.
    pub for_ms: Option<u64>,
    /// Mend it now.
    pub clear: bool,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The agent is killed, as by the kernel when memory is short.
    KillAgent,
    /// The agent is frozen.
    StopAgent,
    /// The node's link loses packets.
    Loss,
    /// The node's link takes smaller packets.
    Mtu,
    /// The node is cut from its VNet.
    Partition,
    /// Somebody removes the agent's nftables table.
    FlushNft,
    /// The node loses power and comes back.
    RebootNode,
}

/// The faults that were injected and not mended, by node.
#[derive(Debug, Default)]
pub(crate) struct ActiveFaults {
    nodes: Mutex<BTreeMap<(String, FaultKind), String>>,
}

/// Percentage of packets that [`FaultKind::Loss`] loses where none is given.
const DEFAULT_LOSS: u32 = 20;

/// The agent's table of nftables.
const WEFT_TABLE: &str = "weft";

/// MTU in bytes of [`FaultKind::Mtu`] where none is given.
const DEFAULT_MTU: u32 = 1400;

// === impl FaultKind ===

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::KillAgent,
        Self::StopAgent,
        Self::Loss,
        Self::Mtu,
        Self::Partition,
        Self::FlushNft,
        Self::RebootNode,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillAgent => "kill-agent",
            Self::StopAgent => "freeze-agent",
            Self::Loss => "loss",
            Self::Mtu => "mtu",
            Self::Partition => "partition",
            Self::FlushNft => "flush-nft",
            Self::RebootNode => "reboot-node",
        }
    }

    /// What it does, in a sentence.
    pub fn describe(self) -> &'static str {
        match self {
            Self::KillAgent => {
                "kill -9 the agent; it is started again at once, or with --for after that time"
            }
            Self::StopAgent => "freeze the agent (SIGSTOP) until --for has passed or --clear",
            Self::Loss => "lose --value percent (20) of the packets that the node sends",
            Self::Mtu => "give the node's link an MTU of --value (1400) bytes",
            Self::Partition => "cut the node from its VNet",
            Self::FlushNft => "remove the agent's nftables table, once",
            Self::RebootNode => {
                "power off the node and start it again: processes, links and pins are gone, the disk stays"
            }
        }
    }

    /// Reads the name of a kind.
    ///
    /// # Errors
    /// There is none; the error names all.
    pub fn parse(text: &str) -> Result<Self, UserError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
                UserError::new(
                    codes::UNKNOWN_FAULT,
                    format!("there is no fault {text:?}"),
                    format!("choose one of {}", names.join(", ")),
                )
            })
    }
}

// === impl ActiveFaults ===

impl ActiveFaults {
    /// Descriptions of a node's faults.
    pub(crate) fn of_node(&self, node: &str) -> Vec<String> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes
            .iter()
            .filter(|((name, _), _)| name == node)
            .map(|(_, text)| text.clone())
            .collect()
    }

    fn note(&self, node: &str, kind: FaultKind, text: Option<String>) {
        let key = (node.to_owned(), kind);
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => nodes.insert(key, text),
            None => nodes.remove(&key),
        };
    }
}

// === impl Daemon ===

impl Daemon {
    /// Breaks or mends something, on each of the nodes named.
    pub(crate) async fn inject(
        self: &Arc<Self>,
        request: FaultRequest,
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<(), UserError> {
        let machines = self.machines_of(&request.nodes)?;
        let span = request.for_ms.map(Duration::from_millis);
        for machine in machines {
            let name = machine.handle.name.clone();
            let text = if request.clear {
                self.mend(&machine, request.kind).await?;
                format!("{name}: {} mended", request.kind.name())
            } else {
                let what = self.break_it(&machine, &request).await?;
                if let Some(span) = span {
                    let (daemon, machine, kind) = (Arc::clone(self), Arc::clone(&machine), request.kind);
                    tokio::spawn(async move {
                        tokio::time::sleep(span).await;
                        if let Err(error) = daemon.mend(&machine, kind).await {
                            tracing::warn!(fault = kind.name(), %error, "can't mend a fault");
                        }
                    });
                }
                let until = span.map_or(String::new(), |span| format!(", for {span:?}"));
                format!("{name}: {what}{until}")
            };
            let _ = events.send(Event::Note { text });
        }
        Ok(())
    }

    async fn break_it(
        self: &Arc<Self>,
        machine: &Arc<RunningMachine>,
        request: &FaultRequest,
    ) -> Result<String, UserError> {
        let agent = &machine.agent;
        let name = machine.handle.name.clone();
        let pid = agent.now().id.map_or("none".to_owned(), |id| id.pid.to_string());
        let lasting;
        let text = match request.kind {
            FaultKind::KillAgent => {
                let span = request.for_ms.map(Duration::from_millis);
                lasting = span.is_some();
                match span {
                    Some(span) => agent.kill_and_hold(Some(span)),
                    None => agent.signal(Signal::KILL),
                }
                .map_err(|error| signal_error(machine, &error))?;
                format!("agent (pid {pid}) killed")
            }
            FaultKind::StopAgent => {
                lasting = true;
                agent
                    .signal(Signal::STOP)
                    .map_err(|error| signal_error(machine, &error))?;
                format!("agent (pid {pid}) frozen")
            }
            FaultKind::Partition => {
                lasting = true;
                self.change_port(machine, |rtnl, port| rtnl.set_up(port, false).map(|_| ()))
                    .await?;
                "cut from the VNet".to_owned()
            }
            FaultKind::Mtu => {
                lasting = true;
                let mtu = request.value.unwrap_or(DEFAULT_MTU);
                if !(576..=vnet::MTU).contains(&mtu) {
                    return Err(out_of_range("mtu", mtu, "576 to 1500 bytes"));
                }
                self.set_mtu(machine, mtu).await?;
                format!("MTU of the link is {mtu}")
            }
            FaultKind::Loss => {
                lasting = true;
                let percent = request.value.unwrap_or(DEFAULT_LOSS);
                let share = u8::try_from(percent)
                    .ok()
                    .filter(|share| (1..=100).contains(share))
                    .ok_or_else(|| out_of_range("loss", percent, "1 to 100 percent"))?;
                self.set_loss(machine, share).await?;
                format!("{percent} % of what it sends is lost")
            }
            FaultKind::FlushNft => {
                lasting = false;
                let (netns, node) = (machine.handle.netns_name.clone(), name.clone());
                let had = blocking(move || {
                    NetNs::named(&netns)
                        .and_then(|netns| Nft::open_in(&netns)?.delete_table(WEFT_TABLE))
                        .map_err(|error| fault_error(&node, &error))
                })
                .await?;
                if had {
                    "nftables table removed"
                } else {
                    "there was no nftables table"
                }
                .to_owned()
            }
            FaultKind::RebootNode => {
                lasting = false;
                let began = Instant::now();
                self.reboot(&name).await?;
                format!("rebooted, Ready after {:.1} s", began.elapsed().as_secs_f64())
            }
        };
        if lasting {
            self.faults
                .note(&machine.handle.name, request.kind, Some(text.clone()));
        }
        Ok(text)
    }

    async fn mend(self: &Arc<Self>, machine: &Arc<RunningMachine>, kind: FaultKind) -> Result<(), UserError> {
        match kind {
            FaultKind::KillAgent => machine.agent.release(),
            FaultKind::StopAgent => {
                machine
                    .agent
                    .signal(Signal::CONT)
                    .map_err(|error| signal_error(machine, &error))?;
            }
            FaultKind::Partition => {
                self.change_port(machine, |rtnl, port| rtnl.set_up(port, true).map(|_| ()))
                    .await?;
            }
            FaultKind::Mtu => self.set_mtu(machine, vnet::MTU).await?,
            FaultKind::Loss => self.set_loss(machine, 0).await?,
            FaultKind::FlushNft | FaultKind::RebootNode => {}
        }
        self.faults.note(&machine.handle.name, kind, None);
        Ok(())
    }

    /// Changes the switch's end of a node's link.
    async fn change_port(
        &self,
        machine: &RunningMachine,
        change: impl FnOnce(&mut Rtnl, &str) -> weft_kernel::Result<()> + Send + 'static,
    ) -> Result<(), UserError> {
        let switch = VnetNames::of(&self.state().config.vnet).switch;
        let (port, node) = (
            vnet::port_name(machine.handle.address),
            machine.handle.name.clone(),
        );
        blocking(move || {
            NetNs::named(&switch)
                .and_then(|switch| Rtnl::open_in(&switch))
                .and_then(|mut rtnl| change(&mut rtnl, &port))
                .map_err(|error| fault_error(&node, &error))
        })
        .await
    }

    /// Loses that share of the packets a node sends, as they arrive at the switch.
    async fn set_loss(&self, machine: &RunningMachine, percent: u8) -> Result<(), UserError> {
        let switch = VnetNames::of(&self.state().config.vnet).switch;
        let (port, node) = (
            vnet::port_name(machine.handle.address),
            machine.handle.name.clone(),
        );
        blocking(move || {
            NetNs::named(&switch)
                .and_then(|switch| Nft::open_in(&switch)?.lose(&port, percent))
                .map_err(|error| fault_error(&node, &error))
        })
        .await
    }

    /// Sets the MTU of both ends of a node's link, as a smaller network underneath would.
    async fn set_mtu(&self, machine: &RunningMachine, mtu: u32) -> Result<(), UserError> {
        self.change_port(machine, move |rtnl, port| rtnl.set_mtu(port, mtu).map(|_| ()))
            .await?;
        let (netns, node) = (machine.handle.netns_name.clone(), machine.handle.name.clone());
        blocking(move || {
            NetNs::named(&netns)
                .and_then(|netns| Rtnl::open_in(&netns)?.set_mtu("eth0", mtu))
                .map(|_| ())
                .map_err(|error| fault_error(&node, &error))
        })
        .await
    }
}

fn out_of_range(kind: &str, value: u32, range: &str) -> UserError {
    UserError::new(
        codes::OUT_OF_RANGE,
        format!("--value {value} is out of range for {kind}"),
        format!("use {range}"),
    )
}

fn fault_error(node: &str, error: &weft_kernel::Error) -> UserError {
    kernel_error(&format!("fault on {node}"), error, "weft lab list")
}

fn signal_error(machine: &RunningMachine, error: &std::io::Error) -> UserError {
    UserError::new(
        codes::LAB_STATE,
        format!("can't signal the agent of {}: {error}", machine.handle.name),
        "weft lab list",
    )
}
