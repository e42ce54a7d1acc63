//! A node whose agent is not there: what its users are told, what still works, and that it heals by itself.

use anyhow::Result;
use serde_json::{Value, json};

use super::live::{not_weft, wait_for};
use super::scene::{NAMESPACE, PORT, Scene};
use super::{Check, Outcome, yes};
use crate::state::Node;

/// Code of "agent does not answer", by which the sentence is known in events and conditions.
const UNREACHABLE: &str = "WEFT-1404: the node's agent can't be reached";

pub(super) const ALL: &[Check] = &[Check {
    name: "agent-away",
    description: "Without its agent a node is NotReady and says why, pods wait and can be deleted; all heals when it is back",
    run: |scene| {
        if let Some(not_here) = not_weft(scene) {
            return Ok(not_here);
        }
        let node = &scene.b.node;
        scene.new_pod("leaving", node)?;
        let away = keep_agent_off(scene, Some(node)).and_then(|()| while_away(scene, node));
        keep_agent_off(scene, None)?;
        away?;
        heals(scene, node)
    },
}];

/// Keeps the agent off one node, or lets it back; the agents of other nodes go on.
fn keep_agent_off(scene: &Scene, node: Option<&Node>) -> Result<()> {
    let affinity = node.map_or(Value::Null, |node| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [node.name]}]},
        ]}}})
    });
    // A rollout would replace the other nodes' agents, too; pods on nodes that no longer fit are removed without one.
    let patch = json!({"spec": {
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
        "template": {"spec": {"affinity": affinity}},
    }});
    scene.kubectl.read(&[
        "--namespace=weft-system",
        "patch",
        "daemonset",
        "weft-agent",
        "--type=merge",
        "--patch",
        &patch.to_string(),
    ])?;
    Ok(())
}

fn while_away(scene: &Scene, node: &Node) -> Result<()> {
    wait_for("the agent to go", || {
        let agents = scene.kubectl.read(&[
            "--namespace=weft-system",
            "get",
            "pods",
            "--output=jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}",
            &format!("--field-selector=spec.nodeName={}", node.name),
        ])?;
        Ok((!agents.contains("weft-agent")).then_some(()))
    })?;
    let waiting = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "waiting", "namespace": NAMESPACE},
        "spec": {
            "nodeName": node.name,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "agnhost",
                "image": scene.image,
                "args": ["netexec", format!("--http-port={PORT}")],
            }],
        },
    });
    scene.kubectl.apply(&waiting.to_string())?;
    wait_for(
        "an event of the waiting pod that names the agent and the next step",
        || {
            let events = scene.read(&[
                "get",
                "events",
                "--field-selector=involvedObject.name=waiting",
                "--output=jsonpath={.items[*].message}",
            ])?;
            Ok((events.contains(UNREACHABLE) && events.contains("; next: ")).then_some(()))
        },
    )?;
    wait_for("the node to be NotReady for want of its agent", || {
        let ready = scene.field(
            &format!("node/{}", node.name),
            "{.status.conditions[?(@.type==\"Ready\")]}",
        )?;
        let ready: Value = serde_json::from_str(&ready)?;
        let says = ready["message"].as_str().unwrap_or_default();
        Ok((ready["status"] == "False" && says.contains(UNREACHABLE)).then_some(()))
    })?;
    scene.read(&["delete", "pod", "leaving", "--timeout=60s"])?;
    Ok(())
}

fn heals(scene: &Scene, node: &Node) -> Outcome {
    scene.read(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/waiting"])?;
    let address = scene.field("pod/waiting", "{.status.podIP}")?;
    scene.fetch(&scene.a, &format!("{address}:{PORT}/hostname"))?;
    scene.read(&["delete", "pod", "waiting", "--timeout=60s"])?;
    let used = wait_for("the node to use as many addresses as it has pods", || {
        let pods = scene.kubectl.read(&[
            "get",
            "pods",
            "--all-namespaces",
            "--output=jsonpath={range .items[*]}pod {.spec.hostNetwork}{\"\\n\"}{end}",
            &format!("--field-selector=spec.nodeName={}", node.name),
        ])?;
        let pods = pods.lines().filter(|line| line.trim() == "pod").count();
        let used = scene.field(&format!("nodenetwork/{}", node.name), "{.status.blocks[*].used}")?;
        let used: usize = used
            .split_ascii_whitespace()
            .filter_map(|n| n.parse::<usize>().ok())
            .sum();
        Ok((used == pods).then_some(used))
    })?;
    yes(format!(
        "the pod waited and has {address}; {used} addresses in use, as many as pods"
    ))
}
