//! `weft status` and `weft ip` on a lab and by its kubeconfig.

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Name, WEFT, is_root, text, weft, weft_json, weft_ok};

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: node-1, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy}
spec: {nodeName: node-1, hostNetwork: true, containers: [{name: c, image: i}]}
";

#[test]
fn status_and_ip_tell_the_same_of_a_lab_and_of_its_kubeconfig() {
    if !is_root("status_and_ip_tell_the_same_of_a_lab_and_of_its_kubeconfig") {
        return;
    }
    let name = Name::new("insp");
    let lab = name.as_str();
    weft_ok(&[
        "lab",
        "create",
        lab,
        "--pod-cidr",
        "10.244.0.0/23",
        "--block-size",
        "25",
    ]);
    let file = std::env::temp_dir().join(format!("{lab}.yaml"));
    std::fs::write(&file, PODS).unwrap();
    weft_ok(&["lab", "apply", lab, "-f", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    let address = loop {
        let list = weft_json(&["ip", "list", "--lab", lab]);
        if let Some(address) = list["addresses"][0]["address"].as_str() {
            break address.to_owned();
        }
    };

    weft_ok(&["status", "--lab", lab, "--wait", "--wait-duration", "30s"]);
    let status = weft_json(&["status", "--lab", lab]);
    assert_eq!(
        (&status["apiVersion"], &status["kind"], &status["verdict"]),
        (
            &json!("cli.weft.dev/v1alpha1"),
            &json!("NetworkStatus"),
            &json!("healthy")
        )
    );
    assert_eq!(
        status["pools"],
        json!([{
            "name": "default", "cidrs": ["10.244.0.0/23"], "blockSize": 25,
            "allocated": 2, "capacity": 4, "problems": [],
        }])
    );
    assert_eq!(status["slices"], json!({"slices": 1, "nodes": 2, "problems": []}));
    assert_eq!(status["nodes"][1]["address"], "10.224.0.5");

    let kubeconfig = weft_ok(&["lab", "kubeconfig", lab]);
    let kubeconfig = kubeconfig.trim();
    for by in [
        vec!["--kubeconfig", kubeconfig],
        vec!["--kubeconfig", kubeconfig, "--context", &format!("weft-{lab}")],
    ] {
        let args: Vec<&str> = ["status"].into_iter().chain(by).collect();
        assert_eq!(
            weft_json(&args)["nodes"][0]["blocks"],
            status["nodes"][0]["blocks"]
        );
    }
    let by_environment = Command::new(WEFT)
        .args(["ip", "show", &address, "-o", "json"])
        .env("KUBECONFIG", kubeconfig)
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&by_environment.stdout).unwrap();
    assert_eq!(answer, weft_json(&["ip", "show", &address, "--lab", lab]));
    let block = &status["nodes"][0]["blocks"][0];
    assert_eq!(
        answer["owner"],
        json!({
            "state": "pod",
            "pods": [{"namespace": "default", "name": "web", "node": "node-1"}],
            "block": block, "pool": "default", "node": "node-1",
        })
    );
    for (address, words) in [
        ("10.224.0.5", "10.224.0.5 is node node-2's own"),
        (
            "10.244.1.255",
            "10.244.1.255 is unassigned: it lies in pool default",
        ),
        ("192.0.2.1", "192.0.2.1 is outside"),
    ] {
        let said = weft_ok(&["ip", "show", address, "--lab", lab]);
        assert!(said.starts_with(words), "{said}");
    }
    let of_other = weft_json(&["ip", "list", "--lab", lab, "--node", "node-2"]);
    assert_eq!(
        (
            of_other["blocks"].as_array().unwrap().len(),
            &of_other["addresses"]
        ),
        (1, &json!([]))
    );
}

#[test]
fn a_frozen_agent_degrades_the_status_until_it_goes_on() {
    if !is_root("a_frozen_agent_degrades_the_status_until_it_goes_on") {
        return;
    }
    let name = Name::new("froz");
    let lab = name.as_str();
    weft_ok(&["lab", "create", lab, "--node-count", "1"]);
    weft_ok(&["lab", "fault", lab, "freeze-agent", "node-1"]);
    let degraded = loop {
        let status = weft(&["status", "--lab", lab]);
        if !status.status.success() {
            break status;
        }
    };
    let said = text(&degraded);
    assert_eq!(degraded.status.code(), Some(1), "{said}");
    assert!(said.contains("node node-1: its kubelet is not ready: "), "{said}");
    assert!(
        said.contains(&format!(
            "next: KUBECONFIG=$(weft lab kubeconfig {lab}) kubectl describe node/node-1"
        )),
        "{said}"
    );
    let waited = weft(&["status", "--lab", lab, "--wait", "--wait-duration", "1ms"]);
    assert_eq!(waited.status.code(), Some(1), "{}", text(&waited));
    weft_ok(&["lab", "fault", lab, "freeze-agent", "--clear"]);
    weft_ok(&["status", "--lab", lab, "--wait", "--wait-duration", "60s"]);
}

#[test]
fn a_cluster_that_does_not_answer_is_told_from_a_degraded_one() {
    if !is_root("a_cluster_that_does_not_answer_is_told_from_a_degraded_one") {
        return;
    }
    let name = Name::new("gone");
    let lab = name.as_str();
    weft_ok(&["lab", "create", lab, "--node-count", "1"]);
    let state = std::fs::read_to_string(format!("/run/weft/lab/{lab}/cluster.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let pid = i32::try_from(state["daemon"]["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let unreachable = loop {
        let status = weft(&["status", "--lab", lab]);
        if status.status.code() == Some(2) {
            break text(&status);
        }
    };
    assert!(unreachable.starts_with("error[WEFT-1601]: "), "{unreachable}");
    assert!(
        unreachable.ends_with(&format!("next: weft lab status {lab}\n")),
        "{unreachable}"
    );
}

#[test]
fn a_cluster_that_is_not_named_or_not_there_is_an_error_with_its_code() {
    for (args, code) in [
        (&["status", "--lab", "no-such-lab"][..], "WEFT-1101"),
        (&["status", "--kubeconfig", "/no/such/file"], "WEFT-1602"),
        (&["ip", "list", "--kubeconfig", "/no/such/file"], "WEFT-1602"),
        (
            &["ip", "show", "10.244.0.300", "--lab", "no-such-lab"],
            "WEFT-1014",
        ),
        (&["status", "--lab", "a", "--context", "b"], "WEFT-1015"),
        (&["status", "--wait-duration", "5s"], "WEFT-1018"),
    ] {
        let output = weft(args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with(&format!("error[{code}]: ")), "{args:?}: {said}");
    }
}
