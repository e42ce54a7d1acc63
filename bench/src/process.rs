//! Child processes and what they take, from /proc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

/// How long a process may take to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// A child with a log file; killed with its owner.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What a process has taken so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// Seconds on a CPU, user and system.
    pub(crate) cpu_seconds: f64,
    /// Resident memory, bytes.
    pub(crate) rss: u64,
    /// The part of it that is its own; the rest is files, mostly its binary, shared by all who run it. Bytes.
    pub(crate) anonymous: u64,
    /// The most resident memory ever was, bytes.
    pub(crate) peak_rss: u64,
}

// === impl Process ===

impl Process {
    /// Starts `command`, its output in `DIR/NAME.log`.
    pub(crate) fn start(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// What it has taken until now.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn usage(&mut self) -> Result<Usage> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}, see {}", self.name, self.log.display());
        }
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.child.id());
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let status = read("status")?;
        let kib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
            number.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let stat = read("stat")?;
        // The second field, the name in parentheses, may hold anything.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = after
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|text| text.parse::<u64>().ok())
            .sum();
        Ok(Usage {
            cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            rss: kib("VmRSS"),
            anonymous: kib("RssAnon"),
            peak_rss: kib("VmHWM"),
        })
    }

    /// Ends it with SIGTERM, and with SIGKILL where that does not help.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let start = Instant::now();
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                self.child.kill().with_context(|| format!("kill {}", self.name))?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it as a crash does.
    pub(crate) fn crash(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
