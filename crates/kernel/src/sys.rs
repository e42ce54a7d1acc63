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

/// Where a batch of map entries ended, for the next one. The kernel writes at most the size of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchPosition([u8; 64]);

/// Entries of a map, read by one system call.
#[derive(Debug)]
pub(crate) struct Batch {
    /// How many of the buffers' entries are filled.
    pub(crate) count: u32,
    /// Where to go on; `None` at the end of the map.
    pub(crate) next: Option<BatchPosition>,
}

/// `BPF_MAP_LOOKUP_BATCH` (bpf(2); `struct { … } batch` of `union bpf_attr`, include/uapi/linux/bpf.h).
///
/// `keys` and `values` have room for `room` entries of the map's sizes; of a map that is not per CPU.
pub(crate) fn bpf_lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<&BatchPosition>,
    keys: &mut [u8],
    values: &mut [u8],
    room: u32,
) -> io::Result<Batch> {
    const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
    #[repr(C)]
    struct Attr {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    let mut next = BatchPosition([0; 64]);
    let mut attr = Attr {
        in_batch: from.map_or(0, |position| position.0.as_ptr() as u64),
        out_batch: next.0.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads and writes `attr` within its size, writes at most `count` keys and values, for which the
    // caller's buffers have room, and a position of a key's size or a u32, which is less than 64 bytes for all maps of
    // this crate; all buffers outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut attr,
            size_of::<Attr>(),
        )
    };
    if result == 0 {
        return Ok(Batch {
            count: attr.count,
            next: Some(next),
        });
    }
    match io::Error::last_os_error() {
        // The end of the map; what was left is there.
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(Batch {
            count: attr.count,
            next: None,
        }),
        error => Err(error),
    }
}
