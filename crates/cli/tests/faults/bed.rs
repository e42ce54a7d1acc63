//! A lab node, and sandboxes that tests attach to it as a container runtime does.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use weft_kernel::NetNs;

use crate::support::{Name, text, weft, weft_ok};

/// Ends a wait for something that never comes; nothing is judged by how long it took.
const HANG: Duration = Duration::from_secs(240);

/// A node of a cluster.
pub(crate) struct Bed {
    pub(crate) name: Arc<Name>,
    pub(crate) node_name: &'static str,
}

/// A network namespace that stands for a pod's sandbox.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    netns: String,
}

/// What the node's agent says of its node.
#[derive(Debug)]
pub(crate) struct Audit(Value);

// === impl Bed ===

impl Bed {
    /// The node of a cluster of one.
    pub(crate) fn new(label: &str) -> Self {
        let name = Name::new(label);
        weft_ok(&["lab", "create", name.as_str(), "--node-count", "1"]);
        Self {
            name: Arc::new(name),
            node_name: "node-1",
        }
    }

    /// The nodes of a cluster of two.
    pub(crate) fn pair(label: &str) -> [Self; 2] {
        Self::pair_with(label, &[])
    }

    /// The same for a cluster made with further flags.
    pub(crate) fn pair_with(label: &str, flags: &[&str]) -> [Self; 2] {
        let name = Arc::new(Name::new(label));
        let create = ["lab", "create", name.as_str(), "--node-count", "2"];
        weft_ok(&[&create, flags].concat());
        ["node-1", "node-2"].map(|node_name| Self {
            name: Arc::clone(&name),
            node_name,
        })
    }

    pub(crate) fn lab(&self) -> &str {
        self.name.as_str()
    }

