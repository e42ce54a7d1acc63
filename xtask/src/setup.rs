//! `cargo xtask setup`: finds what a build needs and installs what is missing.
//!
//! Beside the toolchain that runs this task, a build needs a compiler that can build `core` for `bpfel-unknown-none`
//! and bpf-linker. Two ways lead there: Debian's own rustc, which carries its library sources and is unlocked by
//! `RUSTC_BOOTSTRAP`, or a rustup nightly with `rust-src`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::term::{self, Mark};
use crate::{exec, host};

/// Debian's Rust with sources, and the LLVM that bpf-linker is built against.
const DEBIAN_PACKAGES: [&str; 8] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
];

/// First minor version of Rust whose output the eBPF programs are tested with; `crates/kernel/build.rs` has it too.
const MINIMUM_MINOR: u32 = 96;

/// LLVM majors that bpf-linker has a feature for. It must not be older than the compiler's own.
const LLVM_MAJORS: [u32; 3] = [21, 22, 23];

/// Programs that some tests drive or look through; a test that misses one says so and is counted as skipped.
const OPTIONAL: [(&str, &str); 6] = [
    ("kubectl", "tests of the lab's API with the real client"),
    ("nft", "tests that stand in for kube-proxy with foreign rules"),
    ("tcpdump", "tests that look at packets on the wire"),
    (
        "strace",
        "the test that weft-cni talks to the agent's socket only",
    ),
    (
        "musl-gcc",
        "release binaries with musl; without it they carry glibc instead",
    ),
    (
        "go",
        "builds cnitool and Helm for tests and the reference plugins for bench",
    ),
];

/// Arguments of `cargo xtask setup`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Say what would be done and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// For what something is needed; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Build,
    Test,
    Lint,
}

/// Where the eBPF programs' compiler comes from, as the build of `crates/kernel` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Toolchain {
    /// A distribution's compiler under `/usr/bin`, with its library sources.
    Debian,
    /// rustup's toolchain of the name `nightly`, with the component rust-src.
    Nightly,
}

/// One step that setup would take.
#[derive(Debug)]
enum Step {
    Run {
        what: String,
        command: Box<Command>,
        needs_root: bool,
    },
    /// Nothing that can be done here; the text says what a person can do.
    ByHand(String),
}

// === impl Args ===

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    if ensure(Scope::Lint, args.dry_run)? {
        term::line("\nEverything is here. Next: cargo xtask demo (root), or cargo xtask test");
    }
    Ok(())
}

/// Finds or installs all that `scope` needs. Returns false if a dry run found something missing.
pub(crate) fn ensure(scope: Scope, dry_run: bool) -> Result<bool> {
    term::section("setup");
    let mut complete = true;
    let mut apply = |steps: Vec<Step>| -> Result<()> {
        complete &= steps.is_empty();
        steps.into_iter().try_for_each(|step| take(step, dry_run))
    };
    term::item(
        Mark::Good,
        "rustc",
        exec::read(exec::command(&rustc()).arg("--version"))?,
    );
    apply(ebpf_compiler(dry_run)?)?;
    apply(bpf_linker())?;
    if scope >= Scope::Test {
        apply(cnitool())?;
        apply(cargo_tool(
            "cargo-nextest",
            "runs each test in a process of its own",
        ))?;
    }
    if scope >= Scope::Lint {
        apply(cargo_tool(
            "cargo-deny",
            "licences, sources and advisories of dependencies",
        ))?;
        for (name, purpose) in OPTIONAL {
            match host::which(name) {
                Some(path) => term::item(Mark::Good, name, path.display()),
                None => term::item(Mark::Note, name, format!("not found, optional: {purpose}")),
            }
        }
    }
    Ok(complete)
}

/// Takes a step, or says which it would be.
fn take(step: Step, dry_run: bool) -> Result<()> {
    match step {
        Step::ByHand(text) if dry_run => term::line(&text),
        Step::ByHand(text) => bail!("{text}"),
        Step::Run { what, command, .. } if dry_run => {
            term::line(&format!("      would {what}:"));
            term::command(&exec::line(&command));
        }
        Step::Run {
            what,
            command,
            needs_root: true,
        } if !host::is_root() => {
            bail!("can't {what} without root\n  next: sudo {}", exec::line(&command));
        }
        Step::Run {
            what, mut command, ..
        } => {
            term::line(&format!("      {what}:"));
            term::command(&exec::line(&command));
            exec::run(&mut command)?;
        }
    }
    Ok(())
}

fn rustc() -> String {
    std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into())
}

// === the compiler for eBPF programs ===

fn ebpf_compiler(dry_run: bool) -> Result<Vec<Step>> {
    const NAME: &str = "eBPF compiler";
    match installed_toolchain() {
        Some((toolchain, version)) => {
            term::item(
                Mark::Good,
                NAME,
                format!("{version}, with its sources ({})", toolchain.origin()),
            );
            Ok(Vec::new())
        }
        None => {
            let what = format!(
                "missing: a rustc 1.{MINIMUM_MINOR} or newer that can build core for bpfel-unknown-none"
            );
            term::item(Mark::Bad, NAME, what);
            install_toolchain(dry_run)
        }
    }
}

