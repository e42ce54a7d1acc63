//! `cargo xtask bench` and `cargo xtask scale`: build release binaries and let `weft-bench` (in `bench/`) measure.

use anyhow::{Result, bail};

use crate::{dist, exec, host, kube, setup, term};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure the alternatives only, without Weft
    #[arg(long)]
    alternatives_only: bool,
    /// Within five minutes: three short rounds, fewer pods
    #[arg(long)]
    quick: bool,
    /// Arguments of `weft-bench run`, as in `-- --rounds 10 --without cni,footprint` or `-- --peers ptp,flannel,cilium`
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
    for (program, package) in [
        ("ip", "iproute2"),
        ("bridge", "iproute2"),
        ("nft", "nftables"),
        ("nsenter", "util-linux"),
    ] {
        if host::which(program).is_none() {
            bail!(
                "the measurements use `{program}`, which is not in PATH\n  next: apt-get install {package}, or the \
                 package with it of another distribution"
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
        .arg(exec::target_dir().join("bench"));
    if args.quick {
        command.args([
            "--rounds",
            "3",
            "--seconds",
            "0.3",
            "--cycles",
            "30",
            "--pods",
            "100",
            "--idle-seconds",
            "8",
            "--starts",
            "3",
            "--change-seconds",
            "5",
        ]);
    }
    command.args(&args.rest);
    if !args.alternatives_only {
        command.arg("--weft").arg(dist.weft());
    }
    exec::run(&mut command)
}

/// Arguments of `cargo xtask scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    /// Directory with `etcd` and `kube-apiserver` [default: what `cargo xtask kube build` makes]
    #[arg(long, value_name = "DIR")]
    programs: Option<std::path::PathBuf>,
    /// Arguments of `weft-bench scale`, as in `-- --nodes 1000 --pods 0`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Entry point of `cargo xtask scale`.
pub(crate) fn scale(args: &ScaleArgs) -> Result<()> {
    if let Some(reason) = host::lacks_privileges() {
        bail!(
            "the measurements make network namespaces: {reason}\n  next: {}",
            host::as_root("scale")
        );
    }
    setup::ensure(setup::Scope::Build, false)?;
    term::section("build");
    let programs = match &args.programs {
        Some(programs) => programs.clone(),
        None => {
            let built = exec::read(kube::kubetest()?.args(["build", "--no-e2e"]))?;
            std::path::Path::new(built.trim()).join("bin")
        }
    };
    let dist = dist::build()?;
    term::section("measure");
    let mut command = exec::command(&dist.bench().to_string_lossy());
    command
        .args(["scale", "--weft"])
        .arg(dist.weft())
        .arg("--programs")
        .arg(programs)
        .arg("--out")
        .arg(exec::target_dir().join("scale"))
        .args(&args.rest);
    exec::run(&mut command)
}
