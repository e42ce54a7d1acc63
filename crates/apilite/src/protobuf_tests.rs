use serde_json::json;

use super::{MAGIC, decode};

/// A length-delimited field.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![
        number << 3 | 2,
        u8::try_from(content.len()).expect("short in tests"),
    ];
    out.extend(content);
    out
}

fn enveloped(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw)].concat()
}

#[test]
fn an_object_is_read_without_its_zeros() {
    // metadata { name: "c", generateName: "", creationTimestamp: {} }, data { "k": "v" }, binaryData { "b": 0xff }
    let metadata = [bytes(1, b"c"), bytes(2, b""), bytes(8, b"")].concat();
    let raw = [
        bytes(1, &metadata),
        bytes(2, &[bytes(1, b"k"), bytes(2, b"v")].concat()),
        bytes(3, &[bytes(1, b"b"), bytes(2, &[0xff])].concat()),
        vec![4 << 3, 0],
    ]
    .concat();
    assert_eq!(
        decode(&enveloped("v1", "ConfigMap", &raw)),
        Ok(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "c" },
            "data": { "k": "v" },
            "binaryData": { "b": "/w==" },
            "immutable": false,
        }))
    );
}

#[test]
fn a_field_that_would_be_lost_is_refused() {
    let refused = decode(&enveloped("v1", "ConfigMap", &bytes(9, b"x"))).expect_err("there is no field 9");
    assert_eq!(
        (refused.code.as_u16(), refused.message.as_str()),
        (
            400,
            "field 9 of a ConfigMap in protobuf isn't understood by this server: send application/json"
        )
    );
    assert_eq!(
        decode(&enveloped("v1", "Node", b""))
            .expect_err("not a kind clients send")
            .code
            .as_u16(),
        415
    );
}

#[test]
fn torn_messages_are_errors_and_not_panics() {
    let metadata = bytes(1, b"name");
    let whole = enveloped(
        "v1",
        "ConfigMap",
        &[bytes(1, &metadata), vec![4 << 3, 1]].concat(),
    );
    for end in 0..whole.len() {
        // Some prefixes are valid, shorter objects; none may panic.
        let _ = decode(&whole[..end]);
    }
    assert!(decode(b"").is_err());
    assert!(decode(b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    assert!(decode(&enveloped("v1", "ConfigMap", &[1 << 3 | 2, 200, 1])).is_err());
}
