//! Removing a cluster from what is there, not from what was written down.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use weft_kernel::NetNs;

use crate::node::{self, cgroup};
use crate::state::{self, Cluster, DATA, Lock, PREFIX, ROOT};
use crate::vnet;

/// Removes everything of a cluster, whatever state it is in: processes, namespaces, cgroups, links, files, and its VNet
/// where no other cluster uses it. Returns whether anything was there.
///
/// # Errors
/// A process does not end, or the kernel or the file system refuses.
pub fn remove(name: &str) -> Result<bool> {
    state::check_name(name)?;
    let _stopped = node::STARTING.write();
    let known = Cluster::load(name).ok();
    let prefix = format!("{PREFIX}{name}-");
    let namespaces: Vec<String> = NetNs::list_named()?
        .into_iter()
        .filter(|netns| netns.starts_with(&prefix))
        .collect();
    let existed = !namespaces.is_empty() || state::dir(name).exists() || state::data(name).exists();
    for netns in &namespaces {
        node::end_processes_in(netns)?;
    }
    cgroup::remove(&prefix)?;
    std::thread::scope(|scope| {
        // Each waits for a grace period of the kernel's.
        let deletions: Vec<_> = namespaces
            .iter()
            .map(|netns| scope.spawn(|| NetNs::delete_named(netns)))
            .collect();
        deletions.into_iter().try_for_each(|deletion| {
            deletion
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map(|_| ())
        })
    })?;
    delete(&state::data(name))?;
    let lock = Lock::acquire()?;
    delete(&state::dir(name))?;
    if let Some(cluster) = known {
        let vnet = &cluster.config.vnet;
        if !Cluster::all().iter().any(|other| &other.config.vnet == vnet) {
            node::end_processes_in(&vnet::netns_name(vnet))?;
            vnet::remove(vnet, Some(cluster.subnet))?;
        }
    }
    drop(lock);
    sweep();
    Ok(existed)
}

/// Takes the directories above the clusters away, where they are empty.
fn sweep() {
    let _ = fs::remove_dir(DATA);
    let others = fs::read_dir(ROOT)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name() != ".lock");
    if !others {
        let _ = fs::remove_dir_all(ROOT);
        let _ = Path::new(ROOT).parent().map(fs::remove_dir);
    }
}

fn delete(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
