//! Mounts of the calling process' mount namespace.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Cause, Context, Error, Result};

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Type of its file system, such as `bpf` or `nsfs`.
    pub fs_type: String,
}

/// Mounts a bpf file system on `target`, which is made if need be. Returns
/// whether there was none.
///
/// # Errors
/// Something else is mounted there, or the kernel's refusal.
pub fn bpffs(target: &Path) -> Result<bool> {
    const OPERATION: &str = "mount bpf file system on";
    fs::create_dir_all(target).context(OPERATION, target.display())?;
    if is_bpffs(target)? {
        return Ok(false);
    }
    if is_mount_point(target)? {
        let other = Cause::Invalid("another file system is mounted there".to_owned());
        return Err(Error::new(OPERATION, target.display(), other));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", target, "bpf", flags, c"mode=0700").context(OPERATION, target.display())?;
    Ok(true)
}

/// Mounts a file system in memory that holds `size` bytes on `target`, which must be there, unless one is mounted
/// there already. Only root may look into it.
///
/// # Errors
/// The kernel's refusal.
pub fn tmpfs(target: &Path, size: u64) -> Result<bool> {
    const OPERATION: &str = "mount file system in memory on";
    if is_mount_point(target)? {
        return Ok(false);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = CString::new(format!("size={size},mode=0700")).map_err(io::Error::from);
    let options = options.context(OPERATION, target.display())?;
    rustix::mount::mount("weft", target, "tmpfs", flags, options.as_c_str())
        .context(OPERATION, target.display())?;
    Ok(true)
}

/// Whether `path` lies on a bpf file system.
///
/// # Errors
/// There is no such path.
pub fn is_bpffs(path: &Path) -> Result<bool> {
    let stat = rustix::fs::statfs(path).context("examine", path.display())?;
    Ok(stat.f_type as u32 == BPF_FS_MAGIC)
}

/// Shows `source` at `target` too.
///
/// # Errors
/// One of them isn't there, or one is a directory and the other not.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    rustix::mount::mount_bind(source, target).context("bind mount on", target.display())
}

/// Takes the topmost mount at `target` away, at once from sight and finally
/// when nobody uses it. Returns whether there was one.
///
/// # Errors
/// Privileges are missing.
pub fn unmount(target: &Path) -> Result<bool> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::new("unmount", target.display(), errno)),
    }
}

/// Whether something is mounted at `path`, symbolic links followed.
///
/// # Errors
/// There is no such path.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let path = fs::canonicalize(path).context("examine", path.display())?;
    Ok(all()?.iter().any(|mount| mount.target == path))
}

/// The mounts at and below `prefix`, deepest first, so that they can be
/// unmounted in this order.
///
/// # Errors
/// `/proc` can't be read.
pub fn under(prefix: &Path) -> Result<Vec<Mount>> {
    let mut mounts: Vec<Mount> = all()?
        .into_iter()
        .filter(|mount| mount.target.starts_with(prefix))
        .collect();
    mounts.reverse();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.target.components().count()));
    Ok(mounts)
}

/// All mounts, in the order they were made.
fn all() -> Result<Vec<Mount>> {
    const PATH: &str = "/proc/thread-self/mountinfo";
    let text = fs::read(PATH).context("read", PATH)?;
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(parse)
        .collect::<Option<_>>()
        .ok_or_else(|| Error::new("read", PATH, io::Error::from(io::ErrorKind::InvalidData)))
}

/// Reads a line of proc_pid_mountinfo(5): ID, parent, device, root, target,
/// options, optional fields, `-`, type, source, more options.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let target = unescape(fields.nth(4)?);
    let fs_type = fields.by_ref().skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        target: OsString::from_vec(target).into(),
        fs_type: std::ffi::OsStr::from_bytes(fs_type)
            .to_string_lossy()
            .into_owned(),
    })
}

/// Undoes the kernel's escapes of space, tab, line feed and backslash: `\` and
/// three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escape = (*first == b'\\').then(|| octal(tail)).flatten();
        plain.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &tail[3..] } else { tail };
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits: &[u8; 3] = digits.first_chunk()?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_is_read_with_and_without_optional_fields() {
        let nsfs = Mount {
            target: "/run/netns/a b\\c".into(),
            fs_type: "nsfs".to_owned(),
        };
        let target = "/run/netns/a\\040b\\134c";
        for optional in ["", "shared:7 master:1 "] {
            let line = format!("36 35 0:4 net:[4026532281] {target} rw {optional}- nsfs nsfs rw");
            assert_eq!(parse(line.as_bytes()), Some(nsfs.clone()));
        }
        assert_eq!(parse(b"36 35 0:4 / /run"), None);
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\04"), b"\\04");
    }

    #[test]
    fn proc_is_a_mount_point_and_a_file_in_it_is_not() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/version")).unwrap());
        assert!(!is_bpffs(Path::new("/proc")).unwrap());
    }
}
