use serde_json::json;

use super::*;

/// Dual-stack, both ends, every field of 1.1: one value in all layouts below.
fn result() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface {
                name: "weft0123456789".to_owned(),
                mac: "02:00:00:00:00:01".to_owned(),
                mtu: Some(1450),
                ..Interface::default()
            },
            Interface {
                name: "eth0".to_owned(),
                mac: "02:00:00:00:00:02".to_owned(),
                mtu: Some(1450),
                sandbox: "/run/netns/a".to_owned(),
                socket_path: Some("/run/vhost.sock".to_owned()),
                pci_id: Some("0000:00:1f.6".to_owned()),
            },
        ],
        ips: vec![
            Ip {
                address: "10.244.0.5/32".parse().unwrap(),
                gateway: Some([169, 254, 1, 1].into()),
                interface: Some(1),
            },
            Ip {
                address: "fd00::5/128".parse().unwrap(),
                gateway: None,
                interface: Some(1),
            },
        ],
        routes: vec![
            Route {
                mtu: Some(1450),
                advmss: Some(1410),
                priority: Some(100),
                table: Some(50),
                scope: Some(0),
                ..Route::new("0.0.0.0/0".parse().unwrap(), Some([169, 254, 1, 1].into()))
            },
            Route::new("::/0".parse().unwrap(), None),
        ],
        dns: Dns {
            nameservers: vec!["10.0.0.10".to_owned()],
            ..Dns::default()
        },
    }
}

#[test]
fn in_1_1_0_a_result_has_everything() {
    assert_eq!(
        result().to_json(Version::V1_1_0).unwrap(),
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "weft0123456789", "mac": "02:00:00:00:00:01", "mtu": 1450 },
                {
                    "name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/a",
                    "socketPath": "/run/vhost.sock", "pciID": "0000:00:1f.6",
                },
            ],
            "ips": [
                { "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1 },
                { "address": "fd00::5/128", "interface": 1 },
            ],
            "routes": [
                {
                    "dst": "0.0.0.0/0", "gw": "169.254.1.1",
                    "mtu": 1450, "advmss": 1410, "priority": 100, "table": 50, "scope": 0,
                },
                { "dst": "::/0" },
            ],
            "dns": { "nameservers": ["10.0.0.10"] },
        })
    );
}

#[test]
fn in_1_0_0_it_has_no_mtu_socket_or_pci_device_and_routes_have_only_ends() {
    assert_eq!(
        result().to_json(Version::V1_0_0).unwrap(),
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "weft0123456789", "mac": "02:00:00:00:00:01" },
                { "name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a" },
            ],
            "ips": [
                { "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1 },
                { "address": "fd00::5/128", "interface": 1 },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0" }],
            "dns": { "nameservers": ["10.0.0.10"] },
        })
    );
}

#[test]
fn from_0_3_0_to_0_4_0_addresses_say_their_family() {
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
        assert_eq!(
            result().to_json(version).unwrap(),
            json!({
                "cniVersion": version.as_str(),
                "interfaces": [
                    { "name": "weft0123456789", "mac": "02:00:00:00:00:01" },
                    { "name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a" },
                ],
                "ips": [
                    { "version": "4", "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1 },
                    { "version": "6", "address": "fd00::5/128", "interface": 1 },
                ],
                "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0" }],
                "dns": { "nameservers": ["10.0.0.10"] },
            })
        );
    }
}

#[test]
fn before_0_3_0_there_is_one_address_of_each_family_with_its_routes() {
    for version in [Version::V0_1_0, Version::V0_2_0] {
        assert_eq!(
            result().to_json(version).unwrap(),
            json!({
                "cniVersion": version.as_str(),
                "ip4": {
                    "ip": "10.244.0.5/32", "gateway": "169.254.1.1",
                    "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
                },
                "ip6": { "ip": "fd00::5/128", "routes": [{ "dst": "::/0" }] },
                "dns": { "nameservers": ["10.0.0.10"] },
            })
        );
    }
    assert_eq!(
        AddResult::default()
            .to_json(Version::V0_2_0)
            .unwrap_err()
            .to_string(),
        "a result without an address can't be told in CNI version 0.2.0"
    );
}

