//! One pod from start to end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_kernel::NetNs;

use super::Context;
use super::node_status::NetworkReady;
use super::pod::{PodConfig, ProbeKind};
use super::probe::{self, Verdict};
use super::sandbox::Sandbox;
use super::slots::Slot;
use super::status::{self, ContainerState, Running};
use crate::controllers::events::{Severity, pod_reference};
use crate::responder::{Identity, Responder};

const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The kubelet's longest delay between tries to start a sandbox is 5 minutes; in a lab somebody is watching.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// What is to become of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Run it.
    Run,
    /// Stop it, then remove its object.
    Stop,
    /// Stop it; its object is gone already.
    Vanish,
}

/// Runs one pod.
pub(super) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) pod: PodConfig,
    pub(super) wish: watch::Receiver<Wish>,
    pub(super) adopted: Option<Sandbox>,
    pub(super) slot: Slot,
}

/// What makes a pod stop.
enum End {
    Wished,
    Completed,
}

/// Grows from try to try.
struct Backoff(Duration);

// === impl Worker ===

impl Worker {
    /// Runs the pod to its end, which is when its object and everything in the kernel are gone.
    pub(super) async fn run(mut self) {
        let Some(home) = self.start().await else {
            let wish = *self.wish.borrow();
            delete_object(&self.context, &self.pod, wish).await;
            return;
        };
        let netns = home.as_ref().map_or_else(
            || Arc::clone(&self.context.netns),
            |sandbox| Arc::clone(&sandbox.netns),
        );
        let responder = self.serve(netns).await;
        let node_ip = IpAddr::V4(self.context.node.address.get());
        let (id, ips) = match &home {
            Some(sandbox) => (sandbox.record.container_id.clone(), sandbox.ips.clone()),
            None => (self.pod.uid.replace('-', "").repeat(2), vec![node_ip]),
        };
        let started = self.pod.start_time.unwrap_or_else(Timestamp::now);
        let mut state = Running::new(&self.pod, node_ip, ips, id, started);
        let end = self.live(&mut state).await;
        if let Some(responder) = responder {
            responder.stop().await;
        }
        if matches!(end, End::Completed) {
            let now = Timestamp::now();
            self.write_status(&status::succeeded(&self.pod, &state, now))
                .await;
        }
        if let Some(sandbox) = home {
            self.remove(&sandbox).await;
        }
        drop(self.slot);
        if matches!(end, End::Completed) {
            wished_away(&mut self.wish).await;
        }
        let wish = *self.wish.borrow();
        delete_object(&self.context, &self.pod, wish).await;
    }

    /// Brings the sandbox up; `None` inside for a pod in the node's namespace, outside where the pod is to stop
    /// before it ever ran.
    async fn start(&mut self) -> Option<Option<Sandbox>> {
        if self.pod.host_network {
            return Some(None);
        }
        if let Some(sandbox) = self.adopted.take() {
            return Some(Some(sandbox));
        }
        let context = Arc::clone(&self.context);
        let mut backoff = Backoff(FIRST_DELAY);
        let mut told = false;
        loop {
            self.network_ready().await?;
            let permit = tokio::select! {
                biased;
                () = wished_away(&mut self.wish) => return None,
                permit = context.starts.acquire() => permit,
            };
            // Never cut short: it cleans up after itself.
            let outcome = context.store.create(&self.pod).await;
            drop(permit);
            match outcome {
                Ok(sandbox) => return Some(Some(sandbox)),
                Err(error) => {
                    let message =
                        format!("Failed to create pod sandbox: rpc error: code = Unknown desc = {error}");
                    self.event(Severity::Warning, "FailedCreatePodSandBox", &message)
                        .await;
                    if !told {
                        let node_ip = IpAddr::V4(context.node.address.get());
                        self.write_status(&status::creating(&self.pod, node_ip, Timestamp::now()))
                            .await;
                        told = true;
                    }
                }
            }
            tokio::select! {
                () = wished_away(&mut self.wish) => return None,
                () = backoff.wait() => {}
            }
        }
    }

    /// Waits until the network plugins serve ADD; `None` where the pod is to stop meanwhile.
    async fn network_ready(&mut self) -> Option<()> {
        let mut network = self.context.network.clone();
        loop {
            let now = network.borrow_and_update().clone();
            match now {
                NetworkReady::Yes => return Some(()),
                NetworkReady::Unknown => {}
                NetworkReady::No(why) => {
                    let message = format!(
                        "network is not ready: container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: {why}"
                    );
                    self.event(Severity::Warning, "NetworkNotReady", &message).await;
                }
            }
            tokio::select! {
                () = wished_away(&mut self.wish) => return None,
                changed = network.changed() => changed.ok()?,
            }
        }
    }

