use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use rustix::net::RecvFlags;

use super::client::{address, connect};
use super::frame::{self, Deadline};
use super::{ProtocolError, Reply, Request};

/// Listens at `path` for plugins, readable and writable by its owner alone.
/// Missing directories are made, for their owner alone too.
///
/// A socket that nobody listens at is replaced. One that somebody answers at is
/// left alone: two agents on one socket would share one ledger.
///
/// The listener blocks. For tokio: `set_nonblocking(true)` and
/// `tokio::net::UnixListener::from_std`; a stream accepted there goes back through
/// `into_std` and `set_nonblocking(false)` for the other functions, which block
/// and belong on a blocking thread.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if an agent is listening or `path` is no socket;
/// otherwise what the kernel says.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_private_dir(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if connect(path, Deadline::after(Duration::from_secs(1))).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("an agent is already listening at {}", path.display()),
                ));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} exists and is no socket", path.display()),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (address, _directory) = address(path)?;
    let listener = UnixListener::bind_addr(&address)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Checks that the peer is root, or the user that this process runs as.
///
/// # Errors
/// [`ProtocolError::Peer`] if it isn't.
pub fn authorize(stream: &UnixStream) -> Result<(), ProtocolError> {
    // rustix takes the process ID for one that is never 0. It is, for a peer outside of our PID namespace: the runtime's
    // plugin, as an agent in a container sees it.
    let peer = nix::sys::socket::getsockopt(stream, PeerCredentials).map_err(|error| ProtocolError::Io {
        operation: "ask who the peer is",
        source: error.into(),
    })?;
    if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(ProtocolError::Peer {
        uid: peer.uid(),
        pid: peer.pid(),
    })
}

/// Reads a request, blocking for `allowed` at most, and the descriptor of the
/// sandbox's network namespace: always there for ADD and CHECK, never otherwise.
///
/// # Errors
/// See [`ProtocolError`]. The plugin can still be answered with a
/// [`Reply::Failed`].
pub fn read_request(
    stream: &UnixStream,
    allowed: Duration,
) -> Result<(Request, Option<OwnedFd>), ProtocolError> {
    let (request, netns): (Request, _) =
        frame::receive(stream, Deadline::after(allowed), "receive the plugin's request")?;
    match (request.command.needs_netns(), netns) {
        (true, None) => Err(ProtocolError::NetnsMissing),
        (true, netns) => Ok((request, netns)),
        (false, _) => Ok((request, None)),
    }
}

/// Sends the reply, blocking for `allowed` at most.
///
/// # Errors
/// If the plugin is gone: an ADD has to be undone then.
pub fn write_reply(stream: &UnixStream, reply: &Reply, allowed: Duration) -> Result<(), ProtocolError> {
    frame::send(
        stream,
        reply,
        None,
        Deadline::after(allowed),
        "send the reply to the plugin",
    )
}

/// Whether the plugin has gone away, so that nobody will hear the reply.
///
/// To be asked before work on a request that had to wait its turn. An ADD whose plugin
/// gave up may have been followed by its DEL already; a DEL whose plugin gave up has left
/// an intent, and may have been followed by an ADD of the same attachment.
pub fn is_abandoned(stream: &UnixStream) -> bool {
    let mut byte = [0];
    match rustix::net::recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, bytes)) => bytes == 0,
        Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
    }
}

/// Makes the directory and its missing parents, the new ones with mode 0700.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