/// The toolchain that the build would take, and its version.
fn installed_toolchain() -> Option<(Toolchain, String)> {
    [Toolchain::Debian, Toolchain::Nightly]
        .into_iter()
        .find_map(|toolchain| Some((toolchain, toolchain.usable_version()?)))
}

// === impl Toolchain ===

impl Toolchain {
    fn origin(self) -> &'static str {
        match self {
            Self::Debian => "/usr/bin/rustc",
            Self::Nightly => "rustup's nightly",
        }
    }

    fn rustc(self, arguments: &[&str]) -> Option<String> {
        let mut command = match self {
            Self::Debian => exec::command("/usr/bin/rustc"),
            Self::Nightly => rustup()?,
        };
        if self == Self::Nightly {
            command.args(["run", "nightly", "rustc"]);
        }
        exec::read(command.args(arguments)).ok()
    }

    /// Its version, if it is new enough and has the sources of `core`.
    fn usable_version(self) -> Option<String> {
        if self == Self::Debian && !Path::new("/usr/bin/cargo").exists() {
            return None;
        }
        let version = self.rustc(&["--version"])?;
        let minor: u32 = version
            .strip_prefix("rustc 1.")?
            .split('.')
            .next()?
            .parse()
            .ok()?;
        let core = Path::new(&self.rustc(&["--print", "sysroot"])?)
            .join("lib/rustlib/src/rust/library/core/src/lib.rs");
        (minor >= MINIMUM_MINOR && core.exists()).then_some(version)
    }

    /// The LLVM that it carries.
    fn llvm_major(self) -> Option<u32> {
        let text = self.rustc(&["-vV"])?;
        text.lines().find_map(|line| {
            line.strip_prefix("LLVM version: ")?
                .split('.')
                .next()?
                .parse()
                .ok()
        })
    }
}

fn rustup() -> Option<Command> {
    let path = host::which("rustup")?;
    let mut command = exec::command(&path.to_string_lossy());
    // Inside cargo this names the running toolchain and would win over `rustup run`'s argument for children.
    command.env_remove("RUSTUP_TOOLCHAIN");
    Some(command)
}

fn install_toolchain(dry_run: bool) -> Result<Vec<Step>> {
    let offered = || {
        DEBIAN_PACKAGES[..3]
            .iter()
            .all(|name| host::package_available(name))
    };
    if host::has_apt() && !offered() && host::is_root() && !dry_run {
        // A fresh container has no package lists at all.
        term::line("      looking for rustc-web and rust-web-src:");
        exec::run(exec::command("apt-get").args(["update", "--quiet"]))?;
    }
    if host::has_apt() && offered() {
        let missing = missing_packages();
        // All installed, and still no sources where the compiler looks for them.
        return Ok(apt_install(if missing.is_empty() {
            &DEBIAN_PACKAGES[..3]
        } else {
            &missing
        }));
    }
    if let Some(mut command) = rustup() {
        command.args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]);
        let what = "install a nightly with rust-src".into();
        return Ok(vec![Step::Run {
            what,
            command: Box::new(command),
            needs_root: false,
        }]);
    }
    let distribution = host::distribution();
    Ok(vec![Step::ByHand(format!(
        "{distribution} has no packages rustc-web and rust-web-src, and there is no rustup to fetch a nightly with\n  \
         next: install rustup (https://rustup.rs), then repeat cargo xtask setup"
    ))])
}

fn missing_packages() -> Vec<&'static str> {
    DEBIAN_PACKAGES
        .into_iter()
        .filter(|name| host::package_version(name).is_none())
        .collect()
}

fn apt_install(packages: &[&str]) -> Vec<Step> {
    let mut command = exec::command("sh");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("-c")
        .arg(format!(
            "apt-get update --quiet && apt-get install --yes --no-install-recommends --reinstall {}",
            packages.join(" ")
        ));
    vec![Step::Run {
        what: "install Debian packages".into(),
        command: Box::new(command),
        needs_root: true,
    }]
}

// === bpf-linker ===

