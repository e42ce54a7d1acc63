//! Programs inside a namespace, and processes that are never mistaken for others.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};
use serde::{Deserialize, Serialize};

use crate::error::{Cause, Context, Error, Result};
use crate::netns::{NetNs, NetNsId};
use crate::sys;

pub use rustix::process::Signal;

const SYS: &CStr = c"/sys";
const BPFFS: &CStr = c"/sys/fs/bpf";

/// Names of the capabilities that Weft needs and the calling thread lacks: CAP_NET_ADMIN for links, routes, rules and
/// attaching programs; CAP_SYS_ADMIN for entering pods' namespaces, which covers CAP_BPF and CAP_PERFMON for loading
/// programs (`bpf_capable`, include/linux/capability.h).
///
/// # Errors
/// The kernel does not tell.
pub fn missing_capabilities() -> Result<Vec<&'static str>> {
    let held = rustix::thread::capabilities(None)
        .context("read", "capabilities")?
        .effective;
    let needed = [
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
        ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ];
    Ok(needed
        .into_iter()
        .filter(|(_, capability)| !held.contains(*capability))
        .map(|(name, _)| name)
        .collect())
}

/// How a program enters a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enter {
    /// Its own mount namespace with a fresh `/sys` that shows the links of the
    /// network namespace, as `ip netns exec` makes it; a bpf file system stays
    /// where it was. Mounts it makes are not seen outside.
    pub private_sys: bool,
    /// The signal it gets when its parent ends. The kernel takes the *thread*
    /// that started it for the parent (prctl(2), PR_SET_PDEATHSIG): start it
    /// from a thread that lives as long as the process, not from a pool's.
    pub parent_death_signal: Option<Signal>,
    /// It leads a session of its own: signals of the terminal don't reach it.
    pub new_session: bool,
}

/// A process that can't be taken for a later one of the same number: process
/// id and start time (field 22 of proc_pid_stat(5), clock ticks since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number, above 0.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

/// Makes `command` run in `netns`. For an asynchronous command, pass its
/// `as_std_mut()`. The child is a direct child of the one who spawns it; no
/// thread of the parent ever changes its namespace.
///
/// # Errors
/// No descriptor is left. That the namespace can't be entered shows in `spawn`.
pub fn enter(command: &mut Command, netns: &NetNs, how: Enter) -> Result<()> {
    let netns = netns.try_clone()?;
    sys::before_exec(command, move || {
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        if how.private_sys {
            mount_private_sys()?;
        }
        if how.new_session {
            rustix::process::setsid()?;
        }
        if let Some(signal) = how.parent_death_signal {
            rustix::process::set_parent_process_death_signal(Some(signal))?;
        }
        Ok(())
    });
    Ok(())
}

/// This process and those it descends from, as far as `/proc` tells: whoever ends others by what they are spares these.
pub fn own_line() -> BTreeSet<u32> {
    let mut line = BTreeSet::new();
    let mut pid = std::process::id();
    while pid > 1 && line.insert(pid) {
        let parent = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| {
                // Fields after the name in parentheses: state, then the parent (proc_pid_stat(5)).
                stat.rsplit_once(')')?
                    .1
                    .split_ascii_whitespace()
                    .nth(1)?
                    .parse()
                    .ok()
            });
        pid = parent.unwrap_or(0);
    }
    line
}

/// The processes with their first thread in `netns`, zombies left out.
///
/// # Errors
/// `/proc` can't be read.
pub fn processes_in(netns: &NetNs) -> Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list", "/proc")? {
        let entry = entry.context("list", "/proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end between any two of these steps.
        let Ok(id) = NetNsId::at(entry.path().join("ns/net")) else {
            continue;
        };
        if id == netns.id()
            && let Ok(stat) = Stat::read(pid)
            && !stat.ended()
        {
            found.push(ProcessId {
                pid,
                start: stat.start,
            });
        }
    }
    found.sort();
    Ok(found)
}

// === impl ProcessId ===

impl ProcessId {
    /// The process that has this number now.
    ///
    /// # Errors
    /// There is none (see [`Error::is_not_found`]).
    pub fn of(pid: u32) -> Result<Self> {
        let number = i32::try_from(pid).map_err(|_| not_there(pid))?;
        let stat = Stat::read(number).context("identify process", pid)?;
        Ok(Self {
            pid: number,
            start: stat.start,
        })
    }

