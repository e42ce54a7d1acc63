//! What an agent can't do without, looked at before anything else: a container lacks it silently.

use crate::Args;
use std::path::Path;
use weft_kernel::sysctl::{self, Key};
use weft_kernel::{mount, process};
use weft_model::{UserError, codes};

/// Finds the node's kernel parameters, and says what is missing for the rest.
///
/// # Errors
/// [`codes::NOT_ROOT`], [`codes::SYSCTL`] or [`codes::BPFFS`], the first that applies.
pub fn run(args: &Args) -> Result<(), UserError> {
    let missing = process::missing_capabilities().map_err(|error| unknown(&error))?;
    if !missing.is_empty() {
        return Err(UserError::new(
            codes::NOT_ROOT,
            format!("the agent runs without {}", missing.join(" and ")),
            "add them to securityContext.capabilities.add of the container, or run it as root",
        ));
    }
    let proc_sys = args.proc_sys.display();
    let forward = sysctl::use_root(&args.proc_sys)
        .and_then(|()| Key::new("net/ipv4/ip_forward"))
        .and_then(|key| sysctl::is_writable(&key));
    match forward {
        Ok(true) => {}
        Ok(false) => return Err(no_sysctl(format!("{proc_sys} is mounted read-only"))),
        Err(error) => return Err(no_sysctl(error.to_string())),
    }
    let pins = &args.pin_dir;
    let existing = pins
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    if !mount::is_bpffs(existing).map_err(|error| unknown(&error))? {
        return Err(UserError::new(
            codes::BPFFS,
            format!("{} is not on a BPF file system", pins.display()),
            "mount -t bpf bpf /sys/fs/bpf; in a container, mount the node's /sys/fs/bpf (hostPath)",
        ));
    }
    Ok(())
}

fn no_sysctl(message: String) -> UserError {
    UserError::new(
        codes::SYSCTL,
        message,
        "in a container, mount the node's /proc/sys (hostPath) and name it with --proc-sys",
    )
}

fn unknown(error: &weft_kernel::Error) -> UserError {
    UserError::new(codes::AGENT_NOT_READY, error.to_string(), "read the log above")
}
