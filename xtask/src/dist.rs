//! Release binaries, as an image or a package ships them: `target/dist/{weft,weft-cni,weft-bench}`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{exec, host, term};

/// The directory with the built binaries. `weft` looks for `weft-cni` beside itself.
#[derive(Debug)]
pub(crate) struct Dist {
    dir: PathBuf,
}

// === impl Dist ===

impl Dist {
    fn in_dir(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self { dir })
    }

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

    /// Says how big the two binaries of an installation are and how long they took.
    fn report(self, started: Instant) -> Result<Self> {
        for file in [self.weft(), self.weft_cni()] {
            let size = std::fs::metadata(&file)
                .with_context(|| format!("look at {}", file.display()))?
                .len();
            term::line(&format!("{}: {:.1} MB", file.display(), size as f64 / 1e6));
        }
        term::line(&format!("built in {}", term::duration(started.elapsed())));
        Ok(self)
    }
}

/// Builds all of them.
pub(crate) fn build() -> Result<Dist> {
    let started = Instant::now();
    let dist = Dist::in_dir(exec::target_dir().join("dist"))?;
    let target = static_target()?;
    let release = exec::target_dir().join(&target).join("release");
    let packages = ["--package", "weft", "--package", "weft-bench"];
    exec::run(cargo_build(&target).args(packages))?;
    install(&release.join("weft"), dist.dir())?;
    install(&release.join("weft-bench"), dist.dir())?;

    // Started for every pod: small.
    let mut plugin = cargo_build(&target);
    plugin
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .args(["--package", "weft-cni", "--bin", "weft-cni"]);
    exec::run(&mut plugin)?;
    install(&release.join("weft-cni"), dist.dir())?;
    dist.report(started)
}

/// Builds `weft` and `weft-cni` into `target/dist/debug`, static and unoptimised: what is at hand from other builds
/// is only linked anew.
pub(crate) fn build_debug() -> Result<Dist> {
    let started = Instant::now();
    let dist = Dist::in_dir(exec::target_dir().join("dist/debug"))?;
    for package in ["weft", "weft-cni"] {
        let mut command = exec::cargo();
        command.args(["rustc", "--locked", "--package", package, "--bin", package, "--"]);
        // Of the last step alone, unlike RUSTFLAGS, which would compile every crate a second time.
        exec::run(command.args(["-C", "target-feature=+crt-static", "-C", "strip=debuginfo"]))?;
        install(&exec::target_dir().join("debug").join(package), dist.dir())?;
    }
    dist.report(started)
}

/// A release build for `target`, static: the image has no C library, and the plugin runs in whatever root file
/// system a node has.
///
/// An explicit `--target` keeps the static flag away from build scripts and procedural macros.
fn cargo_build(target: &str) -> Command {
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
    ];
    // Where it was built is nobody's business, and must not tell two builds of the same sources apart.
    let cargo_home = host::cargo_bin().and_then(|bin| Some(bin.parent()?.to_owned()));
    for (dir, name) in [(Some(crate::root()), "/weft"), (cargo_home, "/cargo")] {
        flags.extend(dir.map(|dir| format!("--remap-path-prefix={}={name}", dir.display())));
    }
    let mut command = exec::cargo();
    // Unlike RUSTFLAGS this allows spaces within a flag.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).args([
        "build",
        "--release",
        "--locked",
        "--target",
        target,
    ]);
    command
}

/// musl where its standard library and a compiler for the C parts of dependencies are installed, else the host's own
/// target: glibc links statically too.
fn static_target() -> Result<String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let verbose = exec::read(exec::command(&rustc).arg("-vV"))?;
    let own = verbose
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    let sysroot = exec::read(exec::command(&rustc).args(["--print", "sysroot"]))?;
    let musl = own.replace("-gnu", "-musl");
    let library = Path::new(&sysroot).join("lib/rustlib").join(&musl).join("lib");
    let installed = library.is_dir() && host::which("musl-gcc").is_some();
    Ok(if installed { musl } else { own.to_owned() })
}

/// Puts a file into `dir` by rename, so that a running copy keeps its old one.
fn install(file: &Path, dir: &Path) -> Result<()> {
    let name = file.file_name().context("a binary has a name")?;
    let staged = dir.join(format!(".{}.new", name.to_string_lossy()));
    std::fs::copy(file, &staged)
        .with_context(|| format!("copy {} to {}", file.display(), staged.display()))?;
    std::fs::rename(&staged, dir.join(name)).with_context(|| format!("rename {}", staged.display()))
}
