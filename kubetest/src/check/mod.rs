//! `cargo xtask kube check`: what a cluster's network has to do, tried with real pods, kubectl and the machines around.

mod api;
mod away;
mod beside;
mod kubelet;
pub(crate) mod live;
mod network;
mod probes;
pub(crate) mod scene;
mod services;

use std::time::Instant;

use anyhow::Result;
use weft_model::checks::{Checked, Report, Verdict};

use self::scene::Scene;
use crate::cache::Cache;
use crate::state::Cluster;

/// What a check measured where its statement held.
pub(crate) type Outcome = Result<Held>;

/// How a statement can hold.
pub(crate) enum Held {
    Yes(String),
    /// It can't be tried on this cluster: why.
    NotHere(&'static str),
}

/// One check.
struct Check {
    name: &'static str,
    description: &'static str,
    run: fn(&Scene) -> Outcome,
}

/// All checks, in the order in which they run.
fn all() -> impl Iterator<Item = &'static Check> {
    network::ALL
        .iter()
        .chain(services::ALL)
        .chain(kubelet::ALL)
        .chain(probes::ALL)
        .chain(api::ALL)
        .chain(away::ALL)
        .chain(live::ALL)
}

/// The names of all checks.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(beside::NAME).chain(all().map(|check| check.name))
}

/// Runs the checks whose name contains one of `tests`, or all; with `beside`, first how the cluster gets on
/// with that one. `on_result` hears of each as it ends.
///
/// # Errors
/// The pods of the checks could not be made. That a check fails is in the report.
pub fn run(
    cluster: &Cluster,
    beside: Option<&Cluster>,
    cache: &Cache,
    tests: &[String],
    mut on_result: impl FnMut(&Checked),
) -> Result<Report> {
    let began = Instant::now();
    let mut checks = Vec::new();
    let selected = |name: &str| tests.is_empty() || tests.iter().any(|text| name.contains(text.as_str()));
    if let Some(other) = beside
        && selected(beside::NAME)
    {
        // Before pools are given other ranges.
        let result = tried(beside::NAME, beside::DESCRIPTION, || {
            beside::run(cluster, other, cache)
        });
        on_result(&result);
        checks.push(result);
    }
    let selected: Vec<&Check> = all().filter(|check| selected(check.name)).collect();
    if !selected.is_empty() {
        let scene = Scene::set(cluster, cache)?;
        for check in selected {
            let result = check.try_on(&scene);
            on_result(&result);
            checks.push(result);
        }
        scene.clean_up()?;
    }
    Ok(Report::of(&cluster.name, began, checks))
}

// === impl Check ===

impl Check {
    fn try_on(&self, scene: &Scene) -> Checked {
        tried(self.name, self.description, || (self.run)(scene))
    }
}

pub(crate) fn tried(name: &'static str, description: &'static str, run: impl FnOnce() -> Outcome) -> Checked {
    Checked::by(name, description, || match run() {
        Ok(Held::Yes(value)) => (Verdict::Passed, value),
        Ok(Held::NotHere(why)) => (Verdict::Skipped, why.to_owned()),
        Err(error) => (Verdict::Failed, format!("{error:#}")),
    })
}

pub(crate) fn yes(value: impl Into<String>) -> Outcome {
    Ok(Held::Yes(value.into()))
}
