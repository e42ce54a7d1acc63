//! Time that survives a change of the wall clock and tells one boot from the next.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Which boot of the machine something happened in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(String);

/// A moment: the boot and the time since then, suspension included.
///
/// The wall clock jumps; what has to last a minimum time is measured by this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// The boot.
    pub boot: BootId,
    /// Milliseconds since the boot.
    pub since_boot_ms: u64,
}

/// Where the ledger takes time from.
pub trait Clock: Send + Sync {
    /// The present moment. Never runs backwards within a boot.
    fn now(&self) -> Moment;

    /// The wall clock, for people to read. Nothing is decided by it.
    fn wall(&self) -> SystemTime;
}

/// The clock of the machine: `CLOCK_BOOTTIME` and the kernel's boot ID.
#[derive(Debug)]
pub struct SystemClock {
    boot: BootId,
}

// === impl BootId ===

impl BootId {
    /// A boot ID as text, for a machine the kernel does not know of, such as a
    /// node of a lab.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Moment ===

impl Moment {
    /// How much time has passed at least since `earlier`.
    ///
    /// For a moment of another boot that is the time since the present boot:
    /// it came before, by an unknown time.
    pub fn at_least_since(&self, earlier: &Moment) -> Duration {
        let start = if earlier.boot == self.boot {
            earlier.since_boot_ms
        } else {
            0
        };
        Duration::from_millis(self.since_boot_ms.saturating_sub(start))
    }
}

// === impl SystemClock ===

impl SystemClock {
    /// Where the kernel tells its boot ID (`random(4)`).
    pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

    /// Reads the boot ID from a file: [`BOOT_ID`](Self::BOOT_ID), or that of a machine the kernel does not know of.
    ///
    /// # Errors
    /// If there is no such file, or nothing in it.
    pub fn read(boot_id: &Path) -> std::io::Result<Self> {
        let id = std::fs::read_to_string(boot_id)?;
        if id.trim().is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self::with_boot_id(BootId::new(id.trim())))
    }

    /// The machine's time under a boot ID of one's own.
    pub fn with_boot_id(boot: BootId) -> Self {
        Self { boot }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let millis = u64::try_from(time.tv_nsec / 1_000_000).unwrap_or_default();
        Moment {
            boot: self.boot.clone(),
            since_boot_ms: seconds * 1000 + millis,
        }
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
