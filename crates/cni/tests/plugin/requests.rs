use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::thread;

use serde_json::{Map, Value, json};
use weft_cni::protocol::{
    Add, Attached, Check, Command, Del, Gc, Netns, Pod, PodAddress, Reply, Request, Times,
};
use weft_cni::spec::{AddResult, Failure, Version};
use weft_model::AttachmentKey;

use crate::agent::{FakeAgent, attached, content};
use crate::call::{Call, ID, NETNS};

fn key() -> AttachmentKey {
    AttachmentKey::new(ID, "eth0").unwrap()
}

fn pod() -> Pod {
    let some = |text: &str| Some(text.to_owned());
    Pod {
        namespace: some("shop"),
        name: some("web-0"),
        uid: some("4e7d"),
        infra_container_id: some("4f1c"),
    }
}

fn own_netns() -> Netns {
    let metadata = std::fs::metadata(NETNS).unwrap();
    Netns {
        path: NETNS.into(),
        dev: metadata.dev(),
        ino: metadata.ino(),
    }
}

/// What a plugin before us in a chain made.
fn earlier() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "net1", "sandbox": NETNS }],
        "ips": [{ "address": "192.168.7.5/24", "interface": 0 }],
        "routes": [{ "dst": "192.168.0.0/16" }],
        "dns": { "nameservers": ["192.168.7.1"] },
    })
}

#[test]
fn an_add_hands_over_everything_the_runtime_said() {
    let agent = FakeAgent::answering(content);
    let before = Times::now_ns();
    let runtime_config =
        json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
    Call::new("ADD", &agent)
        .config("runtimeConfig", runtime_config.clone())
        .config("prevResult", earlier())
        .run()
        .result();

    let (request, netns) = agent.request();
    let runtime_config: Map<_, _> = runtime_config.as_object().unwrap().clone();
    let expected = Add {
        key: key(),
        netns: own_netns(),
        pod: pod(),
        runtime_config,
        prev_result: Some(AddResult::from_json(earlier(), Version::V1_1_0).unwrap()),
    };
    let times = request.times.unwrap();
    assert!(
        before <= times.started_ns && times.started_ns <= times.sent_ns && times.sent_ns <= Times::now_ns()
    );
    assert_eq!(
        request,
        Request {
            network: "weft".to_owned(),
            wait_ms: 60_000,
            times: Some(times),
            command: Command::Add(expected)
        }
    );
    let passed = File::from(netns.unwrap()).metadata().unwrap();
    assert_eq!((passed.dev(), passed.ino()), (own_netns().dev, own_netns().ino));
}

#[test]
fn the_descriptor_is_that_of_the_pods_namespace() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    // It ends when its standard input is closed.
    let mut pod = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            "echo ready; exec cat",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(pod.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    if line != "ready\n" {
        let output = pod.wait_with_output().unwrap();
        println!(
            "skipped: no network namespace: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let path = format!("/proc/{}/ns/net", pod.id());
    let agent = FakeAgent::answering(content);
    let result = Call::new("ADD", &agent)
        .without_env("CNI_NETNS_OVERRIDE")
        .env("CNI_NETNS", &path)
        .run()
        .result();
    assert_eq!(result["interfaces"][1]["sandbox"], json!(path));

    let passed = File::from(agent.request().1.unwrap()).metadata().unwrap();
    let namespace = std::fs::metadata(&path).unwrap();
    assert_eq!((passed.dev(), passed.ino()), (namespace.dev(), namespace.ino()));
    assert_ne!(passed.ino(), own_netns().ino);
    drop(pod.stdin.take());
    pod.wait().unwrap();
}

#[test]
fn an_add_behind_another_plugin_passes_on_what_that_made() {
    let agent = FakeAgent::answering(content);
    let result = Call::new("ADD", &agent)
        .config("prevResult", earlier())
        .config("dns", json!({ "nameservers": ["10.0.0.10"] }))
        .run()
        .result();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "net1", "sandbox": NETNS },
                { "name": "weft0123456789", "mac": "02:00:00:00:00:01", "mtu": 1450 },
                { "name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": NETNS },
            ],
            "ips": [
                { "address": "192.168.7.5/24", "interface": 0 },
                { "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 2 },
            ],
            "routes": [
                { "dst": "192.168.0.0/16" },
                { "dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450 },
            ],
            "dns": { "nameservers": ["192.168.7.1"] },
        })
    );
}

