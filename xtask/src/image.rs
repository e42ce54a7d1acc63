//! `cargo xtask image`: the container image as an OCI archive, made without a container engine.

use std::path::PathBuf;

use anyhow::Result;

use crate::{dist, exec, kube, term};

/// Arguments of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pack unoptimised binaries, for development: seconds after an ordinary build
    #[arg(long)]
    debug: bool,
}

impl Args {
    /// Unoptimised binaries: what tests and developers run.
    pub(crate) fn debug() -> Self {
        Self { debug: true }
    }
}

/// Where the archive is put: one of unoptimised binaries never where one to install is looked for.
fn archive(debug: bool) -> PathBuf {
    let dir = if debug { "dist/debug" } else { "dist" };
    exec::target_dir().join(dir).join("weft-image.tar")
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let archive = pack(args)?;
    term::line(&format!(
        "next: ctr --namespace k8s.io images import {0}, or podman load --input {0}",
        archive.display()
    ));
    Ok(())
}

/// Packs what the tree holds now and returns the archive.
pub(crate) fn pack(args: &Args) -> Result<PathBuf> {
    let dist = if args.debug {
        dist::build_debug()?
    } else {
        dist::build()?
    };
    let archive = archive(args.debug);
    // The writer is shared with the test cluster, whose images are made of other things.
    let mut command = kube::kubetest()?;
    command
        .arg("image")
        .arg("--weft")
        .arg(dist.weft())
        .arg("--weft-cni")
        .arg(dist.weft_cni())
        .arg("--output")
        .arg(&archive);
    exec::run(&mut command)?;
    term::line(&format!(
        "{}: for {} alone, the architecture of this machine",
        archive.display(),
        std::env::consts::ARCH
    ));
    Ok(archive)
}
