//! Clients and servers that answer with what they were sent.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use weft_kernel::{NetNs, sockets};

use crate::support::PATIENCE;

/// A UDP client and the server that answers it, one flow for as long as it lives.
pub(crate) struct Echo {
    client: UdpSocket,
    server: UdpSocket,
}

// === impl Echo ===

impl Echo {
    pub(crate) fn start(client: &NetNs, server: &NetNs, listen: SocketAddrV4, to: SocketAddrV4) -> Self {
        let server = sockets::udp_socket(server, listen.into()).unwrap();
        let client = sockets::udp_socket(client, (Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        // Connected, so that only an answer from where the request went counts.
        client.connect(to).unwrap();
        Self { client, server }
    }

    pub(crate) fn round_trip(&self) {
        const REQUEST: &[u8] = b"still there?";
        self.client.send(REQUEST).unwrap();
        let mut buffer = [0; 64];
        loop {
            let (length, peer) = self.server.recv_from(&mut buffer).unwrap();
            if buffer[..length] == *REQUEST {
                self.server.send_to(REQUEST, peer).unwrap();
                break;
            }
        }
        let length = self.client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], REQUEST);
    }
}

/// A megabyte in which no part looks like another.
pub(crate) fn megabyte() -> Vec<u8> {
    (0..1_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Sends `request` bytes over TCP and gets them back. Returns the address that the server saw.
pub(crate) fn tcp_echo(
    client: &NetNs,
    server: &NetNs,
    listen: SocketAddrV4,
    to: SocketAddrV4,
    request: &[u8],
) -> io::Result<SocketAddr> {
    let listener = sockets::tcp_listener(server, listen.into()).map_err(io::Error::from)?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || -> io::Result<SocketAddr> {
            let (mut stream, peer) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(peer),
                    length => stream.write_all(&buffer[..length])?,
                }
            }
        });
        let exchange = || -> io::Result<()> {
            let stream = sockets::tcp_connect(client, to.into(), PATIENCE).map_err(io::Error::from)?;
            exchange(&stream, request)
        };
        let outcome = exchange();
        if outcome.is_err() {
            // Nobody may have come: let the server go.
            let _ = sockets::tcp_connect(server, listen.into(), PATIENCE);
        }
        let peer = serving.join().unwrap();
        outcome?;
        peer
    })
}

fn exchange(mut stream: &TcpStream, request: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> io::Result<()> {
            let mut stream = stream;
            stream.write_all(request)?;
            stream.shutdown(std::net::Shutdown::Write)
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        writing.join().unwrap()?;
        if answer == request {
            Ok(())
        } else {
            Err(io::Error::other("the answer differs from the request"))
        }
    })
}

/// Sends a datagram and gets it back. Returns the address that the server saw.
pub(crate) fn udp_echo(
    client: &NetNs,
    server: &NetNs,
    listen: SocketAddrV4,
    to: SocketAddrV4,
    request: &[u8],
) -> io::Result<SocketAddr> {
    let server = sockets::udp_socket(server, listen.into()).map_err(io::Error::from)?;
    let client = sockets::udp_socket(client, (Ipv4Addr::UNSPECIFIED, 0).into()).map_err(io::Error::from)?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    // Connected, so that only an answer from where the request went counts.
    client.connect(to)?;
    client.send(request)?;
    let mut buffer = vec![0; 65_536];
    let (length, peer) = server.recv_from(&mut buffer)?;
    server.send_to(&buffer[..length], peer)?;
    let length = client.recv(&mut buffer)?;
    if buffer[..length] == *request {
        Ok(peer)
    } else {
        Err(io::Error::other("the answer differs from the request"))
    }
}
