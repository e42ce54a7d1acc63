//! cilium-agent and cilium-cni with VXLAN, without Kubernetes: nodes and identities in etcd.
//!
//! Each agent has, beside its network namespace, a mount namespace with its own bpffs, state and cgroup root: without
//! one that is a mount point, it would mount the machine's and hook connect and recvmsg of every process.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::etcd::Etcd;
use super::{Attach, Nodes, fresh, write_conf};
use crate::left::Books;
use crate::netns::{self, Namespace, Place, Underlay};
use crate::process::Process;
use crate::{client, interrupt, modules};

const SLOT: u8 = 5;
const PORT: u16 = 2389;
/// Longest time until an agent is ready: it compiles its programs first.
const PATIENCE: Duration = Duration::from_secs(180);
/// Directories that agent and plugin know by name.
const STATE: [(&str, &str); 2] = [("/var/run/cilium", "run"), ("/var/lib/cilium", "lib")];
/// The API as fast as it goes; by default it lets three pods pass per second.
const LIMITS: &str = "rate-limit:1000/s,rate-burst:1000,parallel-requests:64,auto-adjust:false";

/// Directories that were not there before.
#[derive(Debug)]
struct Made(Vec<PathBuf>);

/// A cgroup that no process is in, for an agent's hooks.
#[derive(Debug)]
struct Cgroup {
    at: Place,
    mount: PathBuf,
    name: String,
}

pub(super) fn start(cache: &Path, out: &Path, underlay: &Underlay) -> Result<Nodes> {
    let clang = clang()?;
    let programs = modules::CILIUM.programs(cache)?;
    let dir = out.join("cilium");
    fresh(&dir)?;
    let tools = dir.join("tools");
    fresh(&tools)?;
    std::os::unix::fs::symlink(clang, tools.join("clang")).context("link clang")?;
    let made = Made::create()?;
    let nodes = [1, 2].map(|node| {
        let address = Ipv4Addr::new(172, 30, 0, 10 * SLOT + node);
        underlay.routed_node(&format!("ci{node}"), address)
    });
    let [first, second] = nodes;
    let nodes = [first?, second?];
    let etcd = Etcd::start(cache, &dir, underlay, PORT)?;

    let mut agents = Vec::new();
    let mut cgroups = Vec::new();
    let mut attach = Vec::new();
    for (number, node) in (1..).zip(&nodes) {
        let home = dir.join(number.to_string());
        for part in ["run", "lib", "cgroup"] {
            fresh(&home.join(part))?;
        }
        std::os::unix::fs::symlink(modules::CILIUM.sources(cache).join("bpf"), home.join("lib/bpf"))
            .context("link Cilium's programs")?;
        cgroups.push(Cgroup::create(node, home.join("cgroup"))?);
        let cgroup = cgroups.last().map_or("", |cgroup| cgroup.name.as_str());
        agents.push(agent(&programs, &tools, &home, node, number, cgroup, &etcd.url)?);
        let conf = dir.join(format!("{number}.conflist"));
        let log = home.join("cni.log");
        write_conf(&conf, "cilium", &json!({"type": "cilium-cni", "log-file": log}))?;
        let mut place = node.place();
        let socket = home.join("run/cilium.sock");
        place
            .0
            .extend(["env".into(), format!("CILIUM_SOCK={}", socket.display())]);
        attach.push(Attach {
            node: place,
            conf,
            plugins: programs.clone(),
            books: Books::Cilium(socket),
        });
    }
    for (number, agent) in (1..).zip(&mut agents) {
        ready(&dir.join(format!("{number}/run/cilium.sock")), agent, &dir)?;
    }
    Ok(Nodes {
        name: "cilium",
        about: format!(
            "Cilium {}, VXLAN, no policy, BPF masquerade and host routing, API limits off",
            modules::CILIUM.version
        ),
        nodes,
        attach: super::two(attach)?,
        slot: SLOT.into(),
        agents,
        kept: vec![Box::new(etcd), Box::new(cgroups), Box::new(made)],
    })
}

