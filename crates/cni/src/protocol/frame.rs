//! Frames on a stream socket, each exchange bounded by one deadline.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MAX_FRAME, Passed, ProtocolError, VERSION};

const MAGIC: [u8; 4] = *b"weft";
const HEADER: usize = 12;

/// The end of the time an exchange may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    start: Instant,
    allowed: Duration,
}

/// Sends one frame; a descriptor travels with its first byte.
pub(super) fn send(
    stream: &UnixStream,
    body: &impl Serialize,
    passed: Passed<'_>,
    deadline: Deadline,
    operation: &'static str,
) -> Result<(), ProtocolError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, body)?;
    let length = u32::try_from(frame.len() - HEADER)
        .ok()
        .filter(|length| *length <= MAX_FRAME)
        .ok_or(ProtocolError::TooLong(frame.len() - HEADER))?;
    frame[..4].copy_from_slice(&MAGIC);
    frame[4..6].copy_from_slice(&VERSION.to_be_bytes());
    frame[8..12].copy_from_slice(&length.to_be_bytes());

    let mut sent = 0;
    if let Some(fd) = passed {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sent = retry(deadline, operation, || {
            stream.set_write_timeout(Some(deadline.left()))?;
            rustix::net::sendmsg(stream, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL)
                .map_err(io::Error::from)
        })?;
    }
    while sent < frame.len() {
        sent += retry(deadline, operation, || {
            stream.set_write_timeout(Some(deadline.left()))?;
            (&*stream).write(&frame[sent..])
        })?;
    }
    Ok(())
}

/// Receives one frame and the descriptor that came with it, close-on-exec.
pub(super) fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
    deadline: Deadline,
    operation: &'static str,
) -> Result<(T, Option<OwnedFd>), ProtocolError> {
    let mut header = [0; HEADER];
    let mut passed = None;
    let mut got = 0;
    while got < HEADER {
        let (bytes, fd) = retry(deadline, operation, || {
            stream.set_read_timeout(Some(deadline.left()))?;
            receive_with_descriptor(stream, &mut header[got..])
        })?;
        if bytes == 0 {
            return Err(ProtocolError::Closed {
                operation,
                got,
                want: HEADER,
            });
        }
        got += bytes;
        passed = fd.or(passed);
    }

    let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3] = header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(ProtocolError::Magic([m0, m1, m2, m3]));
    }
    let version = u16::from_be_bytes([v0, v1]);
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if length > MAX_FRAME {
        return Err(ProtocolError::TooLong(length as usize));
    }

    let body = receive_body(stream, length as usize, deadline, operation)?;
    if version != VERSION {
        return Err(ProtocolError::Version(version));
    }
    Ok((serde_json::from_slice(&body)?, passed))
}

/// The body is gathered as it arrives: a peer that announces much and sends
/// little costs little.
fn receive_body(
    stream: &UnixStream,
    length: usize,
    deadline: Deadline,
    operation: &'static str,
) -> Result<Vec<u8>, ProtocolError> {
    let mut body = Vec::new();
    let mut chunk = [0; 16 << 10];
    while body.len() < length {
        let want = chunk.len().min(length - body.len());
        let bytes = retry(deadline, operation, || {
            stream.set_read_timeout(Some(deadline.left()))?;
            (&*stream).read(&mut chunk[..want])
        })?;
        if bytes == 0 {
            return Err(ProtocolError::Closed {
                operation,
                got: body.len(),
                want: length,
            });
        }
        body.extend_from_slice(&chunk[..bytes]);
    }
    Ok(body)
}

fn receive_with_descriptor(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    // Room for one: the kernel closes any further descriptors itself.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((received.bytes, passed))
}

/// Runs one system call until it gives a result or the time is over.
fn retry<T>(
    deadline: Deadline,
    operation: &'static str,
    mut call: impl FnMut() -> io::Result<T>,
) -> Result<T, ProtocolError> {
    loop {
        if deadline.is_over() {
            return Err(ProtocolError::TimedOut {
                operation,
                waited: deadline.allowed,
            });
        }
        match call() {
            Ok(value) => return Ok(value),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(source) => return Err(ProtocolError::Io { operation, source }),
        }
    }
}

// === impl Deadline ===

impl Deadline {
    pub(super) fn after(allowed: Duration) -> Self {
        Self {
            start: Instant::now(),
            allowed,
        }
    }

    /// Never zero: a socket takes a zero time-out for "wait for ever".
    pub(super) fn left(&self) -> Duration {
        self.allowed
            .saturating_sub(self.start.elapsed())
            .max(Duration::from_millis(1))
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() >= self.allowed
    }
}
