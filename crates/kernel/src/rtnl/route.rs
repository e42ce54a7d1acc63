//! Routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::consts::*;
use super::{RTPROT_WEFT, Rtnl, address_of, canonical, family, octets, parse_all, removed, unspecified};
use crate::error::{Cause, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use crate::wire::{self, Attrs, Message};

/// The table that packets are routed by unless a rule says otherwise.
pub const MAIN_TABLE: u32 = 254;

const RTMSG: usize = 12;

/// A route: its key (destination, table, metric) and all that Weft manages of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination, without host bits.
    pub dst: IpNet,
    /// Routing table.
    pub table: u32,
    /// Priority among routes of the same destination, lower first. IPv6 makes 0 into 1024.
    pub metric: u32,
    /// What happens to the packet.
    pub kind: RouteKind,
    /// Index of the link it leaves by.
    pub oif: Option<u32>,
    /// The next hop's address.
    pub gateway: Option<IpAddr>,
    /// The gateway counts as reachable on the link though no subnet says so.
    pub onlink: bool,
    /// The source of packets that have none yet.
    pub src: Option<IpAddr>,
    /// How far the destination is. Always `Universe` for IPv6.
    pub scope: Scope,
    /// MTU of the path in bytes, where it is less than the link's.
    pub mtu: Option<u32>,
    /// Who made it (`rtm_protocol`); [`RTPROT_WEFT`] for Weft's own.
    pub protocol: u8,
}

/// What tells routes of a namespace apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Routing table.
    pub table: u32,
    /// Destination, without host bits.
    pub dst: IpNet,
    /// Priority, lower first.
    pub metric: u32,
}

/// What a route does with a packet (`rtm_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Sends it to the gateway or the link.
    Unicast,
    /// Delivers it to this node.
    Local,
    /// Drops it without a word.
    Blackhole,
    /// Drops it with ICMP host unreachable.
    Unreachable,
    /// Drops it with ICMP administratively prohibited.
    Prohibit,
    /// Any other number of the kernel's.
    Other(u8),
}

/// Distance (`rtm_scope`, `ifa_scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Anywhere.
    Universe,
    /// On the link.
    Link,
    /// On this node.
    Host,
    /// Any other number of the kernel's.
    Other(u8),
}

/// Which routes to list. The kernel does the choosing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Only routes of this table.
    pub table: Option<u32>,
    /// Only routes made by this one.
    pub protocol: Option<u8>,
    /// Only routes that leave by the link of this index.
    pub oif: Option<u32>,
}

/// The kernel's answer to "how would I reach this address?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLookup {
    /// What would happen.
    pub kind: RouteKind,
    /// Index of the link it would leave by.
    pub oif: Option<u32>,
    /// The next hop, if it is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// Whether the route puts other headers around the packet (`ip route … encap …`).
    pub wraps: bool,
    /// The source address that would be used.
    pub src: Option<IpAddr>,
    /// MTU of the path in bytes, where the kernel knows one: the route's, or what a router on the way has said
    /// (RFC 1191), which it forgets after `net.ipv4.route.mtu_expires` seconds.
    pub mtu: Option<u32>,
}

/// What the kernel has learned of the path to one destination beside what its route says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// What the path takes in bytes, by its routers' word (RFC 1191), or the route's.
    pub mtu: Option<u32>,
    /// The gateway, by the last one's word (ICMP redirect, RFC 1122 section 3.2.2.2), or the route's.
    pub gateway: Option<IpAddr>,
}

// === impl Rtnl ===

impl Rtnl {
    /// The routes that `filter` lets through, both address families, sorted.
    /// Entries of the route cache are left out.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let message = Message::new(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP)
                .raw(
                    &RtMsg {
                        family,
                        protocol: filter.protocol.unwrap_or(0),
                        ..RtMsg::default()
                    }
                    .bytes(),
                )
                .some(filter.table, |m, table| m.u32(RTA_TABLE, table))
                .some(filter.oif, |m, oif| m.u32(RTA_OIF, oif));
            match self
                .dump(&message)
                .map_err(|cause| Error::new("list", "routes", cause))
            {
                Ok(replies) => routes.extend(
                    parse_all(replies, RTM_NEWROUTE, "routes", Route::parse)?
                        .into_iter()
                        .flatten(),
                ),
                // A table that never had a route, a link that is gone, or no IPv6.
                Err(error) if error.is_not_found() || error.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        routes.retain(|route| filter.lets_through(route));
        routes.sort();
        Ok(routes)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// One of its key is there already (`EEXIST`), or the kernel's refusal.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        self.send_route("add route", NLM_F_CREATE | NLM_F_EXCL, route)
    }

