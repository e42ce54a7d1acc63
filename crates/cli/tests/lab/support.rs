//! Clusters of one test, and what exists of them on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::time::Duration;

use serde_json::Value;
use weft_kernel::process::ProcessId;

use crate::owned::{self, entries};

/// The command under test.
pub(crate) const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// Where the lab keeps a directory of each cluster.
const LABS: &str = "/run/weft/lab";

/// What clusters' names begin with.
const PREFIX: &str = "t";

/// A cluster name that nobody else uses; what is left of it goes when this is dropped, or, when the test is killed, with
/// the next one.
pub(crate) struct Name(String);

/// Whether the test may go on; says so where it may not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if root {
        build_plugin();
    } else {
        eprintln!("{test}: SKIPPED, needs root to make network namespaces");
    }
    root
}

/// Runs `weft` to its end.
pub(crate) fn weft(args: &[&str]) -> Output {
    Command::new(WEFT).args(args).output().expect("weft runs")
}

/// Runs `weft`, which has to succeed; returns its standard output.
pub(crate) fn weft_ok(args: &[&str]) -> String {
    let output = weft(args);
    assert!(
        output.status.success(),
        "weft {}: {}",
        args.join(" "),
        text(&output)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs `weft … -o json`, which has to succeed; returns what it printed.
pub(crate) fn weft_json(args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&weft_ok(&args)).expect("JSON")
}

/// Both outputs of a command.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

// === impl Name ===

impl Name {
    pub(crate) fn new(label: &str) -> Self {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        Self(owned::name(PREFIX, label))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What the machine has of the cluster, and the host's links.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        let links = entries("/sys/class/net").map(|link| format!("link {link}"));
        links.chain(traces(&self.0)).collect()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if Path::new(LABS).join(&self.0).exists() {
            let _ = weft(&["lab", "delete", &self.0]);
        }
    }
}

/// Everything on the machine that bears the name: namespaces, directories, files, mounts, processes.
pub(crate) fn traces(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let temporary = std::env::temp_dir();
    for directory in [Path::new(owned::NETNS_DIR), Path::new(LABS), &temporary] {
        let bearing = entries(directory).filter(|entry| entry.contains(name));
        found.extend(bearing.map(|entry| directory.join(entry).display().to_string()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let bearing = mounts.lines().filter(|line| line.contains(name));
    found.extend(bearing.map(|line| format!("mount {line}")));
    for pid in processes().filter(|pid| *pid != std::process::id()) {
        let [line, environment] = ["cmdline", "environ"].map(|file| {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&text).replace('\0', " ")
        });
        if line.contains(name) || environment.contains(name) {
            found.insert(format!("process {pid} {line}"));
        }
    }
    found
}

/// Removes what tests left that were killed.
fn sweep() {
    let temporary = std::env::temp_dir();
    let namespaces = entries(owned::NETNS_DIR).map(|netns| owned::lab_of(&netns).to_owned());
    let files = entries(&temporary).map(|file| cluster_of(&file).to_owned());
    let orphans: BTreeSet<String> = namespaces
        .chain(entries(LABS))
        .chain(files)
        .filter(|name| owned::is_orphan(PREFIX, name))
        .collect();
    for name in orphans {
        // What the test had started goes on without it, and may still be making the cluster.
        for command in commands_about(&name) {
            let _ = command.terminate(Duration::from_secs(30));
        }
        // It fails where nothing but files is left, and where another test is faster.
        let _ = weft(&["lab", "delete", &name]);
        for file in entries(&temporary).filter(|file| cluster_of(file) == name) {
            let _ = fs::remove_file(temporary.join(file));
        }
        eprintln!("removed {name}, which a killed test had left");
    }
}

/// Running `weft` commands with the cluster's name among their arguments.
fn commands_about(name: &str) -> Vec<ProcessId> {
    let is_about = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_weft = words.next().is_some_and(|word| word.ends_with(b"/weft"));
        is_weft && words.any(|word| word == name.as_bytes())
    };
    processes()
        .filter(is_about)
        .filter_map(|pid| ProcessId::of(pid).ok())
        .collect()
}

/// The cluster that a temporary file is about, `CLUSTER.yaml` and the like.
fn cluster_of(file: &str) -> &str {
    file.split('.').next().unwrap_or_default()
}

/// Numbers of all processes.
fn processes() -> impl Iterator<Item = u32> {
    entries("/proc").filter_map(|name| name.parse().ok())
}

/// The lab looks for the plugin beside the command; `cargo test -p weft` alone does not build it.
fn build_plugin() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        if !PathBuf::from(WEFT).with_file_name("weft-cni").exists() {
            let status = Command::new(env!("CARGO"))
                .args(["build", "-q", "-p", "weft-cni"])
                .status();
            assert!(status.expect("cargo runs").success(), "weft-cni does not build");
        }
    });
}
