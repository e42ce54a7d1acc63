//! The other side of the socket.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use weft_cni::intent::{Intent, Intents};
use weft_cni::protocol::{self, Attached, PodAddress, Reply, Request};
use weft_model::Mac;

pub(crate) const AMPLE: Duration = Duration::from_secs(30);

/// A node's directory and, unless nobody is at home, somebody at its socket.
pub(crate) struct FakeAgent {
    node: TempDir,
    requests: Receiver<(Request, Option<OwnedFd>)>,
}

// === impl FakeAgent ===

impl FakeAgent {
    /// Answers every request with what `handler` says to it, many at once.
    pub(crate) fn answering(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(move |stream, requests| {
            protocol::authorize(&stream).unwrap();
            let (request, netns) = protocol::read_request(&stream, AMPLE).unwrap();
            let reply = handler(&request);
            requests.send((request, netns)).unwrap();
            // The plugin may be gone: some tests are about that.
            let _ = protocol::write_reply(&stream, &reply, AMPLE);
        })
    }

    /// Reads every request and answers with these bytes, then closes the connection.
    pub(crate) fn saying(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::with(move |mut stream, requests| {
            requests
                .send(protocol::read_request(&stream, AMPLE).unwrap())
                .unwrap();
            let _ = stream.write_all(&bytes);
        })
    }

    /// Accepts and reads, and never answers.
    pub(crate) fn frozen() -> Self {
        Self::with(|stream, requests| {
            requests
                .send(protocol::read_request(&stream, AMPLE).unwrap())
                .unwrap();
            // Until the plugin has given up.
            stream.set_read_timeout(None).unwrap();
            let _ = (&stream).read(&mut [0]);
        })
    }

    /// No socket at all.
    pub(crate) fn absent() -> Self {
        Self {
            node: tempfile::tempdir().unwrap(),
            requests: channel().1,
        }
    }

    /// A socket that nobody listens at, as a killed agent leaves it.
    pub(crate) fn killed() -> Self {
        let absent = Self::absent();
        drop(protocol::bind(&absent.socket()).unwrap());
        absent
    }

    /// A socket whose queue of connections is full, as an agent that hangs has it.
    pub(crate) fn full() -> (Self, Vec<UnixStream>, UnixListener) {
        let agent = Self::absent();
        let listener = protocol::bind(&agent.socket()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let first = UnixStream::connect(agent.socket()).unwrap();
        (agent, vec![first], listener)
    }

    fn with(serve: impl Fn(UnixStream, Sender<(Request, Option<OwnedFd>)>) + Send + Sync + 'static) -> Self {
        let node = tempfile::tempdir().unwrap();
        let listener = protocol::bind(&node.path().join("run/agent.sock")).unwrap();
        let (sender, requests) = channel();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (serve, sender) = (Arc::clone(&serve), sender.clone());
                thread::spawn(move || serve(stream.unwrap(), sender));
            }
        });
        Self { node, requests }
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.node.path().to_owned()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.node.path().join("run/agent.sock")
    }

    pub(crate) fn intent_dir(&self) -> PathBuf {
        self.node.path().join("lib/intents")
    }

    /// What the plugin left, all of it readable.
    pub(crate) fn intents(&self) -> Vec<Intent> {
        let pending = Intents::at(self.intent_dir()).pending().unwrap();
        assert_eq!(pending.quarantined, [""; 0].map(PathBuf::from));
        pending.intents
    }

    /// The requests that have come since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.try_iter().map(|(request, _)| request).collect()
    }

    /// The only request so far, with its descriptor.
    pub(crate) fn request(&self) -> (Request, Option<OwnedFd>) {
        let mut requests: Vec<_> = self.requests.try_iter().collect();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }
}

/// What an ADD makes here.
pub(crate) fn attached() -> Attached {
    Attached {
        host_if_name: "weft0123456789".to_owned(),
        host_mac: Mac([2, 0, 0, 0, 0, 1]),
        pod_mac: Mac([2, 0, 0, 0, 0, 2]),
        mtu: 1450,
        addresses: vec![PodAddress {
            address: [10, 244, 0, 5].into(),
            gateway: [169, 254, 1, 1].into(),
        }],
    }
}

/// Success, whatever is asked for.
pub(crate) fn content(request: &Request) -> Reply {
    match request.command {
        protocol::Command::Add(_) => Reply::Added(attached()),
        _ => Reply::Done,
    }
}
