//! Nodes: a network namespace in the VNet, and namespaces of processes, mounts, names and cgroups that run containerd,
//! kubelet and kube-proxy.

pub mod cgroup;
mod files;
pub mod init;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use weft_kernel::NetNs;
use weft_kernel::process::{Enter, ProcessId, Signal, enter, own_line};

use crate::cache::Cache;
use crate::control_plane::last_line;
use crate::state::{CONTROL_PLANE, Cluster, Node};
use crate::vnet;

/// How long a killed process may take to vanish.
const DEATH: Duration = Duration::from_secs(10);

/// How long a node's first process may take to appear.
const BIRTH: Duration = Duration::from_secs(10);

/// Held for reading while a node is made, for writing while a cluster is removed: a removal finds all or nothing of it.
pub(crate) static STARTING: RwLock<()> = RwLock::new(());

/// The program that nodes of the cluster run: a copy, for this one may be built anew meanwhile.
pub(crate) fn program(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("weft-kubetest")
}

/// Makes a node's namespace and files, and starts it.
///
/// # Errors
/// The kernel's or the file system's refusal, with what was attempted.
pub fn start(cluster: &Cluster, cache: &Cache, node: &Node) -> Result<()> {
    let _making = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    if !cluster.dir().exists() {
        bail!("cluster {} is being removed", cluster.name);
    }
    // The control plane is in its own already.
    if node.name != CONTROL_PLANE {
        vnet::connect(
            &cluster.config.vnet,
            cluster.subnet,
            &cluster.node_netns(&node.name),
            node.address,
        )?;
    }
    let cgroups = cgroup::create(&cluster.node_netns(&node.name))?;
    files::write(cluster, cache, node, &cgroups)?;
    boot(cluster, node)
}

/// Ends every process of a node at once, as a power cut does, and takes its network namespace away.
///
/// # Errors
/// A process does not end.
pub fn stop(cluster: &Cluster, node: &Node) -> Result<()> {
    let name = cluster.node_netns(&node.name);
    end_processes_in(&name)?;
    NetNs::delete_named(&name)?;
    cgroup::remove(&name)
}

/// Power cut and start: another network namespace, another boot ID, an empty `/run`; the disk is kept.
///
/// # Errors
/// As for [`stop`] and [`start`].
pub fn reboot(cluster: &Cluster, cache: &Cache, node: &Node) -> Result<()> {
    stop(cluster, node)?;
    start(cluster, cache, node)
}

/// A command in all namespaces of a node.
///
/// # Errors
/// The node does not run.
pub fn exec(cluster: &Cluster, cache: &Cache, node: &str, argv: &[String]) -> Result<Command> {
    if node != CONTROL_PLANE {
        cluster.node(node)?;
    }
    let init = first_process(cluster, node).with_context(|| {
        format!(
            "node {node} does not run\n  next: cargo xtask kube logs {}",
            cluster.name
        )
    })?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &init.to_string()])
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
        .args(argv)
        .env("PATH", format!("{}:{path}", cache.bin().display()));
    Ok(command)
}

/// Ends every process in the named network namespace, but not this one nor those it descends from.
///
/// # Errors
/// A process does not end.
pub fn end_processes_in(netns: &str) -> Result<usize> {
    let Ok(netns) = NetNs::named(netns) else {
        return Ok(0);
    };
    let spared = own_line();
    let mut count = 0;
    loop {
        let found: Vec<ProcessId> = weft_kernel::process::processes_in(&netns)?
            .into_iter()
            .filter(|id| !spared.contains(&id.pid.unsigned_abs()))
            .collect();
        if found.is_empty() {
            return Ok(count);
        }
        for id in &found {
            id.signal(Signal::KILL)?;
        }
        for id in &found {
            if !id.wait(DEATH)? {
                bail!("process {} does not end\n  next: look at /proc/{0}/stack", id.pid);
            }
        }
        count += found.len();
    }
}

/// Process number of a node's first process, as this machine sees it.
pub fn first_process(cluster: &Cluster, node: &str) -> Option<u32> {
    let netns = NetNs::named(&cluster.node_netns(node)).ok()?;
    weft_kernel::process::processes_in(&netns)
        .ok()?
        .into_iter()
        .find(|id| is_first(id.pid))
        .map(|id| id.pid.unsigned_abs())
}

/// Starts the first process in the node's network namespace.
fn boot(cluster: &Cluster, node: &Node) -> Result<()> {
    let data = cluster.node_data(&node.name);
    let netns = NetNs::named(&cluster.node_netns(&node.name))?;
    let log = data.join("var/log/init.log");
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    let mut command = Command::new(program(cluster));
    command
        .arg("node-launch")
        .arg(&data)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let apart = Enter {
        new_session: true,
        ..Enter::default()
    };
    enter(&mut command, &netns, apart)?;
    let mut child = command.spawn().context("start the node's first process")?;
    let began = Instant::now();
    while first_process(cluster, &node.name).is_none() {
        if let Some(status) = child.try_wait()? {
            bail!(
                "node {} ended with {status}: {}\n  next: less {}",
                node.name,
                last_line(&log),
                log.display()
            );
        }
        if began.elapsed() > BIRTH {
            bail!(
                "node {} has no first process after {} s: {}\n  next: less {}",
                node.name,
                BIRTH.as_secs(),
                last_line(&log),
                log.display()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if cgroup::is_unified()? {
        settle(&cluster.node_netns(&node.name), child.id())?;
    }
    Ok(())
}

/// Moves the process that made the namespaces to where the first process goes, so that the root is free of processes.
fn settle(name: &str, pid: u32) -> Result<()> {
    let leaf = Path::new(cgroup::ROOT).join(name).join("init");
    let began = Instant::now();
    while !leaf.exists() && began.elapsed() < BIRTH {
        std::thread::sleep(Duration::from_millis(10));
    }
    let procs = leaf.join("cgroup.procs");
    fs::write(&procs, pid.to_string()).with_context(|| format!("write {}", procs.display()))
}

/// Whether a process is the first of a PID namespace below this one: the last of its numbers is 1.
fn is_first(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .map(|numbers| numbers.split_ascii_whitespace().collect::<Vec<_>>())
            .is_some_and(|numbers| numbers.len() > 1 && numbers.last() == Some(&"1"))
    })
}
