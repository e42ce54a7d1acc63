//! The reference plugins `bridge` and `host-local`, to compare with.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cni::Latency;
use crate::competitor::BRIDGE;
use crate::datapath::this_program;
use crate::netns::{self, Namespace};
use crate::print;

const MODULE: &str = "github.com/containernetworking/plugins";
const VERSION: &str = "v1.9.1";
/// Where Debian's package containernetworking-plugins puts them.
const PACKAGED: &str = "/usr/lib/cni";

/// Where the plugins are, and which; or why there are none.
pub(crate) fn find(cache: &Path) -> Result<(PathBuf, String), String> {
    let built = cache.join("cni");
    let complete = |dir: &Path| {
        ["bridge", "host-local"]
            .iter()
            .all(|name| dir.join(name).exists())
    };
    if complete(&built) {
        return Ok((built, VERSION.into()));
    }
    print::note(&format!("building {MODULE} {VERSION}"));
    match build(&built) {
        Ok(()) => Ok((built, VERSION.into())),
        Err(_) if complete(Path::new(PACKAGED)) => Ok((PACKAGED.into(), "as packaged".into())),
        Err(error) => Err(format!(
            "ADD and DEL of bridge + host-local: {error:#}, and {PACKAGED} has none (package containernetworking-plugins)"
        )),
    }
}

fn build(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let dir = dir
        .canonicalize()
        .with_context(|| format!("find {}", dir.display()))?;
    for package in ["main/bridge", "ipam/host-local"] {
        let mut go = Command::new("go");
        go.env("GOBIN", &dir).env("CGO_ENABLED", "0").current_dir(&dir);
        go.args([
            "install",
            "-trimpath",
            "-ldflags=-s -w",
            &format!("{MODULE}/plugins/{package}@{VERSION}"),
        ]);
        netns::run(&mut go)?;
    }
    Ok(())
}

/// ADD and DEL of `bridge` with `host-local`, in a namespace of its own.
pub(crate) fn measure(
    plugins: &Path,
    version: &str,
    scratch: &Path,
    cycles: usize,
    pods: usize,
) -> Result<Latency> {
    let node = Namespace::create("cni")?;
    let state = scratch.join("host-local");
    // A run that was interrupted leaves its reservations.
    forget(&state)?;
    let conf = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "dataDir": state,
                "ranges": [[{"subnet": "10.61.0.0/22"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    let file = scratch.join("bridge.conflist");
    std::fs::write(&file, conf.to_string()).with_context(|| format!("write {}", file.display()))?;
    let name = format!("bridge + host-local {version}");
    let mut command = node.place().command(this_program()?);
    command
        .arg("cni")
        .arg("--conf")
        .arg(&file)
        .arg("--cni-path")
        .arg(plugins);
    command.args([
        "--name",
        &name,
        "--cycles",
        &cycles.to_string(),
        "--pods",
        &pods.to_string(),
    ]);
    let answer = netns::read(&mut command).with_context(|| format!("measure the plugins of {BRIDGE}"))?;
    let latency = serde_json::from_str(&answer).context("parse the latencies")?;
    forget(&state)?;
    Ok(latency)
}

fn forget(state: &Path) -> Result<()> {
    match std::fs::remove_dir_all(state) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", state.display()))
        }
        _ => Ok(()),
    }
}
