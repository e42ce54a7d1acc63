//! rtnetlink in the verbs of the domain: links, addresses, routes, neighbours.

mod address;
mod consts;
mod link;
mod monitor;
mod neighbour;
mod netconf;
mod new_link;
mod route;
mod rule;
mod target;

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::error::{Cause, Context, Error, Result};
use crate::netlink::{Netlink, Reply};
use crate::netns::NetNs;
use crate::wire::Message;

pub use address::Address;
pub use link::{Link, LinkRef};
pub use monitor::{Change, Monitor};
pub use neighbour::Neighbour;
pub use new_link::{LinkSpec, VxlanSpec};
pub use route::{Learned, MAIN_TABLE, Route, RouteFilter, RouteKey, RouteKind, RouteLookup, Scope};
pub use rule::Rules;
pub use target::{Addresses, Neighbours, Routes};

/// `rtm_protocol` of every route that Weft makes (`W`; unassigned in
/// include/uapi/linux/rtnetlink.h and in iproute2's rt_protos).
pub const RTPROT_WEFT: u8 = 87;

/// An rtnetlink socket. It speaks of the namespace it was opened in, whichever
/// thread uses it.
///
/// One request is under way at a time. Errors carry the kernel's own words
/// where it has some.
#[derive(Debug)]
pub struct Rtnl {
    netlink: Netlink,
}

// === impl Rtnl ===

impl Rtnl {
    /// A socket of the calling thread's namespace.
    ///
    /// # Errors
    /// No descriptor is left, or the kernel is older than 4.20 (strict checking).
    pub fn open() -> Result<Self> {
        let netlink = Netlink::open(NETLINK_ROUTE).context("open", "rtnetlink socket")?;
        Ok(Self { netlink })
    }

    /// A socket of another namespace.
    ///
    /// # Errors
    /// As for [`open`](Self::open) and [`NetNs::run`].
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        let netlink = Netlink::open_in(NETLINK_ROUTE, netns)?.context("open", "rtnetlink socket")?;
        Ok(Self { netlink })
    }

    fn request(&mut self, message: Message) -> Result<Vec<Reply>, Cause> {
        self.netlink.request(message)
    }

    fn dump(&mut self, message: &Message) -> Result<Vec<Reply>, Cause> {
        self.netlink.dump(message)
    }
}

/// Turns "it wasn't there" into `false`.
fn removed<T>(outcome: Result<T>) -> Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address_of(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

fn unspecified(family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(IpAddr::from([0; 4])),
        libc::AF_INET6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

/// Reads all replies of one type, or fails at the first that is too short.
fn parse_all<T>(
    replies: Vec<Reply>,
    kind: u16,
    what: &'static str,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>> {
    replies
        .into_iter()
        .filter(|(found, _)| *found == kind)
        .map(|(_, payload)| {
            parse(&payload)
                .ok_or_else(|| Error::new("read", what, Cause::Malformed("a message is too short")))
        })
        .collect()
}

/// The network of a prefix; host bits would make the kernel answer `EINVAL`.
fn canonical(net: IpNet) -> IpNet {
    net.trunc()
}
