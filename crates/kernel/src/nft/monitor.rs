//! nftables' notifications: somebody changed something.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::consts::{NFNLGRP_NFTABLES, NFT_MSG_NEWGEN, NFTA_GEN_PROC_NAME};
use super::{NFGENMSG, generation_of};
use crate::error::{Context, Result};
use crate::netlink::{Netlink, Received, Reply};
use crate::netns::NetNs;
use crate::wire::{self, Attrs};

/// Flushing a large rule set sends a message for each rule.
const BUFFER: usize = 8 * 1024 * 1024;

/// Subscription to the changes of nftables in one namespace.
#[derive(Debug)]
pub struct NftMonitor {
    netlink: Netlink,
}

/// Somebody, perhaps this process, changed nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftChange {
    /// A change was carried out.
    Commit {
        /// Its number.
        generation: u32,
        /// Name of the program that made it, such as `nft`.
        program: String,
    },
    /// Notifications were lost.
    Resync,
}

// === impl NftMonitor ===

impl NftMonitor {
    /// Subscribes in the calling thread's namespace.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn open() -> Result<Self> {
        Self::subscribe().context("subscribe to", "nftables")
    }

    /// Subscribes in another namespace.
    ///
    /// # Errors
    /// As for [`open`](Self::open) and [`NetNs::run`].
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        netns.run(Self::open)?
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// The socket failed.
    pub fn wait(&mut self) -> Result<Vec<NftChange>> {
        loop {
            let changes = self.receive(0).context("read from", "nftables")?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// The changes that have arrived; none does not block. For use with the
    /// readiness of [`as_fd`](AsFd::as_fd).
    ///
    /// # Errors
    /// The socket failed.
    pub fn try_changes(&mut self) -> Result<Vec<NftChange>> {
        let mut all = Vec::new();
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(changes) => all.extend(changes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) => return Err(error).context("read from", "nftables"),
            }
        }
    }

    fn subscribe() -> io::Result<Self> {
        let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
        netlink.set_receive_buffer(BUFFER)?;
        netlink.join(&[NFNLGRP_NFTABLES])?;
        Ok(Self { netlink })
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<Vec<NftChange>> {
        Ok(match self.netlink.notifications(flags)? {
            Received::Overrun => vec![NftChange::Resync],
            Received::Messages(messages) => messages.iter().filter_map(commit).collect(),
        })
    }
}

impl AsFd for NftMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

impl AsRawFd for NftMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Every commit ends with its generation.
fn commit((kind, payload): &Reply) -> Option<NftChange> {
    if *kind != NFT_MSG_NEWGEN {
        return None;
    }
    Some(NftChange::Commit {
        generation: generation_of(payload)?,
        program: Attrs::after(payload, NFGENMSG)
            .find(NFTA_GEN_PROC_NAME)
            .map(wire::text)?,
    })
}
