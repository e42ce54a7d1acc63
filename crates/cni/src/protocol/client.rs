use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::frame::{self, Deadline};
use super::{ProtocolError, Reply, Request};

/// `sockaddr_un.sun_path` less its terminating NUL (`unix(7)`).
const MAX_SOCKET_PATH: usize = 107;

/// Sends the request to the agent listening at `socket` and waits for its reply,
/// for `allowed` in all. `netns` is needed for ADD and CHECK.
///
/// # Errors
/// See [`ProtocolError`]. Unless [`ProtocolError::is_unreachable`], the agent may
/// have acted on the request.
pub fn call(
    socket: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    allowed: Duration,
) -> Result<Reply, ProtocolError> {
    let deadline = Deadline::after(allowed);
    let stream = connect(socket, deadline)?;
    frame::send(&stream, request, netns, deadline, "send the request to the agent")?;
    let (reply, _) = frame::receive(&stream, deadline, "wait for the agent's reply")?;
    Ok(reply)
}

/// Connects before the deadline. It takes time only while the agent's queue of
/// connections is full, which is what an agent that hangs looks like.
pub(super) fn connect(path: &Path, deadline: Deadline) -> Result<UnixStream, ProtocolError> {
    let failed = |source: io::Error| ProtocolError::Connect {
        path: path.to_owned(),
        source,
    };
    let (path_name, _directory) = reachable(path).map_err(failed)?;
    let attempt = || -> rustix::io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // A connection that finds the queue full waits as long as a send would.
        set_socket_timeout(&socket, Timeout::Send, Some(deadline.left()))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path_name)?)?;
        Ok(socket)
    };
    match attempt() {
        Ok(socket) => Ok(UnixStream::from(socket)),
        Err(rustix::io::Errno::AGAIN) => Err(failed(io::Error::new(
            io::ErrorKind::TimedOut,
            "the agent does not accept connections (its queue is full)",
        ))),
        Err(error) => Err(failed(error.into())),
    }
}

/// The address of a socket, and a descriptor that has to outlive its use.
pub(super) fn address(path: &Path) -> io::Result<(SocketAddr, Option<OwnedFd>)> {
    let (path, directory) = reachable(path)?;
    Ok((SocketAddr::from_pathname(path)?, directory))
}

/// A path for the same socket that fits into a `sockaddr_un`: a long one is
/// reached through a descriptor of its directory.
fn reachable(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH {
        return Ok((path.to_owned(), None));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename));
    };
    let directory = rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    short.push(OsStr::new(name));
    Ok((short, Some(directory)))
}
