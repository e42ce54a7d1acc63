//! `weft lab check`: what a cluster's network has to do, tried with sockets of our own from inside its namespaces.
//!
//! Probe pods are made through the API, so that scheduler, kubelet, plugin and agent take part; the probes
//! themselves bind their own sockets in the pods' namespaces and so depend on no server in them.

mod connectivity;
mod overlay;
mod probe;
mod scene;
mod state;

use std::time::Instant;

use serde::Serialize;
use weft_model::UserError;
use weft_model::checks::{Checked, Report, Verdict};

use self::scene::Scene;
pub use self::scene::clean_up;
use crate::cluster;
use crate::daemon::blocking;
use crate::status::API_VERSION;

/// What came of all checks of a cluster.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// Always `LabCheckReport`.
    pub kind: &'static str,
    /// What came of them.
    #[serde(flatten)]
    pub report: Report,
}

/// How a check can end other than by holding.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It did not hold: what was seen instead.
    Failed(String),
    /// It can't be tried on this cluster: why.
    Skipped(String),
}

/// What a check measured, where its statement held.
type Outcome = Result<String, Trouble>;

/// One check.
#[derive(Clone, Copy)]
struct Check {
    name: &'static str,
    description: &'static str,
    run: fn(&Scene) -> Outcome,
}

/// Which checks to run, and what to leave behind.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only checks whose name contains one of these texts; all, where there is none.
    pub tests: Vec<String>,
    /// Leave the probe pods.
    pub keep: bool,
}

/// Names and descriptions of all checks, in the order in which they run.
pub fn catalogue() -> Vec<(&'static str, &'static str)> {
    all().map(|check| (check.name, check.description)).collect()
}

/// Runs the checks on a cluster; `on_result` hears of each as it ends. When the caller drops the future, the probe
/// pods are left for [`clean_up`].
///
/// # Errors
/// The cluster does not exist, or the probe pods could not be made. That a check fails is in the report.
pub async fn run(
    name: &str,
    selection: &Selection,
    mut on_result: impl FnMut(&Checked),
) -> Result<CheckReport, UserError> {
    cluster::require_root()?;
    let began = Instant::now();
    let status = cluster::status(name).await?;
    let scene = Scene::set(name, &status).await?;
    let mut checks = Vec::new();
    for check in all().filter(|check| selection.has(check.name)) {
        let scene = scene.clone();
        let result = blocking(move || Ok(check.try_on(&scene))).await?;
        on_result(&result);
        checks.push(result);
    }
    if !selection.keep {
        clean_up(name).await?;
    }
    Ok(CheckReport {
        api_version: API_VERSION,
        kind: "LabCheckReport",
        report: Report::of(name, began, checks),
    })
}

// === impl Selection ===

impl Selection {
    fn has(&self, name: &str) -> bool {
        self.tests.is_empty() || self.tests.iter().any(|text| name.contains(text.as_str()))
    }
}

// === impl Check ===

impl Check {
    fn try_on(self, scene: &Scene) -> Checked {
        Checked::by(self.name, self.description, || match (self.run)(scene) {
            Ok(value) => (Verdict::Passed, value),
            Err(Trouble::Failed(value)) => (Verdict::Failed, value),
            Err(Trouble::Skipped(value)) => (Verdict::Skipped, value),
        })
    }
}

impl<E: std::error::Error> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

fn all() -> impl Iterator<Item = Check> {
    state::BEFORE
        .iter()
        .chain(connectivity::ALL)
        .chain(overlay::ALL)
        .chain(state::AFTER)
        .copied()
}
