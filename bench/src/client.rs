//! The asking side: request/response, short connections, streams, datagrams.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cpu::Meter;
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

/// Connections made, used for one byte each way, and closed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Connections {
    pub(crate) count: usize,
    pub(crate) per_s: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time of both ends per connection, microseconds.
    pub(crate) cpu_us: f64,
}

/// What streams carried.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub(crate) streams: usize,
    /// Payload that arrived, bytes.
    pub(crate) bytes: u64,
    pub(crate) gbit_per_s: f64,
    /// CPU time of both ends per 10⁹ bytes, seconds.
    pub(crate) cpu_s_per_gb: f64,
}

/// Datagrams sent and arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Datagrams {
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    pub(crate) arrived_per_s: f64,
    /// CPU time of both ends per datagram that arrived, microseconds.
    pub(crate) cpu_us: f64,
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

/// One connection after the other, each for one byte there and one back, as long as `time` lasts.
pub(crate) fn connections(server: SocketAddrV4, time: Duration) -> Result<Connections> {
    let brief = SocketAddrV4::new(*server.ip(), server.port() + server::BRIEF);
    let mut samples = Vec::with_capacity(1 << 16);
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        exchange(brief)?;
    }
    let meter = Meter::start(server)?;
    let start = Instant::now();
    while start.elapsed() < time {
        let asked = Instant::now();
        exchange(brief)?;
        samples.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    let elapsed = start.elapsed().as_secs_f64();
    let spent = meter.spent()?;
    let quantile = |q| stats::quantile(&mut samples, q).context("no connection in the time given");
    let [p50_us, p99_us] = quantiles(quantile)?;
    Ok(Connections {
        count: samples.len(),
        per_s: samples.len() as f64 / elapsed,
        p50_us,
        p99_us,
        cpu_us: spent as f64 * 1e-3 / samples.len() as f64,
    })
}

fn exchange(brief: SocketAddrV4) -> Result<()> {
    let mut stream = connect(brief, b'x')?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("receive a response")?;
    match stream.read(&mut byte).context("wait for the end")? {
        0 => Ok(()),
        _ => bail!("{brief} said more than one byte"),
    }
}

/// As many bytes as so many connections take.
pub(crate) fn streams(server: SocketAddrV4, time: Duration, streams: usize) -> Result<Streams> {
    let meter = Meter::start(server)?;
    let start = Instant::now();
    let bytes: Result<Vec<u64>> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..streams)
            .map(|_| scope.spawn(|| stream(server, time)))
            .collect();
        let bytes = senders.into_iter().map(|sender| {
            let ended = sender.join().map_err(|_| anyhow!("a sender panicked"));
            ended.and_then(|bytes| bytes)
        });
        bytes.collect()
    });
    let elapsed = start.elapsed().as_secs_f64();
    let bytes: u64 = bytes?.into_iter().sum();
    Ok(Streams {
        streams,
        bytes,
        gbit_per_s: bytes as f64 * 8e-9 / elapsed,
        cpu_s_per_gb: meter.spent()? as f64 / bytes as f64,
    })
}

fn stream(server: SocketAddrV4, time: Duration) -> Result<u64> {
    let mut stream = connect(server, wish::SINK)?;
    let block = vec![b'x'; 128 << 10];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&block).context("send")?;
    }
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    read_u64(&mut stream)
}

/// Small datagrams without pause.
pub(crate) fn datagrams(server: SocketAddrV4, time: Duration) -> Result<Datagrams> {
    let socket = UdpSocket::bind(server::any(0)).context("bind a UDP socket")?;
    let sink = SocketAddrV4::new(*server.ip(), server.port() + server::SINK);
    socket
        .connect(sink)
        .with_context(|| format!("connect UDP {sink}"))?;
    let before = arrived(server)?;
    let meter = Meter::start(server)?;
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
        cpu_us: meter.spent()? as f64 * 1e-3 / arrived as f64,
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
    let stream = TcpStream::connect_timeout(&server.into(), PATIENCE)
        .with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange_http(stream, &format!("GET /{path}"), &[("Host", authority)], "")
}

/// The body of the answer to one HTTP request.
pub(crate) fn exchange_http(
    mut stream: impl Read + Write,
    request: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<String> {
    let mut head = format!("{request} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    write!(stream, "{head}\r\n{body}").context("send the request")?;
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

/// CPU time that the server has taken, nanoseconds.
pub(crate) fn server_cpu(server: SocketAddrV4) -> Result<u64> {
    read_u64(&mut connect(server, wish::CPU)?)
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
