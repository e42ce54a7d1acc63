//! Links: what is there, and changing and removing them.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use weft_model::Mac;

use super::consts::*;
use super::{Rtnl, parse_all, removed};
use crate::error::{Cause, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use crate::netns::NetNs;
use crate::wire::{self, Attrs, Message};

pub(super) const IFF_UP: u32 = libc::IFF_UP as u32;
pub(super) const IFF_NOARP: u32 = libc::IFF_NOARP as u32;
/// Not in libc: `IFF_LOWER_UP` of include/uapi/linux/if.h.
const IFF_LOWER_UP: u32 = 1 << 16;

/// Not in libc: of `enum` in include/uapi/linux/if.h.
const IF_OPER_UP: u8 = 6;

/// IFNAMSIZ without the closing NUL.
const NAME_MAX: usize = 15;
/// IFALIASZ without the closing NUL.
pub(super) const ALIAS_MAX: usize = 255;

const IFINFOMSG: usize = 16;

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number of the link in its namespace, above 0; never used again there
    /// unless asked for or after it wrapped around.
    pub index: u32,
    /// Name, 1 to 15 bytes, unique in its namespace.
    pub name: String,
    /// `veth`, `vxlan`, `bridge` ...; `None` for hardware and `lo`.
    pub kind: Option<String>,
    /// Its packets have Ethernet headers (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// Ethernet address, where the link has one.
    pub mac: Option<Mac>,
    /// Largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Up and with carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Can send (`IF_OPER_UP`, RFC 2863): a link whose carrier came after it was set up has no queue, and loses what it
    /// is given, until the kernel's link watcher ran. Some kinds never say so.
    pub operational: bool,
    /// Does no address resolution (`IFF_NOARP`).
    pub noarp: bool,
    /// Free text, where set.
    pub alias: Option<String>,
    /// Index of the bridge or other link that this one is a port of.
    pub master: Option<u32>,
    /// The group it was put into; 0 for most.
    pub group: u32,
    /// Index of the other end of a veth pair, or of the lower device.
    pub peer: Option<u32>,
    /// This namespace's id for the one that the peer lives in (RTM_GETNSID),
    /// where that is another one.
    pub peer_netns: Option<i32>,
    /// For a VXLAN device in `external` mode: its UDP port.
    pub vxlan_external_port: Option<u16>,
}

/// A link by index or by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRef<'a> {
    /// By index, which a rename does not change.
    Index(u32),
    /// By name.
    Name(&'a str),
}

// === impl Rtnl ===

