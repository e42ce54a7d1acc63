//! The plugin as `loopback`, in a network namespace. Needs root.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use weft_cni::install::{LOOPBACK, install_loopback};

/// A network namespace for as long as a process of its own is in it.
struct Sandbox(Child);

// === impl Sandbox ===

impl Sandbox {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It is there when the shell speaks.
        let mut byte = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        Self(child)
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.0.id().to_string()).join(name)
    }

    /// The loopback's own addresses are in the routing table while it is up.
    fn is_up(&self) -> bool {
        let routes = fs::read_to_string(self.file("net/fib_trie")).unwrap();
        routes.contains("127.0.0.1")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn call(plugin: &Path, command: &str, netns: &Path, config: &Value) -> Output {
    let mut child = Command::new(plugin)
        .env_clear()
        .envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "4f1c"),
            ("CNI_IFNAME", "lo"),
        ])
        .envs([
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ])
        .env("CNI_NETNS", netns)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // VERSION and DEL may end without reading it.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(config.to_string().as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn a_sandbox_s_loopback_comes_up_as_containerd_asks_for_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making a network namespace needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Which also shows that the program is known as ours: a second time changes nothing.
    let source = Path::new(env!("CARGO_BIN_EXE_weft-cni"));
    assert!(install_loopback(source, dir.path()).unwrap());
    assert!(!install_loopback(source, dir.path()).unwrap());
    let plugin = dir.path().join(LOOPBACK);
    let sandbox = Sandbox::new();
    let netns = sandbox.file("ns/net");
    // containerd's own, internal/cri/server/service_linux.go.
    let config = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    assert!(!sandbox.is_up());

    let check = json!({"cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback"});
    let output = call(&plugin, "CHECK", &netns, &check);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success());
    assert_eq!(said["msg"], "WEFT-1405: lo is down");

    let output = call(&plugin, "ADD", &netns, &config);
    assert!(output.status.success(), "{output:?}");
    assert!(sandbox.is_up());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        result,
        json!({
            "cniVersion": "0.3.1",
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}],
            "ips": [
                {"version": "4", "interface": 0, "address": "127.0.0.1/8"},
                {"version": "6", "interface": 0, "address": "::1/128"},
            ],
            "dns": {},
        })
    );
    assert!(call(&plugin, "CHECK", &netns, &check).status.success());
    for command in ["ADD", "DEL", "DEL", "VERSION"] {
        assert!(
            call(&plugin, command, &netns, &config).status.success(),
            "{command}"
        );
    }
    // Whose namespace is gone, and the node's own.
    assert!(
        call(&plugin, "DEL", Path::new("/nonexistent"), &config)
            .status
            .success()
    );
    assert!(
        !call(&plugin, "ADD", Path::new("/proc/self/ns/net"), &config)
            .status
            .success()
    );
}
