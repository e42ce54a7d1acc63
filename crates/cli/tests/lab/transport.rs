//! How packets get to other nodes, changed while they do.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::support::{Name, WEFT, is_root, text, weft, weft_json, weft_ok};

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node-1, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server}
spec: {nodeName: node-2, containers: [{name: c, image: i, ports: [{containerPort: 7000}]}]}
";

/// A TCP connection from pod `client` to pod `server`, which says what it is told.
struct Stream {
    shell: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
    said: u32,
}

// === impl Stream ===

impl Stream {
    fn open(lab: &str, server: &str) -> Self {
        let relay = format!(
            "exec 3<>/dev/tcp/{server}/7000 || exit; \
             while read -r line; do echo \"$line\" >&3; read -r -u 3 back || exit; echo \"$back\"; done"
        );
        let mut shell = Command::new(WEFT)
            .args(["lab", "exec", lab, "client", "--", "bash", "-c", &relay])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            to: shell.stdin.take().unwrap(),
            from: BufReader::new(shell.stdout.take().unwrap()).lines(),
            shell,
            said: 0,
        }
    }

    fn says(&mut self) {
        self.said += 1;
        self.say(&format!("line {}", self.said));
    }

    /// Waits for the answer for as long as TCP does: a reset ends the relay.
    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
        let back = self.from.next().and_then(Result::ok);
        assert!(back.as_deref() == Some(line), "the connection broke");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Makes the pods; returns the server's address.
fn with_pods(lab: &str) -> String {
    let file = std::env::temp_dir().join(format!("{lab}.yaml"));
    std::fs::write(&file, PODS).unwrap();
    weft_ok(&["lab", "apply", lab, "-f", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    let server = (0..500).find_map(|_| {
        let list = weft_json(&["ip", "list", "--lab", lab]);
        let addresses = list["addresses"].as_array().unwrap();
        let server = addresses
            .iter()
            .find(|address| address["pod"]["name"] == "server")?;
        (addresses.len() == 2).then(|| server["address"].as_str().unwrap().to_owned())
    });
    server.expect("both pods get addresses")
}

/// What `weft status` says, healthy or not.
fn status(lab: &str) -> Value {
    serde_json::from_slice(&weft(&["status", "--lab", lab, "-o", "json"]).stdout).unwrap()
}

/// The nodes' transports once they are these.
fn wait_for(lab: &str, expected: [&str; 2]) {
    let found = || -> Vec<Value> {
        let status = status(lab);
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["transport"].clone()).collect()
    };
    let changed = (0..500).any(|_| found() == expected);
    assert!(changed, "{:?} instead of {expected:?}", found());
    // kubelet asks a moment later whether the agent serves again.
    let ready = (0..500).any(|_| weft(&["lab", "status", lab]).status.success());
    assert!(ready, "a node stays NotReady");
}

/// Packets that a node's VXLAN device received and sent.
fn by_device(lab: &str, node: &str) -> [u64; 2] {
    let table = weft_ok(&["lab", "node-exec", lab, node, "--", "cat", "/proc/net/dev"]);
    let line = table.lines().find_map(|line| line.trim().strip_prefix("weft0:"));
    let numbers: Vec<u64> = line
        .unwrap()
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    [numbers[1], numbers[9]]
}

#[test]
fn a_connection_outlives_every_change_of_transport() {
    if !is_root("a_connection_outlives_every_change_of_transport") {
        return;
    }
    let name = Name::new("switch");
    let lab = name.as_str();
    weft_ok(&["lab", "create", lab, "--transport", "device"]);
    let server = with_pods(lab);
    let mut stream = Stream::open(lab, &server);
    for (transport, node, now) in [
        ("direct", "node-1", ["direct", "device"]),
        ("direct", "node-2", ["direct", "direct"]),
        ("device", "node-1", ["device", "direct"]),
        ("auto", "node-1", ["direct", "direct"]),
    ] {
        stream.says();
        weft_ok(&["lab", "transport", lab, transport, node]);
        stream.says();
        wait_for(lab, now);
        let before = by_device(lab, "node-1");
        for _ in 0..5 {
            stream.says();
        }
        let [received, sent] = by_device(lab, "node-1");
        assert_eq!(
            (received == before[0], sent == before[1]),
            (now[0] == "direct", now[0] == "direct"),
            "{now:?}: {before:?}, then {received} and {sent}"
        );
    }
    weft_ok(&["lab", "transport", lab, "device", "node-2"]);
    wait_for(lab, ["direct", "device"]);
    let report = weft_json(&["lab", "check", lab]);
    let checks = report["checks"].as_array().unwrap();
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check["verdict"] == "failed")
        .collect();
    assert!(failed.is_empty() && checks.len() >= 20, "{failed:#?}");
    stream.says();
}

