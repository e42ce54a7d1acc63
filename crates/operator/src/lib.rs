//! Allocates blocks to nodes and publishes node slices.
//!
//! ```text
//!  Nodes, PodPools, NodeNetworks, NodeSlices ─▶ watch ─▶ Index ─▶ plan ─▶ note ─▶ write ─┐
//!                                                          ▲                             │
//!                                                          └─────────── answers ─────────┘
//! ```
//!
//! The only writer of blocks. It keeps no state of its own: what is given out is
//! what the NodeNetwork objects say and, for what is on its way there, the note
//! in the operator's Lease; an operator that starts honours both. An operator
//! that is down costs new nodes their blocks and nothing else. Several may run:
//! one leads, the others wait and know nothing.
#![forbid(unsafe_code)]

mod index;
mod lease;
mod metrics;
mod read;
mod slices;
mod tell;
mod watch;
mod write;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use ipnet::Ipv4Net;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use weft_model::{CidrError, parse_cidr};

use crate::index::{Index, Pace};
use crate::lease::{Candidate, Leadership};
use crate::metrics::Metrics;

/// Between two rounds of slice writes. Nodes that join within it are written together; one that joins alone does not wait.
const SLICE_PACE: Duration = Duration::from_millis(500);

/// Between two writes of a pool's counts.
const COUNTS_PACE: Duration = Duration::from_secs(5);

/// An agent that is updated is away for less than this.
const UNREADY: Duration = Duration::from_secs(10);

/// How to start the operator of a cluster. Of several that run, one leads.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How to reach the Kubernetes API; in a pod the pod's own service account where absent.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Seconds for which the blocks of a node that is gone are kept from others.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub block_return_grace: Duration,

    /// A service CIDR that no PodPool may overlap, beside those of ServiceCIDR objects. May be repeated.
    #[arg(long = "service-cidr", value_name = "CIDR", value_parser = cidr)]
    pub service_cidrs: Vec<Ipv4Net>,

    /// Whether to wait for the Lease until its holder lets it go. Without, it is taken at once, and whoever holds it stops.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,

    /// Namespace of the Lease weft-operator.
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "POD_NAMESPACE",
        default_value = "weft-system"
    )]
    pub lease_namespace: String,

    /// Agents are the pods of that namespace labelled app.kubernetes.io/name=weft, app.kubernetes.io/component=agent: a
    /// node on which none is Ready gets no more pods, whatever its agent said last.
    #[arg(long)]
    pub agent_pods: bool,

    /// Where /metrics, /healthz and /readyz are served; port 0 for any.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9466")]
    pub metrics_address: SocketAddr,
}

/// The operator's work on any client, without logging, signals or a server of metrics.
pub struct Operator {
    client: Client,
    candidate: Candidate,
    pace: Pace,
    service_cidrs: Vec<Ipv4Net>,
    /// Namespace of the agents' pods, where they are pods.
    agents: Option<String>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

enum State {
    /// Somebody else leads, or the API server does not say.
    Waiting(String),
    Leading(Arc<Leadership>),
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the operator from starting at all, such as a kubeconfig that can't
/// be read or a metrics address that is taken. An API server that is away is
/// waited for.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let client = weft_api::client(weft_api::config(args.kubeconfig.as_deref(), None).await?)?;
    let address = args.metrics_address;
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot serve metrics on {address}: choose another with --metrics-address")
    })?;
    let operator = Arc::new(Operator::new(client, &args));
    tracing::info!(
        identity = operator.candidate.identity(),
        metrics = %listener.local_addr()?,
        "the operator waits for Lease {}/{}",
        args.lease_namespace,
        lease::NAME
    );
    let (metrics, ready) = (Arc::clone(&operator.metrics), Arc::clone(&operator));
    tokio::spawn(weft_api::http::serve(
        listener,
        Arc::new(move || metrics.text()),
        Arc::new(move || Ok(ready.role())),
    ));
    tokio::select! {
        () = operator.serve() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    operator.release().await;
    tracing::info!("stopping; nodes keep their blocks");
    Ok(())
}

// === impl Operator ===

impl Operator {
    /// An operator that does nothing yet. Of `args`, the kubeconfig and the metrics address don't matter.
    pub fn new(client: Client, args: &Args) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let pod = std::env::var("POD_NAME").unwrap_or_else(|_| host.trim().to_owned());
        let identity = format!("{pod}_{}", uuid::Uuid::new_v4());
        Self {
            candidate: Candidate::new(
                client.clone(),
                &args.lease_namespace,
                identity,
                !args.leader_elect,
            ),
            client,
            pace: Pace {
                grace: args.block_return_grace,
                slices: SLICE_PACE,
                counts: COUNTS_PACE,
                unready: UNREADY,
            },
            service_cidrs: args.service_cidrs.clone(),
            agents: args.agent_pods.then(|| args.lease_namespace.clone()),
            metrics: Arc::new(Metrics::new()),
            state: Mutex::new(State::Waiting("the Lease was not read yet".to_owned())),
        }
    }

    /// Waits to lead, leads, and waits again when that is over. Ends only when dropped.
    pub async fn serve(&self) {
        loop {
            let leadership = self.candidate.acquire(|who| {
                tracing::info!("waiting: {who}");
                self.set(State::Waiting(who.to_owned()));
            });
            let leadership = Arc::new(leadership.await);
            tracing::info!(identity = self.candidate.identity(), "leading");
            self.set(State::Leading(Arc::clone(&leadership)));
            self.metrics.leads(true);
            let index = Index::new(self.pace, self.service_cidrs.clone(), &leadership.noted().await);
            let work = watch::run(
                self.client.clone(),
                self.agents.as_deref(),
                index,
                self.candidate.identity(),
                Arc::clone(&leadership),
                Arc::clone(&self.metrics),
            );
            tokio::select! {
                () = work => {}
                why = leadership.keep() => {
                    tracing::error!("no longer leading, nothing more is written: {why}");
                    self.set(State::Waiting(why.to_string()));
                }
            }
            self.metrics.leads(false);
        }
    }

    /// Lets another lead at once. Call it when `serve` is dropped.
    pub async fn release(&self) {
        let leadership = match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Leading(leadership) => Arc::clone(leadership),
            State::Waiting(_) => return,
        };
        let released = tokio::time::timeout(Duration::from_secs(3), leadership.release()).await;
        match released {
            Ok(Ok(())) => tracing::info!("released the Lease"),
            Ok(Err(error)) => tracing::warn!(%error, "could not release the Lease"),
            Err(_) => tracing::warn!("could not release the Lease within 3 s"),
        }
    }

    /// What this operator is doing, in one sentence.
    fn role(&self) -> String {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Leading(_) => "leading".to_owned(),
            State::Waiting(who) => format!("waiting: {who}"),
        }
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator")
            .field("identity", &self.candidate.identity())
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.strip_suffix('s')
        .unwrap_or(text)
        .parse()
        .map(Duration::from_secs)
}

fn cidr(text: &str) -> Result<Ipv4Net, CidrError> {
    parse_cidr(text)
}
