//! `cargo xtask kube`: real Kubernetes clusters in namespaces of this machine, made by `weft-kubetest` (in `kubetest/`);
//! and the part of the test suite that runs on some.

mod test;

use std::sync::{Mutex, PoisonError};

use anyhow::Result;

pub(crate) use self::test::Test;
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
    let mut rest = args.rest.clone();
    let up = rest.first().is_some_and(|command| command == "up");
    let given = |flags: &[&str]| {
        args.rest
            .iter()
            .any(|arg| flags.iter().any(|flag| arg.starts_with(flag)))
    };
    if up && !given(&["--weft-image", "--help", "-h"]) {
        setup::ensure(setup::Scope::Build, false)?;
        // Each time: whether it is still of the tree is for cargo to know.
        let archive = image::pack(&image::Args::debug())?;
        rest.push(format!("--weft-image={}", archive.display()));
    }
    exec::run(kubetest()?.args(rest))
}

/// `weft-kubetest`, built when this is first asked for: with the whole workspace, since the features that a package
/// alone needs of its dependencies would have these compiled a second time.
///
/// # Errors
/// It can't be built.
pub(crate) fn kubetest() -> Result<std::process::Command> {
    static BUILT: Mutex<bool> = Mutex::new(false);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !*built {
        exec::run(exec::cargo().args(["build", "--quiet", "--locked", "--workspace", "--bins"]))?;
        *built = true;
    }
    let program = exec::target_dir().join("debug/weft-kubetest");
    Ok(exec::command(&program.to_string_lossy()))
}
