//! Child processes and what they take, from /proc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
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
        Usage::of(self.id())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
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

// === impl Usage ===

impl Usage {
    /// What a process has taken until now, threads that ended included.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let kib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
            number.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let number = i32::try_from(pid).with_context(|| format!("process {pid}"))?;
        let time = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(number))
            .and_then(clock_gettime)
            .with_context(|| format!("read the CPU clock of process {pid}"))?;
        Ok(Self {
            cpu_seconds: Duration::from(time).as_secs_f64(),
            rss: kib("VmRSS"),
            anonymous: kib("RssAnon"),
            peak_rss: kib("VmHWM"),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
