//! From nothing to a cluster and back to nothing.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Name, WEFT, is_root, text, weft, weft_json, weft_ok};

#[test]
fn a_cluster_is_made_works_and_leaves_nothing() {
    if !is_root("a_cluster_is_made_works_and_leaves_nothing") {
        return;
    }
    let name = Name::new("life");
    let before = name.traces();
    let said = weft_ok(&["lab", "create", name.as_str()]);
    assert!(
        said.contains(&format!("  next: weft lab check {}", name.as_str())),
        "{said}"
    );

    let status = weft_json(&["lab", "status", name.as_str()]);
    assert_eq!(status["kind"], "LabCluster");
    assert_eq!(status["phase"], "Ready");
    let nodes: Vec<_> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            json!([
                node["name"],
                node["address"],
                node["ready"],
                node["blocks"].as_array().unwrap().len()
            ])
        })
        .collect();
    assert_eq!(
        json!(nodes),
        json!([
            ["node-1", "10.224.0.4", true, 1],
            ["node-2", "10.224.0.5", true, 1]
        ])
    );

    let taken = weft(&["lab", "create", name.as_str()]);
    assert!(text(&taken).starts_with("error[WEFT-1102]: "), "{}", text(&taken));

    let exit = weft(&[
        "lab",
        "node-exec",
        name.as_str(),
        "node-1",
        "--",
        "sh",
        "-c",
        "exit 42",
    ]);
    assert_eq!(exit.status.code(), Some(42));

    weft_ok(&["lab", "delete", name.as_str()]);
    assert_eq!(name.traces(), before);
    let gone = weft(&["lab", "status", name.as_str()]);
    assert!(text(&gone).starts_with("error[WEFT-1101]: "), "{}", text(&gone));
}

#[test]
fn an_agent_with_nothing_to_do_leaves_its_node_alone() {
    if !is_root("an_agent_with_nothing_to_do_leaves_its_node_alone") {
        return;
    }
    let name = Name::new("idle");
    weft_ok(&["lab", "create", name.as_str(), "--node-count", "1"]);
    // What the start of the cluster was the occasion for is over.
    std::thread::sleep(Duration::from_secs(3));
    let said = weft_ok(&[
        "lab",
        "node-exec",
        name.as_str(),
        "node-1",
        "--",
        "sh",
        "-c",
        "timeout 5 ip monitor link || true",
    ]);
    // The probe of a pass makes a link and removes it, and there is a pass every half a minute.
    let gone = said.lines().filter(|line| line.contains("Deleted")).count();
    assert!(gone <= 1, "{gone} links went within 5 s on an idle node:\n{said}");
}

#[test]
fn every_check_passes_on_a_new_cluster_and_leaves_no_pod() {
    if !is_root("every_check_passes_on_a_new_cluster_and_leaves_no_pod") {
        return;
    }
    let name = Name::new("check");
    weft_ok(&["lab", "create", name.as_str()]);
    let report = weft_json(&["lab", "check", name.as_str()]);
    assert_eq!(report["kind"], "LabCheckReport");
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 20, "{} checks", checks.len());
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check["verdict"] == "failed")
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let pods = weft_json(&["lab", "status", name.as_str()]);
    assert_eq!(
        pods["pods"],
        json!({"running": 0, "pending": 0, "succeeded": 0, "failed": 0})
    );
}

