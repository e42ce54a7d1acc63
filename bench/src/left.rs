//! What attaching and detaching pods leaves behind on a node.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::maps::Maps;
use crate::{client, interrupt, netns};

/// How long a plugin may take to tidy up after its last DEL.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nothing comes or goes if nothing did for so long.
const CALM: Duration = Duration::from_millis(500);

/// What is in a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Census {
    interfaces: usize,
    addresses: usize,
    routes: usize,
    nft_lines: usize,
}

/// How much more there is than before the first ADD.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Left {
    pub(crate) interfaces: i64,
    pub(crate) addresses: i64,
    /// Routes of all tables, and the rules that choose among these.
    pub(crate) routes: i64,
    /// Lines of nftables' rule set, iptables' in it.
    pub(crate) nft_lines: i64,
    /// Pods that the plugin's own [`Books`] still know.
    pub(crate) booked: i64,
}

/// Where a plugin keeps which pods there are.
#[derive(Debug, Clone)]
pub(crate) enum Books {
    /// A file for each address in this directory of host-local.
    Files(PathBuf),
    /// The eBPF map of endpoints below an agent's `--pin-dir`.
    Pins(PathBuf),
    /// The endpoints of Cilium's agent behind this socket.
    Cilium(PathBuf),
}

// === impl Census ===

impl Census {
    /// Counts in the namespace of this process once nothing comes or goes there.
    pub(crate) fn settled() -> Result<Self> {
        let mut last = Self::take()?;
        loop {
            interrupt::check()?;
            std::thread::sleep(CALM);
            let now = Self::take()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }

    fn take() -> Result<Self> {
        let list = |words: &[&str]| -> Result<Vec<Value>> {
            let text = netns::read(Command::new("ip").arg("-json").args(words))?;
            // There is no output for none.
            let text = if text.trim().is_empty() { "[]" } else { &text };
            serde_json::from_str(text).context("parse the output of ip")
        };
        let links = list(&["address", "show"])?;
        let addresses = links
            .iter()
            .filter_map(|link| Some(link["addr_info"].as_array()?.len()));
        let rules = netns::read(Command::new("nft").args(["list", "ruleset"]))?;
        Ok(Self {
            interfaces: links.len(),
            addresses: addresses.sum(),
            routes: list(&["-4", "route", "show", "table", "all"])?.len()
                + list(&["-4", "rule", "show"])?.len(),
            nft_lines: rules.lines().filter(|line| !line.trim().is_empty()).count(),
        })
    }

    /// What is there beyond this, once that is nothing or has had time to go.
    pub(crate) fn left(self) -> Result<Left> {
        until_nothing(|| Ok(self.more(Self::take()?)), Left::is_none)
    }

    fn more(self, now: Self) -> Left {
        Left {
            interfaces: more(self.interfaces, now.interfaces),
            addresses: more(self.addresses, now.addresses),
            routes: more(self.routes, now.routes),
            nft_lines: more(self.nft_lines, now.nft_lines),
            booked: 0,
        }
    }
}

// === impl Left ===

impl Left {
    fn is_none(&self) -> bool {
        let Self {
            interfaces,
            addresses,
            routes,
            nft_lines,
            booked,
        } = *self;
        [interfaces, addresses, routes, nft_lines, booked]
            .iter()
            .all(|count| *count <= 0)
    }
}

// === impl Books ===

impl Books {
    /// How many pods they know.
    pub(crate) fn pods(&self) -> Result<usize> {
        match self {
            Self::Files(dir) => {
                let entries = match std::fs::read_dir(dir) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
                    entries => entries.with_context(|| format!("list {}", dir.display()))?,
                };
                let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                Ok(names.filter(|name| name.parse::<Ipv4Addr>().is_ok()).count())
            }
            Self::Pins(pins) => Maps::open(pins)?.pods(),
            Self::Cilium(socket) => {
                let stream = UnixStream::connect(socket).context("connect to Cilium's agent")?;
                let answer = client::exchange_http(stream, "GET /v1/endpoint", &[], "")?;
                let endpoints: Vec<Value> =
                    serde_json::from_str(&answer).context("parse Cilium's endpoints")?;
                Ok(endpoints.len())
            }
        }
    }

    /// How many more they know than `before`, once that is nothing or has had time to go.
    pub(crate) fn left(&self, before: usize) -> Result<i64> {
        until_nothing(|| Ok(more(before, self.pods()?)), |count| *count <= 0)
    }
}

fn more(before: usize, now: usize) -> i64 {
    i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX)
}

fn until_nothing<T>(count: impl Fn() -> Result<T>, nothing: impl Fn(&T) -> bool) -> Result<T> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        let found = count()?;
        if nothing(&found) || start.elapsed() > PATIENCE {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_before_is_left() {
        let before = Census {
            interfaces: 3,
            addresses: 2,
            routes: 9,
            nft_lines: 0,
        };
        assert!(before.more(before).is_none());
        let left = before.more(Census {
            interfaces: 5,
            routes: 8,
            ..before
        });
        assert_eq!((left.interfaces, left.routes), (2, -1));
        assert!(!left.is_none());
    }

    #[test]
    fn host_local_has_a_file_for_each_address() {
        let dir = tempfile::tempdir().unwrap();
        let books = Books::Files(dir.path().join("addresses"));
        assert_eq!(books.pods().unwrap(), 0);
        std::fs::create_dir(dir.path().join("addresses")).unwrap();
        for name in ["10.61.0.2", "lock", "last_reserved_ip.0"] {
            std::fs::write(dir.path().join("addresses").join(name), "").unwrap();
        }
        assert_eq!(books.pods().unwrap(), 1);
        assert_eq!(books.left(0).unwrap(), 1);
    }
}
