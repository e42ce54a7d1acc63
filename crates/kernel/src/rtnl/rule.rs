//! Rules of routing.

use super::consts::*;
use super::route::MAIN_TABLE;
use super::{Rtnl, parse_all};
use crate::error::{Error, Result};
use crate::netlink::{NLM_F_DUMP, NLM_F_REQUEST};
use crate::wire::{self, Attrs, Message};

/// `struct fib_rule_hdr`.
const RULE: usize = 12;
/// Where in it the length of the destination's prefix is.
const DST_LEN: usize = 1;
/// Where in it the action is.
const ACTION: usize = 7;

/// The rules that every namespace begins with, as `ip rule` shows them: priority and table.
const FROM_THE_BEGINNING: [(u32, u32); 3] = [(0, 255), (32_766, MAIN_TABLE), (32_767, 253)];

/// What the rules for IPv4 packets look at beside those that every namespace begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// There are others: then not only the destination may decide on the way.
    pub others: bool,
    /// One of them speaks of destinations (`ip rule add to …`): two that share all routes need not share the way.
    pub of_destinations: bool,
}

// === impl Rtnl ===

impl Rtnl {
    /// What the rules for IPv4 packets look at.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rules(&mut self) -> Result<Rules> {
        const WHAT: &str = "routing rules";
        let mut header = [0; RULE];
        header[0] = libc::AF_INET as u8;
        let message = Message::new(RTM_GETRULE, NLM_F_REQUEST | NLM_F_DUMP).raw(&header);
        let replies = match self
            .dump(&message)
            .map_err(|cause| Error::new("list", WHAT, cause))
        {
            // A kernel without rules (CONFIG_IP_MULTIPLE_TABLES).
            Err(error) if error.is_unsupported() => return Ok(Rules::default()),
            replies => replies?,
        };
        let rules = parse_all(replies, RTM_NEWRULE, WHAT, Rules::of)?;
        Ok(Rules {
            others: rules.iter().any(|rule| rule.others),
            of_destinations: rules.iter().any(|rule| rule.of_destinations),
        })
    }
}

// === impl Rules ===

impl Rules {
    /// What a single one looks at.
    fn of(payload: &[u8]) -> Option<Self> {
        let header = payload.first_chunk::<RULE>()?;
        let attrs = Attrs::after(payload, RULE);
        let number = |kind| attrs.find(kind).and_then(|value| wire::u32_at(value, 0));
        let rule = (number(FRA_PRIORITY).unwrap_or(0), number(FRA_TABLE).unwrap_or(0));
        Some(Self {
            others: header[ACTION] != FR_ACT_TO_TBL || !FROM_THE_BEGINNING.contains(&rule),
            of_destinations: header[DST_LEN] != 0,
        })
    }
}
