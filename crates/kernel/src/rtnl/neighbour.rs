//! Permanent neighbours.

use std::net::IpAddr;

use weft_model::Mac;

use super::consts::*;
use super::{Rtnl, address_of, family, octets, parse_all, removed};
use crate::error::{Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use crate::wire::{self, Attrs, Message};

const NDMSG: usize = 12;

/// A neighbour that is never asked for and never forgotten (`NUD_PERMANENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
}

// === impl Rtnl ===

impl Rtnl {
    /// The permanent neighbours of the namespace, or of one link, sorted.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn neighbours(&mut self, link: Option<u32>) -> Result<Vec<Neighbour>> {
        let message = Message::new(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP)
            .raw(&[0; NDMSG])
            .some(link, |m, link| m.u32(NDA_IFINDEX, link));
        let replies = match self
            .dump(&message)
            .map_err(|cause| Error::new("list", "neighbours", cause))
        {
            Err(error) if error.is_not_found() => Vec::new(),
            other => other?,
        };
        let mut neighbours: Vec<Neighbour> =
            parse_all(replies, RTM_NEWNEIGH, "neighbours", Neighbour::parse)?
                .into_iter()
                .flatten()
                .collect();
        neighbours.sort();
        Ok(neighbours)
    }

    /// Adds a permanent neighbour.
    ///
    /// # Errors
    /// The address has one already (`EEXIST`), or the kernel's refusal.
    pub fn add_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        self.send_neighbour("add neighbour", NLM_F_EXCL, neighbour)
    }

    /// Adds a permanent neighbour or makes the entry of its address one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        self.send_neighbour("set neighbour", NLM_F_REPLACE, neighbour)
    }

    /// Removes the entry of an address. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_neighbour(&mut self, link: u32, ip: IpAddr) -> Result<bool> {
        let message = Message::new(RTM_DELNEIGH, NLM_F_REQUEST | NLM_F_ACK)
            .raw(&ndmsg(link, ip, 0))
            .attr(NDA_DST, &octets(ip));
        removed(
            self.request(message)
                .map_err(|cause| Error::new("delete neighbour", ip, cause)),
        )
    }

    fn send_neighbour(&mut self, operation: &'static str, flags: u16, neighbour: &Neighbour) -> Result<()> {
        let message = Message::new(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | flags)
            .raw(&ndmsg(neighbour.link, neighbour.ip, NUD_PERMANENT))
            .attr(NDA_DST, &octets(neighbour.ip))
            .attr(NDA_LLADDR, &neighbour.mac.octets());
        self.request(message)
            .map_err(|cause| Error::new(operation, neighbour.ip, cause))?;
        Ok(())
    }
}

// === impl Neighbour ===

impl Neighbour {
    /// `None` for a message that is too short, `Some(None)` for an entry that
    /// is not permanent or has no Ethernet address.
    pub(super) fn parse(payload: &[u8]) -> Option<Option<Self>> {
        let link = wire::u32_at(payload, 4)?;
        let state = wire::u16_at(payload, 8)?;
        let attrs = Attrs::after(payload, NDMSG);
        let permanent = || {
            Some(Self {
                link,
                ip: address_of(attrs.find(NDA_DST)?)?,
                mac: Mac(attrs.find(NDA_LLADDR)?.try_into().ok()?),
            })
        };
        Some((state & NUD_PERMANENT != 0).then(permanent).flatten())
    }
}

fn ndmsg(link: u32, ip: IpAddr, state: u16) -> [u8; NDMSG] {
    let mut header = [0; NDMSG];
    header[0] = family(ip);
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header
}