#[test]
fn what_a_version_can_tell_reads_back_as_it_was() {
    for version in Version::ALL {
        let told = result().to_json(version).unwrap();
        let read = AddResult::from_json(told.clone(), version).unwrap();
        assert_eq!(read.to_json(version).unwrap(), told);
    }
    let told = result().to_json(Version::V1_1_0).unwrap();
    assert_eq!(AddResult::from_json(told, Version::V1_1_0).unwrap(), result());
}

#[test]
fn what_go_writes_for_nothing_reads_as_nothing() {
    for nothing in [
        json!({}),
        json!({ "interfaces": null, "ips": null, "routes": null, "dns": null }),
    ] {
        for version in Version::ALL {
            assert_eq!(
                AddResult::from_json(nothing.clone(), version).unwrap(),
                AddResult::default()
            );
        }
    }
}

#[test]
fn a_result_behind_another_keeps_pointing_at_its_own_interfaces() {
    let merged = result().after(result());
    let interfaces: Vec<_> = merged.ips.iter().map(|ip| ip.interface).collect();
    assert_eq!(interfaces, [Some(1), Some(1), Some(3), Some(3)]);
    assert_eq!((merged.interfaces.len(), merged.routes.len()), (4, 4));
    assert_eq!(merged.dns, result().dns);
    assert_eq!(result().after(AddResult::default()), result());
}

