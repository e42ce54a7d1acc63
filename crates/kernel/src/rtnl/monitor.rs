//! rtnetlink's notifications as a source of events.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::address::Address;
use super::consts::*;
use super::link::Link;
use super::neighbour::Neighbour;
use super::route::Route;
use crate::error::{Context, Result};
use crate::netlink::{Netlink, Received, Reply};
use crate::netns::NetNs;
use crate::wire;

/// Room for a burst of about 10,000 messages.
const BUFFER: usize = 8 * 1024 * 1024;

/// Subscription to changes of links, addresses, routes, rules of IPv4 routing,
/// permanent neighbours and traffic control of one namespace, whoever makes them.
#[derive(Debug)]
pub struct Monitor {
    netlink: Netlink,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link is new or changed.
    Link(Link),
    /// A link is gone.
    LinkGone(Link),
    /// An address is new or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is new or changed.
    Route(Route),
    /// A route is gone. IPv4 routes that vanish with their link are not
    /// reported one by one; the link's change is.
    RouteGone(Route),
    /// A permanent neighbour is new or changed.
    Neighbour(Neighbour),
    /// A neighbour of the link with this index is gone. Whether it was permanent is not told: the kernel marks an entry
    /// as failed before it removes it.
    NeighbourGone(u32),
    /// A queueing discipline or a filter of the link with this index is gone, and a program with it. Not reported where
    /// the link itself goes.
    FilterGone(u32),
    /// A rule of IPv4 routing is new or gone.
    Rules,
    /// Notifications were lost: list everything again.
    Resync,
}

// === impl Monitor ===

impl Monitor {
    /// Subscribes in the calling thread's namespace. Changes count from here
    /// on: list what is there afterwards, not before.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn open() -> Result<Self> {
        Self::subscribe().context("subscribe to", "rtnetlink")
    }

    /// Subscribes in another namespace.
    ///
    /// # Errors
    /// As for [`open`](Self::open) and [`NetNs::run`].
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        netns.run(Self::open)?
    }

    /// Waits for changes. One datagram of the kernel's can hold several.
    ///
    /// # Errors
    /// The socket failed.
    pub fn wait(&mut self) -> Result<Vec<Change>> {
        loop {
            let changes = self.receive(0).context("read from", "rtnetlink")?;
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
    pub fn try_changes(&mut self) -> Result<Vec<Change>> {
        let mut all = Vec::new();
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(changes) => all.extend(changes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) => return Err(error).context("read from", "rtnetlink"),
            }
        }
    }

    fn subscribe() -> io::Result<Self> {
        let mut netlink = Netlink::open(NETLINK_ROUTE)?;
        netlink.set_receive_buffer(BUFFER)?;
        netlink.join(&[
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_TC,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ])?;
        Ok(Self { netlink })
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<Vec<Change>> {
        Ok(match self.netlink.notifications(flags)? {
            Received::Overrun => vec![Change::Resync],
            Received::Messages(messages) => messages.iter().filter_map(change).collect(),
        })
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

fn change((kind, payload): &Reply) -> Option<Change> {
    match *kind {
        RTM_NEWLINK => Link::parse(payload).map(Change::Link),
        RTM_DELLINK => Link::parse(payload).map(Change::LinkGone),
        RTM_NEWADDR => Address::parse(payload).map(Change::Address),
        RTM_DELADDR => Address::parse(payload).map(Change::AddressGone),
        RTM_NEWROUTE => Route::parse(payload).flatten().map(Change::Route),
        RTM_DELROUTE => Route::parse(payload).flatten().map(Change::RouteGone),
        RTM_NEWNEIGH => Neighbour::parse(payload).flatten().map(Change::Neighbour),
        RTM_NEWRULE | RTM_DELRULE => Some(Change::Rules),
        // struct tcmsg: family, padding, ifindex.
        RTM_DELQDISC | RTM_DELTFILTER => wire::u32_at(payload, 4).map(Change::FilterGone),
        // struct ndmsg: family, padding, ifindex.
        RTM_DELNEIGH => wire::u32_at(payload, 4).map(Change::NeighbourGone),
        _ => None,
    }
}
