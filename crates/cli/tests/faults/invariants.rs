//! The counts behind the table of invariants.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use serde_json::json;

/// Where the counts go: a file with an object a line, set by `cargo xtask test`.
const FILE: &str = "WEFT_INVARIANTS";

/// Something that must always hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Invariant {
    NoDuplicate,
    NoLeak,
    NoWrongFree,
    KernelOwned,
    Delete,
    Repair,
    ValidAnswer,
    Connections,
    Restart,
    Lost,
    Checks,
    Convergence,
    /// Not an invariant: how often something was killed.
    KillPoint,
}

// === impl Invariant ===

impl Invariant {
    fn name(self) -> &'static str {
        match self {
            Self::NoDuplicate => "no two live sandboxes share an address",
            Self::NoLeak => "no address leaked after two reconcile periods",
            Self::NoWrongFree => "none freed while its owner lives",
            Self::KernelOwned => "every kernel object has an owner, and the reverse",
            Self::Delete => "DEL succeeds within its bound",
            Self::Repair => "what others change is put right",
            Self::KillPoint => "killed, by strace, at a system call",
            Self::Connections => "established connections survive the agent",
            Self::Checks => "`weft lab check` passes during and after a fault",
            Self::Convergence => "after a fault everything agrees again by itself",
            Self::Lost => "no datagram is lost while agents are replaced",
            Self::Restart => "agents replaced under traffic; longest gap",
            Self::ValidAnswer => "the plugin's answer is one valid CNI object",
        }
    }

    /// Adds to the table: how often it was checked and violated.
    pub(crate) fn count(self, checked: usize, violated: usize) {
        self.add(checked, violated, None);
    }

    /// The same for one check that took a time.
    pub(crate) fn took(self, held: bool, took: Duration) {
        self.add(1, usize::from(!held), Some(took));
    }

    fn add(self, checked: usize, violated: usize, took: Option<Duration>) {
        let Some(path) = std::env::var_os(FILE) else {
            return;
        };
        let line = json!({
            "invariant": self.name(),
            "checked": checked,
            "violated": violated,
            "tookMs": took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        });
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the file of counts");
        // One write, so that tests that run side by side don't mix their lines.
        file.write_all(format!("{line}\n").as_bytes())
            .expect("a line of counts");
    }
}
