//! `weft node`: this machine as a node.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use weft_agent::cleanup::{Cleanup, cleanup};
use weft_model::UserError;

use crate::args::OutputArgs;
use crate::cluster::audit;
use crate::{OK, out};

/// This machine as a node
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Leave the node as it was before Weft: configuration, plugin, interfaces, routes, rules, programs, state
    ///
    /// Run it as root on the node, or in a container with the node's network, after the agent was stopped and the node
    /// was drained. Idempotent.
    Cleanup(Cleanup),
    /// Have this node's agent compare the kernel with what it should be
    ///
    /// Run it as root on the node, or in the agent's container.
    #[command(after_help = "Exit code: 0 clean, 1 something differs, 2 the agent does not answer")]
    Audit(NodeAuditArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NodeAuditArgs {
    /// The socket that the agent serves
    #[arg(long, value_name = "FILE", default_value = "/run/weft/agent.sock")]
    socket: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries the command out.
pub(crate) fn run(command: &NodeCommand) -> Result<u8, UserError> {
    match command {
        NodeCommand::Cleanup(options) => clean_up(options),
        NodeCommand::Audit(args) => audit::of_node(&args.socket, args.output.output),
    }
}

fn clean_up(options: &Cleanup) -> Result<u8, UserError> {
    let removed = cleanup(options)?;
    if removed.is_empty() {
        out::line("nothing of Weft is on this node");
    }
    for what in removed {
        out::line(format!("removed: {what}"));
    }
    Ok(OK)
}
