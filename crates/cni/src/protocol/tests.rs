use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::thread;

use serde_json::json;

use super::*;
use crate::spec::code;

const AMPLE: Duration = Duration::from_secs(10);

fn key() -> AttachmentKey {
    AttachmentKey::new("4f1c".repeat(16), "eth0").unwrap()
}

fn add() -> Request {
    Request {
        network: "weft".to_owned(),
        wait_ms: 60_000,
        times: None,
        command: Command::Add(Add {
            key: key(),
            netns: Netns {
                path: "/run/netns/a".into(),
                dev: 4,
                ino: 4_026_532_000,
            },
            pod: Pod {
                name: Some("web-0".to_owned()),
                ..Pod::default()
            },
            runtime_config: Map::new(),
            prev_result: None,
        }),
    }
}

fn attached() -> Attached {
    Attached {
        host_if_name: "weft0123456789".to_owned(),
        host_mac: Mac([2, 0, 0, 0, 0, 1]),
        pod_mac: Mac([2, 0, 0, 0, 0, 2]),
        mtu: 1450,
        addresses: vec![PodAddress {
            address: [10, 244, 0, 5].into(),
            gateway: [169, 254, 1, 1].into(),
        }],
    }
}

#[test]
fn an_add_reaches_the_agent_with_the_very_namespace_and_its_reply_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run/agent.sock");
    let listener = bind(&socket).unwrap();
    let file = File::open("/proc/self/ns/net").unwrap();

    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        authorize(&stream).unwrap();
        let (request, netns) = read_request(&stream, AMPLE).unwrap();
        write_reply(&stream, &Reply::Added(attached()), AMPLE).unwrap();
        (request, File::from(netns.unwrap()).metadata().unwrap().ino())
    });
    let reply = call(&socket, &add(), Some(file.as_fd()), AMPLE).unwrap();

    assert_eq!(reply, Reply::Added(attached()));
    assert_eq!(server.join().unwrap(), (add(), file.metadata().unwrap().ino()));
}

#[test]
fn a_list_of_ten_thousand_attachments_fits_into_a_request() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let listener = bind(&socket).unwrap();
    let valid = (0..10_000)
        .map(|n| AttachmentKey::new(format!("{n:064x}"), "eth0").unwrap())
        .collect();
    let request = Request {
        network: "weft".to_owned(),
        wait_ms: 1000,
        times: None,
        command: Command::Gc(Gc { valid: Some(valid) }),
    };

    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (request, _) = read_request(&stream, AMPLE).unwrap();
        write_reply(&stream, &Reply::Done, AMPLE).unwrap();
        request
    });
    assert_eq!(call(&socket, &request, None, AMPLE).unwrap(), Reply::Done);
    assert_eq!(server.join().unwrap(), request);
}

#[test]
fn an_add_without_a_namespace_is_refused() {
    let (plugin, agent) = UnixStream::pair().unwrap();
    frame::send(&plugin, &add(), None, frame::Deadline::after(AMPLE), "test").unwrap();
    assert!(matches!(
        read_request(&agent, AMPLE),
        Err(ProtocolError::NetnsMissing)
    ));
}

#[test]
fn bytes_that_are_no_frame_are_refused_for_what_they_are() {
    let refused = |bytes: &[u8]| {
        let (mut plugin, agent) = UnixStream::pair().unwrap();
        plugin.write_all(bytes).unwrap();
        drop(plugin);
        read_request(&agent, AMPLE).unwrap_err().to_string()
    };
    assert_eq!(
        refused(b"GET / HTTP/1.1\r\n"),
        "the peer's message starts with [47, 45, 54, 20] and not with \"weft\""
    );
    assert_eq!(
        refused(b"weft\0\x02\0\0\0\0\0\x02{}"),
        "the peer speaks version 2 of the plugin protocol, this side version 1"
    );
    assert_eq!(
        refused(b"weft\0\x01\0\0\xff\xff\xff\xff"),
        "a message of 4294967295 bytes is longer than the 4194304 bytes allowed"
    );
    assert_eq!(
        refused(b"weft\0\x01\0\0\0\0\0\x09{}"),
        "receive the plugin's request: the connection ended after 2 of 9 bytes"
    );
    assert_eq!(
        refused(b""),
        "receive the plugin's request: the connection ended after 0 of 12 bytes"
    );
    assert!(refused(b"weft\0\x01\0\0\0\0\0\x02{}").starts_with("decode the peer's message: missing field"));
}

