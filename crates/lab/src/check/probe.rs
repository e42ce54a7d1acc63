//! Short conversations between namespaces, with what each side saw of the other.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use socket2::SockRef;
use weft_kernel::NetNs;
use weft_kernel::sockets;

use super::Trouble;

/// How long something that has to arrive may take.
pub(super) const ARRIVES: Duration = Duration::from_secs(2);

/// How long to wait for something that must not arrive.
pub(super) const NEVER: Duration = Duration::from_millis(400);

/// What a server saw of a connection, and how fast answers were.
pub(super) struct Met {
    /// The client's address as the server saw it.
    pub(super) source: Ipv4Addr,
    /// Median time of a byte there and back.
    pub(super) round_trip: Duration,
}

/// How many bytes go back and forth to measure a round trip.
const ROUNDS: usize = 21;

/// Connects by TCP from one namespace to a listener in another, and exchanges a few bytes.
pub(super) fn tcp(from: &NetNs, to: &NetNs, address: Ipv4Addr) -> Result<Met, Trouble> {
    let (mut client, mut server, source) = connect(from, to, address)?;
    let mut times = Vec::with_capacity(ROUNDS);
    let mut byte = [0];
    for _ in 0..ROUNDS {
        let began = Instant::now();
        client.write_all(&[1])?;
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(Met {
        source,
        round_trip: times[ROUNDS / 2],
    })
}

/// A TCP connection between two namespaces: the client's end, the server's, and the source the server saw.
pub(super) fn connect(
    from: &NetNs,
    to: &NetNs,
    address: Ipv4Addr,
) -> Result<(TcpStream, TcpStream, Ipv4Addr), Trouble> {
    let listener = listen(to, address)?;
    let target = listener.local_addr()?;
    let client = sockets::tcp_connect(from, target, ARRIVES)?;
    let (server, source) = accept(&listener)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ARRIVES))?;
        stream.set_write_timeout(Some(ARRIVES))?;
    }
    Ok((client, server, source))
}

/// Sends a UDP datagram from one namespace to a socket in another and an answer back; returns the source seen.
pub(super) fn udp(from: &NetNs, to: &NetNs, address: Ipv4Addr, size: usize) -> Result<Ipv4Addr, Trouble> {
    let server = udp_socket(to, address)?;
    let client = udp_socket(from, Ipv4Addr::UNSPECIFIED)?;
    let payload = pattern(size);
    client.send_to(&payload, server.local_addr()?)?;
    let mut buffer = vec![0; size + 1];
    let (length, source) = server
        .recv_from(&mut buffer)
        .map_err(|error| lost("the datagram", &error))?;
    if buffer[..length] != payload {
        return Err(Trouble::Failed(format!(
            "{length} of {size} bytes arrived, or others than were sent"
        )));
    }
    server.send_to(&payload, source)?;
    let length = client
        .recv(&mut buffer)
        .map_err(|error| lost("the answer", &error))?;
    if buffer[..length] != payload {
        return Err(Trouble::Failed("the answer is not what was sent".to_owned()));
    }
    ipv4(source)
}

/// Tries to connect where that must fail, though somebody listens there; says how it failed.
pub(super) fn refused_tcp(from: &NetNs, to: &NetNs, address: Ipv4Addr) -> Result<String, Trouble> {
    let listener = listen(to, address)?;
    let began = Instant::now();
    match sockets::tcp_connect(from, listener.local_addr()?, NEVER) {
        Ok(_) => Err(Trouble::Failed("the connection came about".to_owned())),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CONNREFUSED.raw_os_error()) => Err(
            Trouble::Failed("the pod's own stack answered: refused".to_owned()),
        ),
        Err(error) => Ok(format!(
            "{} after {} ms",
            error.cause,
            began.elapsed().as_millis()
        )),
    }
}

/// Sends many bytes through a connection, both ways one after the other; returns the slower way's speed in bits
/// per second.
pub(super) fn transfer(from: &NetNs, to: &NetNs, address: Ipv4Addr, size: usize) -> Result<f64, Trouble> {
    let (mut client, mut server, _) = connect(from, to, address)?;
    let there = one_way(&mut client, &mut server, size)?;
    let back = one_way(&mut server, &mut client, size)?;
    Ok(size as f64 * 8.0 / there.max(back).as_secs_f64())
}

/// A UDP socket with a time limit on receiving.
pub(super) fn udp_socket(netns: &NetNs, address: Ipv4Addr) -> Result<UdpSocket, Trouble> {
    let socket = sockets::udp_socket(netns, (address, 0).into())?;
    socket.set_read_timeout(Some(ARRIVES))?;
    Ok(socket)
}

/// Waits for what must not come.
pub(super) fn expect_silence(socket: &UdpSocket) -> Result<(), Trouble> {
    socket.set_read_timeout(Some(NEVER))?;
    match socket.recv_from(&mut [0; 2048]) {
        Ok((length, source)) => Err(Trouble::Failed(format!("{length} bytes arrived, from {source}"))),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The address and port that a socket is bound to.
pub(super) fn bound(socket: &UdpSocket) -> Result<SocketAddrV4, Trouble> {
    match socket.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => Err(Trouble::Failed(format!("bound to {address}"))),
    }
}

/// Fails unless both are the same.
pub(super) fn same<T: Copy + PartialEq + std::fmt::Display>(
    what: &str,
    seen: T,
    wanted: T,
) -> Result<(), Trouble> {
    if seen == wanted {
        Ok(())
    } else {
        Err(Trouble::Failed(format!(
            "{what} is {seen}, it should be {wanted}"
        )))
    }
}

/// Bytes that show when something is missing or in the wrong place.
pub(super) fn pattern(size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 8)) as u8)
        .collect()
}

fn one_way(from: &mut TcpStream, to: &mut TcpStream, size: usize) -> Result<Duration, Trouble> {
    let sent = pattern(size);
    let began = Instant::now();
    let received = std::thread::scope(|scope| -> Result<Vec<u8>, Trouble> {
        let writer = scope.spawn(|| from.write_all(&sent));
        let mut received = vec![0; size];
        to.read_exact(&mut received)
            .map_err(|error| lost("the rest of the transfer", &error))?;
        writer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(received)
    })?;
    let took = began.elapsed();
    if Sha256::digest(&sent) != Sha256::digest(&received) {
        return Err(Trouble::Failed(
            "the checksum of what arrived is another".to_owned(),
        ));
    }
    Ok(took)
}

fn listen(netns: &NetNs, address: Ipv4Addr) -> Result<TcpListener, Trouble> {
    let listener = sockets::tcp_listener(netns, (address, 0).into())?;
    // Applies to accept(2) too, see socket(7).
    SockRef::from(&listener).set_read_timeout(Some(ARRIVES))?;
    Ok(listener)
}

fn accept(listener: &TcpListener) -> Result<(TcpStream, Ipv4Addr), Trouble> {
    let (stream, source) = listener
        .accept()
        .map_err(|error| lost("the connection", &error))?;
    Ok((stream, ipv4(source)?))
}

fn ipv4(address: SocketAddr) -> Result<Ipv4Addr, Trouble> {
    match address {
        SocketAddr::V4(address) => Ok(*address.ip()),
        SocketAddr::V6(address) => Err(Trouble::Failed(format!("the source is {address}"))),
    }
}

fn lost(what: &str, error: &io::Error) -> Trouble {
    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        Trouble::Failed(format!("{what} did not arrive within {} s", ARRIVES.as_secs()))
    } else {
        Trouble::Failed(format!("{what} did not arrive: {error}"))
    }
}
