//! Streams: HTTP/1.1 to those who speak it, an echo to all others.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Identity;

/// Connections served at once on one port; more wait in the backlog.
const MAX_CONNECTIONS: usize = 4096;
/// Bytes that are buffered of one connection.
const BUFFER: usize = 16 * 1024;
/// How long the rest of a request's method may take to arrive.
const METHOD_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a request's head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an error that the next accept would meet again, such as no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
];

/// What the first bytes of a connection say.
#[derive(Debug, PartialEq, Eq)]
enum Speech {
    Http,
    Other,
    /// Could become HTTP.
    Undecided,
}

/// A stream whose first bytes were read already.
#[derive(Debug)]
struct Rewound {
    first: Bytes,
    stream: TcpStream,
}

/// Accepts and serves connections until dropped; those under way end with it.
pub(super) async fn serve(listener: TcpListener, identity: Arc<Identity>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let identity = Arc::clone(&identity);
                connections.spawn(async move {
                    if let Err(error) = connection(stream, peer, identity).await {
                        tracing::trace!(%peer, %error, "connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, identity: Arc<Identity>) -> io::Result<()> {
    // Not known to SCTP, where it is not needed either.
    let _ = stream.set_nodelay(true);
    let mut first = BytesMut::with_capacity(BUFFER);
    let speech = loop {
        let undecided = !first.is_empty();
        let read = stream.read_buf(&mut first);
        let read = if undecided {
            match tokio::time::timeout(METHOD_TIMEOUT, read).await {
                Ok(read) => read?,
                Err(_) => break Speech::Other,
            }
        } else {
            read.await?
        };
        match speech(&first) {
            _ if read == 0 => break Speech::Other,
            Speech::Undecided => {}
            decided => break decided,
        }
    };
    if speech == Speech::Http {
        return http(
            Rewound {
                first: first.freeze(),
                stream,
            },
            peer,
            identity,
        )
        .await;
    }
    echo(stream, first).await
}

fn speech(first: &[u8]) -> Speech {
    if METHODS.iter().any(|method| first.starts_with(method)) {
        Speech::Http
    } else if METHODS.iter().any(|method| method.starts_with(first)) {
        Speech::Undecided
    } else {
        Speech::Other
    }
}

async fn echo(mut stream: TcpStream, mut buffer: BytesMut) -> io::Result<()> {
    loop {
        stream.write_all(&buffer).await?;
        buffer.clear();
        if stream.read_buf(&mut buffer).await? == 0 {
            return stream.shutdown().await;
        }
    }
}

async fn http(stream: Rewound, peer: SocketAddr, identity: Arc<Identity>) -> io::Result<()> {
    let service = service_fn(|request| {
        let identity = Arc::clone(&identity);
        async move { Ok::<_, Infallible>(respond(request, peer, &identity).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

async fn respond(request: Request<Incoming>, peer: SocketAddr, identity: &Identity) -> Response<Full<Bytes>> {
    let (head, mut body) = request.into_parts();
    // Read to the end and dropped: the connection can then serve the next request.
    let mut received = 0_u64;
    while let Some(Ok(frame)) = body.frame().await {
        received += frame.data_ref().map_or(0, |data| data.remaining() as u64);
    }
    let (status, text) = answer(&head.method, &head.uri, received, peer, identity);
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Status and text for a request.
fn answer(
    method: &Method,
    uri: &http::Uri,
    received: u64,
    peer: SocketAddr,
    identity: &Identity,
) -> (StatusCode, String) {
    let text = match uri.path() {
        "/hostname" | "/hostName" => identity.pod.clone(),
        "/clientip" => peer.to_string(),
        "/echo" => match query(uri, "msg") {
            Some(message) => message,
            None => return (StatusCode::BAD_REQUEST, "echo needs ?msg=TEXT\n".to_owned()),
        },
        "/healthz" => "ok".to_owned(),
        path => format!(
            "pod {}/{} on node {}\n{method} {path}, {received} bytes of body, from {peer}\n",
            identity.namespace, identity.pod, identity.node
        ),
    };
    (StatusCode::OK, text)
}

/// The value of a parameter in a URI's query, decoded.
fn query(uri: &http::Uri, name: &str) -> Option<String> {
    uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decoded(value))
    })
}

fn percent_decoded(text: &str) -> String {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let digits = (*byte == b'%').then(|| after.get(..2)).flatten();
        let escaped = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, escaped) {
            (_, Some(escaped)) => {
                decoded.push(escaped);
                rest = &after[2..];
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(*byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

// === impl Rewound ===

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_http_from_the_rest() {
        let table: [(&[u8], Speech); 7] = [
            (b"GET / HTTP/1.1", Speech::Http),
            (b"POST ", Speech::Http),
            (b"P", Speech::Undecided),
            (b"GET", Speech::Undecided),
            (b"GETX", Speech::Other),
            (b"*1\r\n$4\r\nPING", Speech::Other),
            (b"\x16\x03\x01", Speech::Other),
        ];
        for (first, expected) in table {
            assert_eq!(speech(first), expected, "{first:?}");
        }
    }

    #[test]
    fn requests_and_their_answers() {
        let identity = Identity {
            pod: "web-1".into(),
            namespace: "shop".into(),
            node: "n1".into(),
        };
        let peer = "10.0.0.1:5000".parse().unwrap();
        let table = [
            ("/hostname", StatusCode::OK, "web-1"),
            ("/clientip", StatusCode::OK, "10.0.0.1:5000"),
            ("/echo?a=b&msg=two+words%21%", StatusCode::OK, "two words!%"),
            ("/echo", StatusCode::BAD_REQUEST, "echo needs ?msg=TEXT\n"),
            ("/healthz", StatusCode::OK, "ok"),
            (
                "/cart/1?x=y",
                StatusCode::OK,
                "pod shop/web-1 on node n1\nGET /cart/1, 3 bytes of body, from 10.0.0.1:5000\n",
            ),
        ];
        for (uri, status, text) in table {
            let answer = answer(&Method::GET, &uri.parse().unwrap(), 3, peer, &identity);
            assert_eq!(answer, (status, text.to_owned()), "{uri}");
        }
    }
}
