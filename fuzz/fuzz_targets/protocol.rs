//! Bytes on the agent's socket: a request or an error, never a wait for more than the time allowed.

#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use weft_cni::protocol::{self, VERSION};

#[derive(Arbitrary, Debug)]
enum Sent {
    Raw(Vec<u8>),
    /// With a right header, and one descriptor or none.
    Framed(Vec<u8>),
}

/// More does not fit into a socket that nobody reads yet.
const LONGEST: usize = 64 << 10;

fuzz_target!(|sent: Sent| {
    let bytes = match sent {
        Sent::Raw(bytes) => bytes,
        Sent::Framed(body) => {
            let mut frame = b"weft".to_vec();
            frame.extend(VERSION.to_be_bytes());
            frame.extend([0, 0]);
            frame.extend(u32::try_from(body.len()).expect("a short body").to_be_bytes());
            frame.extend(body);
            frame
        }
    };
    if bytes.len() > LONGEST {
        return;
    }
    let (mut plugin, agent) = UnixStream::pair().expect("a pair of sockets");
    plugin.write_all(&bytes).expect("room in the socket");
    plugin.shutdown(Shutdown::Write).expect("the socket is open");
    if let Ok((request, netns)) = protocol::read_request(&agent, Duration::from_secs(5)) {
        // Nobody sent a descriptor.
        assert!(netns.is_none());
        assert!(!matches!(request.command.name(), "ADD" | "CHECK"), "{request:?}");
    }
});
