//! Builds the eBPF programs from source and leaves the object in `OUT_DIR` for the library to embed.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "weft-datapath";
/// Set to the path of a prebuilt object to build none.
const PREBUILT: &str = "WEFT_BPF_OBJECT";
/// First compiler whose output the programs are tested with.
const MINIMUM_MINOR: u32 = 96;
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const FIX: &str = "run: cargo xtask setup";

/// A way to build for a target that only nightly compilers know how to.
enum Toolchain {
    /// A distribution's stable compiler with its library sources, unlocked by `RUSTC_BOOTSTRAP`.
    Debian,
    /// `rustup run nightly`, with the component rust-src.
    Nightly,
}

fn main() {
    if let Err(why) = build() {
        // One line that cargo shows as it is, in place of a panic's backtrace.
        println!("cargo::error={why}");
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?).join("weft-datapath.o");
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let object = match env::var_os(PREBUILT) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build_programs()?,
    };
    fs::copy(&object, &out)
        .map_err(|error| format!("cannot copy the eBPF object {}: {error}", object.display()))?;
    Ok(())
}

fn build_programs() -> Result<PathBuf, String> {
    let crates = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let datapath = crates.join("../datapath");
    for input in ["src", "Cargo.toml", "Cargo.lock", ".cargo/config.toml"] {
        println!("cargo::rerun-if-changed={}", datapath.join(input).display());
    }
    for input in ["src", "Cargo.toml"] {
        println!(
            "cargo::rerun-if-changed={}",
            crates.join("abi").join(input).display()
        );
    }
    let target_dir = target_dir()?;
    let mut cargo = toolchain()?.cargo();
    let path = path_with_linker()?;
    cargo
        .args(["build", "--release", "--locked", "--quiet", "--target-dir"])
        .arg(&target_dir)
        .current_dir(&datapath)
        .env("PATH", path);
    // What the outer cargo set up for its own compiler must not reach this one.
    for inherited in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ] {
        cargo.env_remove(inherited);
    }
    let output = cargo
        .output()
        .map_err(|error| format!("cannot start {:?}: {error}; {FIX}", cargo.get_program()))?;
    if !output.status.success() {
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            println!("cargo::warning={line}");
        }
        return Err(format!(
            "the eBPF programs in datapath/ do not build, see above; if a tool is missing, {FIX}"
        ));
    }
    Ok(target_dir.join(TARGET).join("release").join(OBJECT))
}

/// One directory for all profiles of the outer build: the programs are the same in each.
fn target_dir() -> Result<PathBuf, String> {
    // <target>/<profile>/build/<package>/out
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = out
        .ancestors()
        .nth(4)
        .ok_or_else(|| format!("unexpected OUT_DIR {}", out.display()))?;
    Ok(target.join("datapath"))
}

fn toolchain() -> Result<Toolchain, String> {
    [Toolchain::Debian, Toolchain::Nightly].into_iter().find(Toolchain::is_usable).ok_or_else(|| {
        format!(
            "no Rust compiler can build the eBPF programs: neither {DEBIAN_RUSTC} 1.{MINIMUM_MINOR} or later with \
             rust-src nor rustup's nightly with rust-src was found; {FIX}"
        )
    })
}

/// `PATH`, with cargo's own directory of programs, where `cargo install bpf-linker` puts it.
fn path_with_linker() -> Result<OsString, String> {
    let mut dirs: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    dirs.extend(
        env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or(home)
            .map(|home| home.join("bin")),
    );
    if !dirs.iter().any(|dir| dir.join("bpf-linker").is_file()) {
        return Err(format!(
            "bpf-linker, which links the eBPF programs, is not in PATH; {FIX}"
        ));
    }
    env::join_paths(dirs).map_err(|error| format!("PATH: {error}"))
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

// === impl Toolchain ===

impl Toolchain {
    fn is_usable(&self) -> bool {
        let Some(version) = self.rustc(&["--version"]) else {
            return false;
        };
        let minor = version
            .strip_prefix("rustc 1.")
            .and_then(|rest| rest.split('.').next()?.parse().ok());
        minor.is_some_and(|minor: u32| minor >= MINIMUM_MINOR) && self.has_library_sources()
    }

    fn has_library_sources(&self) -> bool {
        self.rustc(&["--print", "sysroot"]).is_some_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                .is_file()
        })
    }

    fn rustc(&self, args: &[&str]) -> Option<String> {
        let mut command = match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
        };
        let output = command
            .args(args)
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("RUSTUP_TOOLCHAIN")
            .output()
            .ok()?;
        let text = output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).ok())??;
        Some(text.trim().to_owned())
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Debian => {
                let mut command = Command::new(DEBIAN_CARGO);
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command
                    .args(["run", "nightly", "cargo"])
                    .env_remove("RUSTC")
                    .env_remove("RUSTC_BOOTSTRAP");
                command
            }
        }
    }
}
