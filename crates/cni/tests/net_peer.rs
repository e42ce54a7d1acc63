//! Who may use the agent's socket, across PID namespaces. Needs root.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use weft_cni::protocol;

const NAME: &str = "a_plugin_outside_of_the_agents_pid_namespace_is_known";
const SOCKET: &str = "NET_PEER_SOCKET";

/// An agent in a container can't see the plugin's process, whose ID is 0 to it.
#[test]
fn a_plugin_outside_of_the_agents_pid_namespace_is_known() {
    if let Some(path) = std::env::var_os(SOCKET) {
        let listener = protocol::bind(Path::new(&path)).unwrap();
        let (stream, _) = listener.accept().unwrap();
        protocol::authorize(&stream).unwrap();
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making a PID namespace needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let mut agent = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(SOCKET, &path)
        .spawn()
        .unwrap();
    let plugin = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) => assert_eq!(agent.try_wait().unwrap(), None, "the agent ended early"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert!(agent.wait().unwrap().success(), "the plugin was refused");
    drop(plugin);
}