    /// Adds a route or puts it in the place of the one with its key.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        self.send_route("set route", NLM_F_CREATE | NLM_F_REPLACE, route)
    }

    /// Removes the route that has the key and the maker of this one. Returns
    /// whether it was there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_route(&mut self, route: &Route) -> Result<bool> {
        self.delete_route_by_key(&route.key(), route.protocol)
    }

    /// Removes the route of this key that `protocol` made, whatever it does
    /// with packets. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_route_by_key(&mut self, key: &RouteKey, protocol: u8) -> Result<bool> {
        let dst = canonical(key.dst);
        let message = Message::new(RTM_DELROUTE, NLM_F_REQUEST | NLM_F_ACK)
            .raw(
                &RtMsg {
                    family: family(dst.addr()),
                    dst_len: dst.prefix_len(),
                    protocol,
                    scope: libc::RT_SCOPE_NOWHERE,
                    ..RtMsg::default()
                }
                .bytes(),
            )
            .attr(RTA_DST, &octets(dst.addr()))
            .u32(RTA_TABLE, key.table)
            .u32(RTA_PRIORITY, key.metric);
        removed(
            self.request(message)
                .map_err(|cause| Error::new("delete route", dst, cause)),
        )
    }

    /// How this namespace would send to `dst`, by all its rules and tables.
    ///
    /// # Errors
    /// It would not (`ENETUNREACH`, `EHOSTUNREACH`, `EACCES`).
    pub fn route_to(&mut self, dst: IpAddr) -> Result<RouteLookup> {
        self.look_up(dst, 0, RouteLookup::parse)
    }

    /// The route to `dst` as it stands in its table, where it is the way of all packets to all that it leads to: it has
    /// one next hop, which nothing but a change of the route can make another. What was learned of a single path is not
    /// in it.
    ///
    /// # Errors
    /// As for [`route_to`](Self::route_to).
    pub fn one_way_to(&mut self, dst: Ipv4Addr) -> Result<Option<RouteLookup>> {
        self.look_up(dst.into(), RTM_F_FIB_MATCH, |payload| {
            let found = RouteLookup::parse(payload)?;
            let attrs = Attrs::after(payload, RTMSG);
            let several = attrs.find(RTA_MULTIPATH).is_some() || attrs.find(RTA_NH_ID).is_some();
            Some((found.kind == RouteKind::Unicast && !several).then_some(found))
        })
    }

    fn look_up<T>(&mut self, dst: IpAddr, flags: u32, parse: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        const OPERATION: &str = "look up route to";
        let message = Message::new(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_ACK)
            .raw(
                &RtMsg {
                    family: family(dst),
                    dst_len: IpNet::from(dst).prefix_len(),
                    flags,
                    ..RtMsg::default()
                }
                .bytes(),
            )
            .attr(RTA_DST, &octets(dst));
        let replies = self
            .request(message)
            .map_err(|cause| Error::new(OPERATION, dst, cause))?;
        parse_all(replies, RTM_NEWROUTE, "route", parse)?
            .pop()
            .ok_or_else(|| Error::new(OPERATION, dst, Cause::Malformed("no route in the answer")))
    }

    /// What the kernel has learned of single paths, by destination; it forgets an MTU after
    /// `net.ipv4.route.mtu_expires` seconds, a gateway after `net.ipv4.route.gc_timeout`. A path that no packet of the
    /// node's stack has taken since is left out.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn learned(&mut self) -> Result<BTreeMap<Ipv4Addr, Learned>> {
        const WHAT: &str = "learned paths";
        let message = Message::new(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP).raw(
            &RtMsg {
                family: libc::AF_INET as u8,
                flags: RTM_F_CLONED,
                ..RtMsg::default()
            }
            .bytes(),
        );
        let replies = self
            .dump(&message)
            .map_err(|cause| Error::new("list", WHAT, cause))?;
        let learned = |payload: &[u8]| {
            let found = RouteLookup::parse(payload)?;
            let dst = Attrs::after(payload, RTMSG).find(RTA_DST).and_then(address_of);
            Some(match dst {
                Some(IpAddr::V4(dst)) => Some((
                    dst,
                    Learned {
                        mtu: found.mtu,
                        gateway: found.gateway,
                    },
                )),
                Some(IpAddr::V6(_)) | None => None,
            })
        };
        let found = parse_all(replies, RTM_NEWROUTE, WHAT, learned)?;
        Ok(found.into_iter().flatten().collect())
    }

    fn send_route(&mut self, operation: &'static str, flags: u16, route: &Route) -> Result<()> {
        let dst = canonical(route.dst);
        let message = Message::new(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | flags)
            .raw(
                &RtMsg {
                    family: family(dst.addr()),
                    dst_len: dst.prefix_len(),
                    protocol: route.protocol,
                    scope: route.scope.into(),
                    kind: route.kind.into(),
                    flags: if route.onlink { RTNH_F_ONLINK } else { 0 },
                }
                .bytes(),
            )
            .attr(RTA_DST, &octets(dst.addr()))
            .u32(RTA_TABLE, route.table)
            .u32(RTA_PRIORITY, route.metric)
            .some(route.oif, |m, oif| m.u32(RTA_OIF, oif))
            .some(route.gateway, |m, gateway| m.attr(RTA_GATEWAY, &octets(gateway)))
            .some(route.src, |m, src| m.attr(RTA_PREFSRC, &octets(src)))
            .some(route.mtu, |m, mtu| {
                m.nest(RTA_METRICS, |metrics| metrics.u32(RTAX_MTU, mtu))
            });
        self.request(message)
            .map_err(|cause| Error::new(operation, dst, cause))?;
        Ok(())
    }
}

