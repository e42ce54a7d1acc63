//! Connection tracking entries of an address that changes hands (ctnetlink).

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::{Context, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Netlink};
use crate::netns::NetNs;
use crate::wire::{Attrs, Message};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_GET: u16 = (1 << 8) | 1;
const IPCTNL_MSG_CT_DELETE: u16 = (1 << 8) | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;

const NFGENMSG: usize = 4;

/// A ctnetlink socket. It speaks of the namespace it was opened in.
#[derive(Debug)]
pub struct Conntrack {
    netlink: Netlink,
}

// === impl Conntrack ===

impl Conntrack {
    /// A socket of another namespace.
    ///
    /// # Errors
    /// As for [`NetNs::run`], or no descriptor is left.
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        let netlink = Netlink::open_in(NETLINK_NETFILTER, netns)?.context("open", "conntrack socket")?;
        Ok(Self { netlink })
    }

    /// Deletes every entry that `address` takes part in, on either side and
    /// before or after translation, so that the next owner of the address gets
    /// no packet of its flows. Returns how many there were. Looks at every
    /// entry of the namespace.
    ///
    /// # Errors
    /// The kernel's refusal; some entries may be deleted then.
    pub fn delete_address(&mut self, address: IpAddr) -> Result<usize> {
        const OPERATION: &str = "delete conntrack entries of";
        let (family, octets) = match address {
            IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
        };
        let list = Message::new(IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP).raw(&[family, 0, 0, 0]);
        let entries = self.netlink.dump(&list).context(OPERATION, address)?;
        let mut deleted = 0;
        for (_, entry) in entries {
            let attrs = Attrs::after(&entry, NFGENMSG);
            let Some(original) = attrs.find(CTA_TUPLE_ORIG) else {
                continue;
            };
            if !takes_part(attrs, &octets) {
                continue;
            }
            // The id keeps a later entry of the same tuple alive.
            let request = Message::new(IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK)
                .raw(&[family, 0, 0, 0])
                .nest(CTA_TUPLE_ORIG, |tuple| tuple.raw(original))
                .some(attrs.find(CTA_ID), |m, id| m.attr(CTA_ID, id))
                .some(attrs.find(CTA_ZONE), |m, zone| m.attr(CTA_ZONE, zone));
            match self.netlink.request(request) {
                Ok(_) => deleted += 1,
                Err(cause) => {
                    let error = Error::new(OPERATION, address, cause);
                    if !error.is_not_found() {
                        return Err(error);
                    }
                }
            }
        }
        Ok(deleted)
    }
}

/// Whether one of the four addresses of both tuples is this one. Addresses
/// have the attributes 1 to 4 (`CTA_IP_V4_SRC` to `CTA_IP_V6_DST`).
fn takes_part(entry: Attrs<'_>, octets: &[u8]) -> bool {
    [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY]
        .into_iter()
        .filter_map(|tuple| Attrs::new(entry.find(tuple)?).find(CTA_TUPLE_IP))
        .flat_map(Attrs::new)
        .any(|(_, value)| value == octets)
}
