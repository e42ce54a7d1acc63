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

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use weft_model::{CidrError, UserError, codes, parse_cidr};

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

    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the operator from starting at all, such as a kubeconfig that can't
/// be read. An API server that is away is waited for.
pub async fn run(args: Args) -> anyhow::Result<()> {
    start_logging(args.log_format);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let client = client(args.kubeconfig.as_deref()).await?;
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

fn start_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A subscriber that is there already is the embedding program's, and good.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let unusable = |error: &dyn std::fmt::Display| {
                UserError::new(
                    codes::KUBECONFIG,
                    format!("kubeconfig {}: {error}", path.display()),
                    format!("kubectl --kubeconfig {} config view", path.display()),
                )
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(|error| unusable(&error))?
        }
        None => kube::Config::infer().await.map_err(|error| {
            UserError::new(
                codes::KUBECONFIG,
                error.to_string(),
                "name a kubeconfig with --kubeconfig FILE",
            )
        })?,
    };
    Ok(Client::try_from(config)?)
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
