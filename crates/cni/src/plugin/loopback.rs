//! The plugin under the name `loopback`: it brings a sandbox's loopback interface up, as the reference plugin of that
//! name does. containerd calls one for every pod, and not every node has it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;
use weft_model::{UserError, codes};

use super::{Outcome, netns, read_config, versions};
use crate::env::Invocation;
use crate::spec::{AddResult, Failure, Interface, Ip, NetConf, Version, code};

/// `LOOPBACK_IFINDEX` of the kernel's include/net/flow.h: the first interface of every network namespace.
const INDEX: u32 = 1;

/// `IFF_UP` of linux/if.h.
const UP: u32 = 1;

/// `RTM_NEWLINK` and `RTM_GETLINK` of linux/rtnetlink.h.
const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;

/// `NLMSG_ERROR`, and `NLM_F_REQUEST | NLM_F_ACK`, of linux/netlink.h.
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;

/// Length of a `struct nlmsghdr`, and with a `struct ifinfomsg` behind it.
const HEAD: usize = 16;
const MESSAGE: usize = HEAD + 16;

/// Serves one call: `lookup` finds environment variables, `stdin` has the configuration.
pub fn run(lookup: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Outcome {
    let invocation = match Invocation::from_env(lookup) {
        Ok(Invocation::About) => return Outcome::about(),
        Ok(Invocation::Version) => return Outcome::success(Some(versions())),
        Ok(invocation) => invocation,
        Err(failure) => return Outcome::failure(&failure, Version::LATEST),
    };
    let conf = match read_config(stdin) {
        Ok(conf) => conf,
        Err(failure) => return Outcome::failure(&failure, Version::LATEST),
    };
    match serve(&conf, invocation) {
        Ok(answer) => Outcome::success(answer),
        Err(failure) => Outcome::failure(&failure, conf.version),
    }
}

fn serve(conf: &NetConf, invocation: Invocation) -> Result<Option<serde_json::Value>, Failure> {
    match invocation {
        Invocation::Add(sandbox) => {
            let previous = conf.prev_result()?;
            let (file, _) = netns::open(&sandbox.netns, sandbox.netns_override)?;
            in_sandbox(&file, bring_up).map_err(|error| unusable(&format!("bring lo up: {error}")))?;
            let result = previous.unwrap_or_else(|| result(&sandbox.netns.to_string_lossy()));
            let json = result
                .to_json(conf.version)
                .map_err(|error| unusable(&error.to_string()))?;
            Ok(Some(json))
        }
        Invocation::Check(sandbox) => {
            let (file, _) = netns::open(&sandbox.netns, sandbox.netns_override)?;
            match in_sandbox(&file, is_up) {
                Ok(true) => Ok(None),
                Ok(false) => Err(unusable("lo is down")),
                Err(error) => Err(unusable(&format!("look at lo: {error}"))),
            }
        }
        // It goes with its namespace. There is nothing that could be wrong with it, and nothing to collect.
        Invocation::Del { .. } | Invocation::Gc | Invocation::Status => Ok(None),
        Invocation::About | Invocation::Version => Ok(None),
    }
}

/// What the reference plugin answers.
fn result(sandbox: &str) -> AddResult {
    let address = |net: IpNet| Ip {
        address: net,
        gateway: None,
        interface: Some(0),
    };
    let v4 = Ipv4Net::new(Ipv4Addr::LOCALHOST, 8).map(IpNet::V4);
    let v6 = Ipv6Net::new(Ipv6Addr::LOCALHOST, 128).map(IpNet::V6);
    AddResult {
        interfaces: vec![Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        }],
        ips: [v4, v6].into_iter().flatten().map(address).collect(),
        ..AddResult::default()
    }
}

/// This process has one thread and ends after the call: it does not come back.
fn in_sandbox<T>(netns: &File, job: fn() -> io::Result<T>) -> io::Result<T> {
    rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    job()
}

fn bring_up() -> io::Result<()> {
    ask(NEWLINK, UP).map(drop)
}

fn is_up() -> io::Result<bool> {
    let body = ask(GETLINK, 0)?;
    // The flags of `struct ifinfomsg`.
    let flags = body.get(8..).and_then(|rest| rest.first_chunk());
    let flags = flags.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(u32::from_ne_bytes(*flags) & UP != 0)
}

/// One request about the loopback interface, and the body of the kernel's answer: a link, or that a change was made.
fn ask(request: u16, flags: u32) -> io::Result<Vec<u8>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is 0.
        None,
    )?;
    let wanted = if request == NEWLINK {
        REQUEST | ACK
    } else {
        REQUEST
    };
    let mut message = Vec::with_capacity(MESSAGE);
    // struct nlmsghdr: length, type, flags, sequence, port.
    message.extend(u32::try_from(MESSAGE).unwrap_or_default().to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend(wanted.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family and padding, type, index, flags, mask of the flags that change.
    message.extend([0; 4]);
    message.extend(INDEX.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = vec![0; 8192];
    let (length, _) = rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    answer.truncate(length);
    let kind = answer.get(4..6).and_then(|kind| kind.first_chunk());
    let kind = u16::from_ne_bytes(*kind.ok_or(io::ErrorKind::UnexpectedEof)?);
    let body = answer.split_off(HEAD.min(answer.len()));
    match (kind, body.first_chunk()) {
        (ERROR, Some(code)) if i32::from_ne_bytes(*code) != 0 => {
            Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*code)))
        }
        _ => Ok(body),
    }
}

fn unusable(message: &str) -> Failure {
    let next = "ip -n NAMESPACE link show lo";
    Failure::new(code::NETNS, &UserError::new(codes::CNI_NETNS, message, next))
}