// === impl Route ===

impl Route {
    /// A route straight out of a link.
    pub fn link(dst: impl Into<IpNet>, oif: u32) -> Self {
        let dst = dst.into();
        Self {
            oif: Some(oif),
            scope: if dst.addr().is_ipv4() {
                Scope::Link
            } else {
                Scope::Universe
            },
            ..Self::of_kind(RouteKind::Unicast, dst)
        }
    }

    /// A route over a gateway on a link.
    pub fn via(dst: impl Into<IpNet>, gateway: impl Into<IpAddr>, oif: u32) -> Self {
        Self {
            oif: Some(oif),
            gateway: Some(gateway.into()),
            ..Self::of_kind(RouteKind::Unicast, dst.into())
        }
    }

    /// A route that refuses packets with ICMP host unreachable.
    pub fn unreachable(dst: impl Into<IpNet>) -> Self {
        Self::of_kind(RouteKind::Unreachable, dst.into())
    }

    /// A route that drops packets without a word.
    pub fn blackhole(dst: impl Into<IpNet>) -> Self {
        Self::of_kind(RouteKind::Blackhole, dst.into())
    }

    /// The same with a source for packets that have none yet.
    pub fn with_src(self, src: impl Into<IpAddr>) -> Self {
        Self {
            src: Some(src.into()),
            ..self
        }
    }

    /// The same with a gateway that no subnet of the link has to contain.
    pub fn with_onlink(self) -> Self {
        Self { onlink: true, ..self }
    }

    /// The same with a path MTU, in bytes.
    pub fn with_mtu(self, mtu: u32) -> Self {
        Self {
            mtu: Some(mtu),
            ..self
        }
    }

    /// What tells it from others.
    pub fn key(&self) -> RouteKey {
        RouteKey {
            table: self.table,
            dst: self.dst,
            metric: self.metric,
        }
    }

    fn of_kind(kind: RouteKind, dst: IpNet) -> Self {
        Self {
            dst: canonical(dst),
            table: MAIN_TABLE,
            metric: if dst.addr().is_ipv6() { 1024 } else { 0 },
            kind,
            oif: None,
            gateway: None,
            onlink: false,
            src: None,
            scope: Scope::Universe,
            mtu: None,
            protocol: RTPROT_WEFT,
        }
    }

    /// `None` for a message that is too short, `Some(None)` for one that is no
    /// route of a table (an entry of the cache, another family).
    pub(super) fn parse(payload: &[u8]) -> Option<Option<Self>> {
        let header = RtMsg::parse(payload)?;
        let Some(unspecified) = unspecified(header.family) else {
            return Some(None);
        };
        if header.flags & RTM_F_CLONED != 0 {
            return Some(None);
        }
        let attrs = Attrs::after(payload, RTMSG);
        let number = |kind| attrs.find(kind).and_then(|value| wire::u32_at(value, 0));
        let address = |kind| attrs.find(kind).and_then(address_of);
        let dst = address(RTA_DST).unwrap_or(unspecified);
        let kind = RouteKind::from(header.kind);
        // IPv6 shows routes that reject as going out of lo.
        let rejects = !matches!(kind, RouteKind::Unicast | RouteKind::Local);
        let oif = number(RTA_OIF).filter(|_| dst.is_ipv4() || !rejects);
        Some(Some(Self {
            dst: IpNet::new(dst, header.dst_len).ok()?,
            table: number(RTA_TABLE)?,
            metric: number(RTA_PRIORITY).unwrap_or(0),
            kind,
            oif,
            gateway: address(RTA_GATEWAY),
            onlink: header.flags & RTNH_F_ONLINK != 0,
            src: address(RTA_PREFSRC),
            scope: header.scope.into(),
            mtu: path_mtu(attrs),
            protocol: header.protocol,
        }))
    }
}

