//! Ctrl-C and SIGTERM as a flag, so that a task can clean up before it ends.

use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exec;

/// How often a running child is looked at.
const TICK: Duration = Duration::from_millis(20);

/// Set once a signal asked this process to end.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process.
    pub(crate) fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("register a signal handler")?;
        }
        Ok(Self(flag))
    }

    /// An error once a signal has arrived.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Runs a command to its end with the terminal's streams. A signal to this process ends the command too, by
    /// SIGTERM, and is an error.
    pub(crate) fn run(&self, command: &mut Command) -> Result<ExitStatus> {
        self.check()?;
        let mut child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("start `{}`", exec::line(command)))?;
        let pid = Pid::from_child(&child);
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait().context("wait for a command")? {
                self.check()?;
                return Ok(status);
            }
            if !told && self.check().is_err() {
                // From a terminal it got the signal already; two are as good as one.
                let _ = kill_process(pid, Signal::TERM);
                told = true;
            }
            std::thread::sleep(TICK);
        }
    }
}
