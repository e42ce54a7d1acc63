use serde_json::{Value, json};
use weft_cni::spec::Version;

use crate::agent::{FakeAgent, content};
use crate::call::{Call, NETNS};

fn expected(version: &str) -> Value {
    let host = json!({ "name": "weft0123456789", "mac": "02:00:00:00:00:01" });
    let pod = json!({ "name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": NETNS });
    let route = json!({ "dst": "0.0.0.0/0", "gw": "169.254.1.1" });
    match version {
        "1.1.0" => json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "weft0123456789", "mac": "02:00:00:00:00:01", "mtu": 1450 },
                { "name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": NETNS },
            ],
            "ips": [{ "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1 }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450 }],
            "dns": {},
        }),
        "1.0.0" => json!({
            "cniVersion": "1.0.0",
            "interfaces": [host, pod],
            "ips": [{ "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1 }],
            "routes": [route],
            "dns": {},
        }),
        "0.4.0" | "0.3.1" | "0.3.0" => json!({
            "cniVersion": version,
            "interfaces": [host, pod],
            "ips": [{ "version": "4", "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1 }],
            "routes": [route],
            "dns": {},
        }),
        _ => json!({
            "cniVersion": version,
            "ip4": { "ip": "10.244.0.5/32", "gateway": "169.254.1.1", "routes": [route] },
            "dns": {},
        }),
    }
}

#[test]
fn an_add_is_answered_in_the_version_of_its_configuration() {
    let agent = FakeAgent::answering(content);
    for version in Version::ALL {
        let call = Call::new("ADD", &agent).config("cniVersion", json!(version.as_str()));
        assert_eq!(call.run().result(), expected(version.as_str()));
    }
    for call in [
        Call::new("ADD", &agent).without_config("cniVersion"),
        Call::new("ADD", &agent).config("cniVersion", json!("")),
    ] {
        assert_eq!(call.run().result(), expected("0.1.0"));
    }
}

#[test]
fn a_version_from_the_future_is_refused_by_every_command() {
    let agent = FakeAgent::answering(content);
    for command in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        let call = Call::new(command, &agent).config("cniVersion", json!("2.0.0"));
        let why =
            "WEFT-1403: CNI version \"2.0.0\" is not one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
        assert_eq!(call.run().error(), (1, why.to_owned()));
    }
    assert_eq!(agent.requests(), []);
}

#[test]
fn a_command_is_refused_before_the_version_that_brought_it() {
    let agent = FakeAgent::answering(content);
    for (command, since) in [
        ("CHECK", Version::V0_4_0),
        ("GC", Version::V1_1_0),
        ("STATUS", Version::V1_1_0),
        ("DEL", Version::V0_1_0),
    ] {
        for version in Version::ALL {
            let call = Call::new(command, &agent)
                .config("cniVersion", json!(version.as_str()))
                .config("prevResult", json!({}));
            if version >= since {
                call.run().done();
                assert_eq!(agent.requests().len(), 1);
            } else {
                let why = format!(
                    "WEFT-1403: {command} exists since CNI {since}, network \"weft\" is configured for {version}"
                );
                assert_eq!(call.run().error(), (1, why));
                assert_eq!(agent.requests(), []);
            }
        }
    }
}

#[test]
fn an_error_is_told_in_the_version_of_the_configuration() {
    let agent = FakeAgent::absent();
    let answer = Call::new("ADD", &agent)
        .config("cniVersion", json!("0.4.0"))
        .run();
    let error: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(error["cniVersion"], json!("0.4.0"));
}
