use std::fmt;
use std::io;

/// What was asked of the kernel, on which object, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {cause}")]
pub struct Error {
    /// The operation in words, such as `create veth`.
    pub operation: &'static str,
    /// The object it was tried on, such as an interface name or a path.
    pub object: String,
    /// Why it failed.
    pub cause: Cause,
}

/// Why an operation failed.
#[derive(Debug)]
pub enum Cause {
    /// A system call failed, or netlink answered with an error code.
    Errno(io::Error),
    /// Netlink answered with an error code and the kernel said why
    /// (`NLMSGERR_ATTR_MSG`, Documentation/userspace-api/netlink/intro.rst).
    Explained {
        /// The code.
        errno: io::Error,
        /// The kernel's own words.
        text: String,
    },
    /// The kernel's answer, or a file it serves, is not of the documented form.
    Malformed(&'static str),
    /// The caller asked for something that can't be expressed.
    Invalid(String),
}

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the operation and its object on the way out of a function.
pub(crate) trait Context<T> {
    fn context(self, operation: &'static str, object: impl fmt::Display) -> Result<T>;
}

// === impl Error ===

impl Error {
    pub(crate) fn new(operation: &'static str, object: impl fmt::Display, cause: impl Into<Cause>) -> Self {
        Self {
            operation,
            object: object.to_string(),
            cause: cause.into(),
        }
    }

    /// The error number, where there is one (errno(3)).
    pub fn raw_os_error(&self) -> Option<i32> {
        match &self.cause {
            Cause::Errno(errno) | Cause::Explained { errno, .. } => errno.raw_os_error(),
            Cause::Malformed(_) | Cause::Invalid(_) => None,
        }
    }

    /// Whether the object isn't there: `ENODEV`, `ENOENT`, `ESRCH`, or
    /// `EADDRNOTAVAIL`, which rtnetlink uses for addresses.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.raw_os_error(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
        )
    }

    /// Whether the object is already there (`EEXIST`).
    pub fn is_exists(&self) -> bool {
        self.raw_os_error() == Some(libc::EEXIST)
    }

    /// Whether privileges are missing (`EPERM`, `EACCES`).
    pub fn is_permission_denied(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::EPERM | libc::EACCES))
    }

    /// Whether the kernel has no such feature (`EOPNOTSUPP`,
    /// `EPROTONOSUPPORT`, `EAFNOSUPPORT`, `ENOSYS`).
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.raw_os_error(),
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOSYS)
        )
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error.cause {
            Cause::Errno(errno) | Cause::Explained { errno, .. } => errno.kind(),
            Cause::Malformed(_) => io::ErrorKind::InvalidData,
            Cause::Invalid(_) => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

// === impl Cause ===

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => errno.fmt(f),
            Self::Explained { errno, text } => write!(f, "{} ({errno})", text.trim_end_matches('.')),
            Self::Malformed(what) => write!(f, "unexpected answer: {what}"),
            Self::Invalid(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Cause {
    fn from(errno: io::Error) -> Self {
        Self::Errno(errno)
    }
}

impl From<rustix::io::Errno> for Cause {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Errno(errno.into())
    }
}

// === impl Context ===

impl<T, E: Into<Cause>> Context<T> for std::result::Result<T, E> {
    fn context(self, operation: &'static str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::new(operation, object, cause))
    }
}