#[test]
fn who_demands_direct_beside_ipsec_is_told_and_loses_nothing() {
    if !is_root("who_demands_direct_beside_ipsec_is_told_and_loses_nothing") {
        return;
    }
    let name = Name::new("ipsec");
    let lab = name.as_str();
    weft_ok(&["lab", "create", lab, "--transport", "direct"]);
    wait_for(lab, ["direct", "direct"]);
    let policy = ["src", "192.0.2.1", "dst", "192.0.2.2", "dir", "out"];
    let change = |verb: &'static str| {
        let words = [
            "lab",
            "node-exec",
            lab,
            "node-1",
            "--",
            "ip",
            "xfrm",
            "policy",
            verb,
        ];
        weft_ok(&[&words[..], &policy].concat());
    };
    change("add");
    wait_for_degraded(lab);
    let said = weft(&["status", "--lab", lab]);
    let expected = "node node-1: WEFT-1216: --transport direct is impossible, weft0 does it: the node has IPsec policies (1)";
    assert!(text(&said).contains(expected), "{}", text(&said));
    assert_eq!(said.status.code(), Some(1));
    let status = status(lab);
    assert_eq!(
        (&status["nodes"][0]["transport"], &status["nodes"][0]["ready"]),
        (&"device".into(), &true.into())
    );
    change("delete");
    wait_for(lab, ["direct", "direct"]);
}

fn wait_for_degraded(lab: &str) {
    let degraded = (0..500).any(|_| weft(&["status", "--lab", lab]).status.code() == Some(1));
    assert!(degraded, "the node says nothing of its IPsec policy");
}

#[test]
fn a_path_that_narrows_is_found_by_a_connection_under_each_transport() {
    if !is_root("a_path_that_narrows_is_found_by_a_connection_under_each_transport") {
        return;
    }
    for transport in ["direct", "device"] {
        let name = Name::new("path");
        let lab = name.as_str();
        weft_ok(&["lab", "create", lab, "--transport", transport]);
        let server = with_pods(lab);
        let mut stream = Stream::open(lab, &server);
        stream.says();
        // From here on the first node's packets to the second go by the network's router, which takes 1400 bytes.
        let on = |place: &[&str], command: &str| {
            let words: Vec<&str> = command.split(' ').collect();
            weft_ok(&[place, &["--"], &words].concat())
        };
        let switch = ["lab", "vnet-exec", lab, "--on", "switch"];
        let node = ["lab", "node-exec", lab, "node-1"];
        let quiet = "for f in all vnet; do echo 0 > /proc/sys/net/ipv4/conf/$f/send_redirects; done";
        weft_ok(&[&switch[..], &["--", "sh", "-c", quiet]].concat());
        on(&switch, "ip route add 10.224.0.5 dev vnet mtu lock 1400");
        on(&node, "ip route add 10.224.0.5 via 10.224.0.1 dev eth0");
        // The agent tells the programs a moment after the route came.
        let told = || {
            stream.say(&"w".repeat(100_000));
            weft_ok(&["lab", "exec", lab, "client", "--", "ip", "route", "get", &server])
        };
        let mut ways = std::iter::repeat_with(told).take(100);
        assert!(ways.any(|way| way.contains("mtu 1350")), "{transport}");
        let table = on(&node, "cat /proc/net/snmp");
        let mut ip = table.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let (names, numbers) = (ip.next().unwrap().split(' '), ip.next().unwrap().split(' '));
        let created = names.zip(numbers).find(|(name, _)| *name == "FragCreates");
        assert_eq!(created, Some(("FragCreates", "0")), "{transport}: {table}");
        let status = status(lab);
        assert_eq!(status["verdict"], "healthy", "{status:#}");
    }
}
