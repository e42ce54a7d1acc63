//! `weft-kubetest`, the program behind `cargo xtask kube` and `cargo xtask image`.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use weft_kubetest::{build, commands, e2e, image};

/// Real Kubernetes clusters in namespaces of one machine.
#[derive(Debug, Parser)]
#[command(
    name = "weft-kubetest",
    bin_name = "cargo xtask kube",
    disable_version_flag = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Cluster(commands::Command),
    /// Build Kubernetes and the other programs and images of clusters, what is missing of them
    Build(build::Args),
    /// Run upstream's end-to-end suite on a cluster
    E2e(e2e::Args),
    /// Pack the image of Weft from its binaries
    #[command(hide = true)]
    Image(image::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Cluster(command) => commands::run(command),
        Command::Build(args) => {
            let _ = writeln!(std::io::stdout(), "{}", args.run()?.display());
            Ok(())
        }
        Command::E2e(args) => {
            let (table, passed) = args.run()?;
            let _ = writeln!(std::io::stdout(), "{table}");
            if !passed {
                bail!("not every spec passed");
            }
            Ok(())
        }
        Command::Image(args) => {
            let digest = args.run()?;
            let _ = writeln!(std::io::stdout(), "{}@{digest}", image::REFERENCE);
            Ok(())
        }
    }
}