#[test]
fn a_peer_that_says_nothing_is_given_up_after_the_time_allowed() {
    let (_plugin, agent) = UnixStream::pair().unwrap();
    let error = read_request(&agent, Duration::from_millis(20)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "receive the plugin's request: no answer in 0.02 s"
    );
}

#[test]
fn an_agent_knows_when_nobody_waits_for_its_reply_any_more() {
    let (plugin, agent) = UnixStream::pair().unwrap();
    assert!(!is_abandoned(&agent));
    drop(plugin);
    assert!(is_abandoned(&agent));
    assert!(write_reply(&agent, &Reply::Done, AMPLE).is_err());
}

#[test]
fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    drop(bind(&socket).unwrap());
    let listener = bind(&socket).unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);

    assert_eq!(bind(&socket).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    listener.accept().unwrap();

    let file = directory.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert_eq!(bind(&file).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_socket_path_longer_than_the_kernels_limit_serves_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("d".repeat(120)).join("agent.sock");
    let listener = bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        read_request(&stream, AMPLE).unwrap();
        write_reply(&stream, &Reply::Done, AMPLE).unwrap();
    });
    let request = Request {
        network: "weft".to_owned(),
        wait_ms: 0,
        times: None,
        command: Command::Status,
    };
    assert_eq!(call(&socket, &request, None, AMPLE).unwrap(), Reply::Done);
    server.join().unwrap();
}

/// An older plugin or agent reads this layout: it changes only with [`VERSION`].
#[test]
fn messages_keep_their_layout() {
    assert_eq!(
        serde_json::to_value(add()).unwrap(),
        json!({
            "network": "weft",
            "wait_ms": 60000,
            "command": { "add": {
                "key": format!("{}/eth0", "4f1c".repeat(16)),
                "netns": { "path": "/run/netns/a", "dev": 4, "ino": 4026532000u64 },
                "pod": { "name": "web-0" },
            }},
        })
    );
    assert_eq!(serde_json::to_value(Command::Status).unwrap(), json!("status"));
    assert_eq!(
        serde_json::to_value(Command::Gc(Gc { valid: None })).unwrap(),
        json!({ "gc": { "valid": null } })
    );
    assert_eq!(
        serde_json::to_value(Reply::Added(attached())).unwrap(),
        json!({ "added": {
            "host_if_name": "weft0123456789",
            "host_mac": "02:00:00:00:00:01",
            "pod_mac": "02:00:00:00:00:02",
            "mtu": 1450,
            "addresses": [{ "address": "10.244.0.5", "gateway": "169.254.1.1" }],
        }})
    );
    let error = Failure {
        code: code::NOT_AVAILABLE,
        msg: "WEFT-1501: …".to_owned(),
        details: String::new(),
    };
    assert_eq!(
        serde_json::to_value(Reply::Failed(error)).unwrap(),
        json!({ "failed": { "code": 50, "msg": "WEFT-1501: …", "details": "" } })
    );
    let from_the_future = json!({ "network": "weft", "wait_ms": 1, "new": true, "command": "status" });
    assert!(serde_json::from_value::<Request>(from_the_future).is_ok());
}

#[test]
fn a_slow_sender_is_read_to_its_end() {
    let (mut plugin, agent) = UnixStream::pair().unwrap();
    let reader = thread::spawn(move || read_request(&agent, AMPLE).unwrap().0);
    let body = br#"{"network":"weft","wait_ms":0,"command":"status"}"#;
    plugin.write_all(b"weft\0\x01\0\0\0\0\0").unwrap();
    plugin.write_all(&[u8::try_from(body.len()).unwrap()]).unwrap();
    for byte in body {
        plugin.write_all(&[*byte]).unwrap();
    }
    assert_eq!(reader.join().unwrap().command, Command::Status);
    let mut nothing = Vec::new();
    plugin.read_to_end(&mut nothing).unwrap();
    assert_eq!(nothing, b"");
}

proptest::proptest! {
    #[test]
    fn whatever_a_peer_sends_is_a_request_or_an_error(
        magic in proptest::bool::ANY,
        version in 0..3u8,
        body in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        announced in 0..250u32,
    ) {
        let (mut plugin, agent) = UnixStream::pair().unwrap();
        if magic {
            plugin.write_all(&[b'w', b'e', b'f', b't', 0, version, 0, 0]).unwrap();
            plugin.write_all(&announced.to_be_bytes()).unwrap();
        }
        plugin.write_all(&body).unwrap();
        drop(plugin);
        proptest::prop_assert!(read_request(&agent, AMPLE).is_err());
    }
}
