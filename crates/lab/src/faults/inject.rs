//! Carrying a fault out, and mending it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weft_kernel::process::Signal;
use weft_model::{UserError, codes};

use super::{Ending, FaultKind, FaultRequest, Scope, kernel};
use crate::control::Event;
use crate::daemon::{Daemon, RunningMachine};
use crate::supervise::Supervised;
use crate::vnet;

/// Something a fault is of.
#[derive(Clone)]
enum Victim {
    Node(Arc<RunningMachine>),
    Cluster,
}

// === impl Victim ===

impl Victim {
    fn node(&self) -> Option<&str> {
        match self {
            Self::Node(machine) => Some(&machine.handle.name),
            Self::Cluster => None,
        }
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
        let value = request.check()?;
        let victims: Vec<Victim> = if request.kind.scope() == Scope::Cluster {
            vec![Victim::Cluster]
        } else {
            let machines = self.machines_of(&request.nodes)?.into_iter();
            machines.map(Victim::Node).collect()
        };
        let span = request.for_ms.map(Duration::from_millis);
        for victim in victims {
            let said = if request.clear {
                self.mend(&victim, request.kind).await?;
                format!("{} mended", request.kind.name())
            } else {
                let what = self.start(&victim, request.kind, value, span).await?;
                let until = span.map_or(String::new(), |span| format!(", for {span:?}"));
                format!("{what}{until}")
            };
            let text = match victim.node() {
                Some(node) => format!("{node}: {said}"),
                None => said,
            };
            let _ = events.send(Event::Note { text });
        }
        Ok(())
    }

    async fn start(
        self: &Arc<Self>,
        victim: &Victim,
        kind: FaultKind,
        value: u32,
        span: Option<Duration>,
    ) -> Result<String, UserError> {
        let what = match victim {
            Victim::Node(machine) => self.break_node(machine, kind, value, span).await?,
            Victim::Cluster => self.break_cluster(kind, value, span).await?,
        };
        if kind.ending() == Ending::Mended || span.is_some() {
            self.faults.note(victim.node(), kind, Some(what.clone()));
        }
        if let Some(span) = span {
            let (daemon, victim) = (Arc::clone(self), victim.clone());
            tokio::spawn(async move {
                tokio::time::sleep(span).await;
                if let Err(error) = daemon.mend(&victim, kind).await {
                    tracing::warn!(fault = kind.name(), %error, "can't mend a fault");
                }
            });
        }
        Ok(what)
    }

    async fn break_node(
        self: &Arc<Self>,
        machine: &Arc<RunningMachine>,
        kind: FaultKind,
        value: u32,
        span: Option<Duration>,
    ) -> Result<String, UserError> {
        let name = &machine.handle.name;
        Ok(match kind {
            FaultKind::KillAgent => {
                let pid = kill("agent", &machine.agent, span)?;
                format!("agent (pid {pid}) killed")
            }
            FaultKind::StopAgent => {
                let pid = pid(&machine.agent);
                signal("agent", &machine.agent, Signal::STOP)?;
                format!("agent (pid {pid}) frozen")
            }
            FaultKind::Partition => {
                self.set_port_up(machine, false).await?;
                "cut from the VNet".to_owned()
            }
            FaultKind::Mtu => {
                self.set_mtu(machine, value).await?;
                format!("MTU of the link is {value}")
            }
            FaultKind::Loss => {
                self.set_loss(machine, u8::try_from(value).unwrap_or(u8::MAX))
                    .await?;
                format!("{value} % of what it sends is lost")
            }
            FaultKind::FlushNft => kernel::on(machine, kernel::flush_nft).await?,
            FaultKind::DeleteRoute => kernel::on(machine, kernel::delete_routes).await?,
            FaultKind::DeleteLink => kernel::on(machine, kernel::delete_overlay).await?,
            FaultKind::DeleteMapEntry => kernel::delete_map_entries(machine).await?,
            FaultKind::Sysctl => kernel::on(machine, kernel::change_parameters).await?,
            FaultKind::DiskFull => kernel::fill_disk(machine).await?,
            FaultKind::RebootNode => {
                let began = Instant::now();
                self.reboot(name).await?;
                format!("rebooted, Ready after {:.1} s", began.elapsed().as_secs_f64())
            }
            FaultKind::ReplaceNode => {
                let began = Instant::now();
                let uid = self.replace(name).await?;
                format!(
                    "replaced by a machine with UID {uid}, Ready after {:.1} s",
                    began.elapsed().as_secs_f64()
                )
            }
            FaultKind::ChangeAddress => {
                let (before, after) = self.change_address(machine).await?;
                format!("address changed from {before} to {after}")
            }
            FaultKind::KillOperator | FaultKind::ApiDown | FaultKind::ApiRewind | FaultKind::LoseSlice => {
                return Err(not_of(kind, "node"));
            }
        })
    }

