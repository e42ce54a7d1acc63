//! The real kubectl, as a user has it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::state::Cluster;

/// kubectl with a cluster's kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

// === impl Kubectl ===

impl Kubectl {
    /// For a cluster's administrator.
    pub fn new(cache: &Cache, cluster: &Cluster) -> Self {
        Self {
            program: cache.program("kubectl"),
            kubeconfig: cluster.kubeconfig(),
        }
    }

    /// A command line without its arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }

    /// Runs it to the end, whatever comes of it.
    ///
    /// # Errors
    /// It can't be started.
    pub fn output(&self, args: &[&str]) -> Result<Output> {
        self.command()
            .args(args)
            .output()
            .with_context(|| format!("start {}", self.program.display()))
    }

    /// What it prints, without the last line end.
    ///
    /// # Errors
    /// It fails: with the last line of what it said.
    pub fn read(&self, args: &[&str]) -> Result<String> {
        let output = self.output(args)?;
        check(&format!("kubectl {}", args.join(" ")), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Applies manifests by the server's side.
    ///
    /// # Errors
    /// It is refused: with what the server says.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let mut child = self
            .command()
            .args(["apply", "--server-side", "--filename=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        if let Some(mut input) = child.stdin.take() {
            input
                .write_all(manifests.as_bytes())
                .context("write to kubectl")?;
        }
        check("kubectl apply", &child.wait_with_output()?)
    }
}

fn check(what: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{what}` failed: {}", said.trim());
    }
    Ok(())
}
