//! The command line as it is typed; nothing here is checked beyond its form.

use clap::{Parser, Subcommand, ValueEnum};

use crate::lab::args::LabCommand;

/// Pod networks in the way of Azure CNI Overlay, on any Linux nodes.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    /// Never use colours; so does NO_COLOR in the environment, and output that is no terminal
    #[arg(long, global = true)]
    pub no_color: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Clusters of network namespaces on this machine, with the real agent, plugin and eBPF programs
    #[command(subcommand)]
    Lab(Box<LabCommand>),
    /// Run the node agent
    Agent(weft_agent::Args),
    /// Run the operator
    Operator(weft_operator::Args),
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
