//! Things on the machine that bear the name of the process that made them: what a test left that was killed is known by
//! it, and goes with the next test that makes such things. Other packages' tests include this file, too.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use weft_kernel::NetNs;
use weft_kernel::process::{ProcessId, Signal, processes_in};

/// Where namespaces have names.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// A name that nothing else has: `PREFIX-PID-START-NUMBER-LABEL`, PID and START being those of this process.
pub(crate) fn name(prefix: &str, label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ProcessId { pid, start } = ProcessId::current().unwrap();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{pid}-{start}-{number}-{label}")
}

/// Whether this is a [`name`] with that prefix, given by a process that has ended. One that has its number by now is not
/// taken for it.
pub(crate) fn is_orphan(prefix: &str, name: &str) -> bool {
    maker(prefix, name).is_some_and(|process| !process.is_alive())
}

/// Orphans in a directory.
pub(crate) fn orphans(prefix: &str, directory: impl AsRef<Path>) -> Vec<String> {
    entries(directory)
        .filter(|name| is_orphan(prefix, name))
        .collect()
}

/// The cluster or virtual network of one of the lab's namespaces, `weft-CLUSTER.NODE` or `weftvnet-VNET.PART`.
pub(crate) fn lab_of(netns: &str) -> &str {
    let prefixes = ["weft-", "weftvnet-"];
    let rest = prefixes.iter().find_map(|prefix| netns.strip_prefix(prefix));
    rest.and_then(|rest| rest.split('.').next()).unwrap_or_default()
}

/// Names in a directory, none where there is no such directory.
pub(crate) fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Removes a namespace, and ends what runs in it but this process.
pub(crate) fn remove_netns(name: &str) {
    if let Ok(netns) = NetNs::named(name) {
        let own = std::process::id().cast_signed();
        for process in processes_in(&netns).unwrap_or_default() {
            if process.pid != own {
                // It may have ended meanwhile.
                let _ = process.signal(Signal::KILL);
            }
        }
    }
    // Another test may have been faster.
    let _ = NetNs::delete_named(name);
}

fn maker(prefix: &str, name: &str) -> Option<ProcessId> {
    let mut fields = name.strip_prefix(prefix)?.strip_prefix('-')?.splitn(4, '-');
    let process = ProcessId {
        pid: fields.next()?.parse().ok().filter(|pid| *pid > 0)?,
        start: fields.next()?.parse().ok()?,
    };
    let _number: u32 = fields.next()?.parse().ok()?;
    fields.next().map(|_| process)
}
