//! Takes away everything that agents of any version leave on a node, so that it is as it was before the first one.

use crate::originals::Originals;
use crate::probe::CONTAINER;
use crate::wiring::{ALIAS_PREFIX, HOST_PREFIX, key_of_alias};
use crate::{node, saved};
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use weft_cni::install::{CONF_NAME, ConfDir, ConfName, remove_plugin};
use weft_kernel::bpf::Datapath;
use weft_kernel::nft::{Nft, WEFT_TABLE};
use weft_kernel::rtnl::{Link, RouteFilter, Rtnl};
use weft_kernel::sysctl;
use weft_model::{UserError, codes};

/// What to clean up: where the agent was told to keep things.
#[derive(Clone, Debug, clap::Args)]
pub struct Cleanup {
    /// Directory of the runtime's network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,

    /// Name of Weft's network configuration
    #[arg(long, value_name = "NAME", default_value = CONF_NAME)]
    pub conf_name: ConfName,

    /// Directory of the runtime's plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,

    /// The agent's --run-dir
    #[arg(long, value_name = "DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,

    /// The agent's --state-dir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,

    /// The agent's --pin-dir
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/weft")]
    pub pin_dir: PathBuf,

    /// The agent's --proc-sys
    #[arg(long, value_name = "DIR", default_value = "/proc/sys")]
    pub proc_sys: PathBuf,

    /// Also if pods are on Weft still; they lose their network
    #[arg(long)]
    pub force: bool,
}

/// Cleans the node of the calling process' network namespace and returns what it took away, in words. Nothing to take
/// away is no error.
///
/// # Errors
/// The agent runs, pods are on Weft and `force` was not said, or something could not be removed; what was removed
/// before stays removed, and the next call goes on from there.
pub fn cleanup(options: &Cleanup) -> Result<Vec<String>, UserError> {
    sysctl::use_root(&options.proc_sys).map_err(|error| refused(codes::SYSCTL, &error))?;
    let socket = crate::socket_in(&options.run_dir);
    if UnixStream::connect(&socket).is_ok() {
        return Err(UserError::new(
            codes::AGENT_RUNS,
            format!("an agent answers at {}", socket.display()),
            "stop it first: kubectl -n weft-system delete daemonset weft-agent, or keep it off this node",
        ));
    }
    let netlink = |error: weft_kernel::Error| refused(codes::NETLINK, &error);
    let mut rtnl = Rtnl::open().map_err(netlink)?;
    let links = rtnl.links().map_err(netlink)?;
    let pods: Vec<&Link> = links.iter().filter(|link| is_pods(link)).collect();
    let live: Vec<&&Link> = pods.iter().filter(|link| !is_probes(link)).collect();
    if let Some(first) = live.first().filter(|_| !options.force) {
        return Err(UserError::new(
            codes::PODS_ON_WEFT,
            format!(
                "{} pod interface(s) are on Weft, such as {}",
                live.len(),
                first.name
            ),
            "drain the node first: kubectl drain NODE --ignore-daemonsets; or say --force",
        ));
    }

    let mut done = Vec::new();
    let mut note = |removed: bool, what: String| done.extend(removed.then_some(what));
    // New pods come no more, then the old ones lose what they have.
    let conf = ConfDir::new(&options.conf_dir, options.conf_name.clone());
    for path in conf.remove()? {
        note(true, format!("network configuration {}", path.display()));
    }
    note(
        remove_plugin(&options.bin_dir)?,
        format!("plugin in {}", options.bin_dir.display()),
    );
    for pod in pods {
        let removed = rtnl.delete_link(pod.index).map_err(netlink)?;
        note(removed, format!("pod interface {}", pod.name));
    }
    if links.iter().any(node::is_overlay) {
        let removed = rtnl.delete_link(node::OVERLAY).map_err(netlink)?;
        note(removed, format!("interface {}", node::OVERLAY));
    }
    for route in rtnl.routes(RouteFilter::own()).map_err(netlink)? {
        let removed = rtnl.delete_route(&route).map_err(netlink)?;
        note(removed, format!("route {}", route.dst));
    }
    let pinned = options.pin_dir.exists();
    Datapath::remove_all(&options.pin_dir).map_err(|error| refused(codes::BPF_LOAD, &error))?;
    note(
        pinned,
        format!("eBPF programs and maps in {}", options.pin_dir.display()),
    );
    // Last of the kernel's things: as long as there was a pod, its packets left under the node's address only.
    let removed = Nft::open()
        .and_then(|mut nft| nft.delete_table(WEFT_TABLE))
        .map_err(|error| refused(codes::NFTABLES, &error))?;
    note(removed, format!("nftables table ip {WEFT_TABLE}"));
    for key in Originals::of(&options.state_dir).restore()? {
        note(true, format!("our value of {key}"));
    }
    for (dir, held) in [(&options.run_dir, RUN_FILES), (&options.state_dir, STATE_FILES)] {
        let removed = empty(dir, held).map_err(|error| {
            UserError::new(
                codes::STATE_DIRECTORY,
                format!("remove {}: {error}", dir.display()),
                format!("ls -la {}", dir.display()),
            )
        })?;
        note(removed, format!("state in {}", dir.display()));
    }
    Ok(done)
}

// === private ===

const RUN_FILES: &[&str] = &[crate::SOCKET];
const STATE_FILES: &[&str] = &[crate::LEDGER, saved::FILE, crate::INTENTS, crate::originals::FILE];

/// Ours by name and by alias: an interface is never removed for its name alone.
fn is_pods(link: &Link) -> bool {
    link.name.starts_with(HOST_PREFIX)
        && link
            .alias
            .as_ref()
            .is_some_and(|alias| alias.starts_with(ALIAS_PREFIX))
}

/// What an agent that was killed in the middle of a probe leaves.
fn is_probes(link: &Link) -> bool {
    link.alias
        .as_deref()
        .and_then(key_of_alias)
        .is_some_and(|key| key.container_id() == CONTAINER)
}

/// Removes what agents put into `dir`, and `dir` itself if it is empty then. Returns whether there was anything.
fn empty(dir: &Path, held: &[&str]) -> io::Result<bool> {
    let mut found = false;
    for name in held {
        let path = dir.join(name);
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        found |= removed.map(|()| true).or_else(absent)?;
    }
    match fs::remove_dir(dir) {
        // Somebody's else's files, or the mount of a container.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::ReadOnlyFilesystem
            ) => {}
        removed => found |= removed.map(|()| true).or_else(absent)?,
    }
    Ok(found)
}

fn absent(error: io::Error) -> io::Result<bool> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(false)
    } else {
        Err(error)
    }
}

fn refused(code: weft_model::Code, error: &weft_kernel::Error) -> UserError {
    let code = if error.is_permission_denied() {
        codes::NOT_ROOT
    } else {
        code
    };
    UserError::new(
        code,
        error.to_string(),
        "run it as root, in the node's network namespace",
    )
}
