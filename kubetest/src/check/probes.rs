//! The kubelet's probes, which come from the node and not from a pod.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::live::wait_for;
use super::scene::{NAMESPACE, PORT, Scene};
use super::{Check, Outcome, yes};

pub(super) const ALL: &[Check] = &[
    Check {
        name: "probes",
        description: "Startup, readiness and liveness probes by HTTP, TCP, gRPC and exec reach pods of both nodes",
        run: probes,
    },
    Check {
        name: "probes-fail",
        description: "A pod that does not answer its liveness probe is started again, and one that does is not",
        run: failing,
    },
];

/// Port of agnhost's gRPC health service.
const GRPC: u16 = 5000;

fn probes(scene: &Scene) -> Outcome {
    let kinds = [
        (
            "http",
            netexec(),
            json!({"httpGet": {"path": "/healthz", "port": PORT}}),
        ),
        ("tcp", netexec(), json!({"tcpSocket": {"port": PORT}})),
        (
            "grpc",
            json!(["grpc-health-checking", format!("--port={GRPC}")]),
            json!({"grpc": {"port": GRPC}}),
        ),
        (
            "exec",
            netexec(),
            json!({"exec": {"command": ["sh", "-c", "true"]}}),
        ),
    ];
    let mut names = Vec::new();
    for (kind, args, probe) in &kinds {
        for node in [&scene.a.node, &scene.b.node] {
            let name = format!("probe-{kind}-{}", node.name);
            let object = pod(scene, &name, &node.name, args, probe);
            scene.kubectl.apply(&object.to_string())?;
            names.push(format!("pod/{name}"));
        }
    }
    let mut wait = vec!["wait", "--for=condition=Ready", "--timeout=90s"];
    wait.extend(names.iter().map(String::as_str));
    scene.read(&wait)?;
    for name in &names {
        let restarts = restarts(scene, name)?;
        if restarts != 0 {
            bail!("{name} was started again {restarts} times");
        }
    }
    let mut delete = vec!["delete", "--wait=false"];
    delete.extend(names.iter().map(String::as_str));
    scene.read(&delete)?;
    yes(format!(
        "{} kinds × startup, readiness, liveness × 2 nodes",
        kinds.len()
    ))
}

fn failing(scene: &Scene) -> Outcome {
    // Nothing listens there: the kubelet has to get through to be refused, or time out.
    let dead = json!({"tcpSocket": {"port": 9}});
    let mut object = pod(scene, "probe-dead", &scene.b.node.name, &netexec(), &dead);
    object["spec"]["containers"][0]
        .as_object_mut()
        .context("a container")?
        .retain(|key, _| key != "startupProbe" && key != "readinessProbe");
    scene.kubectl.apply(&object.to_string())?;
    wait_for("the pod to be started again", || {
        Ok((restarts(scene, "pod/probe-dead")? > 0).then_some(()))
    })?;
    let spared = restarts(scene, "pod/b")?;
    if spared != 0 {
        bail!("pod b was started again {spared} times");
    }
    scene.read(&["delete", "pod", "probe-dead", "--wait=false"])?;
    yes("started again; pod b never")
}

fn netexec() -> Value {
    json!(["netexec", format!("--http-port={PORT}")])
}

fn pod(scene: &Scene, name: &str, node: &str, args: &Value, probe: &Value) -> Value {
    let mut often = probe.clone();
    often["periodSeconds"] = json!(1);
    let mut startup = often.clone();
    startup["failureThreshold"] = json!(60);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "agnhost",
                "image": scene.image,
                "args": args,
                "startupProbe": startup,
                "readinessProbe": often,
                "livenessProbe": often,
            }],
        },
    })
}

fn restarts(scene: &Scene, pod: &str) -> Result<u32> {
    let text = scene.field(pod, "{.status.containerStatuses[0].restartCount}")?;
    Ok(text.parse().unwrap_or(0))
}
