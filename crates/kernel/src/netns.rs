//! Network namespaces: handles, names as `ip netns` keeps them, and code that runs inside.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;

use crate::error::{Context, Error, Result};
use crate::sys;

/// Where `ip netns` keeps named namespaces (ip-netns(8)).
pub const NETNS_DIR: &str = "/run/netns";

const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It exists at least as long as the handle.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    id: NetNsId,
}

/// What tells one network namespace from another while both exist: device and
/// inode of its nsfs file. Paths and process ids do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    /// Device number of nsfs.
    pub dev: u64,
    /// Inode number within nsfs.
    pub ino: u64,
}

// === impl NetNs ===

impl NetNs {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// /proc is not mounted, or no descriptor is left.
    pub fn current() -> Result<Self> {
        Self::open(OWN)
    }

    /// The namespace behind a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// Nothing is there, or it is not a network namespace (`EINVAL`).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        File::open(path)
            .and_then(|file| Self::checked(file.into()))
            .context("open network namespace", path.display())
    }

    /// The namespace behind a descriptor received from elsewhere.
    ///
    /// # Errors
    /// It is not a network namespace (`EINVAL`).
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::checked(fd).context("open network namespace", "from a descriptor")
    }

    /// The namespace that `ip netns` knows by this name.
    ///
    /// # Errors
    /// The name can't be one, or there is no such namespace.
    pub fn named(name: &str) -> Result<Self> {
        Self::open(named_path(name)?)
    }

    /// A new namespace that has no name and ends with its last handle or process.
    ///
    /// # Errors
    /// Privileges are missing, or the limit in `/proc/sys/user/max_net_namespaces` is reached.
    pub fn create() -> Result<Self> {
        on_thread("create network namespace", "without a name", || {
            sys::unshare_network()?;
            Self::checked(File::open(OWN)?.into())
        })
    }

    /// A new namespace that `ip netns` knows by this name.
    ///
    /// # Errors
    /// The name can't be one or is taken (`EEXIST`), or as for [`create`](Self::create).
    pub fn create_named(name: &str) -> Result<Self> {
        const OPERATION: &str = "create network namespace";
        let path = named_path(name)?;
        prepare_dir().context("prepare directory", NETNS_DIR)?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o0)
            .open(&path)
            .context(OPERATION, name)?;
        let created = on_thread(OPERATION, name, || {
            sys::unshare_network()?;
            rustix::mount::mount_bind(OWN, &path)?;
            Self::checked(File::open(OWN)?.into())
        });
        if created.is_err() {
            // The mount is the last step that can fail but for want of a
            // descriptor; in both cases nothing may keep the name.
            let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
            let _ = fs::remove_file(&path);
        }
        created
    }

    /// Takes the name away; the namespace ends when nothing else holds it.
    /// Returns whether the name existed.
    ///
    /// # Errors
    /// The name can't be one, or privileges are missing.
    pub fn delete_named(name: &str) -> Result<bool> {
        const OPERATION: &str = "delete network namespace";
        let path = named_path(name)?;
        loop {
            match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
                // A second mount may lie below, where the directory was shared twice.
                Ok(()) => {}
                Err(Errno::INVAL) => break,
                Err(Errno::NOENT) => return Ok(false),
                Err(errno) => return Err(Error::new(OPERATION, name, errno)),
            }
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::new(OPERATION, name, error)),
        }
    }

    /// All names, sorted. Names whose namespace was never mounted are among them.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list_named() -> Result<Vec<String>> {
        let entries = match fs::read_dir(NETNS_DIR) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::new("list", NETNS_DIR, error)),
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
            .context("list", NETNS_DIR)?;
        names.sort();
        Ok(names)
    }

    /// What tells this namespace from others.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// A second handle on the same namespace.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self
            .fd
            .try_clone()
            .context("duplicate network namespace", self.id)?;
        Ok(Self { fd, id: self.id })
    }

    /// Runs `inside` in this namespace, on a thread of its own that ends
    /// afterwards. No thread of the caller ever changes its namespace. Sockets
    /// and files of `/proc/thread-self/net` opened by `inside` stay in this
    /// namespace. A panic of `inside` continues in the caller.
    ///
    /// # Errors
    /// No thread can be started, or the kernel refuses `setns(2)`. Errors of
    /// `inside` are its own value.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread("enter network namespace", self.id, || {
            rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            let here = NetNsId::of(&fs::metadata(OWN)?);
            assert_eq!(here, self.id, "setns succeeded, yet the thread is elsewhere");
            Ok(inside())
        })
    }

    fn checked(fd: OwnedFd) -> io::Result<Self> {
        if rustix::fs::fstatfs(&fd)?.f_type != libc::NSFS_MAGIC || !sys::is_network_namespace(fd.as_fd()) {
            return Err(Errno::INVAL.into());
        }
        let file = File::from(fd);
        let id = NetNsId::of(&file.metadata()?);
        Ok(Self { fd: file.into(), id })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<NetNs> for OwnedFd {
    fn from(netns: NetNs) -> Self {
        netns.fd
    }
}

// === impl NetNsId ===

impl NetNsId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
        }
    }

    /// The namespace behind a path, without opening it.
    pub(crate) fn at(path: impl AsRef<Path>) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }
}

impl fmt::Display for NetNsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// The path `ip netns` uses for a name.
///
/// # Errors
/// The name is empty, longer than 255 bytes, `.`, `..`, or holds a slash or NUL.
pub fn named_path(name: &str) -> Result<PathBuf> {
    if name.is_empty() || name.len() > 255 || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::new(
            "name network namespace",
            format_args!("{name:?}"),
            crate::Cause::Invalid("a name is 1 to 255 bytes without a slash".to_owned()),
        ));
    }
    Ok(Path::new(NETNS_DIR).join(name))
}

/// Runs `job` on a thread of its own and waits for it.
fn on_thread<T: Send>(
    operation: &'static str,
    object: impl fmt::Display,
    job: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T> {
    let outcome = thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, job)?;
        handle.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    });
    outcome.context(operation, object)
}

/// Makes the directory a shared mount, as `ip netns add` does, so that a name
/// taken away disappears from every mount namespace and does not keep the
/// namespace alive there.
fn prepare_dir() -> io::Result<()> {
    fs::create_dir_all(NETNS_DIR)?;
    // `ip netns add` takes the same lock for the same purpose.
    let dir = File::open(NETNS_DIR)?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    let share = || {
        rustix::mount::mount_change(
            NETNS_DIR,
            MountPropagationFlags::SHARED | MountPropagationFlags::REC,
        )
    };
    match share() {
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(NETNS_DIR, NETNS_DIR)?;
            share()?;
        }
        other => other?,
    }
    Ok(())
}