#[test]
fn the_configurations_dns_is_the_results() {
    let agent = FakeAgent::answering(content);
    let dns = json!({
        "nameservers": ["10.0.0.10"],
        "domain": "cluster.local",
        "search": ["svc.cluster.local"],
        "options": ["ndots:5"],
    });
    let result = Call::new("ADD", &agent).config("dns", dns.clone()).run().result();
    assert_eq!(result["dns"], dns);
}

#[test]
fn a_pod_with_two_families_gets_a_default_route_of_each() {
    let agent = FakeAgent::answering(|_| {
        let mut addresses = attached().addresses;
        addresses.push(PodAddress {
            address: "fd00::5".parse().unwrap(),
            gateway: "fe80::1".parse().unwrap(),
        });
        Reply::Added(Attached {
            addresses,
            ..attached()
        })
    });
    let result = Call::new("ADD", &agent).run().result();
    assert_eq!(
        (&result["ips"][1], &result["routes"]),
        (
            &json!({ "address": "fd00::5/128", "gateway": "fe80::1", "interface": 1 }),
            &json!([
                { "dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450 },
                { "dst": "::/0", "gw": "fe80::1", "mtu": 1450 },
            ]),
        )
    );
}

#[test]
fn a_previous_result_that_can_not_be_read_fails_add_and_check_and_never_a_del() {
    let agent = FakeAgent::answering(content);
    for broken in [
        json!("text"),
        json!({ "ips": [{ "address": "nowhere" }] }),
        json!({ "cniVersion": 7 }),
    ] {
        for command in ["ADD", "CHECK"] {
            let (code, message) = Call::new(command, &agent)
                .config("prevResult", broken.clone())
                .run()
                .error();
            assert_eq!(code, 7);
            assert!(message.starts_with("WEFT-1402: "), "{message}");
        }
        assert_eq!(agent.requests(), []);
        Call::new("DEL", &agent).config("prevResult", broken).run().done();
        assert_eq!(agent.requests().len(), 1);
    }
}

#[test]
fn a_check_needs_the_result_of_the_add_and_hands_it_over() {
    let agent = FakeAgent::answering(content);
    for missing in [
        Call::new("CHECK", &agent),
        Call::new("CHECK", &agent).config("prevResult", Value::Null),
    ] {
        assert_eq!(
            missing.run().error(),
            (
                7,
                "WEFT-1402: CHECK of network \"weft\" came without a prevResult".to_owned()
            )
        );
    }
    let result = Call::new("ADD", &agent).run().result();
    agent.requests();

    Call::new("CHECK", &agent)
        .config("prevResult", result.clone())
        .run()
        .done();
    let (request, netns) = agent.request();
    let prev_result = AddResult::from_json(result, Version::V1_1_0).unwrap();
    let addresses: Vec<_> = prev_result
        .addresses_of("eth0")
        .map(|net| net.to_string())
        .collect();
    assert_eq!(addresses, ["10.244.0.5/32"]);
    let expected = Check {
        key: key(),
        netns: own_netns(),
        pod: pod(),
        prev_result,
    };
    assert_eq!(
        (request.wait_ms, request.command),
        (10_000, Command::Check(expected))
    );
    assert!(netns.is_some());
}

#[test]
fn a_del_is_named_by_its_key_alone() {
    let agent = FakeAgent::answering(content);
    Call::new("DEL", &agent)
        .config("prevResult", earlier())
        .run()
        .done();
    let (request, netns) = agent.request();
    assert_eq!(
        (request.wait_ms, request.command),
        (
            1200,
            Command::Del(Del {
                key: key(),
                pod: pod()
            })
        )
    );
    assert!(netns.is_none());
    assert_eq!(agent.intents(), []);
}

#[test]
fn a_gc_tells_a_list_an_empty_list_and_no_list_apart() {
    let agent = FakeAgent::answering(content);
    let attachments = json!([{ "containerID": ID, "ifname": "eth0" }]);
    for (key_name, list, expected) in [
        (
            "cni.dev/valid-attachments",
            attachments.clone(),
            Some(vec![key()]),
        ),
        ("cni.dev/attachments", attachments, Some(vec![key()])),
        ("cni.dev/valid-attachments", json!([]), Some(vec![])),
        ("cni.dev/valid-attachments", Value::Null, Some(vec![])),
        ("something.else", Value::Null, None),
    ] {
        Call::new("GC", &agent).config(key_name, list).run().done();
        assert_eq!(agent.request().0.command, Command::Gc(Gc { valid: expected }));
    }
}

#[test]
fn a_shorter_time_out_of_the_configuration_holds_for_every_wait() {
    let agent = FakeAgent::answering(content);
    for (command, wait_ms) in [
        ("ADD", 1000),
        ("CHECK", 1000),
        ("DEL", 1000),
        ("GC", 1000),
        ("STATUS", 1000),
    ] {
        let call = Call::new(command, &agent)
            .config("timeoutSeconds", json!(1))
            .config("prevResult", json!({}));
        assert!(call.run().success);
        assert_eq!(agent.request().0.wait_ms, wait_ms);
    }
    Call::new("DEL", &agent)
        .config("timeoutSeconds", json!(600))
        .run()
        .done();
    assert_eq!(agent.request().0.wait_ms, 1200);
}

#[test]
fn what_the_agent_says_of_a_failure_reaches_the_runtime_unchanged() {
    for (command, code) in [
        ("ADD", 11),
        ("ADD", 100),
        ("CHECK", 100),
        ("GC", 100),
        ("STATUS", 50),
        ("STATUS", 51),
    ] {
        let agent = FakeAgent::answering(move |_| {
            Reply::Failed(Failure {
                code,
                msg: "WEFT-1301: no free address in 10.244.0.0/24 (256 in use)".to_owned(),
                details: "next: weft status".to_owned(),
            })
        });
        let answer = Call::new(command, &agent).config("prevResult", json!({})).run();
        answer.error();
        let error: Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!(
            error,
            json!({
                "cniVersion": "1.1.0",
                "code": code,
                "msg": "WEFT-1301: no free address in 10.244.0.0/24 (256 in use)",
                "details": "next: weft status",
            })
        );
        // The agent has answered: there is nothing to undo.
        assert_eq!((agent.requests().len(), agent.intents()), (1, vec![]));
    }
}

#[test]
fn many_adds_at_once_each_get_their_own_answer() {
    let agent = FakeAgent::answering(|request| {
        let index = request.command.key().unwrap().container_id()[1..]
            .parse()
            .unwrap();
        let addresses = vec![PodAddress {
            address: [10, 244, 0, index].into(),
            gateway: [169, 254, 1, 1].into(),
        }];
        Reply::Added(Attached {
            addresses,
            ..attached()
        })
    });
    let add = |index: u8| Call::new("ADD", &agent).env("CNI_CONTAINERID", format!("c{index}"));
    thread::scope(|scope| {
        for index in 0..64 {
            let call = add(index);
            scope.spawn(move || {
                let result = call.run().result();
                assert_eq!(result["ips"][0]["address"], json!(format!("10.244.0.{index}/32")));
            });
        }
    });
    assert_eq!(agent.requests().len(), 64);
}

#[test]
fn the_log_file_gets_one_line_for_each_call() {
    let agent = FakeAgent::answering(content);
    let file = agent.directory().join("weft-cni.log");
    Call::new("ADD", &agent)
        .config("logFile", json!(file))
        .run()
        .result();
    Call::new("CHECK", &agent)
        .config("logFile", json!(file))
        .run()
        .error();

    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            for measured in ["time", "seconds"] {
                assert!(!line[measured].take().is_null());
            }
            line
        })
        .collect();
    assert_eq!(
        lines,
        [
            json!({
                "time": null, "seconds": null,
                "command": "ADD", "network": "weft", "attachment": format!("{ID}/eth0"), "code": 0,
            }),
            json!({
                "time": null, "seconds": null,
                "command": "CHECK", "network": "weft", "attachment": format!("{ID}/eth0"), "code": 7,
                "error": "WEFT-1402: CHECK of network \"weft\" came without a prevResult",
            }),
        ]
    );
}

#[test]
fn a_log_file_that_can_not_be_written_changes_nothing_for_the_runtime() {
    let agent = FakeAgent::answering(content);
    for file in ["/dev/null/log", "/", "/dev/full"] {
        let answer = Call::new("ADD", &agent).config("logFile", json!(file)).run();
        answer.result();
        assert!(answer.stderr.starts_with("write the log file: "), "{answer:?}");
    }
}
