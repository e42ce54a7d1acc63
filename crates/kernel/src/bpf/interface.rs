//! Names and indices of the interfaces of the calling thread's namespace.

use std::io;

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};

/// `None` if there is no such interface.
pub(super) fn index(name: &str) -> io::Result<Option<u32>> {
    present(netdevice::name_to_index(socket()?, name))
}

/// `None` if there is no such interface.
pub(super) fn name(index: u32) -> io::Result<Option<String>> {
    present(netdevice::index_to_name(socket()?, index))
}

fn socket() -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(socket)
}

fn present<T>(looked_up: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match looked_up {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