    async fn serve(&self, netns: Arc<NetNs>) -> Option<Responder> {
        let identity = Identity {
            pod: self.pod.name.clone(),
            namespace: self.pod.namespace.clone(),
            node: self.context.node.name.clone(),
        };
        match Responder::start(netns, identity, self.pod.ports()).await {
            Ok(responder) => {
                for refused in responder.refused() {
                    let message = format!(
                        "port {}/{:?} is not served: {}",
                        refused.port.number, refused.port.protocol, refused.error
                    );
                    self.event(Severity::Warning, "PortNotServed", &message).await;
                }
                Some(responder)
            }
            Err(error) => {
                self.event(
                    Severity::Warning,
                    "PortNotServed",
                    &format!("no port is served: {error}"),
                )
                .await;
                None
            }
        }
    }

    /// Keeps the status of the running pod true until it is to stop.
    async fn live(&mut self, state: &mut Running) -> End {
        let (verdict_sender, mut verdicts) = mpsc::channel(16);
        let address = state.ips.first().copied();
        let mut probes: Vec<JoinSet<()>> = self.pod.containers.iter().map(|_| JoinSet::new()).collect();
        for (index, tasks) in probes.iter_mut().enumerate() {
            self.probe(
                tasks,
                index,
                state.containers[index].started,
                address,
                &verdict_sender,
            );
        }
        self.write_status(&status::running(&self.pod, state)).await;
        let end = self.pod.runs_for.map(|runs_for| Instant::now() + runs_for);
        loop {
            let verdict = tokio::select! {
                () = wished_away(&mut self.wish) => return End::Wished,
                () = sleep_until(end) => return End::Completed,
                Some(verdict) = verdicts.recv() => verdict,
            };
            let index = verdict.container;
            self.tell(&verdict).await;
            let config = &self.pod.containers[index];
            let (has_startup, has_readiness) =
                (config.has(ProbeKind::Startup), config.has(ProbeKind::Readiness));
            let was_ready = state.is_ready();
            let now = Timestamp::now();
            let effect = judge(
                &mut state.containers[index],
                &verdict,
                has_startup,
                has_readiness,
                now,
            );
            match effect {
                Effect::None => continue,
                Effect::Started => self.probe(&mut probes[index], index, true, address, &verdict_sender),
                Effect::Ready => {}
                Effect::Restarted => {
                    let message = format!(
                        "Container {} failed {} probe, will be restarted",
                        config.name,
                        words(verdict.kind).to_lowercase()
                    );
                    self.event(Severity::Normal, "Killing", &message).await;
                    probes[index] = JoinSet::new();
                    self.probe(
                        &mut probes[index],
                        index,
                        state.containers[index].started,
                        address,
                        &verdict_sender,
                    );
                }
            }
            if state.is_ready() != was_ready {
                state.ready_changed = now;
            }
            self.write_status(&status::running(&self.pod, state)).await;
        }
    }

    /// Starts the probes of a container: the startup probe alone until it has succeeded, then the others.
    fn probe(
        &self,
        tasks: &mut JoinSet<()>,
        container: usize,
        started: bool,
        address: Option<IpAddr>,
        verdicts: &mpsc::Sender<Verdict>,
    ) {
        let Some(address) = address else { return };
        for probe in &self.pod.containers[container].probes {
            if (probe.kind == ProbeKind::Startup) != started {
                let netns = Arc::clone(&self.context.netns);
                tasks.spawn(probe::run(
                    container,
                    probe.clone(),
                    netns,
                    address,
                    verdicts.clone(),
                ));
            }
        }
    }

    async fn tell(&self, verdict: &Verdict) {
        if let Some(failure) = &verdict.failure {
            let message = format!("{} probe failed: {failure}", words(verdict.kind));
            self.event(Severity::Warning, "Unhealthy", &message).await;
        }
    }

    async fn remove(&self, sandbox: &Sandbox) {
        let mut backoff = Backoff(FIRST_DELAY);
        while let Err(error) = self.context.store.remove(&sandbox.record).await {
            let message = format!(
                "error killing pod: failed to \"KillPodSandbox\" for {:?} with KillPodSandboxError: \"rpc error: code = Unknown desc = {error}\"",
                self.pod.uid
            );
            self.event(Severity::Warning, "FailedKillPod", &message).await;
            backoff.wait().await;
        }
    }

    async fn write_status(&self, status: &Value) {
        write_status(&self.context, &self.pod, status).await;
    }

