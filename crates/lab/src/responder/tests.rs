use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::ClientError;
use super::*;
use crate::responder::testing::isolated_netns;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(10);

fn port(protocol: Protocol, number: u16) -> Port {
    Port { protocol, number }
}

fn local(number: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, number))
}

async fn pod(ports: Vec<Port>) -> Option<(Arc<NetNs>, Responder)> {
    let netns = isolated_netns()?;
    let identity = Identity {
        pod: "web-1".into(),
        namespace: "shop".into(),
        node: "n1".into(),
    };
    let responder = Responder::start(Arc::clone(&netns), identity, ports)
        .await
        .unwrap();
    Some((netns, responder))
}

#[tokio::test]
async fn a_port_serves_http_and_echoes_what_is_not_http() {
    let Some((netns, responder)) = pod(vec![port(Protocol::Tcp, 80)]).await else {
        return;
    };
    assert!(responder.refused().is_empty());

    let answer = client::get(&netns, local(80), "/hostname", &[], LONG)
        .await
        .unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "web-1"));

    let mut stream = client::connect(&netns, local(80), LONG).await.unwrap();
    let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
    let (mut from, mut to) = stream.split();
    let mut received = Vec::new();
    let send = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(send, from.read_to_end(&mut received));
    read.unwrap();
    assert!(
        sent == received,
        "{} bytes sent, {} came back",
        sent.len(),
        received.len()
    );
}

#[tokio::test]
async fn datagrams_are_answered_and_a_stopped_responder_answers_no_more() {
    let Some((netns, responder)) = pod(vec![port(Protocol::Udp, 53), port(Protocol::Tcp, 80)]).await else {
        return;
    };
    assert_eq!(
        client::ask_udp(&netns, local(53), b"hostname", LONG)
            .await
            .unwrap(),
        b"web-1"
    );
    assert_eq!(
        client::ask_udp(&netns, local(53), b"\x01\x02", LONG)
            .await
            .unwrap(),
        b"\x01\x02"
    );
    responder.stop().await;
    assert!(matches!(
        client::ask_udp(&netns, local(53), b"x", SECOND).await,
        Err(ClientError::Connect { .. })
    ));
    assert!(matches!(
        client::connect(&netns, local(80), SECOND).await,
        Err(ClientError::Connect { .. })
    ));
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_the_others_are_served() {
    let Some((netns, first)) = pod(vec![port(Protocol::Tcp, 80)]).await else {
        return;
    };
    let identity = Identity {
        pod: "other".into(),
        namespace: "shop".into(),
        node: "n1".into(),
    };
    let second = Responder::start(
        Arc::clone(&netns),
        identity,
        vec![port(Protocol::Tcp, 80), port(Protocol::Tcp, 81)],
    )
    .await
    .unwrap();
    let refused: Vec<Port> = second.refused().iter().map(|refused| refused.port).collect();
    assert_eq!(refused, [port(Protocol::Tcp, 80)]);
    let answer = client::get(&netns, local(81), "/hostname", &[], LONG)
        .await
        .unwrap();
    assert_eq!(answer.body, "other");
    drop(first);
}