#[test]
fn an_interrupt_at_any_step_leaves_nothing() {
    if !is_root("an_interrupt_at_any_step_leaves_nothing") {
        return;
    }
    for step in ["", "Virtual network", "Kubernetes API", "Operator"] {
        let name = Name::new("int");
        let before = name.traces();
        let mut create = Command::new(WEFT)
            .args(["lab", "create", name.as_str(), "--node-count", "5"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(create.stderr.take().unwrap()).lines();
        if !step.is_empty() {
            let seen = lines.map_while(Result::ok).find(|line| line.contains(step));
            assert!(seen.is_some(), "the step {step:?} was not told");
        }
        let pid = Pid::from_child(&create);
        kill_process(pid, Signal::INT).unwrap();
        let status = create.wait().unwrap();
        if status.success() {
            // It was faster than the signal.
            weft_ok(&["lab", "delete", name.as_str()]);
        }
        assert_eq!(name.traces(), before, "interrupted after {step:?}, {status}");
    }
}

#[test]
fn a_killed_daemon_is_told_from_a_working_one_and_its_cluster_removed() {
    if !is_root("a_killed_daemon_is_told_from_a_working_one_and_its_cluster_removed") {
        return;
    }
    let name = Name::new("kill");
    let before = name.traces();
    weft_ok(&["lab", "create", name.as_str(), "--node-count", "1"]);
    let state = std::fs::read_to_string(format!("/run/weft/lab/{}/cluster.json", name.as_str())).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let pid = i32::try_from(state["daemon"]["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    // The socket is dead when the process is; that it is dead shows in its socket.
    let status = loop {
        let status = weft(&["lab", "status", name.as_str(), "-o", "json"]);
        if status.status.code() == Some(2) {
            break status;
        }
    };
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["phase"], "Unreachable");
    weft_ok(&["lab", "delete", name.as_str()]);
    assert_eq!(name.traces(), before);
}

#[test]
fn nodes_come_and_go_with_scale() {
    if !is_root("nodes_come_and_go_with_scale") {
        return;
    }
    let name = Name::new("scale");
    weft_ok(&["lab", "create", name.as_str(), "--node-count", "1"]);
    let nodes = |status: &serde_json::Value| -> Vec<String> {
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .map(|node| node["name"].as_str().unwrap().to_owned())
            .collect()
    };
    weft_ok(&["lab", "scale", name.as_str(), "--node-count", "3"]);
    let status = weft_json(&["lab", "status", name.as_str()]);
    assert_eq!(
        (nodes(&status), &status["phase"]),
        (
            vec!["node-1".into(), "node-2".into(), "node-3".into()],
            &json!("Ready")
        )
    );
    weft_ok(&["lab", "scale", name.as_str(), "--node-count", "1"]);
    let status = weft_json(&["lab", "status", name.as_str()]);
    assert_eq!(
        (nodes(&status), &status["phase"]),
        (vec!["node-1".into()], &json!("Ready"))
    );
    weft_ok(&["lab", "scale", name.as_str(), "--node-count", "2"]);
    let status = weft_json(&["lab", "status", name.as_str()]);
    assert_eq!(
        nodes(&status),
        ["node-1", "node-4"],
        "a number is never used twice"
    );
}

#[test]
fn an_agent_that_is_killed_is_started_again() {
    if !is_root("an_agent_that_is_killed_is_started_again") {
        return;
    }
    let name = Name::new("agent");
    weft_ok(&["lab", "create", name.as_str(), "--node-count", "1"]);
    weft_ok(&["lab", "fault", name.as_str(), "kill-agent", "node-1"]);
    let restarted = (0..200).any(|_| {
        let status = weft(&["lab", "status", name.as_str(), "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["nodes"][0]["agentRestarts"] == 1 && status["phase"] == "Ready"
    });
    assert!(restarted, "{}", text(&weft(&["lab", "status", name.as_str()])));
}

#[test]
fn a_node_loses_what_it_sends_without_the_nft_program_until_that_is_mended() {
    if !is_root("a_node_loses_what_it_sends_without_the_nft_program_until_that_is_mended") {
        return;
    }
    let name = Name::new("loss");
    let create = Command::new(WEFT)
        .args(["lab", "create", name.as_str(), "--node-count", "1"])
        .env("PATH", "")
        .output()
        .unwrap();
    assert!(create.status.success(), "{}", text(&create));
    let status = weft_json(&["lab", "status", name.as_str()]);
    let connect = format!(
        "timeout 1 bash -c '</dev/tcp/{}/6443'",
        status["network"]["api"].as_str().unwrap()
    );
    let connects = || {
        let on_node = [
            "lab",
            "node-exec",
            name.as_str(),
            "node-1",
            "--",
            "sh",
            "-c",
            &connect,
        ];
        weft(&on_node).status.code()
    };
    assert_eq!(connects(), Some(0));

    weft_ok(&["lab", "fault", name.as_str(), "loss", "node-1", "--value", "100"]);
    assert_eq!(connects(), Some(124), "the time is over");
    let degraded = weft(&["lab", "status", name.as_str()]);
    assert_eq!(degraded.status.code(), Some(1), "{}", text(&degraded));
    assert!(
        text(&degraded).contains("node-1 has a fault: 100 % of what it sends is lost"),
        "{}",
        text(&degraded)
    );

    weft_ok(&["lab", "fault", name.as_str(), "loss", "node-1", "--clear"]);
    assert_eq!(connects(), Some(0));
    for (value, kind) in [("0", "loss"), ("101", "loss"), ("100", "mtu"), ("9000", "mtu")] {
        let refused = weft(&["lab", "fault", name.as_str(), kind, "--value", value]);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
        assert!(
            text(&refused).starts_with("error[WEFT-1014]: "),
            "{}",
            text(&refused)
        );
    }
}

#[test]
fn an_idle_node_goes_after_the_time_given_and_the_least_number_stays() {
    if !is_root("an_idle_node_goes_after_the_time_given_and_the_least_number_stays") {
        return;
    }
    let name = Name::new("idle");
    weft_ok(&[
        "lab",
        "create",
        name.as_str(),
        "--enable-cluster-autoscaler",
        "--min-count",
        "1",
        "--max-count",
        "2",
        "--scale-down-unneeded-time",
        "1s",
    ]);
    let status = loop {
        // A node on its way out has no object any more, and the status says so by its exit code.
        let output = weft(&["lab", "status", name.as_str(), "-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        if status["nodes"].as_array().unwrap().len() < 2 && output.status.success() {
            break status;
        }
    };
    assert_eq!(
        status["config"]["autoscaler"],
        json!({"min": 1, "max": 2, "scaleDownUnneededMs": 1000})
    );
    let blocks = status["nodes"][0]["blocks"].as_array().unwrap();
    assert_eq!((status["phase"].as_str(), blocks.len()), (Some("Ready"), 1));
}
