use std::process::Command;

use serde_json::json;

use crate::agent::{FakeAgent, content};
use crate::call::Call;

/// The plugin's whole share in the network: what strace sees of it.
#[test]
fn the_agents_socket_is_the_only_thing_it_connects_to() {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("skipped: strace is not installed");
        return;
    }
    let agent = FakeAgent::answering(content);
    let trace = agent.directory().join("trace");
    let trace_path = trace.to_str().unwrap();
    for command in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        let answer = Call::new(command, &agent)
            .config("prevResult", json!({}))
            .through(&[
                "strace",
                "-f",
                "-s",
                "256",
                "-o",
                trace_path,
                "-e",
                "trace=%network,execve,setns,unshare",
            ])
            .run();
        let trace = std::fs::read_to_string(&trace).unwrap_or_default();
        if trace.is_empty() && answer.stderr.contains("ptrace") {
            println!("skipped: tracing is not allowed: {}", answer.stderr);
            return;
        }
        assert!(answer.success, "{answer:?}");

        let calls = |name: &str| -> Vec<&str> {
            let call = format!(" {name}(");
            trace
                .lines()
                .filter_map(|line| line.split_once(&call))
                .map(|(_, rest)| rest)
                .collect()
        };
        let [socket] = calls("socket")[..] else {
            panic!("{trace}")
        };
        assert!(
            socket.starts_with("AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0)"),
            "{trace}"
        );
        let [connect] = calls("connect")[..] else {
            panic!("{trace}")
        };
        let address = format!("sun_path=\"{}\"", agent.socket().display());
        assert!(connect.contains(&address), "{trace}");
        assert_eq!(calls("execve").len(), 1, "{trace}");
        for never in ["bind", "sendto", "setns", "unshare", "socketpair", "listen"] {
            // A write to the connected socket names no address.
            assert!(
                calls(never).iter().all(|rest| rest.contains("NULL, 0)")),
                "{never}: {trace}"
            );
        }
    }
}
