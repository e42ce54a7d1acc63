//! `cargo xtask kube`: real Kubernetes clusters in namespaces of this machine, made by `weft-kubetest` (in `kubetest/`).

use anyhow::Result;

use crate::{exec, image, setup};

/// Arguments of `cargo xtask kube`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// A command and its flags; `help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let up = args.rest.first().is_some_and(|command| command == "up");
    let named = args.rest.iter().any(|arg| arg.starts_with("--weft-image"));
    if up && !named && !image::archive().exists() {
        setup::ensure(setup::Scope::Build, false)?;
        image::run(&image::Args::debug())?;
    }
    exec::run(kubetest().args(&args.rest))
}

/// `weft-kubetest`, built if need be.
pub(crate) fn kubetest() -> std::process::Command {
    let mut command = exec::cargo();
    command.args(["run", "--quiet", "--locked", "--package", "weft-kubetest", "--"]);
    command
}
