//! Programs as direct-action filters of a clsact qdisc, for kernels without TCX (before 6.6).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::Program;
use super::attach::Hook;
use crate::error::Cause;
use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, Netlink, Reply};
use crate::wire::{Attrs, Message, text, u32_at};

// include/uapi/linux/rtnetlink.h
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// Length of `struct tcmsg`.
const TCMSG: usize = 20;

// include/uapi/linux/pkt_sched.h
const CLSACT: &str = "clsact";
const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_CLSACT_INGRESS: u32 = 0xffff_fff2;
const TC_H_CLSACT_EGRESS: u32 = 0xffff_fff3;
const CLSACT_HANDLE: u32 = 0xffff_0000;

// include/uapi/linux/pkt_cls.h
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Priority and handle of our filters: first in line, and the same always, so that a filter is replaced by its name.
const PRIORITY: u32 = 1;
const HANDLE: u32 = 0x5745;

/// Makes `program` the filter at a hook, in place of the one before, if any. Adds the qdisc where there is none.
pub(super) fn set(ifindex: u32, hook: Hook, name: &str, program: BorrowedFd<'_>) -> Result<(), Cause> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let qdisc = Message::new(
        RTM_NEWQDISC,
        NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
    )
    .raw(&tcmsg(ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0))
    .str(TCA_KIND, CLSACT);
    tolerate(netlink.request(qdisc), &[libc::EEXIST])?;
    let filter = Message::new(RTM_NEWTFILTER, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE)
        .raw(&our_filter(ifindex, hook))
        .str(TCA_KIND, "bpf")
        .nest(TCA_OPTIONS, |options| {
            options
                .u32(TCA_BPF_FD, program.as_raw_fd().cast_unsigned())
                .str(TCA_BPF_NAME, name)
                .u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
        });
    netlink.request(filter).map(drop)
}

/// Removes our filter at a hook. That there is none, or no such interface, is no error.
pub(super) fn remove(ifindex: u32, hook: Hook) -> Result<(), Cause> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let filter = Message::new(RTM_DELTFILTER, NLM_F_REQUEST | NLM_F_ACK)
        .raw(&our_filter(ifindex, hook))
        .str(TCA_KIND, "bpf");
    // Without the qdisc the kernel knows no such parent: EINVAL.
    tolerate(
        netlink.request(filter),
        &[libc::ENOENT, libc::ENODEV, libc::EINVAL],
    )
}

/// Questions about filters, over one socket. Of the namespace it was opened in.
#[derive(Debug)]
pub(super) struct Filters {
    netlink: Netlink,
}

// === impl Filters ===

impl Filters {
    pub(super) fn open() -> Result<Self, Cause> {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        Ok(Self { netlink })
    }

    /// Interfaces with a clsact qdisc, ours or another's: no other has filters of ours.
    pub(super) fn interfaces(&mut self) -> Result<BTreeSet<u32>, Cause> {
        let qdiscs = self.dump(RTM_GETQDISC, &tcmsg(0, 0, 0, 0))?;
        let with_clsact = qdiscs.iter().filter_map(|(_, payload)| {
            let kind = Attrs::after(payload, TCMSG).find(TCA_KIND).map(text)?;
            u32_at(payload, 4).filter(|_| kind == CLSACT)
        });
        Ok(with_clsact.collect())
    }

    /// Which of our programs is the filter at a hook.
    pub(super) fn program(&mut self, ifindex: u32, hook: Hook) -> Result<Option<Program>, Cause> {
        let filters = self.dump(RTM_GETTFILTER, &tcmsg(ifindex, 0, parent(hook), 0))?;
        Ok(filters.iter().find_map(|(_, payload)| {
            let ours = u32_at(payload, 8)? == HANDLE && u32_at(payload, 16)? >> 16 == PRIORITY;
            let options = Attrs::after(payload, TCMSG).find(TCA_OPTIONS).filter(|_| ours)?;
            Program::by_name(&text(Attrs::new(options).find(TCA_BPF_NAME)?))
        }))
    }

    fn dump(&mut self, kind: u16, header: &[u8; TCMSG]) -> Result<Vec<Reply>, Cause> {
        let request = Message::new(kind, NLM_F_REQUEST | NLM_F_DUMP).raw(header);
        self.netlink.dump(&request)
    }
}

fn our_filter(ifindex: u32, hook: Hook) -> [u8; TCMSG] {
    let protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
    tcmsg(ifindex, HANDLE, parent(hook), PRIORITY << 16 | protocol)
}

const fn parent(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => TC_H_CLSACT_INGRESS,
        Hook::Egress => TC_H_CLSACT_EGRESS,
    }
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (at, word) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn tolerate<T>(answer: Result<T, Cause>, expected: &[i32]) -> Result<(), Cause> {
    match answer {
        Err(Cause::Errno(errno) | Cause::Explained { errno, .. }) if is_one_of(&errno, expected) => Ok(()),
        other => other.map(drop),
    }
}

fn is_one_of(errno: &io::Error, expected: &[i32]) -> bool {
    errno
        .raw_os_error()
        .is_some_and(|errno| expected.contains(&errno))
}
