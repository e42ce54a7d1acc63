//! What this machine is: user, capabilities, package manager, programs in `PATH`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::exec;

/// Needed to make namespaces, set up links and load eBPF programs: names and bits of `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];

/// The command that repeats `cargo xtask <task>` as root with this user's toolchain.
///
/// sudo replaces `PATH` on most distributions, also with `-E`.
pub(crate) fn as_root(task: &str) -> String {
    format!("sudo -E env \"PATH=$PATH\" cargo xtask {task}")
}

/// True for the superuser.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Why this process can't make namespaces and load programs, or `None` if it can.
pub(crate) fn lacks_privileges() -> Option<String> {
    if !is_root() {
        return Some("needs root".into());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| *name)
        .collect();
    (!missing.is_empty()).then(|| format!("root without {}", missing.join(", ")))
}

/// The first executable `name` in `PATH`, among our own tools, or in cargo's directory, which not every shell has in
/// `PATH`.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([tools()])
        .chain(cargo_bin())
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// Where `setup` puts tools that only this project's tests use.
pub(crate) fn tools() -> PathBuf {
    exec::target_dir().join("tools")
}

/// `PATH` with our own tools before the rest.
pub(crate) fn path_with_tools() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(tools()).chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).unwrap_or(path)
}

/// Where `cargo install` puts programs.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// True where packages come from apt.
pub(crate) fn has_apt() -> bool {
    which("apt-get").is_some() && which("dpkg-query").is_some()
}

/// The version of an installed Debian package.
pub(crate) fn package_version(name: &str) -> Option<String> {
    let mut query = exec::command("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status} ${Version}", name]);
    exec::read(&mut query)
        .ok()?
        .strip_prefix("installed ")
        .map(str::to_owned)
}

/// True if apt knows a version of the package that it could install.
pub(crate) fn package_available(name: &str) -> bool {
    exec::read(exec::command("apt-cache").args(["policy", name])).is_ok_and(|text| {
        text.lines()
            .any(|line| line.contains("Candidate:") && !line.contains("(none)"))
    })
}

/// The distribution's name as it calls itself.
pub(crate) fn distribution() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(
            || "this distribution".into(),
            |name| name.trim_matches('"').to_owned(),
        )
}
