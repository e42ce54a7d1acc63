//! A blocking netlink socket that keeps what the kernel says about errors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};

use crate::error::Cause;
use crate::netns::NetNs;
use crate::wire::{self, Attrs, Header, Message, Messages};

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// In answers: the request's payload is not repeated (`NETLINK_CAP_ACK`).
const NLM_F_CAPPED: u16 = 0x100;
/// In answers: attributes follow (`NETLINK_EXT_ACK`).
const NLM_F_ACK_TLVS: u16 = 0x200;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel fills datagrams of a dump up to the size of the last read and at
/// most 32 KiB; single notifications can be larger, an attribute has 64 KiB.
const DATAGRAM: usize = 128 * 1024;

/// A dump that the kernel or a full buffer interrupts is begun anew that often.
const DUMP_ATTEMPTS: usize = 16;

/// The type of a received message and what follows its header.
pub(crate) type Reply = (u16, Vec<u8>);

/// Sequence number of a request and what came of it.
pub(crate) type Answer = (u32, Result<(), Cause>);

/// A netlink socket bound to the namespace it was opened in.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What a multicast subscriber received.
#[derive(Debug)]
pub(crate) enum Received {
    Messages(Vec<Reply>),
    /// The socket's buffer overflowed (`ENOBUFS`): messages are lost.
    Overrun,
}

// === impl Netlink ===

