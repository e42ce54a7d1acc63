//! The part `kube` of `cargo xtask test`: two clusters of the tree's image in one VNet, with the same pod CIDR, and what
//! their networks have to do, at the same time; then procedures of the documentation, each on a cluster of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::kubetest;
use crate::interrupt::Interrupt;
use crate::term::{self, Mark};
use crate::test::{Skip, Tally, Transport};
use crate::{exec, host, image};

/// Nodes for pods of each cluster.
const NODES: &str = "2";

/// Nodes of both, without their control planes.
const ALL_NODES: &str = "5";

/// Procedures, with the letter of their clusters' names and the flags that make these.
const REHEARSALS: [(&str, char, &[&str]); 2] = [
    (
        "migration",
        'm',
        &["--nodes=3", "--cni=bridge", "--ipam=node", "--no-dns"],
    ),
    ("uninstall", 'u', &["--nodes=2", "--cni=none", "--no-dns"]),
];

/// Where `weft-kubetest` keeps what it knows of clusters.
const CLUSTERS: &str = "/run/weft/kube";

/// A run of the checks on clusters of its own.
#[derive(Debug)]
pub(crate) struct Test {
    /// Names of the selected checks.
    checks: Vec<String>,
    /// Places in [`REHEARSALS`] of those selected, and how many steps they have in all.
    rehearsals: Vec<usize>,
    steps: usize,
    filter: Option<String>,
    /// Names of the clusters, the first that of the VNet, too. They hold this process's number, so that two runs on a
    /// machine don't meet.
    clusters: [String; 2],
    logs: PathBuf,
}

// === impl Test ===

impl Test {
    /// Those checks whose name contains `filter`, or all.
    pub(crate) fn select(filter: Option<&str>) -> Result<Self> {
        let names = exec::read(kubetest()?.args(["check", "--list"]))?;
        let selected = |name: &&str| filter.is_none_or(|text| name.contains(text));
        let (mut rehearsals, mut steps) = (Vec::new(), 0);
        for (place, (name, ..)) in REHEARSALS.iter().enumerate() {
            let names = exec::read(kubetest()?.args(["rehearse", name, "--list"]))?;
            // Each step needs those before it.
            if names.lines().any(|name| selected(&name)) {
                rehearsals.push(place);
                steps += names.lines().count();
            }
        }
        Ok(Self {
            rehearsals,
            steps,
            checks: names.lines().filter(selected).map(str::to_owned).collect(),
            filter: filter.map(str::to_owned),
            clusters: ["a", "b"].map(|which| format!("test{}{which}", std::process::id())),
            logs: exec::target_dir().join("kube-logs"),
        })
    }

    /// How many checks and steps are selected.
    pub(crate) fn count(&self) -> usize {
        self.checks.len() + self.steps
    }

