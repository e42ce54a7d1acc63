//! The reference plugins `bridge` and `host-local`, to compare with.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::cni::{self, Amount, Latency};
use crate::left::Books;
use crate::modules::PLUGINS;
use crate::netns::Namespace;

/// What their row is called, before their version.
pub(crate) const NAME: &str = "bridge + host-local";

/// Where Debian's package containernetworking-plugins puts them.
const PACKAGED: &str = "/usr/lib/cni";

/// Where the plugins are, and which; or why there are none.
pub(crate) fn find(cache: &Path) -> Result<(PathBuf, String), String> {
    match PLUGINS.programs(cache) {
        Ok(built) => Ok((built, PLUGINS.version.into())),
        Err(_) if Path::new(PACKAGED).join("bridge").exists() => Ok((PACKAGED.into(), "as packaged".into())),
        Err(error) => Err(format!(
            "ADD and DEL of bridge + host-local: {error:#}, and {PACKAGED} has none (package containernetworking-plugins)"
        )),
    }
}

/// ADD and DEL of `bridge` with `host-local`, in a namespace of its own.
pub(crate) fn measure(plugins: &Path, version: &str, scratch: &Path, amount: &Amount) -> Result<Latency> {
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
    let name = format!("{NAME} {version}");
    let latency = cni::measure(
        &node.place(),
        &file,
        plugins,
        &name,
        &Books::Files(state.join("bench")),
        amount,
    )?;
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