// === impl RouteFilter ===

impl RouteFilter {
    /// Weft's own routes.
    pub fn own() -> Self {
        Self {
            protocol: Some(RTPROT_WEFT),
            ..Self::default()
        }
    }

    fn lets_through(self, route: &Route) -> bool {
        self.table.is_none_or(|table| table == route.table)
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
            && self.oif.is_none_or(|oif| Some(oif) == route.oif)
    }
}

// === impl RouteLookup ===

impl RouteLookup {
    fn parse(payload: &[u8]) -> Option<Self> {
        let header = RtMsg::parse(payload)?;
        let attrs = Attrs::after(payload, RTMSG);
        Some(Self {
            kind: header.kind.into(),
            oif: attrs.find(RTA_OIF).and_then(|value| wire::u32_at(value, 0)),
            gateway: attrs
                .find(RTA_GATEWAY)
                // struct rtvia: an address behind the number of its family.
                .or_else(|| attrs.find(RTA_VIA)?.get(2..))
                .and_then(address_of),
            wraps: attrs.find(RTA_ENCAP_TYPE).is_some(),
            src: attrs.find(RTA_PREFSRC).and_then(address_of),
            mtu: path_mtu(attrs),
        })
    }
}

// === impl RouteKind ===

impl From<u8> for RouteKind {
    fn from(number: u8) -> Self {
        match number {
            libc::RTN_UNICAST => Self::Unicast,
            libc::RTN_LOCAL => Self::Local,
            libc::RTN_BLACKHOLE => Self::Blackhole,
            libc::RTN_UNREACHABLE => Self::Unreachable,
            libc::RTN_PROHIBIT => Self::Prohibit,
            other => Self::Other(other),
        }
    }
}

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => libc::RTN_UNICAST,
            RouteKind::Local => libc::RTN_LOCAL,
            RouteKind::Blackhole => libc::RTN_BLACKHOLE,
            RouteKind::Unreachable => libc::RTN_UNREACHABLE,
            RouteKind::Prohibit => libc::RTN_PROHIBIT,
            RouteKind::Other(other) => other,
        }
    }
}

// === impl Scope ===

impl From<u8> for Scope {
    fn from(number: u8) -> Self {
        match number {
            libc::RT_SCOPE_UNIVERSE => Self::Universe,
            libc::RT_SCOPE_LINK => Self::Link,
            libc::RT_SCOPE_HOST => Self::Host,
            other => Self::Other(other),
        }
    }
}

impl From<Scope> for u8 {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Universe => libc::RT_SCOPE_UNIVERSE,
            Scope::Link => libc::RT_SCOPE_LINK,
            Scope::Host => libc::RT_SCOPE_HOST,
            Scope::Other(other) => other,
        }
    }
}

fn path_mtu(attrs: Attrs<'_>) -> Option<u32> {
    let metrics = Attrs::new(attrs.find(RTA_METRICS)?);
    wire::u32_at(metrics.find(RTAX_MTU)?, 0)
}

/// `struct rtmsg`, without the parts that stay zero.
#[derive(Clone, Copy, Debug, Default)]
struct RtMsg {
    family: u8,
    dst_len: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

// === impl RtMsg ===

impl RtMsg {
    fn bytes(self) -> [u8; RTMSG] {
        let mut bytes = [0; RTMSG];
        bytes[0] = self.family;
        bytes[1] = self.dst_len;
        bytes[5] = self.protocol;
        bytes[6] = self.scope;
        bytes[7] = self.kind;
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let header: &[u8; RTMSG] = payload.first_chunk()?;
        Some(Self {
            family: header[0],
            dst_len: header[1],
            protocol: header[5],
            scope: header[6],
            kind: header[7],
            flags: wire::u32_at(header, 8)?,
        })
    }
}
