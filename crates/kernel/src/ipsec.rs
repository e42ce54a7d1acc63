//! What a namespace's IPsec policies ask for (`NETLINK_XFRM`). Packets that programs send or take past the node's stack
//! meet no such policy.

use netlink_sys::protocols::NETLINK_XFRM;

use crate::error::{Cause, Context, Error, Result};
use crate::netlink::{NLM_F_ACK, NLM_F_REQUEST, Netlink};
use crate::sysctl::{self, Key};
use crate::wire::{self, Attrs, Message};

// include/uapi/linux/xfrm.h
const XFRM_MSG_NEWSPDINFO: u16 = 0x24;
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
/// Also the type of its answer.
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
const XFRMA_SPD_INFO: u16 = 1;
const XFRM_USERPOLICY_BLOCK: u8 = 1;

/// `struct xfrm_userpolicy_default`, without the padding that the kernel adds to messages.
const USERPOLICY_DEFAULT: usize = 3;

/// A socket to the policy database of the namespace that it was opened in.
#[derive(Debug)]
pub struct Ipsec {
    /// `None` where the kernel was built without IPsec.
    netlink: Option<Netlink>,
}

/// The policy database (RFC 4301 section 4.4.1), summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Policies for packets that arrive, leave or are forwarded; those of single sockets are not counted.
    pub count: u32,
    /// Packets that no policy speaks of are dropped in at least one direction.
    pub blocks_others: bool,
}

// === impl Ipsec ===

impl Ipsec {
    /// A socket of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel has IPsec and does not tell its policies: built, or run, without `CONFIG_XFRM_USER`.
    pub fn open() -> Result<Self> {
        match Netlink::open(NETLINK_XFRM) {
            Ok(netlink) => Ok(Self {
                netlink: Some(netlink),
            }),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)
                ) && !is_built_in()? =>
            {
                Ok(Self { netlink: None })
            }
            Err(error) => Err(error).context("open", "IPsec policy socket"),
        }
    }

    /// The policies there are now.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn policies(&mut self) -> Result<Policies> {
        const OPERATION: &str = "count";
        const WHAT: &str = "IPsec policies";
        let Some(netlink) = &mut self.netlink else {
            return Ok(Policies::default());
        };
        let mut ask = |kind: u16, answer: u16, payload: &[u8]| {
            let message = Message::new(kind, NLM_F_REQUEST | NLM_F_ACK).raw(payload);
            let replies = netlink.request(message)?;
            replies
                .into_iter()
                .find_map(|(found, payload)| (found == answer).then_some(payload))
                .ok_or(Cause::Malformed("no answer"))
        };
        let info =
            ask(XFRM_MSG_GETSPDINFO, XFRM_MSG_NEWSPDINFO, &0_u32.to_ne_bytes()).context(OPERATION, WHAT)?;
        let count = count(&info).ok_or_else(|| Error::new(OPERATION, WHAT, Cause::Malformed("too short")))?;
        let defaults = ask(XFRM_MSG_GETDEFAULT, XFRM_MSG_GETDEFAULT, &[0; 4]).context(OPERATION, WHAT)?;
        let blocks_others = defaults
            .get(..USERPOLICY_DEFAULT)
            .ok_or_else(|| Error::new(OPERATION, WHAT, Cause::Malformed("too short")))?
            .contains(&XFRM_USERPOLICY_BLOCK);
        Ok(Policies { count, blocks_others })
    }
}

// === private ===

/// Whether the kernel was built with IPsec (`CONFIG_XFRM`), whose parameter this is.
fn is_built_in() -> Result<bool> {
    match sysctl::read_current(&Key::new("net/core/xfrm_acq_expires")?) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads `XFRM_MSG_NEWSPDINFO`: flags, then attributes. Policies of namespaces come first, sockets' after them
/// (`struct xfrmu_spdinfo`).
fn count(payload: &[u8]) -> Option<u32> {
    const FLAGS: usize = 4;
    let info = Attrs::after(payload, FLAGS).find(XFRMA_SPD_INFO)?;
    [0, 4, 8]
        .into_iter()
        .try_fold(0_u32, |sum, at| Some(sum.saturating_add(wire::u32_at(info, at)?)))
}