    async fn event(&self, severity: Severity, reason: &str, message: &str) {
        let object = pod_reference(&self.pod.namespace, &self.pod.name, &self.pod.uid);
        self.context
            .recorder
            .record(&object, severity, reason, message)
            .await;
    }
}

/// What a verdict did to a container.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    None,
    Started,
    Ready,
    Restarted,
}

/// Applies a probe's verdict to a container.
fn judge(
    state: &mut ContainerState,
    verdict: &Verdict,
    has_startup: bool,
    has_readiness: bool,
    now: Timestamp,
) -> Effect {
    let success = verdict.failure.is_none();
    if !verdict.conclusive {
        return Effect::None;
    }
    match (verdict.kind, success) {
        (ProbeKind::Startup, true) => {
            state.started = true;
            state.ready = !has_readiness;
            Effect::Started
        }
        (ProbeKind::Readiness, ready) if state.ready != ready => {
            state.ready = ready;
            Effect::Ready
        }
        (ProbeKind::Startup | ProbeKind::Liveness, false) => {
            let restarts = state.restarts + 1;
            *state = ContainerState {
                restarts,
                ..ContainerState::new(has_startup, has_readiness, now)
            };
            Effect::Restarted
        }
        (ProbeKind::Readiness | ProbeKind::Liveness, _) => Effect::None,
    }
}

fn words(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Startup => "Startup",
        ProbeKind::Readiness => "Readiness",
        ProbeKind::Liveness => "Liveness",
    }
}

/// Waits until the pod is no longer to run.
pub(super) async fn wished_away(wish: &mut watch::Receiver<Wish>) {
    // The sender ends with the kubelet, which then ends this task too.
    if wish.wait_for(|wish| *wish != Wish::Run).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Writes a pod's status; tries until it is written or the pod is gone.
pub(super) async fn write_status(context: &Context, pod: &PodConfig, status: &Value) {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
    // With the UID the server refuses to touch a later pod of the same name.
    let patch = json!({ "metadata": { "uid": pod.uid }, "status": status });
    let mut backoff = Backoff(FIRST_DELAY);
    loop {
        match pods
            .patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                tracing::debug!(pod = %pod.name, %status, "pod status not taken");
                return;
            }
            Err(error) => tracing::warn!(pod = %pod.name, %error, "pod status not written, trying again"),
        }
        backoff.wait().await;
    }
}

/// Removes a pod's object for good, unless it is gone already.
pub(super) async fn delete_object(context: &Context, pod: &PodConfig, wish: Wish) {
    if wish == Wish::Vanish {
        return;
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(pod.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let mut backoff = Backoff(FIRST_DELAY);
    loop {
        match pods.delete(&pod.name, &params).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => tracing::warn!(pod = %pod.name, %error, "pod not deleted, trying again"),
        }
        backoff.wait().await;
    }
}

async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

// === impl Backoff ===

impl Backoff {
    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_DELAY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(kind: ProbeKind, success: bool) -> Verdict {
        Verdict {
            container: 0,
            kind,
            failure: (!success).then(|| "x".to_owned()),
            conclusive: true,
        }
    }

    #[test]
    fn startup_then_readiness_then_a_failed_liveness_probe_starts_over() {
        let time = |second| Timestamp::from_second(second).unwrap();
        let mut state = ContainerState::new(true, true, time(0));
        let steps = [
            (ProbeKind::Startup, true, Effect::Started, (true, false, 0)),
            (ProbeKind::Readiness, false, Effect::None, (true, false, 0)),
            (ProbeKind::Readiness, true, Effect::Ready, (true, true, 0)),
            (ProbeKind::Liveness, true, Effect::None, (true, true, 0)),
            (ProbeKind::Liveness, false, Effect::Restarted, (false, false, 1)),
            (ProbeKind::Startup, false, Effect::Restarted, (false, false, 2)),
        ];
        for (kind, success, effect, (started, ready, restarts)) in steps {
            assert_eq!(
                judge(&mut state, &verdict(kind, success), true, true, time(9)),
                effect
            );
            let since = if restarts > 0 { time(9) } else { time(0) };
            assert_eq!(
                state,
                ContainerState {
                    started,
                    ready,
                    restarts,
                    since
                }
            );
        }
    }

    #[test]
    fn one_failure_below_the_threshold_changes_nothing() {
        let mut state = ContainerState::new(false, false, Timestamp::UNIX_EPOCH);
        let once = Verdict {
            conclusive: false,
            ..verdict(ProbeKind::Liveness, false)
        };
        assert_eq!(
            judge(&mut state, &once, false, false, Timestamp::UNIX_EPOCH),
            Effect::None
        );
        assert_eq!(state.restarts, 0);
    }
}
