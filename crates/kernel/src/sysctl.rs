//! Kernel parameters under `/proc/sys`, those of a network namespace among them.
//!
//! What is below `net` shows the namespace of the thread that looks, wherever and in whichever container it is mounted.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Cause, Error, Result};
use crate::netns::NetNs;

/// A parameter's name below `/proc/sys`, parts separated by slashes as
/// sysctl(8) allows: names of interfaces may hold dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

const PROC_SYS: &str = "/proc/sys";

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Has the process find the parameters at `root` from now on: in a container that is not privileged `/proc/sys` can't
/// be written, and the node's is mounted elsewhere. The first call holds.
///
/// # Errors
/// `root` is not a mount of the kernel's, so that writing there would change nothing.
pub fn use_root(root: &Path) -> Result<()> {
    const OPERATION: &str = "use kernel parameters at";
    let stat = rustix::fs::statfs(root).map_err(|errno| Error::new(OPERATION, root.display(), errno))?;
    if stat.f_type != rustix::fs::PROC_SUPER_MAGIC {
        let cause = Cause::Invalid("it is no proc file system".to_owned());
        return Err(Error::new(OPERATION, root.display(), cause));
    }
    ROOT.get_or_init(|| root.to_owned());
    Ok(())
}

/// The value of a parameter, without the closing line feed.
///
/// # Errors
/// There is no such parameter, or it can't be read.
pub fn read(netns: &NetNs, key: &Key) -> Result<String> {
    netns.run(|| read_current(key))?
}

/// Sets parameters, each only if it has another value: a sysctl that is right
/// may be read-only. Returns those that had another value. Stops at the first
/// that fails.
///
/// # Errors
/// There is no such parameter, or it can't be written; both name it and the value.
pub fn write(netns: &NetNs, wanted: &[(Key, String)]) -> Result<Vec<Key>> {
    netns.run(|| write_current(wanted))?
}

/// The value of a parameter in the calling thread's namespace, without the closing line feed.
///
/// # Errors
/// As for [`read()`].
pub fn read_current(key: &Key) -> Result<String> {
    read_here(key).map_err(|errno| Error::new("read sysctl", key, errno))
}

/// Whether a parameter could be set. Nothing is.
///
/// # Errors
/// There is no such parameter.
pub fn is_writable(key: &Key) -> Result<bool> {
    match fs::OpenOptions::new().write(true).open(key.path()) {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(false)
        }
        Err(errno) => Err(Error::new("examine sysctl", key, errno)),
    }
}

/// As [`write()`] in the calling thread's namespace: for code that is inside already, and for the process' own.
///
/// # Errors
/// As for [`write()`].
pub fn write_current(wanted: &[(Key, String)]) -> Result<Vec<Key>> {
    let mut changed = Vec::new();
    for (key, value) in wanted {
        let done = write_here(key, value)
            .map_err(|errno| Error::new("set sysctl", format_args!("{key} to {value:?}"), errno))?;
        if done {
            changed.push(key.clone());
        }
    }
    Ok(changed)
}

/// Sets a parameter in the calling thread's namespace without a look at it: for one of an interface just made.
///
/// # Errors
/// As for [`write()`].
pub fn set_current(key: &Key, value: &str) -> Result<()> {
    fs::write(key.path(), value)
        .map_err(|errno| Error::new("set sysctl", format_args!("{key} to {value:?}"), errno))
}

// === impl Key ===

impl Key {
    /// A key such as `net/ipv4/conf/weft0/rp_filter`.
    ///
    /// # Errors
    /// A part is empty, `.` or `..`.
    pub fn new(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(Error::new(
                "name sysctl",
                format_args!("{path:?}"),
                Cause::Invalid("expected parts separated by slashes".to_owned()),
            ));
        }
        Ok(Self(path))
    }

    /// A key under `net/ipv4/conf/<interface>`.
    ///
    /// # Errors
    /// The interface's name can't be part of a key.
    pub fn ipv4_conf(interface: &str, parameter: &str) -> Result<Self> {
        Self::new(format!("net/ipv4/conf/{interface}/{parameter}"))
    }

    fn path(&self) -> PathBuf {
        ROOT.get()
            .map_or(Path::new(PROC_SYS), PathBuf::as_path)
            .join(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn read_here(key: &Key) -> io::Result<String> {
    let mut value = fs::read_to_string(key.path())?;
    value.truncate(value.trim_end().len());
    Ok(value)
}

fn write_here(key: &Key, value: &str) -> io::Result<bool> {
    if read_here(key)?
        .split_ascii_whitespace()
        .eq(value.split_ascii_whitespace())
    {
        return Ok(false);
    }
    fs::write(key.path(), value)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_below_proc_sys() {
        assert!(Key::new("net/ipv4/ip_forward").is_ok());
        assert!(Key::ipv4_conf("eth0.100", "rp_filter").is_ok());
        for path in ["", "/etc", "net//x", "net/../../etc", "."] {
            assert!(Key::new(path).is_err(), "{path:?}");
        }
        assert!(Key::ipv4_conf("..", "rp_filter").is_err());
    }
}
