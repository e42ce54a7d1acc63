//! Progress lines on standard error, with the time since the beginning.

use std::io::Write;
use std::time::{Duration, Instant};

/// Prints a line as each phase ends.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    began: Instant,
}

// === impl Progress ===

impl Progress {
    /// Counts from now.
    pub fn start() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    /// Says what has come about.
    pub fn say(&self, text: &str) {
        let _ = writeln!(
            std::io::stderr(),
            "{:>6.1} s  {text}",
            self.elapsed().as_secs_f64()
        );
    }

    /// How long it has been.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
