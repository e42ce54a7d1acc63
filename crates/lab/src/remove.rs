//! Removing a cluster, whatever state it is in: from what is there, not from what was written down.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use weft_kernel::NetNs;
use weft_kernel::mount;
use weft_kernel::process::{ProcessId, Signal, own_line};
use weft_model::{UserError, codes};

use crate::machine::kernel_error;
use crate::node::{NETNS_DIR, netns_prefix};
use crate::state::{ClusterDir, ROOT, RootLock, clusters, unusable};
use crate::supervise::CLUSTER_ENV;
use crate::vnet::{self, VNET_PREFIX, VnetNames};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Processes that were ended.
    pub processes: usize,
    /// Network namespaces.
    pub namespaces: usize,
    /// Virtual networks that no other cluster used.
    pub vnets: usize,
}

/// How long a killed process may take to vanish.
const DEATH: Duration = Duration::from_secs(5);

/// How many namespaces are taken away at the same time: each waits for a grace period of the kernel's.
const PARALLEL: usize = 16;

/// Removes everything that belongs to the cluster: processes, namespaces with their links, mounts with their pins,
/// its directory, and its VNet where no other cluster uses it. It does not matter how much of it exists.
///
/// # Errors
/// There was nothing at all, or the kernel or the file system refused.
pub fn remove(dir: &ClusterDir) -> Result<Removed, UserError> {
    let name = dir.name();
    let failed = |error: weft_kernel::Error| {
        kernel_error(
            &format!("removing cluster {name}"),
            &error,
            &format!("weft lab delete {name}"),
        )
    };
    let existed = dir.path().exists();
    let mut removed = Removed {
        processes: end_processes(|pid| belongs_to(pid, name))?,
        ..Removed::default()
    };

    let namespaces = named_with(&netns_prefix(name)).map_err(failed)?;
    removed.processes += end_processes_in(&namespaces)?;
    delete_namespaces(&namespaces).map_err(failed)?;
    removed.namespaces = namespaces.len();

    for mounted in mount::under(dir.path()).map_err(failed)? {
        mount::unmount(&mounted.target).map_err(failed)?;
    }
    let lock = RootLock::acquire()?;
    if let Ok(state) = dir.load() {
        vnet::remove_api_address(&state.config.vnet, state.api_address).map_err(failed)?;
    }
    match fs::remove_dir_all(dir.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(unusable("remove", dir.path(), &error));
        }
        _ => {}
    }
    sweep_vnets(&lock, &mut removed)?;
    lock.release_root()?;
    if !existed && removed == Removed::default() {
        return Err(dir.missing());
    }
    Ok(removed)
}

/// Removes every virtual network that no cluster uses.
fn sweep_vnets(lock: &RootLock, removed: &mut Removed) -> Result<(), UserError> {
    let failed = |error: weft_kernel::Error| kernel_error("removing a VNet", &error, "weft lab list");
    let used: BTreeSet<String> = clusters().into_iter().map(|state| state.config.vnet).collect();
    let found: BTreeSet<String> = named_with(VNET_PREFIX)
        .map_err(failed)?
        .iter()
        .filter_map(|name| VnetNames::vnet_of(name).map(str::to_owned))
        .collect();
    for vnet in found.difference(&used) {
        let names: Vec<String> = VnetNames::of(vnet).all().map(str::to_owned).to_vec();
        removed.processes += end_processes_in(&names)?;
        removed.namespaces += names.len();
        removed.vnets += usize::from(vnet::remove(lock, vnet).map_err(failed)?);
    }
    Ok(())
}

fn named_with(prefix: &str) -> weft_kernel::Result<Vec<String>> {
    Ok(NetNs::list_named()?
        .into_iter()
        .filter(|name| name.starts_with(prefix))
        .collect())
}

fn delete_namespaces(names: &[String]) -> weft_kernel::Result<()> {
    let share = names.len().div_ceil(PARALLEL).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = names
            .chunks(share)
            .map(|names| {
                scope.spawn(move || {
                    names
                        .iter()
                        .try_for_each(|name| NetNs::delete_named(name).map(|_| ()))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Whether a process was started as part of the cluster: its first environment says so.
fn belongs_to(pid: u32, cluster: &str) -> bool {
    let mark = format!("{CLUSTER_ENV}={cluster}");
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
    })
}

/// Ends the processes that run in one of the namespaces, such as commands of `lab exec` that go on.
fn end_processes_in(names: &[String]) -> Result<usize, UserError> {
    let inside: BTreeSet<(u64, u64)> = names
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .collect();
    if inside.is_empty() {
        return Ok(0);
    }
    end_processes(|pid| {
        fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|metadata| inside.contains(&(metadata.dev(), metadata.ino())))
    })
}

/// Ends the processes that `ours` recognises, and those they start meanwhile, never this one nor its ancestors.
fn end_processes(ours: impl Fn(u32) -> bool) -> Result<usize, UserError> {
    let spared = own_line();
    let mut ended = BTreeSet::new();
    loop {
        let found: Vec<ProcessId> = pids()
            .filter(|pid| !spared.contains(pid))
            .filter_map(|pid| {
                // Identified first, recognised then: the identity can only be that of the recognised process.
                let id = ProcessId::of(pid).ok().filter(|id| id.is_alive())?;
                ours(pid).then_some(id)
            })
            .collect();
        if found.is_empty() {
            return Ok(ended.len());
        }
        let failed = |error: weft_kernel::Error| kernel_error("ending processes", &error, "weft lab list");
        for id in &found {
            id.signal(Signal::KILL).map_err(failed)?;
        }
        for id in found {
            if !id.wait(DEATH).map_err(failed)? {
                return Err(UserError::new(
                    codes::LAB_TIMEOUT,
                    format!("process {} does not end", id.pid),
                    format!("look at /proc/{}/stack", id.pid),
                ));
            }
            ended.insert(id);
        }
    }
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Takes away the mount that named namespaces need, where the lab was the one that made it and nobody uses it.
pub(crate) fn release_netns_dir(marker: &Path) -> Result<(), UserError> {
    let unused = fs::read_dir(NETNS_DIR).is_ok_and(|mut entries| entries.next().is_none());
    if marker.exists() && unused {
        mount::unmount(Path::new(NETNS_DIR))
            .map_err(|error| kernel_error("removing a mount", &error, "weft lab list"))?;
        let _ = fs::remove_dir(NETNS_DIR);
    }
    match fs::remove_file(marker) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable("remove", marker, &error)),
        _ => Ok(()),
    }
}

/// The directories above the clusters, from the inside out.
pub(crate) fn root_dirs() -> [&'static Path; 2] {
    let root = Path::new(ROOT);
    [root, root.parent().unwrap_or(root)]
}
