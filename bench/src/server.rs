//! The answering side. One TCP port for several kinds of connection, told apart by their first byte, one for short
//! connections, and one UDP sink.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{cpu, print};

/// What a connection wants, its first byte.
pub(crate) mod wish {
    /// Every byte back as it comes.
    pub(crate) const ECHO: u8 = b'E';
    /// Read to the end, then say how many bytes there were (u64, big endian).
    pub(crate) const SINK: u8 = b'S';
    /// How many datagrams have arrived since the start (u64, big endian).
    pub(crate) const COUNT: u8 = b'C';
    /// CPU time that the server has taken since its start (u64, big endian, nanoseconds).
    pub(crate) const CPU: u8 = b'T';
    /// From which address the request came, as text: the first byte of an HTTP request.
    pub(crate) const GET: u8 = b'G';
}

/// What the sink for datagrams adds to the server's port.
pub(crate) const SINK: u16 = 1;
/// What the port for short connections adds to the server's.
pub(crate) const BRIEF: u16 = 2;

/// Receive buffer of the datagram sink, bytes. The kernel may grant less.
const SINK_BUFFER: usize = 4 << 20;
/// Longest time for the byte of a short connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until standard input ends, so that no server outlives the one who started it.
pub(crate) fn serve(listen: SocketAddrV4) -> Result<()> {
    let listener = listen_tcp(listen).with_context(|| format!("listen on TCP {listen}"))?;
    let brief = SocketAddrV4::new(*listen.ip(), listen.port() + BRIEF);
    let short = listen_tcp(brief).with_context(|| format!("listen on TCP {brief}"))?;
    let sink = SocketAddrV4::new(*listen.ip(), listen.port() + SINK);
    let datagrams = UdpSocket::bind(sink).with_context(|| format!("bind UDP {sink}"))?;
    SockRef::from(&datagrams)
        .set_recv_buffer_size(SINK_BUFFER)
        .context("set the receive buffer")?;

    let arrived = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&arrived);
    std::thread::spawn(move || count(&datagrams, &counter));
    std::thread::spawn(move || {
        for stream in short.incoming().flatten() {
            // As above; and one after the other, for a thread per connection would cost more than the connection.
            let _ = exchange(stream);
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let arrived = Arc::clone(&arrived);
            // A client that breaks off ends its own connection only.
            std::thread::spawn(move || answer(stream, &arrived));
        }
    });
    print::line("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        .context("wait for the end of standard input")?;
    Ok(())
}

fn listen_tcp(listen: SocketAddrV4) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    tune(&socket);
    socket.bind(&listen.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// Cubic, where the machine's default may be bbr: its pacing hides differences between datapaths.
pub(crate) fn tune(socket: &Socket) {
    // Where cubic is a module that is not loaded, both ends of all competitors use the default alike.
    let _ = socket.set_tcp_congestion(b"cubic");
}

fn count(datagrams: &UdpSocket, arrived: &AtomicU64) {
    let mut buffer = [0; 2048];
    while datagrams.recv(&mut buffer).is_ok() {
        arrived.fetch_add(1, Ordering::Relaxed);
    }
}

/// One byte each way. The end that closes first keeps the port in TIME_WAIT, so it is this one, which has only one.
fn exchange(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

fn answer(mut stream: TcpStream, arrived: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    match wanted[0] {
        wish::ECHO => {
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => stream.write_all(&buffer[..n])?,
                }
            }
        }
        wish::SINK => {
            let mut buffer = vec![0; 256 << 10];
            let mut total = 0_u64;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&total.to_be_bytes()),
                    n => total += n as u64,
                }
            }
        }
        wish::GET => {
            let peer = stream.peer_addr()?;
            // Read the request's head, lest closing with unread bytes resets the connection.
            let mut head = [0; 4096];
            let _ = stream.read(&mut head)?;
            write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nyou are {peer}\n"
            )
        }
        wish::CPU => stream.write_all(&cpu::own().to_be_bytes()),
        wish::COUNT => stream.write_all(&arrived.load(Ordering::Relaxed).to_be_bytes()),
        _ => Ok(()),
    }
}

/// Where servers listen in a namespace of their own.
pub(crate) const fn any(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
}
