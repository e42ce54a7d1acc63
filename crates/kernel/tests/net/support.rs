//! Namespaces for tests that go away with the test, also when it fails.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use weft_kernel::NetNs;
use weft_kernel::process::processes_in;
use weft_kernel::rtnl::Rtnl;

/// A named namespace with `lo` up.
pub(crate) struct TestNs {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
}

impl TestNs {
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wkt-{}-{number}-{role}", std::process::id());
        let netns = NetNs::create_named(&name).unwrap();
        let test = Self { name, netns };
        test.rtnl().set_up("lo", true).unwrap();
        test
    }

    pub(crate) fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.netns).unwrap()
    }

    /// What `ip -d -j` prints in this namespace.
    pub(crate) fn ip(&self, arguments: &str) -> Value {
        let mut command = Command::new("ip");
        command
            .args(["-n", &self.name, "-d", "-j"])
            .args(arguments.split(' '));
        let text = output(command);
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap()
    }

    /// What a program prints that runs in this namespace.
    pub(crate) fn exec(&self, line: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(line.split(' '));
        output(command)
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        let left = processes_in(&self.netns).unwrap_or_default();
        for process in left
            .iter()
            .filter(|process| process.pid != std::process::id().cast_signed())
        {
            let _ = process.signal(weft_kernel::process::Signal::KILL);
        }
        let _ = NetNs::delete_named(&self.name);
    }
}

/// Whether this test can run; says why not.
pub(crate) fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("{test}: SKIPPED, needs root to make network namespaces");
    }
    root
}

/// Returns from the test unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::support::root(std::thread::current().name().unwrap_or_default()) {
            return;
        }
    };
}

fn output(mut command: Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert!(
        status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&stderr)
    );
    String::from_utf8(stdout).unwrap()
}
