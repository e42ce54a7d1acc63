//! Calls of the Go toolchain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::recipe::{MODULES, Module, Program};

/// The toolchain in `PATH`, able to build all modules.
#[derive(Debug)]
pub(super) struct Go(());

/// The directory of our modules.
pub(super) fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("go")
}

// === impl Go ===

impl Go {
    /// Asks for its version in every module: there Go compares itself with what the module needs, and fetches a newer
    /// one where its settings allow that.
    pub(super) fn find() -> Result<Self> {
        let go = Self(());
        for module in &MODULES {
            go.read(module, &["version"])?;
        }
        Ok(go)
    }

    /// True if Kubernetes' sources are in the module cache, and so most probably what earlier builds compiled, too.
    pub(super) fn has_sources(&self) -> Result<bool> {
        let kubernetes = &MODULES[0];
        let cache = self.read(kubernetes, &["env", "GOMODCACHE"])?;
        let name = format!("{}@{}", kubernetes.requires, kubernetes.version()?);
        Ok(Path::new(&cache).join(name).is_dir())
    }

    /// The directory of a project's sources, fetched if need be.
    pub(super) fn sources(&self, module: &Module) -> Result<PathBuf> {
        self.read(module, &["mod", "download", module.requires])?;
        self.read(module, &["list", "-m", "-f", "{{.Dir}}", module.requires])
            .map(PathBuf::from)
    }

    /// Builds a static program and gives it the name `out` when it is whole.
    pub(super) fn build(&self, module: &Module, program: &Program, out: &Path) -> Result<()> {
        let version = module.version()?;
        let variables: String = module
            .variables
            .iter()
            .map(|(name, value)| format!(" -X {name}={}", value.replace('@', &version)))
            .collect();
        let staged = out.with_file_name(format!(".{}.new", program.name));
        let mut command = self.command(module);
        if program.is_test() {
            command.args(["test", "-c"]);
        } else {
            command.arg("build");
        }
        command
            .args(["-trimpath", "-ldflags", &format!("-s -w{variables}"), "-o"])
            .arg(&staged)
            .arg(program.package);
        run(&mut command)?;
        fs::rename(&staged, out).with_context(|| format!("rename {} to {}", staged.display(), out.display()))
    }

    fn read(&self, module: &Module, args: &[&str]) -> Result<String> {
        run(self.command(module).args(args))
    }

    fn command(&self, module: &Module) -> Command {
        let mut command = Command::new("go");
        command
            .current_dir(modules().join(module.dir))
            .env("CGO_ENABLED", "0")
            // What is committed decides what is built.
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            .env("GOWORK", "off");
        command
    }
}

/// Returns standard output without the last line end.
fn run(command: &mut Command) -> Result<String> {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "there is no `go` in PATH, and Kubernetes is built with it\n  next: install Go (https://go.dev/dl, or the \
             package golang of most distributions)"
        ),
        Err(error) => return Err(error).context("start go"),
    };
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(std::ffi::OsStr::to_string_lossy).collect();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last: Vec<_> = stderr.lines().rev().take(10).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        bail!(
            "`go {}` ended with {}:\n{}",
            args.join(" "),
            output.status,
            last.join("\n")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
