//! Pods.

use serde_json::Value;

use super::cells::{age, count, created, list, name, or_none, str_at};
use super::{AGE, Column, NAME, Printer, text, wide};

pub(super) static POD: Printer = Printer {
    columns: &[
        NAME,
        text("Ready"),
        text("Status"),
        text("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ] as &[Column],
    cells: |pod| {
        let state = state(pod);
        let restarts = match (state.restarts, &state.last_restart) {
            (0, _) | (_, None) => state.restarts.to_string(),
            (count, Some(when)) => format!("{count} ({} ago)", age(when)),
        };
        let ip = match str_at(pod, "/status/podIPs/0/ip") {
            "" => str_at(pod, "/status/podIP"),
            first => first,
        };
        let gates = list(pod, "/spec/readinessGates");
        let passed = gates
            .iter()
            .filter(|gate| condition(pod, &gate["conditionType"]))
            .count();
        vec![
            name(pod),
            format!("{}/{}", state.ready, state.containers).into(),
            state.reason.into(),
            restarts.into(),
            created(pod),
            or_none(ip),
            or_none(str_at(pod, "/spec/nodeName")),
            or_none(str_at(pod, "/status/nominatedNodeName")),
            if gates.is_empty() {
                "<none>".into()
            } else {
                format!("{passed}/{}", gates.len()).into()
            },
        ]
    },
};

struct State {
    reason: String,
    ready: usize,
    containers: usize,
    restarts: i64,
    last_restart: Option<Value>,
}

fn condition(pod: &Value, kind: &Value) -> bool {
    list(pod, "/status/conditions")
        .iter()
        .any(|c| c["type"] == *kind && c["status"] == "True")
}

/// An init container that keeps running beside the others.
fn is_sidecar(pod: &Value, name: &Value) -> bool {
    list(pod, "/spec/initContainers")
        .iter()
        .any(|c| c["name"] == *name && c["restartPolicy"] == "Always")
}

fn state(pod: &Value) -> State {
    let phase = str_at(pod, "/status/phase");
    let mut out = State {
        reason: match str_at(pod, "/status/reason") {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        },
        ready: 0,
        containers: list(pod, "/spec/containers").len(),
        restarts: 0,
        last_restart: None,
    };
    let gated = list(pod, "/status/conditions")
        .iter()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        out.reason = "SchedulingGated".to_owned();
    }
    let initializing = init_state(pod, &mut out);
    if !initializing || condition(pod, &"Initialized".into()) {
        if initializing {
            out.restarts = 0;
        }
        container_state(pod, &mut out);
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        if str_at(pod, "/status/reason") == "NodeLost" {
            out.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            out.reason = "Terminating".to_owned();
        }
    }
    out
}

/// Looks at the init containers; whether one of them is still on its way.
fn init_state(pod: &Value, out: &mut State) -> bool {
    let total = list(pod, "/spec/initContainers").len();
    for (i, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        out.note_restarts(status);
        let sidecar = is_sidecar(pod, &status["name"]);
        if sidecar {
            out.containers += 1;
            if status["started"] == true {
                out.ready += usize::from(status["ready"] == true);
                continue;
            }
        }
        let terminated = &status["state"]["terminated"];
        let waiting = str_at(status, "/state/waiting/reason");
        if terminated.is_object() && count(terminated, "/exitCode") == 0 {
            continue;
        }
        out.reason = if terminated.is_object() {
            match (str_at(terminated, "/reason"), count(terminated, "/signal")) {
                ("", 0) => format!("Init:ExitCode:{}", count(terminated, "/exitCode")),
                ("", signal) => format!("Init:Signal:{signal}"),
                (reason, _) => format!("Init:{reason}"),
            }
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{total}")
        };
        return true;
    }
    false
}

fn container_state(pod: &Value, out: &mut State) {
    let mut running = false;
    for status in list(pod, "/status/containerStatuses").iter().rev() {
        out.note_restarts(status);
        let terminated = &status["state"]["terminated"];
        let waiting = str_at(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            out.reason = waiting.to_owned();
        } else if terminated.is_object() {
            out.reason = match (str_at(terminated, "/reason"), count(terminated, "/signal")) {
                ("", 0) => format!("ExitCode:{}", count(terminated, "/exitCode")),
                ("", signal) => format!("Signal:{signal}"),
                (reason, _) => reason.to_owned(),
            };
        } else if status["ready"] == true && status["state"]["running"].is_object() {
            running = true;
            out.ready += 1;
        }
    }
    // One container is done while others run.
    if out.reason == "Completed" && running {
        let ready = condition(pod, &"Ready".into());
        out.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

// === impl State ===

impl State {
    fn note_restarts(&mut self, status: &Value) {
        self.restarts += count(status, "/restartCount");
        let finished = &status["lastState"]["terminated"]["finishedAt"];
        let later = |known: &Value| finished.as_str() > known.as_str();
        if finished.is_string() && self.last_restart.as_ref().is_none_or(later) {
            self.last_restart = Some(finished.clone());
        }
    }
}
