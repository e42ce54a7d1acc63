//! Datagrams, answered as agnhost's netexec answers them.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;

use super::Identity;

/// Largest UDP payload over IPv4, in bytes.
const LARGEST: usize = 65_507;

/// Answers datagrams until dropped.
pub(super) async fn serve(socket: UdpSocket, identity: Arc<Identity>) {
    let mut buffer = Vec::new();
    loop {
        // A pod that is never spoken to holds no buffer.
        if socket.readable().await.is_err() {
            return;
        }
        buffer.resize(LARGEST, 0);
        while let Ok((length, peer)) = socket.try_recv_from(&mut buffer) {
            let sent = match answer(&buffer[..length], peer, &identity) {
                Some(text) => socket.send_to(text.as_bytes(), peer).await,
                None => socket.send_to(&buffer[..length], peer).await,
            };
            if let Err(error) = sent {
                tracing::trace!(%peer, %error, "no answer sent");
            }
        }
        buffer = Vec::new();
    }
}

/// The answer to a command; `None` where the datagram is to be sent back as it is.
fn answer(datagram: &[u8], peer: SocketAddr, identity: &Identity) -> Option<String> {
    let text = std::str::from_utf8(datagram).ok()?.trim();
    match text.split_once(char::is_whitespace).unwrap_or((text, "")) {
        ("hostname", "") => Some(identity.pod.clone()),
        ("clientip", "") => Some(peer.to_string()),
        ("echo", words) => Some(words.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_answered_and_the_rest_is_echoed() {
        let identity = Identity {
            pod: "web-1".into(),
            namespace: "shop".into(),
            node: "n1".into(),
        };
        let peer = "10.0.0.1:5000".parse().unwrap();
        let table: [(&[u8], Option<&str>); 6] = [
            (b"hostname\n", Some("web-1")),
            (b"clientip", Some("10.0.0.1:5000")),
            (b"echo two words", Some("two words")),
            (b"hostnames", None),
            (b"ping", None),
            (b"\xff\x00", None),
        ];
        for (datagram, expected) in table {
            assert_eq!(answer(datagram, peer, &identity).as_deref(), expected);
        }
    }
}
