//! Namespaces for tests that go away with the test, also when it fails; when it is killed, with the next one.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use serde_json::Value;
use weft_kernel::NetNs;
use weft_kernel::rtnl::Rtnl;

use crate::owned;

/// What their names begin with.
const PREFIX: &str = "wkt";

/// A named namespace with `lo` up.
pub(crate) struct TestNs {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
}

// === impl TestNs ===

impl TestNs {
    pub(crate) fn new(role: &str) -> Self {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| {
            for name in owned::orphans(PREFIX, owned::NETNS_DIR) {
                owned::remove_netns(&name);
            }
        });
        let name = owned::name(PREFIX, role);
        let netns = NetNs::create_named(&name).unwrap();
        let test = Self { name, netns };
        test.rtnl().set_up("lo", true).unwrap();
        test
    }

    /// One without IPv6, whose chatter would be counted.
    pub(crate) fn quiet(role: &str) -> Self {
        let test = Self::new(role);
        for scope in ["all", "default"] {
            test.sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1");
        }
        test
    }

    pub(crate) fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.netns).unwrap()
    }

    /// A number of the namespace's IP statistics (RFC 4293), by its name in /proc/net/snmp.
    pub(crate) fn ip_statistic(&self, name: &str) -> u64 {
        let table = self.exec("cat /proc/net/snmp");
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let names = lines.next().unwrap().split(' ');
        let (_, number) = names
            .zip(lines.next().unwrap().split(' '))
            .find(|(found, _)| *found == name)
            .unwrap();
        number.parse().unwrap()
    }

    /// What `ip -d -j` prints in this namespace.
    pub(crate) fn ip(&self, arguments: &str) -> Value {
        let text = self.exec(&format!("ip -d -j {arguments}"));
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap()
    }

    /// What a program prints that runs in this namespace.
    pub(crate) fn exec(&self, line: &str) -> String {
        self.feed(line, "")
    }

    /// The same with something on its standard input.
    pub(crate) fn feed(&self, line: &str, input: &str) -> String {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(line.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().unwrap();
        assert!(status.success(), "{line}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        self.netns
            .run(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap())
            .unwrap();
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        owned::remove_netns(&self.name);
    }
}

/// Whether this test can run; says why not.
pub(crate) fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("{test}: SKIPPED, needs root to make network namespaces and load eBPF programs");
    }
    root
}

/// Returns from the test unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::namespaces::root(std::thread::current().name().unwrap_or_default()) {
            return;
        }
    };
}
