//! Parameters of links, all of a namespace at once.

use std::collections::BTreeMap;

use super::consts::*;
use super::{Rtnl, parse_all};
use crate::error::{Error, Result};
use crate::netlink::{NLM_F_DUMP, NLM_F_REQUEST};
use crate::wire::{self, Attrs, Message};

/// `struct netconfmsg`.
const NETCONFMSG: usize = 1;

// === impl Rtnl ===

impl Rtnl {
    /// `net.ipv4.conf.*.rp_filter` of all links, by index, as they are set: what is in force is the larger one of a link's
    /// and `all`'s.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rp_filters(&mut self) -> Result<BTreeMap<u32, u32>> {
        const WHAT: &str = "parameters of links";
        let message = Message::new(RTM_GETNETCONF, NLM_F_REQUEST | NLM_F_DUMP).raw(&[libc::AF_INET as u8]);
        let replies = self
            .dump(&message)
            .map_err(|cause| Error::new("list", WHAT, cause))?;
        let found = parse_all(replies, RTM_NEWNETCONF, WHAT, |payload| {
            let attrs = Attrs::after(payload, NETCONFMSG);
            let number = |kind| wire::u32_at(attrs.find(kind)?, 0);
            Some((number(NETCONFA_IFINDEX)?, number(NETCONFA_RP_FILTER)?))
        })?;
        Ok(found
            .into_iter()
            .filter(|(index, _)| ![NETCONFA_IFINDEX_ALL, NETCONFA_IFINDEX_DEFAULT].contains(index))
            .collect())
    }
}