    /// The calling process.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start == self.start && !stat.ended())
    }

    /// Sends a signal to it and to no other. Returns whether it was there.
    ///
    /// # Errors
    /// Privileges are missing.
    pub fn signal(self, signal: Signal) -> Result<bool> {
        let Some(pidfd) = self.open()? else {
            return Ok(false);
        };
        match rustix::process::pidfd_send_signal(&pidfd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(Error::new("signal process", self, errno)),
        }
    }

    /// Waits until it has ended. Returns whether it has within `timeout`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn wait(self, timeout: Duration) -> Result<bool> {
        let Some(pidfd) = self.open()? else {
            return Ok(true);
        };
        let timeout = Timespec::try_from(timeout).map_err(|_| {
            Error::new(
                "wait for process",
                self,
                Cause::Invalid("timeout out of range".to_owned()),
            )
        })?;
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))
            .map(|ready| ready > 0)
            .context("wait for process", self)
    }

    /// Asks it to end, and ends it if it hasn't after `grace`. Returns whether
    /// it was there.
    ///
    /// # Errors
    /// Privileges are missing, or it survives SIGKILL for five seconds (`ETIMEDOUT`).
    pub fn terminate(self, grace: Duration) -> Result<bool> {
        if !self.signal(Signal::TERM)? {
            return Ok(false);
        }
        if !self.wait(grace)? {
            self.signal(Signal::KILL)?;
            if !self.wait(Duration::from_secs(5))? {
                return Err(Error::new("end process", self, Errno::TIMEDOUT));
            }
        }
        Ok(true)
    }

    /// A descriptor of exactly this process: the start time is compared after
    /// the number is pinned down by the descriptor.
    fn open(self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(self.is_alive().then_some(pidfd)),
            Err(Errno::SRCH) => Ok(None),
            Err(errno) => Err(Error::new("open process", self, errno)),
        }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start)
    }
}

impl FromStr for ProcessId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split_once('@')
            .and_then(|(pid, start)| {
                Some(Self {
                    pid: pid.parse().ok().filter(|pid| *pid > 0)?,
                    start: start.parse().ok()?,
                })
            })
            .ok_or_else(|| {
                Error::new(
                    "read process identity",
                    text,
                    Cause::Invalid("expected PID@START".to_owned()),
                )
            })
    }
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    start: u64,
}

// === impl Stat ===

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The second field, the program's name in parentheses, may itself hold
    /// spaces and parentheses: fields count from the last closing one.
    fn parse(text: &[u8]) -> Option<Self> {
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&text[close + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            // State is field 3, the start time field 22.
            start: fields.nth(18)?.parse().ok()?,
        })
    }

    fn ended(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// Called between fork and exec: system calls with static arguments only.
fn mount_private_sys() -> io::Result<()> {
    sys::unshare_mounts()?;
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let bpffs = rustix::mount::open_tree(
        rustix::fs::CWD,
        BPFFS,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    );
    match rustix::mount::unmount(SYS, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    rustix::mount::mount(c"sysfs", SYS, c"sysfs", MountFlags::empty(), None)?;
    if let Ok(bpffs) = bpffs {
        rustix::mount::move_mount(
            &bpffs,
            c"",
            rustix::fs::CWD,
            BPFFS,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
    }
    Ok(())
}

fn not_there(pid: u32) -> Error {
    Error::new("identify process", pid, Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_full_of_parentheses_does_not_shift_the_start_time() {
        let stat = b"42 (a) Z 1 (b) S 1 42 42 0 -1 4194304 1 0 0 0 2 3 0 0 20 0 1 0 98765 1 1 1\n";
        assert_eq!(
            Stat::parse(stat),
            Some(Stat {
                state: b'S',
                start: 98765
            })
        );
        assert_eq!(Stat::parse(b"42 (a) S 1 2"), None);
        assert_eq!(Stat::parse(b""), None);
    }

    #[test]
    fn a_number_that_was_used_again_is_another_process() {
        let own = ProcessId::current().unwrap();
        assert!(own.is_alive());
        assert_eq!(own.to_string().parse::<ProcessId>().unwrap(), own);
        let earlier = ProcessId {
            start: own.start - 1,
            ..own
        };
        assert!(!earlier.is_alive());
        assert!(
            !earlier.signal(Signal::KILL).unwrap(),
            "the living one must not be hit"
        );
    }

    #[test]
    fn an_ended_child_is_seen_as_ended_before_it_is_reaped() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(!id.wait(Duration::ZERO).unwrap());
        assert!(id.terminate(Duration::from_secs(5)).unwrap());
        assert!(!id.is_alive());
        assert!(!id.signal(Signal::TERM).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn malformed_identities_are_refused() {
        for text in ["", "1", "1@", "@1", "0@1", "-1@1", "1@x", "x@1"] {
            assert!(text.parse::<ProcessId>().is_err(), "{text:?}");
        }
    }
}
