//! The reference implementation of the runtime's side, `cnitool` of
//! github.com/containernetworking/cni, where it is installed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use weft_cni::protocol::{self, Gc};

use crate::agent::{FakeAgent, content};
use crate::call::NETNS;

fn conflist(agent: &FakeAgent, version: &str) {
    let list = json!({
        "cniVersion": version,
        "name": "weft",
        "plugins": [{ "type": "weft-cni", "socket": agent.socket(), "intentDir": agent.intent_dir() }],
    });
    fs::write(agent.directory().join("10-weft.conflist"), list.to_string()).unwrap();
}

fn run(agent: &FakeAgent, script: &str) -> Output {
    // `cnitool` keeps results in /var/lib/cni: here it gets a /var/lib of its own.
    let script = format!("mount -t tmpfs none /var/lib && {script}");
    let plugins = Path::new(env!("CARGO_BIN_EXE_weft-cni")).parent().unwrap();
    Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
            "cnitool",
            NETNS,
        ])
        .env("NETCONFPATH", agent.directory())
        .env("CNI_PATH", plugins)
        .env("CNI_NETNS_OVERRIDE", "1")
        .output()
        .unwrap()
}

#[test]
fn the_reference_client_adds_checks_collects_and_deletes() {
    if Command::new("cnitool").arg("help").output().is_err() {
        println!("skipped: cnitool is not in PATH");
        return;
    }
    let agent = FakeAgent::answering(content);
    conflist(&agent, "1.1.0");
    let output = run(
        &agent,
        "for command in add check status gc del; do \"$0\" $command weft \"$1\" || exit; done",
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.starts_with("unshare:") || stderr.starts_with("mount:") {
        println!("skipped: no mounts in a user namespace: {stderr}");
        return;
    }
    assert!(output.status.success(), "{stderr}");

    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        result["ips"],
        json!([{ "address": "10.244.0.5/32", "gateway": "169.254.1.1", "interface": 1 }])
    );
    let requests = agent.requests();
    let commands: Vec<_> = requests.iter().map(|request| request.command.name()).collect();
    // Its library deletes what it remembers and is not called valid before it collects;
    // `cnitool gc` calls nothing valid, and gives the plugin no list.
    assert_eq!(commands, ["ADD", "CHECK", "STATUS", "DEL", "GC", "DEL"]);
    assert_eq!(requests[4].command, protocol::Command::Gc(Gc { valid: None }));
    for del in [3, 5] {
        assert_eq!(requests[del].command.key(), requests[0].command.key());
    }
}

#[test]
fn the_reference_client_reads_the_results_of_older_versions() {
    if Command::new("cnitool").arg("help").output().is_err() {
        println!("skipped: cnitool is not in PATH");
        return;
    }
    for (version, commands) in [
        ("0.3.0", &["ADD", "DEL"][..]),
        ("0.3.1", &["ADD", "DEL"]),
        ("0.4.0", &["ADD", "CHECK", "DEL"]),
        ("1.0.0", &["ADD", "CHECK", "DEL"]),
    ] {
        let agent = FakeAgent::answering(content);
        conflist(&agent, version);
        let script = commands
            .iter()
            .map(|command| format!("\"$0\" {} weft \"$1\"", command.to_lowercase()));
        let output = run(&agent, &script.collect::<Vec<_>>().join(" && "));
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.starts_with("unshare:") || stderr.starts_with("mount:") {
            println!("skipped: no mounts in a user namespace: {stderr}");
            return;
        }
        assert!(output.status.success(), "{version}: {stderr}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["cniVersion"], json!(version));
        assert_eq!(result["ips"][0]["address"], json!("10.244.0.5/32"));
        let asked: Vec<_> = agent
            .requests()
            .iter()
            .map(|request| request.command.name())
            .collect();
        assert_eq!(asked, commands);
    }
}

#[test]
fn the_reference_client_shows_what_the_plugin_says_of_an_agent_that_is_down() {
    if Command::new("cnitool").arg("help").output().is_err() {
        println!("skipped: cnitool is not in PATH");
        return;
    }
    let agent = FakeAgent::absent();
    conflist(&agent, "1.1.0");
    let output = run(&agent, "\"$0\" add weft \"$1\"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.starts_with("unshare:") || stderr.starts_with("mount:") {
        println!("skipped: no mounts in a user namespace: {stderr}");
        return;
    }
    assert!(!output.status.success());
    let told = format!(
        "WEFT-1404: the node's agent can't be reached: connect to {}",
        agent.socket().display()
    );
    assert!(stderr.contains(&told), "{stderr}");
}
