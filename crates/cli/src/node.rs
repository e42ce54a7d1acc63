//! `weft node`: this machine as a node.

use clap::Subcommand;
use weft_agent::cleanup::{Cleanup, cleanup};
use weft_model::UserError;

use crate::{OK, out};

/// This machine as a node
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Leave the node as it was before Weft: configuration, plugin, interfaces, routes, rules, programs, state
    ///
    /// Run it as root on the node, or in a container with the node's network, after the agent was stopped and the node
    /// was drained. Idempotent.
    Cleanup(Cleanup),
}

/// Carries the command out.
pub(crate) fn run(command: &NodeCommand) -> Result<u8, UserError> {
    let NodeCommand::Cleanup(options) = command;
    let removed = cleanup(options)?;
    if removed.is_empty() {
        out::line("nothing of Weft is on this node");
    }
    for what in removed {
        out::line(format!("removed: {what}"));
    }
    Ok(OK)
}
