//! A node whose agent hangs: what runtimes, people and the scheduler hear of it, and what goes on.

use std::fs;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::live::{not_weft, unharmed, wait_for};
use super::scene::{NAMESPACE, Scene};
use super::{Check, Outcome};

pub(super) const ALL: &[Check] = &[Check {
    name: "agent-away",
    description: "Where an agent hangs, connections go on, a new pod waits with WEFT-1404, the Node says NetworkUnavailable; all passes with it",
    run: agent_away,
}];

/// A process that stands still until this is dropped.
struct Frozen(Pid);

// === impl Frozen ===

impl Frozen {
    fn new(pid: Pid) -> Result<Self> {
        kill_process(pid, Signal::STOP).context("stop the agent")?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn agent_away(scene: &Scene) -> Outcome {
    if let Some(not_here) = not_weft(scene) {
        return Ok(not_here);
    }
    unharmed(scene, || {
        let frozen = Frozen::new(agent(scene)?)?;
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "waits", "namespace": NAMESPACE},
            "spec": {
                "nodeName": scene.b.node.name,
                "terminationGracePeriodSeconds": 0,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "agnhost", "image": scene.image, "args": ["pause"]}],
            },
        });
        scene.kubectl.apply(&pod.to_string())?;
        wait_for("the kubelet to name WEFT-1404", || {
            let events = scene.read(&[
                "get",
                "events",
                "--field-selector=involvedObject.name=waits",
                "--output=jsonpath={.items[*].message}",
            ])?;
            let ready = condition(scene, "Ready", "message")?;
            Ok((events.contains("WEFT-1404") || ready.contains("WEFT-1404")).then_some(()))
        })?;
        wait_for("the Node to say that its agent is away", || {
            let reason = condition(scene, "NetworkUnavailable", "reason")?;
            Ok((reason == "WeftAgentAway").then_some(()))
        })?;
        drop(frozen);
        wait_for("the Node to say that its agent is back", || {
            let reason = condition(scene, "NetworkUnavailable", "reason")?;
            Ok((reason == "WeftReady").then_some(()))
        })?;
        scene.read(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/waits"])?;
        scene.read(&["delete", "pod", "waits", "--timeout=60s"])?;
        Ok(())
    })
}

/// A field of a condition of the second node.
fn condition(scene: &Scene, name: &str, field: &str) -> Result<String> {
    scene.field(
        &format!("node/{}", scene.b.node.name),
        &format!("{{.status.conditions[?(@.type==\"{name}\")].{field}}}"),
    )
}

/// The process of the agent on the second node.
fn agent(scene: &Scene) -> Result<Pid> {
    let uid = scene.kubectl.read(&[
        "--namespace=weft-system",
        "get",
        "pods",
        "--selector=app.kubernetes.io/component=agent",
        &format!("--field-selector=spec.nodeName={}", scene.b.node.name),
        "--output=jsonpath={.items[0].metadata.uid}",
    ])?;
    let group = format!("pod{uid}");
    for entry in fs::read_dir("/proc")?.flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        if read("cgroup").contains(&group) && read("cmdline").contains("agent\0") {
            let pid = entry
                .file_name()
                .to_string_lossy()
                .parse()
                .ok()
                .and_then(Pid::from_raw);
            return pid.context("a process number");
        }
    }
    bail!(
        "the agent on {} has no process on this machine",
        scene.b.node.name
    )
}
