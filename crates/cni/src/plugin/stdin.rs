use std::io::{self, Read};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

/// Standard input, read to its end within a bound: a runtime that never closes it
/// does not keep the plugin for ever.
#[derive(Debug)]
pub struct Stdin {
    stdin: io::Stdin,
    until: Instant,
}

const PATIENCE: Duration = Duration::from_secs(5);

// === impl Stdin ===

impl Stdin {
    /// The time for reading starts now.
    pub fn new() -> Self {
        Self {
            stdin: io::stdin(),
            until: Instant::now() + PATIENCE,
        }
    }
}

impl Default for Stdin {
    fn default() -> Self {
        Self::new()
    }
}

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut watched = [PollFd::new(&self.stdin, PollFlags::IN)];
        if rustix::event::poll(&mut watched, Some(&left))? == 0 {
            let message = format!("not at its end after {} s", PATIENCE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        Ok(rustix::io::read(&self.stdin, buffer)?)
    }
}