impl Netlink {
    /// A socket of the calling thread's namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        if protocol == netlink_sys::protocols::NETLINK_ROUTE {
            socket.set_netlink_get_strict_chk(true)?;
        }
        socket.bind_auto()?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    pub(crate) fn open_in(protocol: isize, netns: &NetNs) -> crate::Result<io::Result<Self>> {
        netns.run(|| Self::open(protocol))
    }

    /// Joins a multicast group and asks for a receive buffer of `buffer` bytes.
    pub(crate) fn join(&mut self, groups: &[u32]) -> io::Result<()> {
        groups
            .iter()
            .try_for_each(|group| self.socket.add_membership(*group))
    }

    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        rustix::net::sockopt::set_socket_recv_buffer_size_force(self.as_fd(), bytes)
            .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(self.as_fd(), bytes))
            .map_err(io::Error::from)
    }

    /// Sends one request and waits for its acknowledgement. Returns the
    /// messages that came before it (with `NLM_F_ECHO`, or for a "get").
    pub(crate) fn request(&mut self, message: Message) -> Result<Vec<Reply>, Cause> {
        let sequence = self.next_sequence();
        self.send(&message.finish(sequence)?)?;
        let mut replies = Vec::new();
        loop {
            self.receive(0)?;
            for (header, payload) in Messages::new(&self.buffer) {
                if header.sequence != sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR => {
                        acknowledge(header, payload)?;
                        return Ok(replies);
                    }
                    kind => replies.push((kind, payload.to_vec())),
                }
            }
        }
    }

    /// Sends a dump request and collects all of it, from the beginning again
    /// if the kernel says that it changed meanwhile.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Reply>, Cause> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(replies) = self.try_dump(message.clone())? {
                return Ok(replies);
            }
            tracing::debug!("netlink dump was interrupted, starting over");
        }
        Err(Cause::Errno(io::Error::from_raw_os_error(libc::EINTR)))
    }

    /// Sends ready bytes, which hold any number of messages, and reads all
    /// answers. netlink works on requests within `sendmsg`, so that every
    /// answer there will be is queued when it returns.
    pub(crate) fn batch(&mut self, bytes: &[u8]) -> Result<Vec<Answer>, Cause> {
        self.send(bytes)?;
        let mut answers = Vec::new();
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => {}
                Err(errno) if errno.kind() == io::ErrorKind::WouldBlock => return Ok(answers),
                Err(errno) => return Err(errno.into()),
            }
            for (header, payload) in Messages::new(&self.buffer) {
                if header.kind == NLMSG_ERROR {
                    answers.push((header.sequence, acknowledge(header, payload)));
                }
            }
        }
    }

    /// The next notifications. Blocks unless `MSG_DONTWAIT` is among `flags`.
    pub(crate) fn notifications(&mut self, flags: libc::c_int) -> io::Result<Received> {
        match self.receive(flags) {
            Ok(()) => Ok(Received::Messages(
                Messages::new(&self.buffer)
                    .map(|(header, payload)| (header.kind, payload.to_vec()))
                    .collect(),
            )),
            Err(errno) if errno.raw_os_error() == Some(libc::ENOBUFS) => Ok(Received::Overrun),
            Err(errno) => Err(errno),
        }
    }

    /// `None` if the dump has to be repeated.
    fn try_dump(&mut self, message: Message) -> Result<Option<Vec<Reply>>, Cause> {
        let sequence = self.next_sequence();
        self.send(&message.finish(sequence)?)?;
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            match self.receive(0) {
                Ok(()) => {}
                Err(errno) if errno.raw_os_error() == Some(libc::ENOBUFS) => {
                    interrupted = true;
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            }
            for (header, payload) in Messages::new(&self.buffer) {
                if header.sequence != sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => interrupted = true,
                    NLMSG_ERROR => {
                        acknowledge(header, payload)?;
                        return Ok((!interrupted).then_some(replies));
                    }
                    NLMSG_DONE => {
                        done(header, payload)?;
                        return Ok((!interrupted).then_some(replies));
                    }
                    kind => replies.push((kind, payload.to_vec())),
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        // Zero is what notifications carry.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut grown = false;
        loop {
            match self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                // A message has to fit into the send buffer as a whole.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) && !grown => {
                    rustix::net::sockopt::set_socket_send_buffer_size_force(self.as_fd(), bytes.len())?;
                    grown = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the next datagram that the kernel sent into the buffer.
    fn receive(&mut self, flags: libc::c_int) -> io::Result<()> {
        loop {
            self.buffer.clear();
            let (length, from) = match self.socket.recv_from(&mut self.buffer, flags | libc::MSG_TRUNC) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if length > self.buffer.len() {
                self.buffer.clear();
                self.buffer.reserve(length);
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            if from.port_number() == 0 {
                return Ok(());
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        crate::sys::borrow_fd(&self.socket)
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Netlink").field(&self.socket.as_raw_fd()).finish()
    }
}

/// Reads `NLMSG_ERROR`: a code (0 for success), the request's header, its
/// payload unless capped, then attributes.
fn acknowledge(header: Header, payload: &[u8]) -> Result<(), Cause> {
    let code = code(payload)?;
    let text = (header.flags & NLM_F_ACK_TLVS != 0)
        .then(|| {
            let request = wire::u32_at(payload, 4)? as usize;
            let attributes = if header.flags & NLM_F_CAPPED != 0 {
                4 + wire::HEADER
            } else {
                4 + request
            };
            Attrs::after(payload, attributes)
                .find(NLMSGERR_ATTR_MSG)
                .map(wire::text)
        })
        .flatten();
    outcome(code, text)
}

/// Reads `NLMSG_DONE`: a code, then attributes. Old kernels send no code.
fn done(header: Header, payload: &[u8]) -> Result<(), Cause> {
    if payload.is_empty() {
        return Ok(());
    }
    let code = code(payload)?;
    let text = (header.flags & NLM_F_ACK_TLVS != 0)
        .then(|| Attrs::after(payload, 4).find(NLMSGERR_ATTR_MSG).map(wire::text))
        .flatten();
    outcome(code, text)
}

fn code(payload: &[u8]) -> Result<i32, Cause> {
    payload
        .first_chunk()
        .map(|bytes| i32::from_ne_bytes(*bytes))
        .ok_or(Cause::Malformed("netlink answer without a code"))
}

fn outcome(code: i32, text: Option<String>) -> Result<(), Cause> {
    let errno = || io::Error::from_raw_os_error(code.saturating_neg());
    match (code, text) {
        (0.., None) => Ok(()),
        (0.., Some(text)) => {
            tracing::debug!(text, "the kernel carried out a request with a remark");
            Ok(())
        }
        (_, None) => Err(Cause::Errno(errno())),
        (_, Some(text)) => Err(Cause::Explained { errno: errno(), text }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer as `netlink_ack` builds it.
    fn refusal(code: i32, capped: bool, text: Option<&str>) -> (Header, Vec<u8>) {
        let request = Message::new(16, NLM_F_REQUEST).u32(4, 1450).finish(9).unwrap();
        let mut payload = code.to_ne_bytes().to_vec();
        payload.extend_from_slice(if capped {
            &request[..wire::HEADER]
        } else {
            &request
        });
        let mut flags = if capped { NLM_F_CAPPED } else { 0 };
        if let Some(text) = text {
            flags |= NLM_F_ACK_TLVS;
            let attributes = Message::new(0, 0)
                .u32(2, 20)
                .str(NLMSGERR_ATTR_MSG, text)
                .finish(0)
                .unwrap();
            payload.extend_from_slice(&attributes[wire::HEADER..]);
        }
        let header = Header {
            kind: NLMSG_ERROR,
            flags,
            sequence: 9,
        };
        (header, payload)
    }

    #[test]
    fn the_kernels_words_are_found_with_and_without_the_echoed_request() {
        for capped in [true, false] {
            let (header, payload) = refusal(-libc::EINVAL, capped, Some("Invalid MTU."));
            let cause = acknowledge(header, &payload).unwrap_err();
            assert_eq!(cause.to_string(), "Invalid MTU (Invalid argument (os error 22))");
        }
    }

    #[test]
    fn a_code_without_words_is_still_an_error_and_zero_is_success() {
        let (header, payload) = refusal(-libc::EEXIST, true, None);
        assert!(matches!(acknowledge(header, &payload), Err(Cause::Errno(_))));
        let (header, payload) = refusal(0, true, Some("a remark"));
        assert!(acknowledge(header, &payload).is_ok());
    }

    #[test]
    fn truncated_answers_keep_the_code_or_are_malformed() {
        for capped in [true, false] {
            let (header, payload) = refusal(-libc::EINVAL, capped, Some("Invalid MTU."));
            for cut in 0..payload.len() {
                match acknowledge(header, &payload[..cut]) {
                    Err(Cause::Malformed(_)) => assert!(cut < 4),
                    Err(Cause::Errno(errno) | Cause::Explained { errno, .. }) => {
                        assert_eq!(errno.raw_os_error(), Some(libc::EINVAL));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_dump_that_ends_in_an_error_says_so() {
        let header = Header {
            kind: NLMSG_DONE,
            flags: 0,
            sequence: 1,
        };
        assert!(done(header, &[]).is_ok());
        assert!(done(header, &0i32.to_ne_bytes()).is_ok());
        assert!(done(header, &(-libc::ENOENT).to_ne_bytes()).is_err());
    }
}
