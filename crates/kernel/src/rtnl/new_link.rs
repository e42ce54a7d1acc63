//! Making links.

use weft_model::Mac;

use super::Rtnl;
use super::consts::*;
use super::link::{ALIAS_MAX, IFF_NOARP, IFF_UP, LinkRef, check_name, ifinfomsg, raw_fd};
use crate::error::{Cause, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use crate::netns::NetNs;
use crate::wire::Message;

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

// === impl Rtnl ===

impl Rtnl {
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
        let set = |rtnl: &mut Self| {
            rtnl.send_change(LinkRef::Name(spec.name), flags, flags, |m| {
                m.some(spec.alias, |m, alias| m.attr(IFLA_IFALIAS, alias.as_bytes()))
            })
        };
        match spec.netns {
            None => set(self),
            Some(netns) => set(&mut Self::open_in(netns)?),
        }
        .map_err(|cause| Error::new("complete new link", spec.name, cause))
    }

    fn delete_in(&mut self, spec: &LinkSpec<'_>) -> Result<bool> {
        match spec.netns {
            None => self.delete_link(spec.name),
            Some(netns) => Self::open_in(netns)?.delete_link(spec.name),
        }
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