fn bpf_linker() -> Vec<Step> {
    const NAME: &str = "bpf-linker";
    if let Some(path) = host::which(NAME) {
        let version = exec::read(exec::command(&path.to_string_lossy()).arg("--version"));
        let detail = version.unwrap_or_else(|_| "version unknown".into());
        term::item(Mark::Good, NAME, format!("{detail} ({})", path.display()));
        return Vec::new();
    }
    term::item(Mark::Bad, NAME, "missing: links the eBPF programs");
    let mut steps = Vec::new();
    let toolchain = installed_toolchain().map(|(toolchain, _)| toolchain);
    if toolchain != Some(Toolchain::Nightly) && host::has_apt() {
        let missing = missing_packages();
        // While the compiler's packages are still to come, the step that brings them brings LLVM too.
        if toolchain.is_some() && !missing.is_empty() {
            steps.extend(apt_install(&missing));
        }
        if missing.iter().all(|name| host::package_available(name)) {
            steps.push(build_linker(22, Path::new("/usr/lib/llvm-22")));
            return steps;
        }
    }
    if host::which("cargo-binstall").is_some() {
        let mut command = exec::cargo();
        command.args(["binstall", "--no-confirm", NAME]);
        steps.push(Step::Run {
            what: "fetch the published bpf-linker".into(),
            command: Box::new(command),
            needs_root: false,
        });
        return steps;
    }
    let wanted = toolchain
        .and_then(Toolchain::llvm_major)
        .unwrap_or(LLVM_MAJORS[0]);
    match installed_llvm(wanted) {
        Some((major, prefix)) => steps.push(build_linker(major, &prefix)),
        None => steps.push(Step::ByHand(format!(
            "bpf-linker needs LLVM {wanted} or newer with its headers to be built from source, and none is under /usr/lib/llvm-*\n  \
             next: cargo install cargo-binstall && cargo binstall bpf-linker   (the published static binary)\n  \
             or:   install LLVM {wanted}'s development packages, then repeat cargo xtask setup"
        ))),
    }
    steps
}

fn build_linker(major: u32, prefix: &Path) -> Step {
    let mut command = exec::cargo();
    command
        .env("RUSTFLAGS", format!("-L {}", prefix.join("lib").display()))
        .env("LLVM_PREFIX", prefix)
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{major}"));
    Step::Run {
        what: format!("build bpf-linker against LLVM {major} (about 2 minutes)"),
        command: Box::new(command),
        needs_root: false,
    }
}

/// The oldest LLVM with development files that is not older than `wanted`.
fn installed_llvm(wanted: u32) -> Option<(u32, PathBuf)> {
    LLVM_MAJORS
        .into_iter()
        .filter(|major| *major >= wanted)
        .map(|major| (major, PathBuf::from(format!("/usr/lib/llvm-{major}"))))
        .find(|(_, prefix)| prefix.join("bin/llvm-config").exists())
}

// === other tools ===

/// The CNI project's own client, with which tests call the plugin. Without Go they are skipped, and say so.
fn cnitool() -> Vec<Step> {
    const PACKAGE: &str = "github.com/containernetworking/cni/cnitool@v1.3.0";
    if let Some(path) = host::which("cnitool") {
        term::item(Mark::Good, "cnitool", path.display());
        return Vec::new();
    }
    go_steps("cnitool", PACKAGE, "calls the plugin in tests")
}

/// Injects faults at system calls; without it the tests that need it are skipped, and say so.
pub(crate) fn strace() -> Result<()> {
    const NAME: &str = "strace";
    if host::which(NAME).is_some() {
        return Ok(());
    }
    if !host::has_apt() || !host::is_root() {
        term::item(
            Mark::Note,
            NAME,
            "not found, optional: tests that inject faults at system calls are skipped",
        );
        return Ok(());
    }
    term::item(Mark::Bad, NAME, "missing: injects faults at system calls");
    apt_install(&[NAME])
        .into_iter()
        .try_for_each(|step| take(step, false))
}

/// A program built from its Go module into [`host::tools`], now if it is not there yet; `None` without Go.
///
/// One of the same name elsewhere is of another version, and what is compared with its output would differ.
pub(crate) fn go_tool(name: &str, package: &str, purpose: &str) -> Result<Option<PathBuf>> {
    let path = host::tools().join(name);
    if !path.exists() {
        for step in go_steps(name, package, purpose) {
            take(step, false)?;
        }
    }
    Ok(path.exists().then_some(path))
}

fn go_steps(name: &str, package: &str, purpose: &str) -> Vec<Step> {
    if host::which("go").is_none() {
        term::item(
            Mark::Note,
            name,
            "not found, optional: takes Go to build; tests with it are skipped",
        );
        return Vec::new();
    }
    term::item(Mark::Bad, name, format!("missing: {purpose}"));
    let mut command = exec::command("go");
    command
        .env("GOBIN", host::tools())
        .env("CGO_ENABLED", "0")
        .args(["install", package]);
    vec![Step::Run {
        what: format!("build {name}"),
        command: Box::new(command),
        needs_root: false,
    }]
}

/// Builds the fuzz targets and runs them.
pub(crate) fn cargo_fuzz() -> Result<()> {
    cargo_tool("cargo-fuzz", "makes up inputs for parsers")
        .into_iter()
        .try_for_each(|step| take(step, false))
}

fn cargo_tool(name: &str, purpose: &str) -> Vec<Step> {
    if let Some(path) = host::which(name) {
        let version = exec::read(exec::command(&path.to_string_lossy()).arg("--version")).unwrap_or_default();
        term::item(
            Mark::Good,
            name,
            version.lines().next().unwrap_or("version unknown"),
        );
        return Vec::new();
    }
    term::item(Mark::Bad, name, format!("missing: {purpose}"));
    let mut command = exec::cargo();
    command.args(["install", "--locked", name]);
    vec![Step::Run {
        what: format!("build {name} (some minutes)"),
        command: Box::new(command),
        needs_root: false,
    }]
}
