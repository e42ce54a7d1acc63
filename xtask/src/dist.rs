//! Release binaries, as an image or a package ships them: `target/dist/{weft,weft-cni,weft-bench}`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{exec, term};

/// The directory with the built binaries. `weft` looks for `weft-cni` beside itself.
#[derive(Debug)]
pub(crate) struct Dist {
    dir: PathBuf,
}

// === impl Dist ===

impl Dist {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn weft(&self) -> PathBuf {
        self.dir.join("weft")
    }

    pub(crate) fn weft_cni(&self) -> PathBuf {
        self.dir.join("weft-cni")
    }

    pub(crate) fn bench(&self) -> PathBuf {
        self.dir.join("weft-bench")
    }
}

/// Builds all of them.
pub(crate) fn build() -> Result<Dist> {
    let started = Instant::now();
    let dir = exec::target_dir().join("dist");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;

    let mut command = exec::cargo();
    command.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "weft",
        "--package",
        "weft-bench",
    ]);
    exec::run(&mut command)?;
    let release = exec::target_dir().join("release");
    install(&release.join("weft"), &dir)?;
    install(&release.join("weft-bench"), &dir)?;

    install(&build_plugin()?, &dir)?;
    let dist = Dist { dir };
    for file in [dist.weft(), dist.weft_cni()] {
        let size = std::fs::metadata(&file)
            .with_context(|| format!("look at {}", file.display()))?
            .len();
        term::line(&format!("{}: {:.1} MB", file.display(), size as f64 / 1e6));
    }
    term::line(&format!("built in {}", term::duration(started.elapsed())));
    Ok(dist)
}

/// The plugin runs in whatever root file system a node has and is started for every pod: static, small.
///
/// An explicit `--target` keeps the static flag away from build scripts and procedural macros.
fn build_plugin() -> Result<PathBuf> {
    let target = plugin_target()?;
    let mut command = exec::cargo();
    command
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static",
        )
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "weft-cni",
            "--bin",
            "weft-cni",
            "--target",
            &target,
        ]);
    exec::run(&mut command)?;
    Ok(exec::target_dir().join(target).join("release/weft-cni"))
}

/// musl where its standard library is installed, else the host's own target: glibc links statically too.
fn plugin_target() -> Result<String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let verbose = exec::read(exec::command(&rustc).arg("-vV"))?;
    let host = verbose
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    let sysroot = exec::read(exec::command(&rustc).args(["--print", "sysroot"]))?;
    let musl = host.replace("-gnu", "-musl");
    let installed = Path::new(&sysroot)
        .join("lib/rustlib")
        .join(&musl)
        .join("lib")
        .is_dir();
    Ok(if installed { musl } else { host.to_owned() })
}

/// Puts a file into `dir` by rename, so that a running copy keeps its old one.
fn install(file: &Path, dir: &Path) -> Result<()> {
    let name = file.file_name().context("a binary has a name")?;
    let staged = dir.join(format!(".{}.new", name.to_string_lossy()));
    std::fs::copy(file, &staged)
        .with_context(|| format!("copy {} to {}", file.display(), staged.display()))?;
    std::fs::rename(&staged, dir.join(name)).with_context(|| format!("rename {}", staged.display()))
}