impl Rtnl {
    /// All links of the namespace, in order of their index.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let message = Message::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP)
            .raw(&ifinfomsg(0, 0, 0))
            .u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        let replies = self
            .dump(&message)
            .map_err(|cause| Error::new("list", "links", cause))?;
        let mut links = parse_all(replies, RTM_NEWLINK, "links", Link::parse)?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// One link, or `None` if there is no such link.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn link<'a>(&mut self, link: impl Into<LinkRef<'a>>) -> Result<Option<Link>> {
        let link = link.into();
        match self.get_link(link) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One link that has to be there.
    ///
    /// # Errors
    /// There is no such link (`ENODEV`, see [`Error::is_not_found`]).
    pub fn get_link<'a>(&mut self, link: impl Into<LinkRef<'a>>) -> Result<Link> {
        const OPERATION: &str = "look up link";
        let link = link.into();
        let message = link
            .message(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, 0, 0)
            .map_err(|cause| Error::new(OPERATION, link, cause))?
            .u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        let replies = self
            .request(message)
            .map_err(|cause| Error::new(OPERATION, link, cause))?;
        parse_all(replies, RTM_NEWLINK, "link", Link::parse)?
            .pop()
            .ok_or_else(|| Error::new(OPERATION, link, Cause::Malformed("no link in the answer")))
    }

    /// The index of a link that has to be there.
    ///
    /// # Errors
    /// As for [`get_link`](Self::get_link).
    pub fn link_index(&mut self, name: &str) -> Result<u32> {
        self.get_link(name).map(|link| link.index)
    }

    /// Sets a link up or down. Returns whether it wasn't before.
    ///
    /// # Errors
    /// There is no such link, or it can't be opened (a VXLAN port in use: `EADDRINUSE`).
    pub fn set_up<'a>(&mut self, link: impl Into<LinkRef<'a>>, up: bool) -> Result<bool> {
        let link = self.get_link(link)?;
        let flags = if up { IFF_UP } else { 0 };
        let operation = if up { "set up" } else { "set down" };
        self.change(&link, operation, link.up != up, flags, IFF_UP, |m| m)
    }

    /// Sets a link up without a look whether it is already.
    ///
    /// # Errors
    /// As for [`set_up`](Self::set_up).
    pub fn bring_up<'a>(&mut self, link: impl Into<LinkRef<'a>>) -> Result<()> {
        self.set(link.into(), "set up", IFF_UP, |m| m)
    }

    /// Waits until an end of a veth pair whose other end came up later can send, at most for `patience`. Returns whether
    /// it can.
    ///
    /// The link watcher does a batch of links a second when others keep it busy; asking for the link makes it do this one
    /// at once (`linkwatch_sync_dev` in `rtnl_getlink`, Linux 6.8).
    ///
    /// # Errors
    /// There is no such link.
    pub fn await_operational<'a>(
        &mut self,
        link: impl Into<LinkRef<'a>>,
        patience: Duration,
    ) -> Result<bool> {
        const PAUSE: Duration = Duration::from_millis(1);
        let link = link.into();
        let asked = Instant::now();
        loop {
            if self.get_link(link)?.operational {
                return Ok(true);
            }
            if asked.elapsed() >= patience {
                return Ok(false);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Sets a link's MTU in bytes. Returns whether it was another one.
    ///
    /// # Errors
    /// There is no such link, or it can't have that MTU (`EINVAL`, with the bound in words).
    pub fn set_mtu<'a>(&mut self, link: impl Into<LinkRef<'a>>, mtu: u32) -> Result<bool> {
        let link = self.get_link(link)?;
        self.change(&link, "set MTU of", link.mtu != mtu, 0, 0, |m| {
            m.u32(IFLA_MTU, mtu)
        })
    }

    /// Sets a link's Ethernet address. Returns whether it was another one.
    ///
    /// # Errors
    /// There is no such link, or its kind has no such address.
    pub fn set_mac<'a>(&mut self, link: impl Into<LinkRef<'a>>, mac: Mac) -> Result<bool> {
        let link = self.get_link(link)?;
        self.change(&link, "set MAC of", link.mac != Some(mac), 0, 0, |m| {
            m.attr(IFLA_ADDRESS, &mac.octets())
        })
    }

    /// Makes a link a port of a bridge, or of nothing. Returns whether that changed.
    ///
    /// # Errors
    /// There is no such link, or the master takes no such port.
    pub fn set_master<'a>(&mut self, link: impl Into<LinkRef<'a>>, master: Option<u32>) -> Result<bool> {
        let link = self.get_link(link)?;
        self.change(&link, "set master of", link.master != master, 0, 0, |m| {
            m.u32(IFLA_MASTER, master.unwrap_or(0))
        })
    }

    /// Sets a link's alias; the empty string removes it. Returns whether it was another one.
    ///
    /// # Errors
    /// There is no such link, or the alias is longer than 255 bytes.
    pub fn set_alias<'a>(&mut self, link: impl Into<LinkRef<'a>>, alias: &str) -> Result<bool> {
        let link = self.get_link(link)?;
        let differs = link.alias.as_deref().unwrap_or_default() != alias;
        self.change(&link, "set alias of", differs, 0, 0, |m| {
            m.attr(IFLA_IFALIAS, alias.as_bytes())
        })
    }

    /// Gives a link another name. Returns whether it had another one.
    ///
    /// # Errors
    /// There is no such link, the name is taken (`EEXIST`) or none.
    pub fn rename<'a>(&mut self, link: impl Into<LinkRef<'a>>, name: &str) -> Result<bool> {
        const OPERATION: &str = "rename";
        let link = self.get_link(link)?;
        check_name(name).map_err(|cause| Error::new(OPERATION, &link.name, cause))?;
        self.change(&link, OPERATION, link.name != name, 0, 0, |m| {
            m.str(IFLA_IFNAME, name)
        })
    }

    /// Moves a link to another namespace, where it arrives down and may get
    /// another index.
    ///
    /// # Errors
    /// There is no such link, its name is taken there (`EEXIST`), or it can't
    /// move (`EINVAL`, with the reason in words).
    pub fn move_to<'a>(&mut self, link: impl Into<LinkRef<'a>>, netns: &NetNs) -> Result<()> {
        let link = self.get_link(link)?;
        self.change(&link, "move to another namespace", true, 0, 0, |m| {
            m.u32(IFLA_NET_NS_FD, raw_fd(netns))
        })?;
        Ok(())
    }

    /// Removes a link, of a veth pair both ends. Returns whether it was there.
    ///
    /// # Errors
    /// It is of a kind that can't be removed (`EOPNOTSUPP`).
    pub fn delete_link<'a>(&mut self, link: impl Into<LinkRef<'a>>) -> Result<bool> {
        const OPERATION: &str = "delete link";
        let link = link.into();
        let message = link
            .message(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, 0, 0)
            .map_err(|cause| Error::new(OPERATION, link, cause))?;
        removed(
            self.request(message)
                .map_err(|cause| Error::new(OPERATION, link, cause)),
        )
    }

    /// Puts a link into a group, or back into 0, which is everybody's.
    ///
    /// # Errors
    /// There is no such link.
    pub fn set_group<'a>(&mut self, link: impl Into<LinkRef<'a>>, group: u32) -> Result<()> {
        self.set(link.into(), "set group of", 0, |m| m.u32(IFLA_GROUP, group))
    }

    /// Removes all links of a group, of veth pairs both ends, in the time of one. Returns whether there were any.
    ///
    /// # Errors
    /// One of them is of a kind that can't be removed (`EOPNOTSUPP`), or the group is 0 (`EPERM`): none is removed.
    pub fn delete_group(&mut self, group: u32) -> Result<bool> {
        let message = Message::new(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK)
            .raw(&ifinfomsg(0, 0, 0))
            .u32(IFLA_GROUP, group);
        removed(
            self.request(message)
                .map_err(|cause| Error::new("delete links of group", group, cause)),
        )
    }

    /// Changes a link without a look at it.
    fn set(
        &mut self,
        link: LinkRef<'_>,
        operation: &'static str,
        flags: u32,
        fill: impl FnOnce(Message) -> Message,
    ) -> Result<()> {
        self.send_change(link, flags, flags, fill)
            .map_err(|cause| Error::new(operation, link, cause))
    }

    fn change(
        &mut self,
        link: &Link,
        operation: &'static str,
        differs: bool,
        flags: u32,
        mask: u32,
        fill: impl FnOnce(Message) -> Message,
    ) -> Result<bool> {
        if differs {
            self.send_change(LinkRef::Index(link.index), flags, mask, fill)
                .map_err(|cause| Error::new(operation, &link.name, cause))?;
        }
        Ok(differs)
    }

    pub(super) fn send_change(
        &mut self,
        link: LinkRef<'_>,
        flags: u32,
        mask: u32,
        fill: impl FnOnce(Message) -> Message,
    ) -> Result<(), Cause> {
        let message = link.message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, flags, mask)?;
        self.request(fill(message))?;
        Ok(())
    }
}

