//! What connections must not notice: a pool that grows, an agent that is replaced, an operator that dies.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use weft_kernel::rtnl::Rtnl;
use weft_kernel::{NetNs, sockets};

use super::scene::{PORT, Scene, ask};
use super::{Check, Held, Outcome, yes};
use crate::state::{Cni, Ipam};

/// Connections that are watched while something happens.
const CONNECTIONS: usize = 64;

/// Between two requests on one connection.
const BEAT: Duration = Duration::from_millis(50);

/// How long an answer may take before its connection counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long what was asked of a cluster may take.
const SETTLE: Duration = Duration::from_secs(60);

/// Pods of a cluster are in one of these where they are not in the other.
const FURTHER: [&str; 2] = ["100.64.0.0/16", "100.65.0.0/16"];

pub(super) const ALL: &[Check] = &[
    Check {
        name: "agent-restart",
        description: "64 connections between nodes outlive a rollout of the agents",
        run: |scene| {
            if let Some(not_here) = not_weft(scene) {
                return Ok(not_here);
            }
            unharmed(scene, || {
                scene.kubectl.read(&[
                    "--namespace=weft-system",
                    "rollout",
                    "restart",
                    "daemonset/weft-agent",
                ])?;
                rolled_out(scene, "daemonset/weft-agent")?;
                new_pod_answers(scene, "after-agent").map(drop)
            })
        },
    },
    Check {
        name: "operator-dies",
        description: "The leading operator is taken away; another leads, and pods start",
        run: operator_dies,
    },
    Check {
        name: "interface-lost",
        description: "A pod's interface is deleted on its node; the agent makes it anew, address and all",
        run: interface_lost,
    },
    Check {
        name: "pool-grows",
        description: "A pool gets a disjoint range and its first one retires, and 64 connections don't notice",
        run: pool_grows,
    },
];

/// Requests on connections that stay open, from a pod to one on another node.
pub(crate) struct Connections {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<Duration>>>,
}

// === impl Connections ===

impl Connections {
    pub(crate) fn open(from: &NetNs, to: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = sockets::tcp_connect(from, to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let stop = Arc::clone(&stop);
            workers.push(thread::spawn(move || beat(stream, &stop)));
        }
        Ok(Self { stop, workers })
    }

    /// The longest time that any of them went without an answer.
    pub(crate) fn close(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        let mut lost = Vec::new();
        for worker in self.workers {
            match worker.join().map_err(|_| anyhow!("a thread panicked"))? {
                Ok(gap) => longest = longest.max(gap),
                Err(error) => lost.push(error),
            }
        }
        let count = lost.len();
        match lost.into_iter().next() {
            Some(first) => Err(first.context(format!("{count} of {CONNECTIONS} connections broke"))),
            None => Ok(longest),
        }
    }
}

/// Asks until told to stop; the longest time without an answer.
fn beat(mut stream: TcpStream, stop: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    let mut answered = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(BEAT);
        ask(&mut stream, "/hostname")?;
        longest = longest.max(answered.elapsed());
        answered = Instant::now();
    }
    Ok(longest)
}

/// Does something while connections between the nodes are in use.
pub(super) fn unharmed(scene: &Scene, job: impl FnOnce() -> Result<()>) -> Outcome {
    let connections = Connections::open(&scene.pod(&scene.a)?, (scene.b.address, PORT).into())?;
    let done = job();
    let longest = connections.close()?;
    done?;
    yes(format!(
        "{CONNECTIONS} connections, longest wait {} ms",
        longest.as_millis()
    ))
}

fn pool_grows(scene: &Scene) -> Outcome {
    if let Some(not_here) = not_weft(scene) {
        return Ok(not_here);
    }
    if scene.cluster.config.ipam == Ipam::Node {
        return Ok(Held::NotHere(
            "nodes have the ranges that kube-controller-manager gave them",
        ));
    }
    let first = scene.cluster.config.pod_cidr;
    let further: Ipv4Net = FURTHER
        .iter()
        .filter_map(|text| text.parse().ok())
        .find(|net: &Ipv4Net| !net.contains(&first) && !first.contains(net))
        .context("a range apart from the cluster's")?;
    unharmed(scene, || {
        patch_pool(scene, &json!({"cidrs": [first, further], "retiring": [first]}))?;
        wait_for("a new pod to get an address of the further range", || {
            let address = new_pod_answers(scene, "grown")?;
            Ok(further.contains(&address).then_some(()))
        })?;
        patch_pool(scene, &json!({"cidrs": [first, further], "retiring": []}))
    })
}