fn agent(
    programs: &Path,
    tools: &Path,
    home: &Path,
    node: &Namespace,
    number: u8,
    cgroup: &str,
    etcd: &str,
) -> Result<Process> {
    let mounts = STATE.map(|(target, part)| format!("mount --bind {}/{part} {target}\n", home.display()));
    let path = std::env::var("PATH").unwrap_or_default();
    let script = format!(
        "mount -t bpf bpf /sys/fs/bpf\n\
         mount -t cgroup2 none {home}/cgroup\n\
         mount --bind {home}/cgroup/{cgroup} {home}/cgroup\n{}\
         exec \"$@\"",
        mounts.concat(),
        home = home.display()
    );
    let mut command = node.place().command("sh");
    command
        .args(["-ec", &script, "sh"])
        .arg(programs.join("cilium-agent"));
    command.env("K8S_NODE_NAME", node.name());
    command.env("PATH", format!("{}:{path}", tools.display()));
    let limits = ["create", "delete", "patch", "get"].map(|verb| format!("endpoint-{verb}={LIMITS}"));
    command.args([
        "--enable-k8s=false",
        "--kvstore=etcd",
        &format!("--kvstore-opt=etcd.address={etcd}"),
        "--identity-allocation-mode=kvstore",
        "--ipam=cluster-pool",
        &format!("--ipv4-range=10.246.{}.0/23", 2 * number),
        &format!("--ipv4-node=172.30.0.{}", 10 * SLOT + number),
        "--enable-ipv6=false",
        "--cluster-name=bench",
        "--routing-mode=tunnel",
        "--tunnel-protocol=vxlan",
        "--devices=eth0",
        "--kube-proxy-replacement=true",
        "--enable-bpf-masquerade=true",
        "--enable-ipv4-masquerade=true",
        "--enable-l7-proxy=false",
        "--enable-envoy-config=false",
        "--enable-hubble=false",
        "--enable-health-checking=false",
        "--enable-endpoint-health-checking=false",
        "--monitor-aggregation=medium",
        // Pods without Kubernetes' labels are denied everything otherwise.
        "--enable-policy=never",
        &format!("--cgroup-root={}/cgroup", home.display()),
        "--bpf-root=/sys/fs/bpf",
        &format!("--socket-path={}/run/cilium.sock", home.display()),
        "--gops-port=0",
        "--enable-xt-socket-fallback=true",
        &format!("--api-rate-limit={}", limits.join(",")),
    ]);
    Process::start(&format!("cilium-{number}"), command, home)
}

/// Waits for an agent, by the API that `cilium-dbg status` asks.
fn ready(socket: &Path, agent: &mut Process, dir: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        agent.usage()?;
        let state = health(socket);
        match &state {
            Ok(state) if state == "Ok" => return Ok(()),
            _ if start.elapsed() > PATIENCE => bail!(
                "a Cilium agent is not ready after {PATIENCE:?}: {state:?}\n  next: see the logs below {}",
                dir.display()
            ),
            _ => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

fn health(socket: &Path) -> Result<String> {
    let stream = UnixStream::connect(socket).context("connect to the agent")?;
    let answer = client::exchange_http(stream, "GET /v1/healthz", &[("brief", "true")], "")?;
    let answer: Value = serde_json::from_str(&answer).context("parse the agent's health")?;
    let state = answer["cilium"]["state"].as_str();
    state.map(str::to_owned).context("an answer without state")
}

/// The compiler that the agent calls when it starts.
///
/// # Errors
/// There is none.
pub(super) fn clang() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names =
        std::iter::once("clang".to_owned()).chain((17..=22).rev().map(|version| format!("clang-{version}")));
    names
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(&name)))
        .find(|file| file.exists())
        .context(
            "Cilium compiles its programs with clang when it starts, and there is none in PATH\n  next: apt-get \
             install clang-19, or leave cilium out of --peers",
        )
}

// === impl Made ===

impl Made {
    fn create() -> Result<Self> {
        let mut made = Self(Vec::new());
        for (target, _) in STATE {
            match std::fs::create_dir(target) {
                Ok(()) => made.0.push(target.into()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("create {target}")),
            }
        }
        Ok(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in &self.0 {
            // Whatever is in it now is not ours.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

// === impl Cgroup ===

impl Cgroup {
    /// Makes one in the machine's hierarchy, by a mount that lives as long as the command.
    fn create(node: &Namespace, mount: PathBuf) -> Result<Self> {
        let cgroup = Self {
            at: node.place(),
            mount,
            name: node.name().to_owned(),
        };
        ensure!(
            cgroup.change("mkdir").is_ok(),
            "there is no cgroup2 on this machine, which Cilium needs"
        );
        Ok(cgroup)
    }

    fn change(&self, verb: &str) -> Result<()> {
        let script = format!("mount -t cgroup2 none \"$1\" && {verb} \"$1/$2\"");
        let mut command = self.at.command("sh");
        command
            .args(["-ec", &script, "sh"])
            .arg(&self.mount)
            .arg(&self.name);
        netns::run(&mut command)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = self.change("rmdir");
    }
}
