//! The asking side: request/response, stream, datagrams.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::server::{self, wish};
use crate::stats;

/// Before anything is recorded: caches warm, congestion windows open.
const WARM_UP: Duration = Duration::from_millis(200);
/// Longest time without an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Payload of a datagram, bytes.
const DATAGRAM: usize = 64;

/// Times of round trips, microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RoundTrips {
    pub(crate) count: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// What a stream carried.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stream {
    /// Payload that arrived, bytes.
    pub(crate) bytes: u64,
    pub(crate) gbit_per_s: f64,
}

/// Datagrams sent and arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Datagrams {
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    pub(crate) arrived_per_s: f64,
}

/// One byte there, one byte back, as long as `time` lasts.
pub(crate) fn request_response(server: SocketAddrV4, time: Duration) -> Result<RoundTrips> {
    let mut stream = connect(server, wish::ECHO)?;
    let start = Instant::now();
    let mut samples = Vec::with_capacity(1 << 20);
    let mut byte = [0];
    loop {
        let asked = Instant::now();
        if asked - start >= WARM_UP + time {
            break;
        }
        stream.write_all(b"x").context("send a request")?;
        stream.read_exact(&mut byte).context("receive a response")?;
        if asked - start >= WARM_UP {
            samples.push(asked.elapsed().as_secs_f64() * 1e6);
        }
    }
    let quantile = |q| stats::quantile(&mut samples, q).context("no round trip in the time given");
    let [p50_us, p99_us] = quantiles(quantile)?;
    Ok(RoundTrips {
        count: samples.len(),
        p50_us,
        p99_us,
    })
}

fn quantiles(mut quantile: impl FnMut(f64) -> Result<f64>) -> Result<[f64; 2]> {
    Ok([quantile(0.5)?, quantile(0.99)?])
}

/// As many bytes as one connection takes.
pub(crate) fn stream(server: SocketAddrV4, time: Duration) -> Result<Stream> {
    let mut stream = connect(server, wish::SINK)?;
    let block = vec![b'x'; 128 << 10];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&block).context("send")?;
    }
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    let bytes = read_u64(&mut stream)?;
    Ok(Stream {
        bytes,
        gbit_per_s: bytes as f64 * 8e-9 / start.elapsed().as_secs_f64(),
    })
}

/// Small datagrams without pause.
pub(crate) fn datagrams(server: SocketAddrV4, time: Duration) -> Result<Datagrams> {
    let socket = UdpSocket::bind(server::any(0)).context("bind a UDP socket")?;
    let sink = SocketAddrV4::new(*server.ip(), server.port() + 1);
    socket
        .connect(sink)
        .with_context(|| format!("connect UDP {sink}"))?;
    let before = arrived(server)?;
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        // Asking the clock costs as much as a short path; a full queue (ENOBUFS) is part of the game.
        sent += (0..32).filter(|_| socket.send(&[b'x'; DATAGRAM]).is_ok()).count() as u64;
    }
    let elapsed = start.elapsed();
    let arrived = settled(server)? - before;
    ensure!(arrived > 0, "none of {sent} datagrams arrived at {sink}");
    Ok(Datagrams {
        sent,
        arrived,
        arrived_per_s: arrived as f64 / elapsed.as_secs_f64(),
    })
}

/// The body of an HTTP answer; for machines without curl.
pub(crate) fn get(url: &str) -> Result<String> {
    let rest = url
        .strip_prefix("http://")
        .context("only http:// is spoken here")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let server: SocketAddrV4 = authority
        .parse()
        .with_context(|| format!("parse address and port of {url}"))?;
    let mut stream = TcpStream::connect_timeout(&server.into(), PATIENCE)
        .with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {authority}\r\n\r\n").context("send the request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive the answer")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without end of headers")?;
    ensure!(
        head.split(' ').nth(1) == Some("200"),
        "{}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}

/// The server's count once it no longer moves.
fn settled(server: SocketAddrV4) -> Result<u64> {
    let mut last = arrived(server)?;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = arrived(server)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

fn arrived(server: SocketAddrV4) -> Result<u64> {
    read_u64(&mut connect(server, wish::COUNT)?)
}

fn read_u64(stream: &mut TcpStream) -> Result<u64> {
    let mut count = [0; 8];
    stream
        .read_exact(&mut count)
        .context("receive the server's count")?;
    Ok(u64::from_be_bytes(count))
}

fn connect(server: SocketAddrV4, wanted: u8) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).context("make a TCP socket")?;
    server::tune(&socket);
    socket
        .connect_timeout(&server.into(), PATIENCE)
        .with_context(|| format!("connect to {server}"))?;
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream
        .write_all(&[wanted])
        .with_context(|| format!("greet {server}"))?;
    Ok(stream)
}
