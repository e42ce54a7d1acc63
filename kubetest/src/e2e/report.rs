//! Ginkgo's report in JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

/// How the specs of a run came out.
#[derive(Debug)]
pub(super) struct Report {
    specs: Vec<Spec>,
}

/// One spec that was selected.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) outcome: Outcome,
    took: Duration,
}

/// The text is the suite's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed(String),
    /// The spec looked at the cluster and ended itself.
    Skipped(String),
}

/// How many of each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: Option<String>,
}

// === impl Report ===

impl Report {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let reading = || format!("read {}", path.display());
        let file = BufReader::new(File::open(path).with_context(reading)?);
        let suites: Vec<Suite> = serde_json::from_reader(file).with_context(reading)?;
        let reports = suites
            .into_iter()
            .flat_map(|suite| suite.spec_reports.unwrap_or_default());
        Ok(Self {
            specs: reports.filter_map(Spec::selected).collect(),
        })
    }

    /// What was selected: all that the report holds of the thousands in the suite.
    pub(super) fn ran(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter()
    }

    pub(super) fn count(&self) -> Count {
        let mut count = Count::default();
        for spec in &self.specs {
            match spec.outcome {
                Outcome::Passed => count.passed += 1,
                Outcome::Failed(_) => count.failed += 1,
                Outcome::Skipped(_) => count.skipped += 1,
            }
        }
        count
    }

    /// For a terminal: a line for each, failures last, where the eye is.
    pub(super) fn table(&self) -> String {
        let mut specs: Vec<_> = self.specs.iter().collect();
        specs.sort_by_key(|spec| (spec.outcome.rank(), spec.took));
        let mut text = String::new();
        for spec in specs {
            let seconds = spec.took.as_secs_f64();
            let _ = writeln!(text, "{:7} {seconds:6.1} s  {}", spec.outcome.word(), spec.name);
            if let Some(reason) = spec.outcome.reason() {
                let _ = writeln!(text, "{:19}{reason}", "");
            }
        }
        let Count {
            passed,
            failed,
            skipped,
        } = self.count();
        let _ = write!(text, "{passed} passed, {failed} failed, {skipped} skipped");
        text
    }

    /// For a document: the counts, and each that did not pass with its reason.
    pub(super) fn markdown(&self) -> String {
        let Count {
            passed,
            failed,
            skipped,
        } = self.count();
        let mut text =
            format!("| passed | failed | skipped |\n|---|---|---|\n| {passed} | {failed} | {skipped} |\n");
        // Specs that end themselves for one reason are told together.
        let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for spec in &self.specs {
            if let Some(reason) = spec.outcome.reason() {
                reasons
                    .entry((spec.outcome.word(), reason))
                    .or_default()
                    .push(&spec.name);
            }
        }
        for ((word, reason), mut names) in reasons {
            names.sort_unstable();
            let _ = write!(text, "\n{word}, as the suite says: {reason}\n\n");
            for name in names {
                let _ = writeln!(text, "- {name}");
            }
        }
        text
    }
}

// === impl Spec ===

impl Spec {
    /// Without those that the selection left out, and without what is run before and after specs.
    fn selected(report: SpecReport) -> Option<Self> {
        let message = report
            .failure
            .and_then(|failure| failure.message)
            .unwrap_or_default();
        let first = message.lines().map(str::trim).find(|line| !line.is_empty());
        let first = first.unwrap_or_default().to_owned();
        let outcome = match report.state.as_str() {
            _ if report.leaf_node_type != "It" => return None,
            "passed" => Outcome::Passed,
            // What the selection leaves out is skipped without a word.
            "skipped" if first.is_empty() => return None,
            "pending" => return None,
            "skipped" => Outcome::Skipped(first),
            _ => Outcome::Failed(first),
        };
        let mut name = report.container_hierarchy_texts.unwrap_or_default();
        name.push(report.leaf_node_text);
        Some(Self {
            name: name.join(" "),
            outcome,
            took: Duration::from_nanos(report.run_time),
        })
    }
}

// === impl Outcome ===

impl Outcome {
    fn rank(&self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Skipped(_) => 1,
            Self::Failed(_) => 2,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Skipped(_) => "skipped",
            Self::Failed(_) => "FAILED",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Skipped(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_selection_left_out_is_no_skip() {
        let spec = |state: &str, message: &str| {
            serde_json::json!({
                "ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeType": "It", "LeafNodeText": "works",
                "State": state, "RunTime": 1_500_000_000, "Failure": {"Message": message},
            })
        };
        let setup = serde_json::json!({
            "ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "",
            "State": "passed", "RunTime": 1,
        });
        let suite = serde_json::json!([{"SpecReports": [
            setup, spec("passed", ""), spec("skipped", ""), spec("pending", ""),
            spec("skipped", "\nneeds a cloud\nmore"), spec("timedout", "too late"),
        ]}]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), suite.to_string()).unwrap();
        let report = Report::read(file.path()).unwrap();

        let count = Count {
            passed: 1,
            failed: 1,
            skipped: 1,
        };
        assert_eq!(report.count(), count);
        assert_eq!(
            report.table(),
            "passed     1.5 s  [sig-network] DNS works\n\
             skipped    1.5 s  [sig-network] DNS works\n                   needs a cloud\n\
             FAILED     1.5 s  [sig-network] DNS works\n                   too late\n\
             1 passed, 1 failed, 1 skipped"
        );
    }
}
