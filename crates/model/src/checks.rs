//! What came of checks of a cluster's network: of a lab as of a real one.

use std::time::{Duration, Instant};

use serde::Serialize;

/// What came of all checks of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Name of the cluster.
    pub cluster: String,
    /// Whether none failed.
    pub ok: bool,
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many could not be tried here.
    pub skipped: usize,
    /// How long all of them took, in milliseconds.
    pub duration_ms: u64,
    /// Every check, in the order in which they ran.
    pub checks: Vec<Checked>,
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// Its name.
    pub name: &'static str,
    /// What has to hold, in words.
    pub description: &'static str,
    /// Whether it held.
    pub verdict: Verdict,
    /// What was measured, or why it failed or was not tried.
    pub value: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// Whether a check's statement held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// It could not be tried on this cluster.
    Skipped,
}

// === impl Report ===

impl Report {
    /// The results of `checks` of a cluster, the first of which began at `began` and the last of which has just ended.
    pub fn of(cluster: impl Into<String>, began: Instant, checks: Vec<Checked>) -> Self {
        let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
        let failed = count(Verdict::Failed);
        Self {
            cluster: cluster.into(),
            ok: failed == 0,
            passed: count(Verdict::Passed),
            failed,
            skipped: count(Verdict::Skipped),
            duration_ms: millis(began.elapsed()),
            checks,
        }
    }
}

// === impl Checked ===

impl Checked {
    /// The result of a check; `run` says whether the statement held, and what was measured or why not.
    pub fn by(
        name: &'static str,
        description: &'static str,
        run: impl FnOnce() -> (Verdict, String),
    ) -> Self {
        let began = Instant::now();
        let (verdict, value) = run();
        Self {
            name,
            description,
            verdict,
            value,
            duration_ms: millis(began.elapsed()),
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