// === impl Link ===

impl Link {
    /// Reads the payload of `RTM_NEWLINK` and `RTM_DELLINK`.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let hardware = u16::from_ne_bytes(*payload.get(2..)?.first_chunk()?);
        let index = wire::u32_at(payload, 4)?;
        let flags = wire::u32_at(payload, 8)?;
        let attrs = Attrs::after(payload, IFINFOMSG);
        let number = |kind| attrs.find(kind).and_then(|value| wire::u32_at(value, 0));
        let info = attrs.find(IFLA_LINKINFO).map(Attrs::new);
        let kind = info.and_then(|info| info.find(IFLA_INFO_KIND)).map(wire::text);
        let vxlan_external_port = (kind.as_deref() == Some("vxlan"))
            .then(|| {
                let data = Attrs::new(info?.find(IFLA_INFO_DATA)?);
                let external = data.find(IFLA_VXLAN_COLLECT_METADATA)? == [1];
                let port = u16::from_be_bytes(*data.find(IFLA_VXLAN_PORT)?.first_chunk()?);
                external.then_some(port)
            })
            .flatten();
        Some(Self {
            index,
            name: wire::text(attrs.find(IFLA_IFNAME)?),
            kind,
            ethernet: hardware == libc::ARPHRD_ETHER,
            mac: attrs
                .find(IFLA_ADDRESS)
                .and_then(|value| value.try_into().ok())
                .map(Mac),
            mtu: number(IFLA_MTU).unwrap_or_default(),
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            operational: attrs.find(IFLA_OPERSTATE) == Some(&[IF_OPER_UP]),
            noarp: flags & IFF_NOARP != 0,
            alias: attrs
                .find(IFLA_IFALIAS)
                .map(wire::text)
                .filter(|alias| !alias.is_empty()),
            master: number(IFLA_MASTER),
            group: number(IFLA_GROUP).unwrap_or_default(),
            peer: number(IFLA_LINK).filter(|peer| *peer != 0),
            peer_netns: number(IFLA_LINK_NETNSID).map(u32::cast_signed),
            vxlan_external_port,
        })
    }
}

// === impl LinkRef ===

impl LinkRef<'_> {
    fn message(self, kind: u16, flags: u16, link_flags: u32, mask: u32) -> Result<Message, Cause> {
        Ok(match self {
            Self::Index(index) => Message::new(kind, flags).raw(&ifinfomsg(index, link_flags, mask)),
            Self::Name(name) => {
                check_name(name)?;
                Message::new(kind, flags)
                    .raw(&ifinfomsg(0, link_flags, mask))
                    .str(IFLA_IFNAME, name)
            }
        })
    }
}

impl From<u32> for LinkRef<'_> {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl<'a> From<&'a str> for LinkRef<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a String> for LinkRef<'a> {
    fn from(name: &'a String) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for LinkRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "link {index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

pub(super) fn ifinfomsg(index: u32, flags: u32, mask: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());
    header
}

pub(super) fn check_name(name: &str) -> Result<(), Cause> {
    let valid = (1..=NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace());
    if valid {
        Ok(())
    } else {
        Err(Cause::Invalid(format!(
            "{name:?} is no interface name: 1 to {NAME_MAX} bytes without slash, colon or white space"
        )))
    }
}

pub(super) fn raw_fd(netns: &NetNs) -> u32 {
    netns.as_fd().as_raw_fd().cast_unsigned()
}
