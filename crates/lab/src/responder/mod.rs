//! What answers on a pod's ports: there are no images in the lab, so every declared port is served from here.
//!
//! TCP ports speak HTTP/1.1 to a client whose first bytes are an HTTP request, and echo everything else. UDP ports
//! answer `hostname`, `clientip` and `echo TEXT`, and echo everything else. SCTP ports behave as TCP ports.
//! Sockets are made inside the pod's network namespace and then served by the caller's runtime: a pod costs neither
//! a thread nor a process.

pub mod client;
mod tcp;
#[cfg(test)]
pub(crate) mod testing;
mod udp;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use weft_kernel::NetNs;

use crate::kubelet::pod::{Port, Protocol};

/// Connections that may wait to be accepted on one port.
const BACKLOG: i32 = 1024;

/// Who answers: what `/hostname` and its like report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the pod.
    pub pod: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the node.
    pub node: String,
}

/// The sockets of one pod, being served; dropping it closes them all.
#[derive(Debug)]
pub struct Responder {
    tasks: JoinSet<()>,
    refused: Vec<Refused>,
}

/// A port that could not be opened.
#[derive(Debug)]
pub struct Refused {
    /// The port.
    pub port: Port,
    /// Why.
    pub error: io::Error,
}

enum Opened {
    Stream(std::net::TcpListener),
    Datagram(std::net::UdpSocket),
}

// === impl Responder ===

impl Responder {
    /// Opens `ports` in `netns` and serves them until dropped. Ports that can't be opened are reported by
    /// [`refused`](Self::refused); the others are served all the same.
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub async fn start(
        netns: Arc<NetNs>,
        identity: Identity,
        ports: Vec<Port>,
    ) -> Result<Self, weft_kernel::Error> {
        let mut tasks = JoinSet::new();
        let mut refused = Vec::new();
        if ports.is_empty() {
            return Ok(Self { tasks, refused });
        }
        let open = move || {
            netns.run(|| {
                ports
                    .into_iter()
                    .map(|port| (port, open(port)))
                    .collect::<Vec<_>>()
            })
        };
        let opened = tokio::task::spawn_blocking(open)
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let identity = Arc::new(identity);
        for (port, socket) in opened {
            let identity = Arc::clone(&identity);
            let served = socket.and_then(|socket| {
                match socket {
                    Opened::Stream(listener) => {
                        tasks.spawn(tcp::serve(TcpListener::from_std(listener)?, identity));
                    }
                    Opened::Datagram(socket) => {
                        tasks.spawn(udp::serve(UdpSocket::from_std(socket)?, identity));
                    }
                }
                Ok(())
            });
            if let Err(error) = served {
                refused.push(Refused { port, error });
            }
        }
        Ok(Self { tasks, refused })
    }

    /// The ports that could not be opened.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Closes all sockets and waits until they are closed.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Opens the socket of a port in the calling thread's namespace.
fn open(port: Port) -> io::Result<Opened> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.number));
    let (kind, protocol) = match port.protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
        Protocol::Sctp => (Type::STREAM, socket2::Protocol::SCTP),
    };
    let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if port.protocol == Protocol::Udp {
        socket.bind(&any.into())?;
        return Ok(Opened::Datagram(socket.into()));
    }
    socket.set_reuse_address(true)?;
    socket.bind(&any.into())?;
    socket.listen(BACKLOG)?;
    Ok(Opened::Stream(socket.into()))
}

#[cfg(test)]
mod tests;
