//! The calls that no safe wrapper exists for, each with the reason why it is sound.
#![allow(unsafe_code, reason = "the one place for system calls without a safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::UnshareFlags;
use socket2::{SockAddr, SockAddrStorage};

/// Borrows the descriptor of an owner that only offers its number.
pub(crate) fn borrow_fd(owner: &netlink_sys::Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket owns the descriptor and outlives the borrow, which
    // the lifetime ties to it.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// The address that binds a packet socket to a link and an Ethernet protocol.
pub(crate) fn packet_address(protocol: u16, link: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a plain C structure of the sockaddr family and
    // smaller than sockaddr_storage, which is what view_as asks for.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = link.cast_signed();
    // SAFETY: the storage holds a whole sockaddr_ll and the length is its size.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Whether a file of nsfs is a network namespace (ioctl_nsfs(2)).
pub(crate) fn is_network_namespace(nsfs: BorrowedFd<'_>) -> bool {
    /// `_IO(0xb7, 0x3)`
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and writes no memory; the
    // descriptor is open as long as it is borrowed.
    unsafe { libc::ioctl(nsfs.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

/// Gives the calling thread a network namespace of its own.
pub(crate) fn unshare_network() -> rustix::io::Result<()> {
    // SAFETY: of the flags only CLONE_FILES could invalidate descriptors that
    // other code believes to own; it is not set.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Gives the calling process a mount namespace of its own.
pub(crate) fn unshare_mounts() -> rustix::io::Result<()> {
    // SAFETY: as above, CLONE_FILES is not set.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}

/// Runs `hook` in the child between fork and exec.
///
/// `hook` may only make system calls: between fork and exec of a process with
/// threads, a lock (the allocator's among them) may be held forever.
pub(crate) fn before_exec(
    command: &mut Command,
    hook: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: both callers, in `process`, pass hooks that make system calls
    // through rustix with borrowed or static arguments, and nothing else.
    unsafe { command.pre_exec(hook) };
}