    async fn break_cluster(
        self: &Arc<Self>,
        kind: FaultKind,
        value: u32,
        span: Option<Duration>,
    ) -> Result<String, UserError> {
        Ok(match kind {
            FaultKind::KillOperator => {
                let pid = kill("operator", &self.operator_or_not()?, span)?;
                format!("operator (pid {pid}) killed")
            }
            FaultKind::ApiDown => {
                self.set_api_up(false);
                "the Kubernetes API answers nobody".to_owned()
            }
            FaultKind::ApiRewind => self.rewind(value).await?,
            FaultKind::LoseSlice => self.delete_slices().await?,
            _ => return Err(not_of(kind, "cluster")),
        })
    }

    async fn mend(self: &Arc<Self>, victim: &Victim, kind: FaultKind) -> Result<(), UserError> {
        match (victim, kind) {
            (Victim::Node(machine), FaultKind::KillAgent) => machine.agent.release(),
            (Victim::Node(machine), FaultKind::StopAgent) => {
                signal("agent", &machine.agent, Signal::CONT)?;
            }
            (Victim::Node(machine), FaultKind::Partition) => self.set_port_up(machine, true).await?,
            (Victim::Node(machine), FaultKind::Mtu) => self.set_mtu(machine, vnet::MTU).await?,
            (Victim::Node(machine), FaultKind::Loss) => self.set_loss(machine, 0).await?,
            (Victim::Node(machine), FaultKind::DiskFull) => kernel::free_disk(machine).await?,
            (Victim::Cluster, FaultKind::KillOperator) => self.operator_or_not()?.release(),
            (Victim::Cluster, FaultKind::ApiDown) => self.set_api_up(true),
            _ => {}
        }
        self.faults.note(victim.node(), kind, None);
        Ok(())
    }

    fn operator_or_not(&self) -> Result<Supervised, UserError> {
        self.operator().ok_or_else(|| {
            UserError::new(
                codes::LAB_STATE,
                "the operator is not started yet",
                format!("weft lab status {}", self.handle.name),
            )
        })
    }
}

/// Kills a process, and keeps it from being started again for a time; returns its process ID.
fn kill(what: &str, process: &Supervised, span: Option<Duration>) -> Result<String, UserError> {
    let pid = pid(process);
    match span {
        Some(span) => process
            .kill_and_hold(Some(span))
            .map_err(|error| unheard(what, &error))?,
        None => signal(what, process, Signal::KILL)?,
    }
    Ok(pid)
}

fn signal(what: &str, process: &Supervised, signal: Signal) -> Result<(), UserError> {
    process.signal(signal).map_err(|error| unheard(what, &error))
}

fn pid(process: &Supervised) -> String {
    process
        .now()
        .id
        .map_or("none".to_owned(), |id| id.pid.to_string())
}

fn unheard(what: &str, error: &std::io::Error) -> UserError {
    UserError::new(
        codes::LAB_STATE,
        format!("can't signal the {what}: {error}"),
        "weft lab list",
    )
}

fn not_of(kind: FaultKind, scope: &str) -> UserError {
    UserError::new(
        codes::UNKNOWN_FAULT,
        format!("{} is no fault of a {scope}", kind.name()),
        "weft lab fault NAME list",
    )
}
