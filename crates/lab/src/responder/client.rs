//! Clients inside a namespace: what probes and checks ask a pod with.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use weft_kernel::NetNs;

/// Largest body that [`get`] takes, in bytes.
const MAX_BODY: usize = 1 << 20;
const LARGEST_DATAGRAM: usize = 65_507;

/// Why a client got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket could be made in the namespace.
    #[error("make a socket in the namespace: {0}")]
    Socket(#[source] io::Error),
    /// No connection came about.
    #[error("connect to {to}: {source}")]
    Connect {
        /// Address asked for.
        to: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("ask {to}: {cause}")]
    Exchange {
        /// Address asked.
        to: SocketAddr,
        /// Cause.
        cause: String,
    },
    /// Nothing came in time.
    #[error("no answer from {to} within {} ms", after.as_millis())]
    Timeout {
        /// Address asked.
        to: SocketAddr,
        /// How long was waited.
        after: Duration,
    },
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Body, as text.
    pub body: String,
}

/// Connects by TCP from inside `netns`.
///
/// # Errors
/// The connection is refused, unreachable, or not there within `timeout`.
pub async fn connect(
    netns: &Arc<NetNs>,
    to: SocketAddr,
    timeout: Duration,
) -> Result<TcpStream, ClientError> {
    let socket = make(netns, to.ip(), Type::STREAM).await?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(to);
    match tokio::time::timeout(timeout, stream).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(source)) => Err(ClientError::Connect { to, source }),
        Err(_) => Err(ClientError::Timeout { to, after: timeout }),
    }
}

/// GETs `path` from inside `netns`, on a connection of its own.
///
/// # Errors
/// No connection, no HTTP, a body over 1 MiB, or no answer within `timeout`.
pub async fn get(
    netns: &Arc<NetNs>,
    to: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    timeout: Duration,
) -> Result<Answer, ClientError> {
    let exchange = |cause: String| ClientError::Exchange { to, cause };
    let ask = async {
        let stream = connect(netns, to, timeout).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| exchange(error.to_string()))?;
        let mut request = Request::get(path)
            .header(header::USER_AGENT, "kube-probe/weft-lab")
            .header(header::CONNECTION, "close");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if request
            .headers_ref()
            .is_some_and(|headers| !headers.contains_key(header::HOST))
        {
            request = request.header(header::HOST, to.to_string());
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| exchange(error.to_string()))?;
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| exchange(error.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(|error| exchange(error.to_string()))?
                .to_bytes();
            Ok(Answer {
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        // The connection is driven here, beside the request, and ends with it.
        let drive = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = answer => answer,
            () = drive => Err(exchange("connection closed".to_owned())),
        }
    };
    tokio::time::timeout(timeout, ask)
        .await
        .unwrap_or(Err(ClientError::Timeout { to, after: timeout }))
}

/// Sends one datagram from inside `netns` and returns the first answer.
///
/// # Errors
/// The port is closed, or nothing comes within `timeout`.
pub async fn ask_udp(
    netns: &Arc<NetNs>,
    to: SocketAddr,
    datagram: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>, ClientError> {
    let socket = make(netns, to.ip(), Type::DGRAM).await?;
    let socket = UdpSocket::from_std(socket.into()).map_err(ClientError::Socket)?;
    let ask = async {
        socket.connect(to).await?;
        socket.send(datagram).await?;
        let mut answer = vec![0; LARGEST_DATAGRAM];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok(answer)
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(answer) => answer.map_err(|source| ClientError::Connect { to, source }),
        Err(_) => Err(ClientError::Timeout { to, after: timeout }),
    }
}

async fn make(netns: &Arc<NetNs>, to: IpAddr, kind: Type) -> Result<Socket, ClientError> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let netns = Arc::clone(netns);
    let make = move || {
        netns.run(|| {
            let socket = Socket::new(domain, kind, None)?;
            socket.set_nonblocking(true)?;
            if kind == Type::DGRAM && domain == Domain::IPV4 {
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
            }
            Ok(socket)
        })
    };
    let made = tokio::task::spawn_blocking(make).await.map_err(io::Error::other);
    made.and_then(|made| made.map_err(io::Error::other)?)
        .map_err(ClientError::Socket)
}
