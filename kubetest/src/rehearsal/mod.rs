//! `cargo xtask kube rehearse`: procedures of the documentation, step by step on a cluster of their own, with pods that
//! talk meanwhile.

mod migration;
mod nodes;
mod pods;
mod uninstall;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use weft_model::checks::{Checked, Report, Verdict};

use crate::cache::Cache;
use crate::check::{tried, yes};
use crate::state::{Cluster, Cni, Config, Ipam};

/// A procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rehearsal {
    /// From bridge and host-local to Weft, node by node, and one node back (docs/operations/migration.md)
    Migration,
    /// `weft install`, pods that talk, `weft uninstall`: the nodes are as they were
    Uninstall,
}

/// What the steps need beside the cluster.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The program `weft`.
    pub weft: PathBuf,
    /// Directory of Weft's manifests.
    pub manifests: PathBuf,
}

/// A step in words, and what it does: what was measured, or why it failed.
pub(crate) struct Step<T> {
    name: &'static str,
    description: &'static str,
    run: fn(&mut T) -> Result<String>,
}

// === impl Rehearsal ===

impl Rehearsal {
    /// How many nodes for pods it takes.
    pub fn nodes(self) -> usize {
        match self {
            Self::Migration => 3,
            Self::Uninstall => 2,
        }
    }

    /// The network and the giver of ranges that its cluster begins with.
    pub fn begins_with(self) -> (Cni, Ipam) {
        match self {
            Self::Migration => (Cni::Bridge, Ipam::Node),
            Self::Uninstall => (Cni::None, Ipam::Pool),
        }
    }

    /// Whether a cluster was made for it.
    pub fn suits(self, config: &Config) -> bool {
        (config.cni, config.ipam) == self.begins_with()
    }

    /// The names of its steps.
    pub fn steps(self) -> Vec<&'static str> {
        match self {
            Self::Migration => migration::STEPS.iter().map(|step| step.name).collect(),
            Self::Uninstall => uninstall::STEPS.iter().map(|step| step.name).collect(),
        }
    }

    /// Takes the steps until one fails: those after it would say nothing. `on_result` hears of each as it ends.
    ///
    /// # Errors
    /// What the first step needs is not there. That a step fails is in the report.
    pub fn run(
        self,
        cluster: &Cluster,
        cache: &Cache,
        tools: &Tools,
        on_result: impl FnMut(&Checked),
    ) -> Result<Report> {
        match self {
            Self::Migration => {
                let mut scene = migration::Scene::set(cluster, cache, tools)?;
                Ok(walk(cluster, migration::STEPS, &mut scene, on_result))
            }
            Self::Uninstall => {
                let mut scene = uninstall::Scene::set(cluster, cache, tools)?;
                Ok(walk(cluster, uninstall::STEPS, &mut scene, on_result))
            }
        }
    }
}

fn walk<T>(
    cluster: &Cluster,
    steps: &[Step<T>],
    scene: &mut T,
    mut on_result: impl FnMut(&Checked),
) -> Report {
    let began = Instant::now();
    let mut checks = Vec::new();
    for step in steps {
        let result = tried(step.name, step.description, || yes((step.run)(scene)?));
        on_result(&result);
        let failed = result.verdict == Verdict::Failed;
        checks.push(result);
        if failed {
            break;
        }
    }
    Report::of(&cluster.name, began, checks)
}
