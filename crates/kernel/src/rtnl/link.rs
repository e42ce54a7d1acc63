//! Links: what is there, and making, changing and removing them.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use weft_model::Mac;

use super::consts::*;
use super::{Rtnl, parse_all, removed};
use crate::error::{Cause, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use crate::netns::NetNs;
use crate::wire::{self, Attrs, Message};

const IFF_UP: u32 = libc::IFF_UP as u32;
const IFF_NOARP: u32 = libc::IFF_NOARP as u32;
/// Not in libc: `IFF_LOWER_UP` of include/uapi/linux/if.h.
const IFF_LOWER_UP: u32 = 1 << 16;

/// Not in libc: of `enum` in include/uapi/linux/if.h.
const IF_OPER_UP: u8 = 6;

/// IFNAMSIZ without the closing NUL.
const NAME_MAX: usize = 15;
/// IFALIASZ without the closing NUL.
const ALIAS_MAX: usize = 255;

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

/// One end of a new link. `None` leaves the choice to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct LinkSpec<'a> {
    /// Name, 1 to 15 bytes.
    pub name: &'a str,
    /// Ethernet address, fixed from the first moment on, so that udev does not
    /// replace it (systemd.link(5), MACAddressPolicy).
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Free text, at most 255 bytes.
    pub alias: Option<&'a str>,
    /// The namespace to make it in, if not the socket's.
    pub netns: Option<&'a NetNs>,
    /// The group to make it in.
    pub group: Option<u32>,
    /// Whether it is up from the beginning.
    pub up: bool,
}

