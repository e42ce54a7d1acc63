//! Clusters of one test, and what exists of them on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// The command under test.
pub(crate) const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// A cluster name that nobody else uses; what is left of it goes when this is dropped.
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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(format!(
            "t{}-{}-{label}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Everything on the machine that bears the name: namespaces, mounts, processes, files, and the host's links.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for dir in ["/run/netns", "/run/weft/lab", "/sys/class/net"] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.contains(&self.0) || dir.starts_with("/sys") {
                    found.insert(format!("{dir}/{name}"));
                }
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&self.0))
                .map(|line| format!("mount {line}")),
        );
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let words = ["cmdline", "environ"].map(|file| {
                let text = fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&text).replace('\0', " ")
            });
            if pid != std::process::id() && words.iter().any(|text| text.contains(&self.0)) {
                found.insert(format!("process {pid} {}", words[0]));
            }
        }
        found
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if Path::new("/run/weft/lab").join(&self.0).exists() {
            let _ = weft(&["lab", "delete", &self.0]);
        }
    }
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