fn operator_dies(scene: &Scene) -> Outcome {
    if let Some(not_here) = not_weft(scene) {
        return Ok(not_here);
    }
    let leader = || {
        scene.kubectl.read(&[
            "--namespace=weft-system",
            "get",
            "lease",
            "weft-operator",
            "--output=jsonpath={.spec.holderIdentity}",
        ])
    };
    let before = leader()?;
    let (pod, _) = before
        .split_once('_')
        .with_context(|| format!("{before:?} leads, which is no pod"))?;
    let began = Instant::now();
    scene.kubectl.read(&[
        "--namespace=weft-system",
        "delete",
        "pod",
        pod,
        "--force",
        "--grace-period=0",
    ])?;
    let after = wait_for("another operator to lead", || {
        Ok(Some(leader()?).filter(|now| *now != before && !now.is_empty()))
    })?;
    let took = began.elapsed();
    new_pod_answers(scene, "after-operator")?;
    let (pod, _) = after.split_once('_').unwrap_or((&after, ""));
    yes(format!("{pod} leads after {:.1} s", took.as_secs_f64()))
}

fn interface_lost(scene: &Scene) -> Outcome {
    if let Some(not_here) = not_weft(scene) {
        return Ok(not_here);
    }
    let name = "loses-its-interface";
    let pod = scene.new_pod(name, &scene.b.node)?;
    let node = NetNs::named(&scene.cluster.node_netns(&scene.b.node.name))?;
    let mut rtnl = Rtnl::open_in(&node)?;
    let index = rtnl
        .route_to(pod.address.into())?
        .oif
        .context("the node has no route to the pod")?;
    let lost = rtnl.get_link(index)?.name;
    rtnl.delete_link(index)?;
    let began = Instant::now();
    wait_for("the pod to answer again", || {
        let answer = scene.fetch(&scene.a, &format!("{}:{PORT}/hostname", pod.address));
        Ok(answer.ok().filter(|answer| answer == name))
    })?;
    let took = began.elapsed();
    scene.read(&["delete", "pod", name, "--timeout=60s"])?;
    yes(format!("{lost}, answers after {:.1} s", took.as_secs_f64()))
}

pub(super) fn not_weft(scene: &Scene) -> Option<Held> {
    (scene.cluster.config.cni != Cni::Weft).then_some(Held::NotHere("the pods' network is not Weft's"))
}

fn patch_pool(scene: &Scene, spec: &Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    scene
        .kubectl
        .read(&["patch", "podpool", "default", "--type=merge", "--patch", &patch])?;
    Ok(())
}

fn rolled_out(scene: &Scene, what: &str) -> Result<()> {
    scene.kubectl.read(&[
        "--namespace=weft-system",
        "rollout",
        "status",
        what,
        "--timeout=120s",
    ])?;
    Ok(())
}

/// Makes a pod on the second node, asks it from the first, and removes it; its address.
fn new_pod_answers(scene: &Scene, name: &'static str) -> Result<std::net::Ipv4Addr> {
    let pod = scene.new_pod(name, &scene.b.node)?;
    let answer = scene.fetch(&scene.a, &format!("{}:{PORT}/hostname", pod.address))?;
    if answer != name {
        bail!("{answer} answered instead of {name}");
    }
    scene.read(&["delete", "pod", name, "--timeout=60s"])?;
    Ok(pod.address)
}

/// What comes of `attempt`, as soon as something does.
pub(crate) fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + SETTLE;
    loop {
        if let Some(found) = attempt()? {
            return Ok(found);
        }
        if Instant::now() >= until {
            bail!("waited {} s for {what}", SETTLE.as_secs());
        }
        thread::sleep(Duration::from_millis(300));
    }
}
