//! Allocates blocks to nodes and publishes node slices.
//!
//! ```text
//!  Nodes, PodPools, NodeNetworks, NodeSlices ─▶ watch ─▶ Index ─▶ plan ─▶ write ─┐
//!                                                          ▲                     │
//!                                                          └─────── answers ─────┘
//! ```
//!
//! The only writer of blocks. It keeps no state of its own: what is given out is
//! what the NodeNetwork objects say, and an operator that starts honours it. An
//! operator that is down costs new nodes their blocks and nothing else.
#![forbid(unsafe_code)]

mod index;
mod slices;
mod watch;
mod write;

use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use weft_model::{CidrError, parse_cidr};

use crate::index::Index;

/// How to start the operator of a cluster. One runs per cluster.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How to reach the Kubernetes API; in a pod the pod's own service account where absent.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Seconds for which the blocks of a node that is gone are kept from others.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub block_return_grace: Duration,

    /// The cluster's service CIDR, so that a PodPool that overlaps it is refused. May be repeated.
    #[arg(long = "service-cidr", value_name = "CIDR", value_parser = cidr)]
    pub service_cidrs: Vec<Ipv4Net>,
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the operator from starting at all, such as a kubeconfig that can't
/// be read. An API server that is away is waited for.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let client = weft_api::client(weft_api::config(args.kubeconfig.as_deref(), None).await?)?;
    let serve = serve(client, args.block_return_grace, args.service_cidrs);
    tokio::select! {
        () = serve => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; nodes keep their blocks");
    Ok(())
}

/// The operator's work on any client, without logging or signals. Ends only when dropped.
pub async fn serve(client: Client, block_return_grace: Duration, service_cidrs: Vec<Ipv4Net>) {
    watch::run(client, Index::new(block_return_grace, service_cidrs)).await;
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