    pub(crate) fn node_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/weft/lab/{}/nodes/{}", self.lab(), self.node_name))
    }

    pub(crate) fn node(&self) -> NetNs {
        NetNs::named(&format!("weft-{}.{}", self.lab(), self.node_name)).expect("the node's namespace")
    }

    /// Process ID of the node's agent.
    pub(crate) fn agent(&self) -> u32 {
        self.agent_process().expect("the agent runs").0
    }

    /// Kills the agent, also one that was started by strace.
    pub(crate) fn kill_agent(&self) {
        if let Some((agent, _)) = self.agent_process()
            && let Some(pid) = Pid::from_raw(agent.cast_signed())
        {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Whether an agent answers, and finds its node in order.
    pub(crate) fn serves(&self) -> bool {
        let socket = self.node_dir().join("agent.sock");
        let audit = weft(&["node", "audit", "--socket", socket.to_str().unwrap()]);
        audit.status.code() == Some(0)
    }

    /// The command line of the node's agent.
    pub(crate) fn agent_command(&self) -> Vec<String> {
        self.agent_process().expect("the agent runs").1
    }

    fn agent_process(&self) -> Option<(u32, Vec<String>)> {
        let wanted = format!("agent --node-name {} ", self.node_name);
        std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .find_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let words: Vec<String> = line
                    .split(|byte| *byte == 0)
                    .filter(|word| !word.is_empty())
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect();
                let line = words.join(" ");
                let ours = line.contains(&format!("/{}/", self.lab())) && !line.contains("strace");
                (ours && line.contains(&wanted)).then_some((pid, words))
            })
    }

    pub(crate) fn sandbox(&self, label: &str) -> Sandbox {
        let netns = format!("weft-{}.pod.{}-{label}", self.lab(), self.node_name);
        NetNs::create_named(&netns).expect("a namespace");
        Sandbox {
            id: format!("{}-{}-{label}", self.lab(), self.node_name),
            netns,
        }
    }

    /// How the cluster is, healthy or not.
    pub(crate) fn status(&self) -> Value {
        let output = weft(&["lab", "status", self.lab(), "-o", "json"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Asks the cluster's API, without a client that knows better; `null` where it answers with an error.
    pub(crate) fn api(&self, method: &str, path: &str) -> Value {
        let status = self.status();
        let server = status["api"]
            .as_str()
            .expect("a URL")
            .trim_start_matches("http://")
            .to_owned();
        let mut stream = TcpStream::connect(server).expect("the API listens");
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nAccept: application/json\r\n\r\n"
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        if head.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
            serde_json::from_str(body).expect("JSON")
        } else {
            Value::Null
        }
    }

    /// Has the node's stack translate an address into another, for what its pods send, as kube-proxy does.
    pub(crate) fn translate(&self, from: Ipv4Addr, to: Ipv4Addr) {
        let rules = format!(
            "table ip proxy {{ chain prerouting {{\ntype nat hook prerouting priority dstnat\nip daddr {from} dnat to {to}\n}}\n}}"
        );
        let netns = format!("weft-{}.{}", self.lab(), self.node_name);
        let output = Command::new("ip")
            .args(["netns", "exec", &netns, "nft", &rules])
            .output()
            .expect("ip starts");
        assert!(output.status.success(), "{}", text(&output));
    }

    /// The network configuration as a runtime hands it to the plugin.
    pub(crate) fn configuration(&self) -> Value {
        let list =
            std::fs::read_to_string(self.node_dir().join("cni/net.d/10-weft.conflist")).expect("a conflist");
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let mut plugin = list["plugins"][0].clone();
        // A network beside the lab's: the kubelet of a node that starts has the attachments of its own network removed
        // that it does not know, and it knows of none here.
        plugin["name"] = json!("sandboxes");
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin
    }

    pub(crate) fn plugin(&self) -> PathBuf {
        self.node_dir().join("cni/bin/weft-cni")
    }

    /// Calls the plugin.
    pub(crate) fn cni(&self, verb: &str, sandbox: &Sandbox) -> Output {
        self.cni_by(&[], verb, sandbox, &self.configuration())
    }

    /// Calls the plugin by another program, such as strace, which gets it as its last argument.
    pub(crate) fn cni_by(
        &self,
        by: &[String],
        verb: &str,
        sandbox: &Sandbox,
        configuration: &Value,
    ) -> Output {
        let plugin = self.plugin();
        let mut command = match by.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(plugin);
                command
            }
            None => Command::new(plugin),
        };
        let mut child = command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.id)
            .env("CNI_NETNS", format!("/run/netns/{}", sandbox.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.node_dir().join("cni/bin"))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=sandbox;K8S_POD_NAME={}",
                    sandbox.id
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the plugin starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // One that is killed early reads nothing.
        let _ = stdin.write_all(configuration.to_string().as_bytes());
        drop(stdin);
        child.wait_with_output().expect("the plugin ends")
    }

    /// ADD, again as long as the agent can't be reached: runtimes try again too.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Ipv4Addr {
        let until = Instant::now() + HANG;
        let result: Value = loop {
            let output = self.cni("ADD", sandbox);
            let answer: Value = serde_json::from_slice(&output.stdout).expect("a CNI object");
            if output.status.success() {
                break answer;
            }
            assert!(
                answer["code"] == 11 && Instant::now() < until,
                "{}",
                text(&output)
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        let address = result["ips"][0]["address"].as_str().expect("an address");
        address.split('/').next().unwrap().parse().expect("IPv4")
    }

    pub(crate) fn delete(&self, sandbox: &Sandbox) {
        let output = self.cni("DEL", sandbox);
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Asks the agent for an audit until it answers: it may just have been started again.
    pub(crate) fn audit(&self) -> Audit {
        let socket = self.node_dir().join("agent.sock");
        let until = Instant::now() + HANG;
        loop {
            let output = weft(&[
                "node",
                "audit",
                "--socket",
                socket.to_str().unwrap(),
                "-o",
                "json",
            ]);
            match serde_json::from_slice::<Value>(&output.stdout) {
                Ok(audit) if output.status.code() != Some(2) => return Audit(audit),
                _ => assert!(Instant::now() < until, "no audit: {}", text(&output)),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How long the agent's log is, in bytes.
    pub(crate) fn log_len(&self) -> usize {
        self.log().len()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.node_dir().join("agent.log")).expect("the agent's log")
    }

    /// Waits until the agent tells of `words` beyond `from` in its log; returns how long that took.
    pub(crate) fn until_logged(&self, from: usize, words: &str) -> Duration {
        let began = Instant::now();
        loop {
            let log = self.log();
            let new = log.get(from..).unwrap_or_default();
            if new.contains(words) {
                return began.elapsed();
            }
            assert!(began.elapsed() < HANG, "the agent never told of {words:?}: {new}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Audits until `wanted` holds; returns how long that took.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&Audit) -> bool) -> (Duration, Audit) {
        let began = Instant::now();
        loop {
            let audit = self.audit();
            if wanted(&audit) {
                return (began.elapsed(), audit);
            }
            assert!(began.elapsed() < HANG, "{what}: {audit:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

// === impl Sandbox ===

impl Sandbox {
    /// Removes the namespace, as a runtime does that never sends DEL.
    pub(crate) fn vanish(&self) {
        NetNs::delete_named(&self.netns).expect("the namespace goes");
    }

    pub(crate) fn netns(&self) -> NetNs {
        NetNs::named(&self.netns).expect("the sandbox's namespace")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = NetNs::delete_named(&self.netns);
    }
}

// === impl Audit ===

impl Audit {
    /// What is wrong now, in words.
    pub(crate) fn findings(&self) -> Vec<String> {
        words(&self.0["findings"])
    }

    /// What the agent put right, in words, the last first.
    pub(crate) fn repaired(&self) -> Vec<String> {
        let repaired = self.0["repaired"].as_array().expect("a list");
        repaired
            .iter()
            .map(|repaired| {
                repaired["finding"]["what"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    }

    /// How many other nodes the agent knows.
    pub(crate) fn nodes(&self) -> u64 {
        self.0["checked"]["nodes"].as_u64().expect("a number")
    }

    /// Who has which address.
    pub(crate) fn held(&self) -> BTreeMap<String, Ipv4Addr> {
        let held = self.0["held"].as_array().expect("a list");
        held.iter()
            .map(|held| {
                let key = held["attachment"].as_str().expect("a key");
                let address = held["address"].as_str().expect("an address");
                (
                    key.split('/').next().unwrap_or_default().to_owned(),
                    address.parse().expect("IPv4"),
                )
            })
            .collect()
    }

    /// How many addresses two attachments have.
    pub(crate) fn duplicates(&self) -> usize {
        let held = self.held();
        let mut addresses: Vec<&Ipv4Addr> = held.values().collect();
        addresses.sort();
        addresses.windows(2).filter(|pair| pair[0] == pair[1]).count()
    }
}

fn words(findings: &Value) -> Vec<String> {
    let findings = findings.as_array().expect("a list");
    findings
        .iter()
        .map(|found| found["what"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Whether a process, or strace in its place, was killed.
pub(crate) fn was_killed(output: &Output) -> bool {
    output.status.signal() == Some(9) || output.status.code() == Some(128 + 9)
}

/// What a plugin has to print when it fails: one CNI error object. When it was killed it prints nothing, or all.
pub(crate) fn is_valid_answer(output: &Output) -> bool {
    match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(answer) if output.status.success() => answer.is_object(),
        Ok(answer) => answer["code"].is_u64() && answer["msg"].is_string(),
        Err(_) => output.stdout.is_empty() && (output.status.success() || was_killed(output)),
    }
}

/// The configuration of a GC that keeps these sandboxes.
pub(crate) fn keeping(mut configuration: Value, sandboxes: &[&Sandbox]) -> Value {
    let valid: Vec<Value> = sandboxes
        .iter()
        .map(|sandbox| json!({"containerID": sandbox.id, "ifname": "eth0"}))
        .collect();
    configuration["cni.dev/valid-attachments"] = json!(valid);
    configuration
}
