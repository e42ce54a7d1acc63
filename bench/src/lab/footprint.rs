//! What Weft's agent and plugin take on one node.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Lab, PATIENCE, address, agent_pid, field, wait_full};
use crate::agents::{Change, Effort, Recipe, Starts};
use crate::api::ClusterApi;
use crate::cni::Network;
use crate::maps::Maps;
use crate::netns::{self, Place};
use crate::process::Usage;
use crate::report::Footprint;
use crate::{interrupt, print};

/// Changes of other nodes in a second.
const CHANGES: u32 = 50;

/// The first node of a cluster, to be measured.
struct First {
    api: ClusterApi,
    recipe: Recipe,
    network: Network,
    name: String,
    address: Ipv4Addr,
}

// === impl Lab ===

impl Lab {
    /// What the agent of a cluster of one node takes, without pods and with a Deployment of so many, and with `known`
    /// nodes that change if there are to be more than its own.
    pub(crate) fn footprint(&self, pods: usize, known: u32, effort: Effort) -> Result<Footprint> {
        let plugin = self.weft.with_file_name("weft-cni");
        let image = std::fs::read(&plugin).with_context(|| format!("read {}", plugin.display()))?;
        let first = self.first()?;
        let mut idle = effort.idle(&[self.agent()?], 0, 1)?;
        let mut starts = vec![self.starts(&first, 0, 1, effort)?];

        let start = Instant::now();
        self.apply("fill", &deployment(pods))?;
        self.running(pods as u64)?;
        let pods_up_seconds = start.elapsed().as_secs_f64();
        let agent_rss_bytes = Usage::of(self.agent()?.1)?.rss;
        idle.extend(effort.idle(&[self.agent()?], pods, 1)?);
        starts.push(self.starts(&first, pods, 1, effort)?);

        let mut change = None;
        if known > 1 {
            print::note(&format!("{known} nodes, of which {CHANGES} a second change"));
            self.crowd(known)?;
            idle.extend(effort.idle(&[self.agent()?], pods, known as usize)?);
            starts.push(self.starts(&first, pods, known as usize, effort)?);
            change = Some(self.change(&first, pods, known, effort)?);
        }
        starts.retain(|starts| !starts.ready_ms.is_empty());
        Ok(Footprint {
            plugin_bytes: image.len() as u64,
            plugin_static: !names_interpreter(&image).context("weft-cni is no 64-bit ELF file")?,
            pods,
            pods_up_seconds,
            agent_rss_bytes,
            idle,
            starts,
            change,
        })
    }

    fn first(&self) -> Result<First> {
        let status = self.status()?;
        let (conf, plugins) = self.configuration(&status)?;
        Ok(First {
            api: self.api()?,
            recipe: self.recipe(&status, 0)?,
            // The agent's socket is a path, in whatever namespace the plugin runs.
            network: Network::read(&conf, &plugins, Place(Vec::new()))?,
            name: field(&status, 0, "name")?.to_owned(),
            address: address(&status, 0)?,
        })
    }

    /// Name and process ID of the first node's agent.
    fn agent(&self) -> Result<(String, u32)> {
        Ok((self.label().to_owned(), agent_pid(&self.status()?, 0)?))
    }

    /// Starts the first node's agent a few times.
    fn starts(&self, first: &First, pods: usize, nodes: usize, effort: Effort) -> Result<Starts> {
        let mut ready_ms = Vec::new();
        if effort.starts > 0 {
            ready_ms = self.without_agent(&first.name, || {
                first.recipe.starts(effort.starts, &first.network, &self.scratch)
            })?;
        }
        Ok(Starts {
            pods,
            nodes,
            ready_ms,
        })
    }

    /// Keeps the lab from running a node's agent meanwhile, and waits until it runs again.
    pub(super) fn without_agent<T>(&self, node: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let fault = |rest: &[&str]| {
            let mut command = Command::new(&self.weft);
            command.args(["lab", "fault", &self.name, "kill-agent", node]);
            netns::run(command.args(rest))
        };
        fault(&["--for", "10m"])?;
        let outcome = work();
        fault(&["--clear"])?;
        let outcome = outcome?;
        let start = Instant::now();
        // What asks for it fails as long as a node is not Ready.
        while let Err(error) = self.agent() {
            interrupt::check()?;
            if start.elapsed() > PATIENCE {
                return Err(error.context("the lab's agent does not come back"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(outcome)
    }

    /// The agent while others of `known` nodes get new addresses.
    fn change(&self, first: &First, pods: usize, known: u32, effort: Effort) -> Result<Change> {
        let (_, pid) = self.agent()?;
        let maps = Maps::open(&first.recipe.argument("--pin-dir")?)?;
        let (before, start) = (Usage::of(pid)?, Instant::now());
        let time = Duration::from_secs(effort.change_seconds);
        let (changes, blocks) = first.api.churn(known - 1, CHANGES, time)?;
        wait_full(&maps, first.address, &blocks)?;
        let seconds = start.elapsed().as_secs_f64();
        let after = Usage::of(pid)?;
        Ok(Change {
            pods,
            nodes: known as usize,
            changes,
            per_second: CHANGES,
            seconds,
            cpu_share: (after.cpu_seconds - before.cpu_seconds) / seconds,
            rss_bytes: after.rss,
        })
    }
}

fn deployment(replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: fill\nspec:\n  replicas: {replicas}\n  \
         selector:\n    matchLabels: {{app: fill}}\n  template:\n    metadata:\n      labels: {{app: fill}}\n    \
         spec:\n      containers:\n      - name: fill\n        image: fill\n"
    )
}

/// Whether an ELF file asks for a dynamic linker (a program header PT_INTERP; System V ABI, chapter 5).
fn names_interpreter(image: &[u8]) -> Option<bool> {
    const CLASS_64: u8 = 2;
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if !image.starts_with(b"\x7fELF") || *image.get(4)? != CLASS_64 {
        return None;
    }
    let table = u64::from_le_bytes(image.get(32..40)?.try_into().ok()?) as usize;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    let kinds: Option<Vec<u32>> = (0..count).map(|index| word(table + index * size)).collect();
    Some(kinds?.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_of_this_target_is_recognised() {
        let image = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(
            names_interpreter(&image),
            Some(!cfg!(target_feature = "crt-static"))
        );
        assert_eq!(names_interpreter(b"#!/bin/sh"), None);
    }
}
