//! The command line as it is typed; nothing here is checked beyond its form.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cluster::audit::AuditArgs;
use crate::cluster::ip::IpCommand;
use crate::cluster::status::StatusArgs;
use crate::cni::CniCommand;
use crate::install::InstallArgs;
use crate::install::uninstall::UninstallArgs;
use crate::lab::args::LabCommand;
use crate::log::LogFormat;
use crate::node::NodeCommand;

/// Pod networks in the way of Azure CNI Overlay, on any Linux nodes.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// Never use colours; so does NO_COLOR in the environment, and output that is no terminal
    #[arg(long, global = true, display_order = 900)]
    pub no_color: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// Arguments of what runs until it is told to end.
#[derive(Debug, Args)]
pub(crate) struct Service<A: Args> {
    #[command(flatten)]
    pub(crate) args: A,

    /// How log lines look
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Clusters of network namespaces on this machine, with the real agent, plugin and eBPF programs
    #[command(subcommand)]
    Lab(Box<LabCommand>),
    /// Install Weft on a cluster, with few choices; the Helm chart has all of them
    Install(InstallArgs),
    /// Take Weft off a cluster and its nodes, which are left as they were
    Uninstall(UninstallArgs),
    /// Show how the pod network is doing, of a lab or of any other cluster
    #[command(after_help = "Exit code: 0 healthy, 1 degraded, 2 unreachable")]
    Status(StatusArgs),
    /// Compare what should be there with what is: ledgers, kernels, API objects, and what packets do
    #[command(
        after_help = "Exit code: 0 clean, 1 something differs or a node does not answer, 2 unreachable"
    )]
    Audit(AuditArgs),
    /// Show who has which address
    #[command(subcommand)]
    Ip(IpCommand),
    /// Run the node agent
    Agent(Service<weft_agent::Args>),
    /// Run the operator
    Operator(Service<weft_operator::Args>),
    /// Put the CNI plugin where the container runtime of a node finds it, or take it away
    #[command(subcommand)]
    Cni(CniCommand),
    /// This machine as a node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Explain an error code such as WEFT-1003; without a code, list them all
    Explain {
        /// The code, with or without "WEFT-"
        code: Option<String>,
    },
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For people with broad terminals.
    Wide,
    /// For programs; the schema's version is in "apiVersion".
    Json,
    /// The same as JSON, in YAML.
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// How to print it: table, wide, json or yaml
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub output: Output,
}

/// Reads `10s`, `1500ms`, `2m`, or a bare number of seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "expected a time such as 10s, 500ms or 2m".to_owned())?;
    match &text[digits.len()..] {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        unit => Err(format!("unknown unit {unit:?}: expected ms, s or m")),
    }
}