/// A VXLAN device that takes tunnel keys from packet metadata and learns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanSpec<'a> {
    /// Name, 1 to 15 bytes.
    pub name: &'a str,
    /// Ethernet address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// UDP port that it receives on and sends to.
    pub port: u16,
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

    /// Makes both ends of a veth pair in one step, each in its namespace and
    /// with its name, MAC and MTU, so that neither ever shows under another
    /// name or in another place. Should the alias fail, the pair is removed.
    ///
    /// # Errors
    /// A name is taken (`EEXIST`), or the kernel's refusal.
    pub fn create_veth(&mut self, end: &LinkSpec<'_>, peer: &LinkSpec<'_>) -> Result<()> {
        const OPERATION: &str = "create veth pair";
        let object = format!("{} and {}", end.name, peer.name);
        let message = end
            .message()
            .and_then(|message| {
                peer.check()?;
                Ok(message.nest(IFLA_LINKINFO, |info| {
                    info.str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                        data.nest(VETH_INFO_PEER, |m| peer.fill(m.raw(&ifinfomsg(0, 0, 0))))
                    })
                }))
            })
            .map_err(|cause| Error::new(OPERATION, &object, cause))?;
        self.request(message)
            .map_err(|cause| Error::new(OPERATION, &object, cause))?;
        let completed = self
            .complete(end, 0)
            .and_then(|()| self.complete(peer, peer.flags()));
        if completed.is_err() {
            let _ = self.delete_in(end);
        }
        completed
    }

    /// Makes a VXLAN device in `external` mode without learning and ARP; it is down.
    ///
    /// # Errors
    /// The name is taken (`EEXIST`), or the kernel's refusal. Whether the port
    /// is free shows when it is set up.
    pub fn create_vxlan(&mut self, spec: &VxlanSpec<'_>) -> Result<()> {
        let link = LinkSpec {
            mac: Some(spec.mac),
            mtu: Some(spec.mtu),
            ..LinkSpec::new(spec.name)
        };
        self.create("create VXLAN device", &link, IFF_NOARP, "vxlan", |data| {
            data.u8(IFLA_VXLAN_COLLECT_METADATA, 1)
                .u8(IFLA_VXLAN_LEARNING, 0)
                .be16(IFLA_VXLAN_PORT, spec.port)
        })
    }

    /// Makes a bridge.
    ///
    /// # Errors
    /// The name is taken (`EEXIST`), or the kernel's refusal.
    pub fn create_bridge(&mut self, spec: &LinkSpec<'_>) -> Result<()> {
        self.create("create bridge", spec, 0, "bridge", |data| data)
    }

    /// Makes a macvlan in bridge mode on the link of index `lower`.
    ///
    /// # Errors
    /// The name is taken (`EEXIST`), or the kernel's refusal.
    pub fn create_macvlan(&mut self, spec: &LinkSpec<'_>, lower: u32) -> Result<()> {
        const OPERATION: &str = "create macvlan";
        let message = spec
            .message()
            .map_err(|cause| Error::new(OPERATION, spec.name, cause))?
            .u32(IFLA_LINK, lower)
            .nest(IFLA_LINKINFO, |info| {
                info.str(IFLA_INFO_KIND, "macvlan").nest(IFLA_INFO_DATA, |data| {
                    data.u32(IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE)
                })
            });
        self.request(message)
            .map_err(|cause| Error::new(OPERATION, spec.name, cause))?;
        self.complete(spec, 0)
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

    fn create(
        &mut self,
        operation: &'static str,
        spec: &LinkSpec<'_>,
        flags: u32,
        kind: &str,
        data: impl FnOnce(Message) -> Message,
    ) -> Result<()> {
        let error = |cause| Error::new(operation, spec.name, cause);
        spec.check().map_err(error)?;
        let flags = spec.flags() | flags;
        let message = Message::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .raw(&ifinfomsg(0, flags, flags));
        let message = spec.fill(message).nest(IFLA_LINKINFO, |info| {
            info.str(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data)
        });
        self.request(message).map_err(error)?;
        let completed = self.complete(spec, 0);
        if completed.is_err() {
            let _ = self.delete_in(spec);
        }
        completed
    }

    /// What `RTM_NEWLINK` leaves out for a new link: the alias
    /// (`rtnl_create_link` in net/core/rtnetlink.c), and for the peer of a veth
    /// pair to be up, which fails before the ends know one another
    /// (`veth_newlink` in drivers/net/veth.c).
    fn complete(&mut self, spec: &LinkSpec<'_>, flags: u32) -> Result<()> {
        if spec.alias.is_none() && flags == 0 {
            return Ok(());
        }
        let message = || {
            LinkRef::Name(spec.name)
                .message(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, flags, flags)
                .map(|m| m.some(spec.alias, |m, alias| m.attr(IFLA_IFALIAS, alias.as_bytes())))
        };
        let set = |rtnl: &mut Self| message().and_then(|message| rtnl.request(message));
        match spec.netns {
            None => set(self),
            Some(netns) => set(&mut Self::open_in(netns)?),
        }
        .map_err(|cause| Error::new("complete new link", spec.name, cause))?;
        Ok(())
    }

    fn delete_in(&mut self, spec: &LinkSpec<'_>) -> Result<bool> {
        match spec.netns {
            None => self.delete_link(spec.name),
            Some(netns) => Self::open_in(netns)?.delete_link(spec.name),
        }
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

    fn send_change(
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

// === impl LinkSpec ===

impl<'a> LinkSpec<'a> {
    /// A link of that name which is down, in the socket's namespace, with all
    /// else left to the kernel.
    pub fn new(name: &'a str) -> Self {
        Self {
            name,
            mac: None,
            mtu: None,
            alias: None,
            netns: None,
            group: None,
            up: false,
        }
    }

    fn check(&self) -> Result<(), Cause> {
        check_name(self.name)?;
        match self.alias {
            Some(alias) if alias.len() > ALIAS_MAX => Err(Cause::Invalid(format!(
                "an alias has at most {ALIAS_MAX} bytes, this one {}",
                alias.len()
            ))),
            _ => Ok(()),
        }
    }

    fn flags(&self) -> u32 {
        if self.up { IFF_UP } else { 0 }
    }

    fn message(&self) -> Result<Message, Cause> {
        self.check()?;
        let message = Message::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .raw(&ifinfomsg(0, self.flags(), self.flags()));
        Ok(self.fill(message))
    }

    fn fill(&self, message: Message) -> Message {
        message
            .str(IFLA_IFNAME, self.name)
            .some(self.mac, |m, mac| m.attr(IFLA_ADDRESS, &mac.octets()))
            .some(self.mtu, |m, mtu| m.u32(IFLA_MTU, mtu))
            .some(self.group, |m, group| m.u32(IFLA_GROUP, group))
            .some(self.netns, |m, netns| m.u32(IFLA_NET_NS_FD, raw_fd(netns)))
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

fn ifinfomsg(index: u32, flags: u32, mask: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());
    header
}

fn check_name(name: &str) -> Result<(), Cause> {
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

fn raw_fd(netns: &NetNs) -> u32 {
    netns.as_fd().as_raw_fd().cast_unsigned()
}
