//! A small run of `weft-bench scale`: what it asserts on the way is what is tested, not how long anything takes. No pod
//! sends to another node: whatever transport a run of the tests is about, agents choose theirs here.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of etcd and kube-apiserver, or why there is none.
fn programs() -> Result<PathBuf, String> {
    let cache = match std::env::var_os("WEFT_KUBE_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => weft_kubetest::build::default_dir().map_err(|error| error.to_string())?,
    };
    let programs = cache.join("bin");
    for program in ["etcd", "kube-apiserver"] {
        if !programs.join(program).is_file() {
            return Err(format!(
                "there is no {program} in {}; next: cargo xtask kube build",
                programs.display()
            ));
        }
    }
    Ok(programs)
}

/// The `weft` binary of this build.
fn weft() -> Result<PathBuf, String> {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft-bench")).with_file_name("weft");
    match weft.is_file() {
        true => Ok(weft),
        false => Err(format!(
            "there is no {}; next: cargo build -p weft",
            weft.display()
        )),
    }
}

#[test]
fn every_agent_knows_every_node_and_no_two_nodes_share_a_block() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let (programs, weft) = match (programs(), weft()) {
        (Ok(programs), Ok(weft)) => (programs, weft),
        (Err(reason), _) | (_, Err(reason)) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let out = tempfile::tempdir().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_weft-bench"))
        .args([
            "scale",
            "--nodes",
            "200",
            "--pods",
            "2000",
            "--joins",
            "3",
            "--seconds",
            "20",
        ])
        .arg("--weft")
        .arg(weft)
        .arg("--programs")
        .arg(programs)
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}\n{}",
        run.status,
        String::from_utf8_lossy(&run.stderr)
    );
    let report = std::fs::read(out.path().join("scale.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    // Pods elsewhere are nothing to an agent: it lists and watches as many kinds with them as without.
    for start in report["starts"].as_array().unwrap() {
        let requests = start["requests"].as_object().unwrap();
        let asked = |verb: &str| requests.keys().filter(|key| key.starts_with(verb)).count();
        assert!(!requests.keys().any(|key| key.contains("pods")), "{requests:?}");
        assert_eq!((asked("list "), asked("watch ")), (4, 4), "{requests:?}");
    }
}
