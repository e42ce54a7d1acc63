//! What agents take: with nothing to do, until they are ready, and while the cluster changes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cni::Network;
use crate::interrupt;
use crate::process::{Process, Usage};

/// Longest time for an agent to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether it is.
const POLL: Duration = Duration::from_millis(2);
/// After a start, before an agent counts as idle.
const SETTLE: Duration = Duration::from_secs(5);

/// How much an agent is looked at.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Effort {
    /// Seconds that idle agents are watched for
    #[arg(long, default_value_t = 30.0)]
    idle_seconds: f64,
    /// How often Weft's agent is started until it is ready; 0 for not at all
    #[arg(long, default_value_t = 5)]
    pub(crate) starts: usize,
    /// Seconds of changes of other nodes
    #[arg(long, default_value_t = 20)]
    pub(crate) change_seconds: u64,
}

/// An agent with nothing to do.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Idle {
    pub(crate) agent: String,
    /// Pods on its node.
    pub(crate) pods: usize,
    /// Nodes of its cluster, its own included.
    pub(crate) nodes: usize,
    /// For how long it was watched, seconds.
    pub(crate) seconds: f64,
    /// Share of one CPU's time that it took, 0 to 1.
    pub(crate) cpu_share: f64,
    /// Resident memory at the end, bytes.
    pub(crate) rss_bytes: u64,
}

/// Starts of an agent on a node that had one.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Starts {
    pub(crate) pods: usize,
    pub(crate) nodes: usize,
    /// From the start of the process until the plugin's STATUS succeeded, milliseconds, a figure for each start.
    pub(crate) ready_ms: Vec<f64>,
}

/// An agent while other nodes change.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Change {
    pub(crate) pods: usize,
    pub(crate) nodes: usize,
    /// Nodes that got another address.
    pub(crate) changes: u32,
    /// So many in a second.
    pub(crate) per_second: u32,
    /// From the first until the agent had carried out the last, seconds.
    pub(crate) seconds: f64,
    /// Share of one CPU's time that the agent took until it had carried out the last, 0 to 1.
    pub(crate) cpu_share: f64,
    /// Resident memory afterwards, bytes.
    pub(crate) rss_bytes: u64,
}

/// How an agent was started, to start it again.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// Its program and arguments.
    words: Vec<String>,
    /// Its node.
    pub(crate) netns: String,
    /// What tells whose process it is.
    pub(crate) environment: (&'static str, String),
}

// === impl Effort ===

impl Effort {
    /// Watches agents that have nothing to do.
    pub(crate) fn idle(self, agents: &[(String, u32)], pods: usize, nodes: usize) -> Result<Vec<Idle>> {
        sleep(SETTLE)?;
        let usages = || {
            agents
                .iter()
                .map(|(_, pid)| Usage::of(*pid))
                .collect::<Result<Vec<_>>>()
        };
        let (before, start) = (usages()?, Instant::now());
        sleep(Duration::from_secs_f64(self.idle_seconds))?;
        let (after, seconds) = (usages()?, start.elapsed().as_secs_f64());
        let figures = agents.iter().zip(before.iter().zip(&after));
        Ok(figures
            .map(|((agent, _), (before, after))| Idle {
                agent: agent.clone(),
                pods,
                nodes,
                seconds,
                cpu_share: (after.cpu_seconds - before.cpu_seconds) / seconds,
                rss_bytes: after.rss,
            })
            .collect())
    }
}

/// Sleeps, unless a signal arrives.
fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        interrupt::check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(200)));
    }
}

// === impl Recipe ===

impl Recipe {
    /// How the process with this ID was started, in the namespace `netns`.
    pub(crate) fn of(pid: u32, netns: String, environment: (&'static str, String)) -> Result<Self> {
        let path = format!("/proc/{pid}/cmdline");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(Self {
            words: text.split_terminator('\0').map(str::to_owned).collect(),
            netns,
            environment,
        })
    }

    /// The value of an argument.
    pub(crate) fn argument(&self, flag: &str) -> Result<PathBuf> {
        let mut words = self.words.iter().skip_while(|word| *word != flag);
        let value = words.nth(1).with_context(|| format!("an agent without {flag}"))?;
        Ok(value.into())
    }

    /// The same with another value of an argument.
    pub(crate) fn with_argument(mut self, flag: &str, value: &Path) -> Result<Self> {
        let position = self.words.iter().position(|word| word == flag);
        let word = position.and_then(|position| self.words.get_mut(position + 1));
        *word.with_context(|| format!("an agent without {flag}"))? = value.to_string_lossy().into_owned();
        Ok(self)
    }

    /// Starts the agent; returns it and how long it took to be ready. Nobody else may start it meanwhile.
    pub(crate) fn start(&self, network: &Network, logs: &Path) -> Result<(Process, Duration)> {
        // Unlike `ip netns exec` it leaves the mounts as they are, and with them the agent's pinned programs.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--");
        command
            .args(&self.words)
            .env(self.environment.0, &self.environment.1);
        let start = Instant::now();
        let mut agent = Process::start("agent", command, logs)?;
        while let Err(error) = network.status() {
            interrupt::check()?;
            agent.usage()?;
            if start.elapsed() > PATIENCE {
                bail!("the agent is not ready after {PATIENCE:?}: {error:#}");
            }
            std::thread::sleep(POLL);
        }
        Ok((agent, start.elapsed()))
    }

    /// Starts the agent and ends it again, so many times.
    pub(crate) fn starts(&self, times: usize, network: &Network, logs: &Path) -> Result<Vec<f64>> {
        (0..times)
            .map(|_| {
                interrupt::check()?;
                let (mut agent, ready) = self.start(network, logs)?;
                agent.stop()?;
                Ok(ready.as_secs_f64() * 1e3)
            })
            .collect()
    }
}
