//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;

use super::consts::*;
use super::route::Scope;
use super::{Rtnl, address_of, family, octets, parse_all, removed};
use crate::error::{Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use crate::wire::{self, Attrs, Message};

const IFADDRMSG: usize = 8;

/// A permanent address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// Address and length of its subnet's prefix.
    pub net: IpNet,
    /// How far the address is valid.
    pub scope: Scope,
    /// The kernel makes no route for the subnet (`IFA_F_NOPREFIXROUTE`).
    pub no_prefix_route: bool,
}

// === impl Rtnl ===

impl Rtnl {
    /// All addresses of the namespace, or of one link, sorted.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>> {
        let mut header = [0; IFADDRMSG];
        header[4..8].copy_from_slice(&link.unwrap_or(0).to_ne_bytes());
        let message = Message::new(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP).raw(&header);
        let replies = match self
            .dump(&message)
            .map_err(|cause| Error::new("list", "addresses", cause))
        {
            Err(error) if error.is_not_found() => Vec::new(),
            other => other?,
        };
        let mut addresses = parse_all(replies, RTM_NEWADDR, "addresses", Address::parse)?;
        addresses.sort();
        Ok(addresses)
    }

    /// Adds an address.
    ///
    /// # Errors
    /// It is there already (`EEXIST`), or the kernel's refusal.
    pub fn add_address(&mut self, address: &Address) -> Result<()> {
        self.send_address("add address", RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address)
    }

    /// Adds an address, or does nothing if the link has it. An address that
    /// differs in scope is made anew. Returns whether something changed.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn replace_address(&mut self, address: &Address) -> Result<bool> {
        let present = self.addresses(Some(address.link))?;
        match present.iter().find(|found| found.net == address.net) {
            Some(found) if found == address => return Ok(false),
            // NLM_F_REPLACE changes lifetimes and metric only (inet_rtm_newaddr).
            Some(found) => drop(self.delete_address(found)?),
            None => {}
        }
        self.send_address("set address", RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, address)?;
        Ok(true)
    }

    /// Removes an address. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_address(&mut self, address: &Address) -> Result<bool> {
        removed(self.send_address("delete address", RTM_DELADDR, 0, address))
    }

    fn send_address(
        &mut self,
        operation: &'static str,
        kind: u16,
        flags: u16,
        address: &Address,
    ) -> Result<()> {
        let ip = address.net.addr();
        let mut header = [0; IFADDRMSG];
        header[0] = family(ip);
        header[1] = address.net.prefix_len();
        header[3] = address.scope.into();
        header[4..8].copy_from_slice(&address.link.to_ne_bytes());
        let mut bits = IFA_F_PERMANENT;
        if ip.is_ipv6() {
            // Weft's addresses are unique by allocation; a probe would delay their use.
            bits |= IFA_F_NODAD;
        }
        if address.no_prefix_route {
            bits |= IFA_F_NOPREFIXROUTE;
        }
        let message = Message::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags)
            .raw(&header)
            .attr(IFA_LOCAL, &octets(ip))
            .attr(IFA_ADDRESS, &octets(ip))
            .u32(IFA_FLAGS, bits);
        self.request(message)
            .map_err(|cause| Error::new(operation, address.net, cause))?;
        Ok(())
    }
}

// === impl Address ===

impl Address {
    /// An address of global scope. The kernel adds the subnet's route unless
    /// the prefix is the whole address.
    pub fn new(link: u32, net: impl Into<IpNet>) -> Self {
        Self {
            link,
            net: net.into(),
            scope: Scope::Universe,
            no_prefix_route: false,
        }
    }

    /// An address alone: /32 or /128.
    pub fn host(link: u32, address: impl Into<IpAddr>) -> Self {
        Self::new(link, IpNet::from(address.into()))
    }

    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let prefix_len = *payload.get(1)?;
        let scope = Scope::from(*payload.get(3)?);
        let link = wire::u32_at(payload, 4)?;
        let attrs = Attrs::after(payload, IFADDRMSG);
        // IFA_ADDRESS is the peer's address where there is one; IPv6 without a
        // peer has no IFA_LOCAL.
        let ip = address_of(attrs.find(IFA_LOCAL).or_else(|| attrs.find(IFA_ADDRESS))?)?;
        let bits = attrs
            .find(IFA_FLAGS)
            .and_then(|value| wire::u32_at(value, 0))
            .unwrap_or(0);
        Some(Self {
            link,
            net: IpNet::new(ip, prefix_len).ok()?,
            scope,
            no_prefix_route: bits & IFA_F_NOPREFIXROUTE != 0,
        })
    }
}
