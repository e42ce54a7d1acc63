//! Developer commands of the project. `cargo xtask help` lists them; CONTRIBUTING.md says when to use which.

#![forbid(unsafe_code)]

mod bench;
mod chart;
mod demo;
mod dist;
mod exec;
mod fuzz;
mod host;
mod image;
mod interrupt;
mod invariants;
mod junit;
mod kube;
mod lint;
mod setup;
mod term;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, show, test and measure Weft.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or install what a build needs; safe to repeat
    Setup(setup::Args),
    /// Build, then show two clusters with the same pod CIDR in one network (root, under a minute)
    Demo(demo::Args),
    /// Run the tests, all parts or those named
    Test(test::Args),
    /// Run everything that hosted CI runs: `test` with all its parts
    Ci,
    /// Measure Weft beside the alternatives, in interleaved rounds (root)
    Bench(bench::Args),
    /// Render the Helm chart into deploy/manifests
    Chart,
    /// Measure operator and agents with 5,000 Nodes on a real control plane (root)
    Scale(bench::ScaleArgs),
    /// Build the release binaries into target/dist
    Dist,
    /// Pack the container image, target/dist/weft-image.tar
    Image(image::Args),
    /// Make and use real Kubernetes clusters on this machine (root): `kube up`, `kube down`, `kube help`
    Kube(kube::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Ci => test::run(&test::Args::default()),
        Command::Bench(args) => bench::run(&args),
        Command::Scale(args) => bench::scale(&args),
        Command::Chart => chart::render(),
        Command::Image(args) => image::run(&args),
        Command::Kube(args) => kube::run(&args),
        Command::Dist => dist::build().map(|dist| term::line(&format!("{}", dist.dir().display()))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            term::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), PathBuf::from)
}
