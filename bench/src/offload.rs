//! Switching a link's offloads, as `ethtool -K` does, by the kernel's ethtool family of generic netlink
//! (Documentation/networking/ethtool-netlink.rst).
//!
//! In an underlay of veth pairs a 64 KiB segment crosses the wire whole and hides what each packet costs. With
//! segmentation offloads off at the uplink, and receive offload on, packets cross at MTU size as between two NICs.

use anyhow::{Context, Result, bail, ensure};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// Settings of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// As veth gives them: packets cross as large as they are sent
    Veth,
    /// Packets leave at MTU size, and are merged when they arrive
    Merging,
    /// Packets leave at MTU size, and nothing is merged
    Bare,
}

/// Features by the names of `net/ethtool/common.c`.
const SEGMENTATION: [&str; 5] = [
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
];
const RECEIVE: &str = "rx-gro";

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlmsghdr` and `struct genlmsghdr`.
const GENERIC_HEADER: usize = 20;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// Brings the offloads of `link`, a link of this network namespace, into a mode.
pub(crate) fn set(link: &str, mode: Mode) -> Result<()> {
    let socket = connect().context("open a generic netlink socket")?;
    let family = family(&socket).context("find the kernel's ethtool family")?;

    let header = attribute(ETHTOOL_A_HEADER_DEV_NAME, &string(link));
    let bits: Vec<u8> = SEGMENTATION
        .iter()
        .map(|name| (*name, mode == Mode::Veth))
        .chain([(RECEIVE, mode == Mode::Merging)])
        .flat_map(|(name, on)| {
            let mut bit = attribute(ETHTOOL_A_BITSET_BIT_NAME, &string(name));
            if on {
                bit.extend(attribute(ETHTOOL_A_BITSET_BIT_VALUE, &[]));
            }
            attribute(ETHTOOL_A_BITSET_BITS_BIT | NLA_F_NESTED, &bit)
        })
        .collect();
    let wanted = attribute(ETHTOOL_A_BITSET_BITS | NLA_F_NESTED, &bits);
    let mut body = attribute(ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, &header);
    body.extend(attribute(ETHTOOL_A_FEATURES_WANTED | NLA_F_NESTED, &wanted));

    request(&socket, family, ETHTOOL_MSG_FEATURES_SET, &body)
        .with_context(|| format!("set the offloads of link {link}"))?;
    Ok(())
}

fn connect() -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn family(socket: &Socket) -> Result<u16> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, &string("ethtool"));
    let reply = request(socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    attributes(&reply)
        .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
        .and_then(|(_, value)| Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?)))
        .context("a reply without a family")
}

/// Sends a request and reads up to its acknowledgement. Returns the attributes of the answer, if there is one.
fn request(socket: &Socket, family: u16, command: u8, body: &[u8]) -> Result<Vec<u8>> {
    let length = GENERIC_HEADER + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(body);
    socket.send(&message, 0).context("send")?;

    let mut answer = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full().context("receive")?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let field = |at: usize| rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            let length = field(0).map_or(0, u32::from_ne_bytes) as usize;
            ensure!(
                (HEADER..=rest.len()).contains(&length),
                "a message of impossible length {length}"
            );
            let kind = field(4).map_or(0, |bytes: [u8; 4]| u16::from_ne_bytes([bytes[0], bytes[1]]));
            if kind == NLMSG_ERROR {
                match field(HEADER).map_or(0, i32::from_ne_bytes) {
                    0 => return Ok(answer),
                    code => bail!(std::io::Error::from_raw_os_error(-code)),
                }
            }
            answer = rest.get(GENERIC_HEADER..length).unwrap_or_default().to_vec();
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A string as netlink has it, with its final zero.
fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// One attribute, padded to a multiple of 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !NLA_F_NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut bytes = attribute(7, b"abcde");
        bytes.extend(attribute(9 | NLA_F_NESTED, &[1, 2]));
        assert_eq!(bytes.len(), 12 + 8);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(7, b"abcde".as_slice()), (9, [1, 2].as_slice())]);
    }

    #[test]
    fn a_truncated_attribute_ends_the_list() {
        assert_eq!(attributes(&attribute(7, b"abcde")[..6]).count(), 0);
    }
}