    /// Builds what clusters are made of, where that is not done yet; a reason if that or a cluster is impossible here.
    pub(crate) fn lacks() -> Result<Option<String>> {
        let output = exec::output(kubetest()?.args(["preflight", ALL_NODES]))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let words: Vec<_> = text.trim_start_matches("error: ").split_whitespace().collect();
            return Ok(Some(words.join(" ")));
        }
        let mut build = kubetest()?;
        build.args(["build", "--no-e2e"]);
        if host::which("go").is_some() {
            exec::run(&mut build)?;
            return Ok(None);
        }
        let built = exec::output(&mut build)?.status.success();
        Ok((!built).then(|| "no `go` in PATH to build Kubernetes with; next: install Go".to_owned()))
    }

    /// Makes the clusters, runs the checks, keeps the logs where one failed, and removes all whatever happened.
    pub(crate) fn run(&self) -> Result<Tally> {
        if self.count() == 0 {
            return Ok(Tally::default());
        }
        // Unoptimised: its crates are compiled already for the tests before, and no check measures speed.
        let archive = image::pack(&image::Args::debug())?;
        remove_abandoned()?;
        let interrupt = Interrupt::install()?;
        let mut tally = Tally::default();
        if !self.checks.is_empty() {
            tally.add(self.cleaned_up(&self.clusters, || self.on_clusters(&interrupt, &archive))?);
        }
        for place in &self.rehearsals {
            let (name, letter, flags) = REHEARSALS[*place];
            let cluster = format!("test{}{letter}", std::process::id());
            let rehearsed = || rehearse(&interrupt, name, &cluster, flags, &archive);
            tally.add(self.cleaned_up(std::slice::from_ref(&cluster), rehearsed)?);
        }
        Ok(tally)
    }

    /// Keeps the logs of clusters where something failed on them, and removes them whatever happened.
    fn cleaned_up(&self, clusters: &[String], job: impl FnOnce() -> Result<Tally>) -> Result<Tally> {
        let outcome = job();
        if !outcome.as_ref().is_ok_and(|tally| tally.failed == 0) {
            self.keep_logs(clusters);
        }
        // Not by the interrupt's hand: this has to be done after one, too.
        exec::run(kubetest()?.arg("down").args(clusters))?;
        outcome
    }

    fn on_clusters(&self, interrupt: &Interrupt, archive: &Path) -> Result<Tally> {
        let [one, other] = &self.clusters;
        // Every check runs by both.
        for (cluster, transport) in self.clusters.iter().zip(Transport::BOTH) {
            let mut up = kubetest()?;
            up.args(["up", cluster, "--nodes", NODES, "--vnet", one, "--keep"])
                .args(["--transport", transport.name()])
                .arg("--weft-image")
                .arg(archive)
                .arg("--weft-manifests")
                .arg(crate::root().join("deploy"));
            if !interrupt.run(&mut up)?.success() {
                return Ok(Tally {
                    failed: 1,
                    ..Tally::default()
                });
            }
        }
        let mut tally = Tally::default();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| self.check(interrupt, other, &[]));
            tally.add(self.check(interrupt, one, &["--beside", other])?);
            tally.add(
                second
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            );
            Ok(tally)
        })
    }

    fn check(&self, interrupt: &Interrupt, cluster: &str, flags: &[&str]) -> Result<Tally> {
        let report = exec::target_dir().join(format!("kube-check-{cluster}.json"));
        let mut check = kubetest()?;
        check
            .args(["check", cluster, "--report"])
            .arg(&report)
            .args(flags)
            .args(self.filter.iter().flat_map(|text| ["--test", text]));
        reported(interrupt, &mut check, &report)
    }

    /// The logs go with the cluster; what a failure is understood by stays.
    fn keep_logs(&self, clusters: &[String]) {
        for cluster in clusters {
            // Under the letter at the end, over those of the run before.
            let dir = self.logs.join(&cluster[cluster.len() - 1..]);
            let copied =
                kubetest().and_then(|mut logs| exec::run(logs.args(["logs", cluster, "--output"]).arg(&dir)));
            match copied {
                Ok(()) => term::item(Mark::Note, "logs", dir.display()),
                Err(error) => term::item(Mark::Note, "logs", format!("could not be kept: {error:#}")),
            }
        }
    }
}

/// Makes a cluster and walks through a procedure on it.
fn rehearse(
    interrupt: &Interrupt,
    name: &str,
    cluster: &str,
    flags: &[&str],
    archive: &Path,
) -> Result<Tally> {
    let mut up = kubetest()?;
    up.args(["up", cluster, "--vnet", cluster, "--keep"])
        .args(flags)
        .arg("--weft-image")
        .arg(archive);
    if !interrupt.run(&mut up)?.success() {
        return Ok(Tally {
            failed: 1,
            ..Tally::default()
        });
    }
    let report = exec::target_dir().join(format!("kube-rehearsal-{cluster}.json"));
    let mut walk = kubetest()?;
    walk.args(["rehearse", name, cluster, "--report"])
        .arg(&report)
        .arg("--weft")
        .arg(exec::target_dir().join("dist/debug/weft"))
        .arg("--weft-manifests")
        .arg(crate::root().join("deploy"));
    reported(interrupt, &mut walk, &report)
}

/// Runs a command that writes a report, and counts what is in it.
fn reported(interrupt: &Interrupt, command: &mut std::process::Command, report: &Path) -> Result<Tally> {
    let passed = interrupt.run(command)?.success();
    let Ok(text) = std::fs::read_to_string(report) else {
        return Ok(Tally {
            failed: 1,
            ..Tally::default()
        });
    };
    std::fs::remove_file(report).with_context(|| format!("remove {}", report.display()))?;
    let mut tally = tally(&text)?;
    tally.failed = tally.failed.max(usize::from(!passed));
    Ok(tally)
}

/// Removes clusters of runs that were killed.
fn remove_abandoned() -> Result<()> {
    for entry in std::fs::read_dir(CLUSTERS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let run = name
            .strip_prefix("test")
            .and_then(|rest| rest.strip_suffix(['a', 'b', 'm', 'u']))
            .and_then(|digits| digits.parse::<u32>().ok());
        if run.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            exec::run(kubetest()?.args(["down", &name]))?;
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
