//! Routes, neighbours and addresses as tables to be reconciled.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use weft_model::Mac;

use super::{Address, Neighbour, RTPROT_WEFT, Route, RouteFilter, RouteKey, Rtnl, Scope};
use crate::error::Result;
use crate::target::Target;

/// The routes of the namespace that carry Weft's protocol number. Routes of
/// others are neither listed nor removed; one of the same key is replaced.
#[derive(Debug)]
pub struct Routes<'a>(pub &'a mut Rtnl);

/// The permanent neighbours on one link of Weft's.
#[derive(Debug)]
pub struct Neighbours<'a> {
    /// The socket to use.
    pub rtnl: &'a mut Rtnl,
    /// Index of the link.
    pub link: u32,
}

/// The addresses of one link of Weft's, those that IPv6 gives itself left out.
#[derive(Debug)]
pub struct Addresses<'a> {
    /// The socket to use.
    pub rtnl: &'a mut Rtnl,
    /// Index of the link.
    pub link: u32,
}

// === impl Routes ===

impl Target for Routes<'_> {
    type Key = RouteKey;
    type Value = Route;

    fn list(&mut self) -> Result<BTreeMap<RouteKey, Route>> {
        let routes = self.0.routes(RouteFilter::own())?;
        Ok(routes.into_iter().map(|route| (route.key(), route)).collect())
    }

    fn apply(&mut self, _: &RouteKey, route: &Route) -> Result<()> {
        self.0.replace_route(route)
    }

    fn remove(&mut self, key: &RouteKey) -> Result<()> {
        self.0.delete_route_by_key(key, RTPROT_WEFT).map(drop)
    }
}

// === impl Neighbours ===

impl Target for Neighbours<'_> {
    type Key = IpAddr;
    type Value = Mac;

    fn list(&mut self) -> Result<BTreeMap<IpAddr, Mac>> {
        let neighbours = self.rtnl.neighbours(Some(self.link))?;
        Ok(neighbours
            .into_iter()
            .map(|neighbour| (neighbour.ip, neighbour.mac))
            .collect())
    }

    fn apply(&mut self, ip: &IpAddr, mac: &Mac) -> Result<()> {
        self.rtnl.replace_neighbour(&Neighbour {
            link: self.link,
            ip: *ip,
            mac: *mac,
        })
    }

    fn remove(&mut self, ip: &IpAddr) -> Result<()> {
        self.rtnl.delete_neighbour(self.link, *ip).map(drop)
    }
}

// === impl Addresses ===

impl Target for Addresses<'_> {
    type Key = IpNet;
    type Value = Scope;

    fn list(&mut self) -> Result<BTreeMap<IpNet, Scope>> {
        let addresses = self.rtnl.addresses(Some(self.link))?;
        Ok(addresses
            .into_iter()
            .filter(|address| !matches!(address.net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .map(|address| (address.net, address.scope))
            .collect())
    }

    fn apply(&mut self, net: &IpNet, scope: &Scope) -> Result<()> {
        let address = Address {
            scope: *scope,
            ..Address::new(self.link, *net)
        };
        self.rtnl.replace_address(&address).map(drop)
    }

    fn remove(&mut self, net: &IpNet) -> Result<()> {
        self.rtnl.delete_address(&Address::new(self.link, *net)).map(drop)
    }
}
