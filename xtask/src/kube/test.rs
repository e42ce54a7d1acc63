//! The part `kube` of `cargo xtask test`: a cluster of the tree's image, and what its network has to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::kubetest;
use crate::interrupt::Interrupt;
use crate::term::{self, Mark};
use crate::test::{Skip, Tally};
use crate::{exec, host, image};

/// Nodes of the cluster: with three there is one that has neither the client nor the server of a connection.
const NODES: &str = "3";

/// Where `weft-kubetest` keeps what it knows of clusters.
const CLUSTERS: &str = "/run/weft/kube";

/// A run of the checks on a cluster of its own.
#[derive(Debug)]
pub(crate) struct Test {
    /// Names of the selected checks.
    checks: Vec<String>,
    filter: Option<String>,
    /// Name of the cluster. It holds this process's number, so that two runs on a machine don't meet.
    cluster: String,
    logs: PathBuf,
}

// === impl Test ===

impl Test {
    /// Those checks whose name contains `filter`, or all.
    pub(crate) fn select(filter: Option<&str>) -> Result<Self> {
        let names = exec::read(kubetest().args(["check", "--list"]))?;
        let selected = |name: &&str| filter.is_none_or(|text| name.contains(text));
        Ok(Self {
            checks: names.lines().filter(selected).map(str::to_owned).collect(),
            filter: filter.map(str::to_owned),
            cluster: format!("test{}", std::process::id()),
            logs: exec::target_dir().join("kube-logs"),
        })
    }

    /// How many checks are selected.
    pub(crate) fn count(&self) -> usize {
        self.checks.len()
    }

    /// Builds what clusters are made of, where that is not done yet; a reason if that or a cluster is impossible here.
    pub(crate) fn lacks() -> Result<Option<String>> {
        let output = exec::output(kubetest().args(["preflight", NODES]))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let words: Vec<_> = text.trim_start_matches("error: ").split_whitespace().collect();
            return Ok(Some(words.join(" ")));
        }
        let mut build = kubetest();
        build.args(["build", "--no-e2e"]);
        if host::which("go").is_some() {
            exec::run(&mut build)?;
            return Ok(None);
        }
        let built = exec::output(&mut build)?.status.success();
        Ok((!built).then(|| "no `go` in PATH to build Kubernetes with; next: install Go".to_owned()))
    }

    /// Makes the cluster, runs the checks, keeps its logs where one failed, and removes it whatever happened.
    pub(crate) fn run(&self) -> Result<Tally> {
        if self.checks.is_empty() {
            return Ok(Tally::default());
        }
        // Unoptimised: its crates are compiled already for the tests before, and no check measures speed.
        let archive = image::pack(&image::Args::debug())?;
        remove_abandoned()?;
        let interrupt = Interrupt::install()?;
        let outcome = self.on_cluster(&interrupt, &archive);
        if !outcome.as_ref().is_ok_and(|tally| tally.failed == 0) {
            self.keep_logs();
        }
        // Not by the interrupt's hand: this has to be done after one, too.
        exec::run(kubetest().args(["down", &self.cluster]))?;
        outcome
    }

    fn on_cluster(&self, interrupt: &Interrupt, archive: &Path) -> Result<Tally> {
        let mut up = kubetest();
        up.args([
            "up",
            &self.cluster,
            "--nodes",
            NODES,
            "--vnet",
            &self.cluster,
            "--keep",
        ])
        .arg("--weft-image")
        .arg(archive)
        .arg("--weft-manifests")
        .arg(crate::root().join("deploy"));
        if !run(interrupt, &mut up)? {
            return Ok(Tally {
                failed: 1,
                ..Tally::default()
            });
        }
        let report = exec::target_dir().join("kube-check.json");
        let mut check = kubetest();
        check
            .args(["check", &self.cluster, "--report"])
            .arg(&report)
            .args(self.filter.iter().flat_map(|text| ["--test", text]));
        if report.exists() {
            std::fs::remove_file(&report).with_context(|| format!("remove {}", report.display()))?;
        }
        let passed = run(interrupt, &mut check)?;
        let Ok(text) = std::fs::read_to_string(&report) else {
            return Ok(Tally {
                failed: 1,
                ..Tally::default()
            });
        };
        let mut tally = tally(&text)?;
        tally.failed = tally.failed.max(usize::from(!passed));
        Ok(tally)
    }

    /// The logs go with the cluster; what a failure is understood by stays.
    fn keep_logs(&self) {
        let mut logs = kubetest();
        logs.args(["logs", &self.cluster, "--output"]).arg(&self.logs);
        match exec::run(&mut logs) {
            Ok(()) => term::item(Mark::Note, "logs", self.logs.display()),
            Err(error) => term::item(Mark::Note, "logs", format!("could not be kept: {error:#}")),
        }
    }
}

fn run(interrupt: &Interrupt, command: &mut Command) -> Result<bool> {
    Ok(interrupt.run(command)?.success())
}

/// Removes clusters of runs that were killed.
fn remove_abandoned() -> Result<()> {
    for entry in std::fs::read_dir(CLUSTERS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let run = name
            .strip_prefix("test")
            .and_then(|digits| digits.parse::<u32>().ok());
        if run.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            exec::run(kubetest().args(["down", &name]))?;
        }
    }
    Ok(())
}

/// Reads the report of `weft-kubetest check`.
fn tally(report: &str) -> Result<Tally> {
    let report: Value = serde_json::from_str(report).context("parse the checks' report")?;
    let mut tally = Tally::default();
    for check in report["checks"].as_array().into_iter().flatten() {
        match check["verdict"].as_str() {
            Some("passed") => tally.passed += 1,
            Some("skipped") => tally.skipped.push(Skip {
                count: 1,
                name: check["name"].as_str().unwrap_or("a check").to_owned(),
                reason: check["value"].as_str().unwrap_or("no reason is given").to_owned(),
            }),
            _ => tally.failed += 1,
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_passed_nor_skipped_failed() {
        let report = r#"{"checks": [
            {"name": "a", "verdict": "passed", "value": "1 ms"},
            {"name": "b", "verdict": "skipped", "value": "the cluster has no DNS"},
            {"name": "c", "verdict": "failed", "value": "no answer"},
            {"name": "d"}
        ]}"#;
        let skip = Skip {
            count: 1,
            name: "b".into(),
            reason: "the cluster has no DNS".into(),
        };
        assert_eq!(
            tally(report).unwrap(),
            Tally {
                passed: 1,
                failed: 2,
                skipped: vec![skip]
            }
        );
        assert!(tally("").is_err());
    }
}
