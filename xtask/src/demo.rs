//! `cargo xtask demo`.
use anyhow::Result;
/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the clusters running and say how to go on
    #[arg(long)]
    keep: bool,
}
pub(crate) fn run(_: &Args) -> Result<()> {
    Ok(())
}
