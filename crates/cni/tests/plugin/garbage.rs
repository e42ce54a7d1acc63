//! Whatever comes in, one JSON object or nothing comes out. `PROPTEST_CASES` says how
//! much comes in.

use std::ffi::OsString;
use std::io::Write;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_cni::plugin;

use crate::agent::{FakeAgent, content};
use crate::call::{Answer, Call};

const COMMANDS: [&str; 5] = ["ADD", "CHECK", "DEL", "GC", "STATUS"];

#[test]
fn standard_input_that_is_no_configuration_is_an_error_of_every_command() {
    let agent = FakeAgent::absent();
    for command in COMMANDS {
        for (stdin, code) in [
            (&b""[..], 6),
            (b"\0\xff\xfe", 6),
            (b"{\"name\": \"weft\"", 6),
            (b"{\"name\": \"weft\"} {}", 6),
            (b"null", 7),
            (b"{}", 7),
            (b"{\"name\": \"weft\", \"runtimeConfig\": 5}", 7),
        ] {
            let (told, message) = Call::new(command, &agent).run_with(stdin).error();
            assert_eq!(told, code, "{command} {message}");
            assert!(message.starts_with("WEFT-1402: "), "{message}");
        }
    }
}

#[test]
fn a_configuration_of_any_depth_or_length_is_refused_and_not_swallowed() {
    let agent = FakeAgent::absent();
    let deep = format!("{{\"name\":\"weft\",\"x\":{}", "[".repeat(200_000));
    assert_eq!(Call::new("ADD", &agent).run_with(deep.as_bytes()).error().0, 6);
    let long = format!("{{\"name\":\"weft\",\"x\":\"{}\"}}", "y".repeat(5 << 20));
    assert_eq!(
        Call::new("ADD", &agent).run_with(long.as_bytes()).error(),
        (
            7,
            "WEFT-1402: the network configuration is longer than the 4194304 bytes allowed".to_owned()
        )
    );
}

#[test]
fn standard_input_that_never_ends_is_given_up() {
    let mut child = Call::new("ADD", &FakeAgent::absent()).spawn();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"{\"name\":").unwrap();
    child.wait().unwrap();
    drop(stdin);
    assert_eq!(
        Answer::of(child).error(),
        (
            5,
            "WEFT-1402: read the network configuration from standard input: \
             not at its end after 5 s (after 8 bytes)"
                .to_owned()
        )
    );
}

/// JSON as a strange configuration may have it: the keys that matter, values of any type.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "1.1.0",
            "0.4.0",
            "0.2.0",
            "10.0.0.1/24",
            "fe80::1",
            "weft",
            "/",
            "4"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn keys() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "cniVersion", "name", "timeoutSeconds", "dns", "nameservers", "domain", "search", "options",
            "runtimeConfig", "prevResult", "interfaces", "ips", "routes", "address", "gateway", "interface",
            "mac", "mtu", "sandbox", "ip4", "ip6", "ip", "dst", "gw", "cni.dev/valid-attachments",
            "cni.dev/attachments", "containerID", "ifname", "socketPath", "pciID", "version",
        ])
        .prop_map(str::to_owned),
        1 => ".{0,6}",
    ]
}

fn variable() -> impl Strategy<Value = OsString> {
    use std::os::unix::ffi::OsStringExt;
    prop_oneof![
        prop::collection::vec(1..=255u8, 0..24).prop_map(OsString::from_vec),
        "[a-zA-Z0-9=;_.-]{0,24}".prop_map(OsString::from),
        prop::sample::select(vec!["/proc/self/ns/net", "eth0", "a", "IgnoreUnknown=1", "true"])
            .prop_map(OsString::from),
    ]
}

/// The plugin in this process, with its answer printed and read again.
fn answer(command: &str, variables: &[(String, OsString)], stdin: &[u8]) -> (bool, Option<Value>) {
    let outcome = plugin::run(
        |name| {
            if name == "CNI_COMMAND" {
                return Some(command.into());
            }
            variables
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        },
        stdin,
    );
    let answer = outcome
        .answer
        .map(|answer| serde_json::from_str(&answer.to_string()).unwrap());
    (outcome.success, answer)
}

fn is_error(answer: Option<&Value>) -> bool {
    answer.is_some_and(|answer| answer["code"].is_u64() && answer["msg"].is_string())
}

proptest! {
    #[test]
    fn bytes_on_standard_input_never_get_more_than_an_error(
        // No DEL: one that is understood writes to the default directory.
        command in prop::sample::select(vec!["ADD", "CHECK", "GC", "STATUS"]),
        stdin in prop::collection::vec(any::<u8>(), 0..256),
        id in variable(), name in variable(), args in variable(),
    ) {
        let variables = [
            ("CNI_CONTAINERID".to_owned(), id),
            ("CNI_IFNAME".to_owned(), name),
            ("CNI_NETNS".to_owned(), "/proc/self/ns/net".into()),
            ("CNI_ARGS".to_owned(), args),
            ("CNI_PATH".to_owned(), "/opt/cni/bin".into()),
        ];
        let (success, told) = answer(command, &variables, &stdin);
        prop_assert!(!success);
        prop_assert!(is_error(told.as_ref()), "{:?}", told);
    }
}

#[test]
fn strange_configurations_get_a_result_or_an_error_and_a_readable_del_succeeds() {
    let agent = FakeAgent::answering(content);
    let variables = [
        ("CNI_CONTAINERID", "a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_NETNS_OVERRIDE", "1"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
    .map(|(name, value)| (name.to_owned(), OsString::from(value)));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let strategy = (
        prop::sample::select(COMMANDS.to_vec()),
        prop::collection::btree_map(keys(), value(), 0..8),
        any::<bool>(),
    );
    runner
        .run(&strategy, |(command, mut config, named)| {
            if named {
                config.insert("name".to_owned(), json!("weft"));
                config.insert("cniVersion".to_owned(), json!("1.1.0"));
            }
            config.insert("socket".to_owned(), json!(agent.socket()));
            config.insert("intentDir".to_owned(), json!(agent.intent_dir()));
            let stdin = serde_json::to_vec(&config).unwrap();
            let (success, told) = answer(command, &variables, &stdin);
            match told {
                None => prop_assert!(success && command != "ADD"),
                Some(result) if success => {
                    prop_assert_eq!(command, "ADD");
                    prop_assert!(result["cniVersion"].is_string(), "{}", result);
                }
                Some(error) => prop_assert!(is_error(Some(&error)), "{}", error),
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(agent.intents(), []);
}