#[test]
fn the_addresses_of_an_interface_are_those_inside_the_sandbox() {
    let addresses = |name: &str| {
        result()
            .addresses_of(name)
            .map(|net| net.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(addresses("eth0"), ["10.244.0.5/32", "fd00::5/128"]);
    assert_eq!(addresses("weft0123456789"), [""; 0]);

    let mut broken = result();
    broken.ips[0].interface = Some(7);
    broken.ips[1].interface = None;
    assert_eq!(broken.addresses_of("eth0").count(), 0);
}

#[test]
fn a_configuration_needs_only_a_name() {
    let conf = NetConf::from_json(br#"{"name":"weft"}"#).unwrap();
    assert_eq!(
        (
            conf.version,
            conf.name.as_str(),
            conf.socket.to_str(),
            conf.intent_dir.to_str()
        ),
        (
            Version::V0_1_0,
            "weft",
            Some("/run/weft/agent.sock"),
            Some("/var/lib/weft/intents")
        )
    );
    assert_eq!((conf.timeout, conf.valid_attachments.as_ref()), (None, None));
    assert_eq!(conf.prev_result().unwrap(), None);
}

#[test]
fn a_configuration_that_can_not_be_is_refused_with_what_it_says() {
    for (config, code, why) in [
        (
            "",
            6,
            "WEFT-1402: the network configuration on standard input (0 bytes) is not JSON: EOF",
        ),
        (
            "{",
            6,
            "WEFT-1402: the network configuration on standard input (1 bytes) is not JSON: EOF",
        ),
        (
            "[]",
            7,
            "WEFT-1402: the network configuration on standard input is no JSON object",
        ),
        (
            r#"{"cniVersion":"1.1.0"}"#,
            7,
            "WEFT-1402: the network configuration has no name",
        ),
        (
            r#"{"name":7}"#,
            7,
            "WEFT-1402: the network's name is 7 and not a string",
        ),
        (
            r#"{"name":"_x"}"#,
            7,
            "WEFT-1402: the network's name \"_x\" has to start with",
        ),
        (
            r#"{"name":"a/b"}"#,
            7,
            "WEFT-1402: the network's name \"a/b\" has to start with",
        ),
        (
            r#"{"name":""}"#,
            7,
            "WEFT-1402: the network's name \"\" has to start with",
        ),
        (
            r#"{"name":"w","cniVersion":"1.2.0"}"#,
            1,
            "WEFT-1403: CNI version \"1.2.0\" is not one of 0.1.0,",
        ),
        (
            r#"{"name":"w","cniVersion":1}"#,
            7,
            "WEFT-1402: cniVersion is 1 and not a string",
        ),
        (
            r#"{"name":"w","socket":"run/a"}"#,
            7,
            "WEFT-1402: socket is \"run/a\" and not an absolute path",
        ),
        (
            r#"{"name":"w","intentDir":""}"#,
            7,
            "WEFT-1402: intentDir is \"\" and not an absolute path",
        ),
        (
            r#"{"name":"w","socket":5}"#,
            7,
            "WEFT-1402: network \"w\": invalid type: integer `5`",
        ),
        (
            r#"{"name":"w","timeoutSeconds":0}"#,
            7,
            "WEFT-1402: timeoutSeconds is 0",
        ),
    ] {
        let failure = NetConf::from_json(config.as_bytes()).unwrap_err();
        assert_eq!(failure.code, code, "{config}");
        assert!(failure.msg.starts_with(why), "{config}: {}", failure.msg);
    }
}

#[test]
fn a_list_of_valid_attachments_an_empty_one_and_none_are_three_things() {
    let valid = |rest: &str| {
        let config = format!(r#"{{"name":"w","cniVersion":"1.1.0"{rest}}}"#);
        let valid = NetConf::from_json(config.as_bytes()).unwrap().valid_attachments;
        valid.map(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let key = |key: &str| key.to_owned();
    assert_eq!(valid(""), None);
    assert_eq!(valid(r#","cni.dev/valid-attachments":[]"#), Some(vec![]));
    assert_eq!(valid(r#","cni.dev/valid-attachments":null"#), Some(vec![]));
    assert_eq!(valid(r#","cni.dev/attachments":null"#), Some(vec![]));
    let one = r#"[{"containerID":"a","ifname":"eth0"}]"#;
    let two = r#"[{"containerID":"b","ifname":"eth0"},{"containerID":"a","ifname":"eth0"}]"#;
    assert_eq!(
        valid(&format!(r#","cni.dev/valid-attachments":{one}"#)),
        Some(vec![key("a/eth0")])
    );
    assert_eq!(
        valid(&format!(r#","cni.dev/attachments":{one}"#)),
        Some(vec![key("a/eth0")])
    );
    assert_eq!(
        valid(&format!(
            r#","cni.dev/attachments":{one},"cni.dev/valid-attachments":{two}"#
        )),
        Some(vec![key("a/eth0"), key("b/eth0")])
    );
    let never_ours = r#"[{"containerID":"../a","ifname":"eth0"}]"#;
    assert_eq!(
        valid(&format!(r#","cni.dev/valid-attachments":{never_ours}"#)),
        Some(vec![])
    );
}

#[test]
fn a_list_with_a_hole_in_it_is_refused_and_not_taken_for_a_shorter_one() {
    for list in [r#"[{"containerID":"a"}]"#, r#"[null]"#, r#""a""#, r#"{}"#] {
        let config = format!(r#"{{"name":"w","cniVersion":"1.1.0","cni.dev/valid-attachments":{list}}}"#);
        assert_eq!(
            NetConf::from_json(config.as_bytes()).unwrap_err().code,
            7,
            "{list}"
        );
    }
}

#[test]
fn a_previous_result_is_read_in_its_own_version_or_else_the_configurations() {
    let read = |version: &str, previous: &str| {
        let config = format!(r#"{{"name":"w","cniVersion":"{version}","prevResult":{previous}}}"#);
        NetConf::from_json(config.as_bytes()).unwrap().prev_result()
    };
    let legacy = r#"{"ip4":{"ip":"10.0.0.5/24"}}"#;
    let addresses = |result: Option<AddResult>| result.unwrap().ips.len();
    assert_eq!(addresses(read("0.2.0", legacy).unwrap()), 1);
    assert_eq!(addresses(read("1.1.0", legacy).unwrap()), 0);
    let own_version = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.5/24"}}"#;
    assert_eq!(addresses(read("1.1.0", own_version).unwrap()), 1);
    assert_eq!(read("1.1.0", "null").unwrap(), None);
    assert_eq!(read("1.1.0", r#"{"cniVersion":"7"}"#).unwrap_err().code, 1);
    assert_eq!(read("1.1.0", r#"{"ips":5}"#).unwrap_err().code, 7);
    assert_eq!(read("1.1.0", "5").unwrap_err().code, 7);
}

#[test]
fn an_error_object_has_the_fields_of_the_specification() {
    let error = UserError::new(weft_model::codes::CNI_NETNS, "no such file", "lsns -t net");
    assert_eq!(
        Failure::new(code::NETNS, &error).to_json(Version::V0_4_0),
        json!({
            "cniVersion": "0.4.0",
            "code": 8,
            "msg": "WEFT-1405: no such file",
            "details": "next: lsns -t net",
        })
    );
}
