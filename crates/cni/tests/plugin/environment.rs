use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use serde_json::json;

use crate::agent::{FakeAgent, content};
use crate::call::{Answer, Call, NETNS};

#[test]
fn every_command_names_all_variables_it_misses() {
    let agent = FakeAgent::absent();
    for (command, all) in [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"][..]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", &["CNI_PATH"]),
    ] {
        for missing in 1..1 << all.len() {
            let names: Vec<_> = (0..all.len())
                .filter(|bit| missing >> bit & 1 == 1)
                .map(|bit| all[bit])
                .collect();
            let call = names
                .iter()
                .fold(Call::new(command, &agent), |call, name| call.without_env(name));
            let expected = format!(
                "WEFT-1401: {command} has to be called with {}, missing or empty",
                names.join(", ")
            );
            assert_eq!(call.run().error(), (4, expected));
        }
    }
}

#[test]
fn optional_variables_may_be_missing_and_unknown_ones_are_ignored() {
    let agent = FakeAgent::answering(content);
    let bare = |command| {
        Call::new(command, &agent)
            .without_env("CNI_PATH")
            .without_env("CNI_ARGS")
    };
    bare("ADD").run().result();
    bare("CHECK").config("prevResult", json!({})).run().done();
    bare("DEL").without_env("CNI_NETNS").run().done();
    bare("STATUS").without_env("CNI_CONTAINERID").run().done();
    Call::new("ADD", &agent)
        .env(
            "TRACEPARENT",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .env("TRACESTATE", "vendor=value")
        .env("BAGGAGE", "key=value")
        .run()
        .result();
}

#[test]
fn without_a_command_it_says_what_it_is() {
    let answer = Call::new("", &FakeAgent::absent()).run();
    answer.done();
    assert_eq!(
        answer.stderr,
        format!(
            "weft-cni {}: the CNI plugin of Weft, called by container runtimes\n\
             CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n",
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[test]
fn version_does_not_wait_for_standard_input() {
    let child = Call::new("VERSION", &FakeAgent::absent()).spawn();
    let (mut child, open) = {
        let mut child = child;
        let stdin = child.stdin.take();
        (child, stdin)
    };
    child.wait().unwrap();
    drop(open);
    assert_eq!(
        Answer::of(child).result(),
        json!({
            "cniVersion": "1.1.0",
            "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        })
    );
}

#[test]
fn an_unknown_command_is_an_error_and_not_about() {
    let (code, message) = Call::new("UPDATE", &FakeAgent::absent()).run().error();
    assert_eq!(
        (code, message.as_str()),
        (
            4,
            "WEFT-1401: CNI_COMMAND is \"UPDATE\" and none of ADD, DEL, CHECK, GC, STATUS, VERSION"
        )
    );
}

#[test]
fn names_that_would_escape_from_a_directory_or_an_alias_are_refused() {
    let agent = FakeAgent::absent();
    for command in ["ADD", "CHECK", "DEL"] {
        for (name, value) in [
            ("CNI_CONTAINERID", "../../etc/passwd"),
            ("CNI_CONTAINERID", "-rf"),
            ("CNI_CONTAINERID", "id with spaces"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "eth0/../.."),
            ("CNI_IFNAME", "eth:0"),
            ("CNI_IFNAME", "longer-than-fifteen"),
        ] {
            let (code, message) = Call::new(command, &agent).env(name, value).run().error();
            assert_eq!(code, 4);
            assert!(message.contains(value), "{message}");
        }
    }
    assert_eq!(agent.intents(), []);
}

#[test]
fn a_variable_that_is_not_text_is_an_error_with_json() {
    let noise = OsString::from_vec(vec![0xff, 0xfe]);
    let (code, message) = Call::new("ADD", &FakeAgent::absent())
        .env("CNI_CONTAINERID", noise)
        .run()
        .error();
    assert_eq!(
        (code, message.as_str()),
        (4, "WEFT-1401: CNI_CONTAINERID is \"\\xFF\\xFE\" and not UTF-8")
    );
}

#[test]
fn the_plugins_own_namespace_is_refused_unless_it_is_meant() {
    let agent = FakeAgent::answering(content);
    for command in ["ADD", "CHECK"] {
        let call = Call::new(command, &agent).config("prevResult", json!({}));
        for not_meant in ["", "0", "false", "yes"] {
            let (code, message) = call.clone().env("CNI_NETNS_OVERRIDE", not_meant).run().error();
            assert_eq!(code, 8);
            assert!(
                message.starts_with(
                    "WEFT-1405: CNI_NETNS /proc/self/ns/net is the namespace that the plugin itself runs in, net:["
                ),
                "{message}"
            );
        }
        assert_eq!(agent.requests(), []);
        for meant in ["1", "true", "TRUE"] {
            assert!(call.clone().env("CNI_NETNS_OVERRIDE", meant).run().success);
        }
        assert_eq!(agent.requests().len(), 3);
    }
    // A DEL never enters the namespace: whatever it is called with, it succeeds.
    for netns in ["", NETNS, "/run/netns/gone", "/dev/null"] {
        Call::new("DEL", &agent)
            .without_env("CNI_NETNS_OVERRIDE")
            .env("CNI_NETNS", netns)
            .run()
            .done();
    }
}

#[test]
fn a_namespace_that_is_none_is_told_with_its_path() {
    let agent = FakeAgent::answering(content);
    let fifo = agent.directory().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let fifo = fifo.to_str().unwrap();
    for (path, why) in [
        (
            "/run/netns/gone",
            "open CNI_NETNS /run/netns/gone: No such file or directory (os error 2)".to_owned(),
        ),
        (
            "/dev/null",
            "CNI_NETNS /dev/null is a file and not a namespace".to_owned(),
        ),
        ("/", "CNI_NETNS / is a file and not a namespace".to_owned()),
        (fifo, format!("CNI_NETNS {fifo} is a file and not a namespace")),
    ] {
        for command in ["ADD", "CHECK"] {
            let call = Call::new(command, &agent)
                .config("prevResult", json!({}))
                .env("CNI_NETNS", path);
            assert_eq!(call.run().error(), (8, format!("WEFT-1405: {why}")));
        }
    }
    assert_eq!(agent.requests(), []);
}

#[test]
fn args_that_are_malformed_fail_an_add_and_never_a_del() {
    let agent = FakeAgent::answering(content);
    let with = |command| Call::new(command, &agent).env("CNI_ARGS", "K8S_POD_NAME=web-0;FOO=1");
    assert_eq!(
        with("ADD").run().error(),
        (
            4,
            "WEFT-1401: CNI_ARGS has the unknown key \"FOO\" and not IgnoreUnknown=1".to_owned()
        )
    );
    with("DEL").run().done();
}
