//! What an operation costs in CPU time, and how busy the machine is without any.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

use crate::client;

/// CPU time of the client, its server and the kernel's softirq threads, from `start` on.
///
/// Softirq work in the context of client or server counts as theirs. What interrupts other processes is missed.
#[derive(Debug)]
pub(crate) struct Meter {
    server: SocketAddrV4,
    before: u64,
}

/// Ticks of all CPUs since the machine's start, by `/proc/stat`.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    idle: u64,
    all: u64,
}

// === impl Meter ===

impl Meter {
    pub(crate) fn start(server: SocketAddrV4) -> Result<Self> {
        Ok(Self {
            server,
            before: total(server)?,
        })
    }

    /// Nanoseconds since the start.
    pub(crate) fn spent(&self) -> Result<u64> {
        Ok(total(self.server)?.saturating_sub(self.before))
    }
}

fn total(server: SocketAddrV4) -> Result<u64> {
    Ok(client::server_cpu(server)? + softirq_threads()? + own())
}

/// CPU time of this process, ended threads included, nanoseconds.
pub(crate) fn own() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of `ksoftirqd` on all CPUs, nanoseconds; 0 where a container hides the kernel's threads.
fn softirq_threads() -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let path = entry?.path();
        let named = std::fs::read_to_string(path.join("comm"));
        if !named.is_ok_and(|name| name.starts_with("ksoftirqd/")) {
            continue;
        }
        let file = path.join("schedstat");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let nanoseconds = text.split(' ').next().unwrap_or_default();
        sum += nanoseconds
            .parse::<u64>()
            .with_context(|| format!("parse {}", file.display()))?;
    }
    Ok(sum)
}

/// The share of all CPUs' time, 0 to 1, that is not idle while this process sleeps. What a hypervisor takes is in it.
pub(crate) fn busy_share(time: Duration) -> Result<f64> {
    let before = Ticks::read()?;
    std::thread::sleep(time);
    let after = Ticks::read()?;
    let all = after.all.saturating_sub(before.all).max(1);
    Ok(1.0 - after.idle.saturating_sub(before.idle) as f64 / all as f64)
}

// === impl Ticks ===

impl Ticks {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Self::parse(&text).context("parse /proc/stat")
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal; guest time, in user already, follows.
    fn parse(text: &str) -> Option<Self> {
        let numbers = text.lines().next()?.strip_prefix("cpu ")?;
        let numbers: Result<Vec<u64>, _> = numbers.split_whitespace().take(8).map(str::parse).collect();
        let numbers = numbers.ok()?;
        Some(Self {
            idle: numbers.get(3)? + numbers.get(4)?,
            all: numbers.iter().sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_disks_is_idle_and_guests_count_once() {
        let ticks = Ticks::parse("cpu  10 1 5 80 4 0 2 3 10 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!((ticks.idle, ticks.all), (84, 105));
        assert!(Ticks::parse("intr 1").is_none());
    }

    #[test]
    fn work_shows_in_the_time_of_this_process() {
        let before = own();
        let mut x = 1_u64;
        while own() - before < 1_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(own() - before >= 1_000_000);
    }
}
