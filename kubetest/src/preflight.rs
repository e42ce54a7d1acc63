//! Whether this machine can run a cluster, before anything is made.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use weft_kernel::NetNs;
use weft_kernel::rtnl::{LinkSpec, Rtnl};

use crate::node::cgroup;

/// Programs of the machine that nodes use, and the package that has them on Debian.
const PROGRAMS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "util-linux"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
];

/// Controllers without which a kubelet does not start.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Memory of a control plane and of a node without pods, in MiB: measured 530 and 230, and room for some pods.
const MEMORY: (u64, u64) = (700, 400);

/// Disk of a cluster's control plane and of a node's images and logs, in MiB: measured 60 and 600.
const DISK: (u64, u64) = (300, 900);

/// Capabilities without which namespaces, links or programs can't be made: names and bits of `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 5] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_MKNOD", 27),
    ("CAP_BPF", 39),
];

/// inotify instances that root may have. The usual 128 are used up by about eight nodes, and then kubelets end.
const INOTIFY: (&str, u32) = ("/proc/sys/fs/inotify/max_user_instances", 1024);

/// Raises a limit of the machine that several nodes share, where it is lower. It stays so until the machine starts anew.
///
/// # Errors
/// The limit can't be read or written.
pub fn raise_limits() -> Result<()> {
    let (path, wanted) = INOTIFY;
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    if text.trim().parse::<u32>().is_ok_and(|limit| limit < wanted) {
        fs::write(path, wanted.to_string()).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Looks for everything and names all that lacks at once.
///
/// # Errors
/// Something lacks.
pub fn check(nodes: usize) -> Result<()> {
    let mut lacks = Vec::new();
    if !rustix::process::geteuid().is_root() {
        bail!("clusters need root\n  next: sudo -E env \"PATH=$PATH\" cargo xtask kube up");
    }
    lacks.extend(capabilities()?);
    for (program, package) in PROGRAMS {
        if !in_path(program) {
            lacks.push(format!("program {program} (Debian package {package})"));
        }
    }
    lacks.extend(controllers()?);
    lacks.extend(file_systems()?);
    lacks.extend(veth());
    // The control plane's machine is a node, too.
    let nodes = nodes as u64 + 1;
    let memory = available_memory()?;
    let needed = MEMORY.0 + nodes * MEMORY.1;
    if memory < needed {
        lacks.push(format!(
            "memory: {memory} MiB are available, {nodes} nodes need {needed}"
        ));
    }
    let disk = available_disk(Path::new("/var/lib"))?;
    let needed = DISK.0 + nodes * DISK.1;
    if disk < needed {
        lacks.push(format!(
            "disk: {disk} MiB are free in /var/lib, {nodes} nodes need {needed}"
        ));
    }
    if !lacks.is_empty() {
        bail!("this machine lacks:\n  - {}", lacks.join("\n  - "));
    }
    Ok(())
}

fn capabilities() -> Result<Option<String>> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| *name)
        .collect();
    Ok((!missing.is_empty()).then(|| format!("capabilities {}", missing.join(", "))))
}

fn controllers() -> Result<Option<String>> {
    let known = if cgroup::is_unified()? {
        let path = Path::new(cgroup::ROOT).join("cgroup.controllers");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?
    } else {
        fs::read_dir(cgroup::ROOT)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .flat_map(|name| name.split(',').map(str::to_owned).collect::<Vec<_>>())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let known: Vec<&str> = known.split_ascii_whitespace().collect();
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|controller| !known.contains(controller))
        .collect();
    Ok((!missing.is_empty())
        .then(|| format!("cgroup controllers {} in {}", missing.join(", "), cgroup::ROOT)))
}

fn file_systems() -> Result<Option<String>> {
    let known = fs::read_to_string("/proc/filesystems").context("read /proc/filesystems")?;
    let has = |name: &str| {
        known
            .lines()
            .any(|line| line.split_ascii_whitespace().last() == Some(name))
    };
    let missing: Vec<&str> = ["overlay", "bpf", "tmpfs"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    Ok((!missing.is_empty()).then(|| {
        format!(
            "file systems {} (CONFIG_OVERLAY_FS, CONFIG_BPF_SYSCALL)",
            missing.join(", ")
        )
    }))
}

/// Tried out, for a module may be loaded by it.
fn veth() -> Option<String> {
    let attempt = || -> weft_kernel::Result<()> {
        let netns = NetNs::create()?;
        let mut rtnl = Rtnl::open_in(&netns)?;
        rtnl.create_veth(&LinkSpec::new("probe0"), &LinkSpec::new("probe1"))?;
        rtnl.create_bridge(&LinkSpec::new("probe2"))
    };
    attempt()
        .err()
        .map(|error| format!("veth pairs and bridges (CONFIG_VETH, CONFIG_BRIDGE): {error}"))
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// In MiB.
fn available_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .split_ascii_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib / 1024)
        .context("/proc/meminfo without MemAvailable")
}

/// In MiB.
fn available_disk(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("examine {}", dir.display()))?;
    Ok((stat.f_bavail * stat.f_frsize) >> 20)
}
