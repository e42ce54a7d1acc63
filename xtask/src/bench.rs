//! `cargo xtask bench`: builds release binaries and lets `weft-bench` (in `bench/`) measure.

use anyhow::{Result, bail};

use crate::{dist, exec, host, setup, term};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure the alternatives only, without Weft
    #[arg(long)]
    alternatives_only: bool,
    /// Arguments of `weft-bench run`, as in `-- --rounds 10 --without cni,footprint`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(reason) = host::lacks_privileges() {
        bail!(
            "the measurements make network namespaces: {reason}\n  next: {}",
            host::as_root("bench")
        );
    }
    for program in ["ip", "bridge"] {
        if host::which(program).is_none() {
            bail!(
                "the alternatives are set up with `{program}`, which is not in PATH\n  next: install iproute2"
            );
        }
    }
    setup::ensure(setup::Scope::Build, false)?;
    term::section("build");
    let dist = dist::build()?;
    term::section("measure");
    let mut command = exec::command(&dist.bench().to_string_lossy());
    command
        .arg("run")
        .arg("--out")
        .arg(exec::target_dir().join("bench"))
        .args(&args.rest);
    if !args.alternatives_only {
        command.arg("--weft").arg(dist.weft());
    }
    exec::run(&mut command)
}
