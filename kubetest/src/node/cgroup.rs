//! A node's cgroups: a child in every hierarchy, made the root of the node's cgroup namespace.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// `CGROUP2_SUPER_MAGIC` of include/uapi/linux/magic.h.
const CGROUP2_SUPER_MAGIC: u32 = 0x6367_7270;

/// How deep below a hierarchy's root a node's cgroup can lie: this process' own may be some levels down.
const DEPTH: usize = 6;

/// How long processes that were killed may take to leave.
const LEAVE: Duration = Duration::from_secs(10);

/// Whether there is only the unified hierarchy.
pub fn is_unified() -> Result<bool> {
    let stat = rustix::fs::statfs(ROOT).with_context(|| format!("examine {ROOT}"))?;
    Ok(stat.f_type as u32 == CGROUP2_SUPER_MAGIC)
}

/// Makes the node's cgroups and returns their paths.
///
/// # Errors
/// The kernel's refusal.
pub fn create(name: &str) -> Result<Vec<PathBuf>> {
    if is_unified()? {
        // A cgroup with processes has no children with controllers (cgroups(7)), and ours has processes.
        hand_down(Path::new(ROOT))?;
        let path = Path::new(ROOT).join(name);
        make(&path)?;
        return Ok(vec![path]);
    }
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let mut made = Vec::new();
    for (hierarchy, path) in own.lines().filter_map(parse_own) {
        let base = Path::new(ROOT).join(hierarchy);
        if !base.exists() {
            continue;
        }
        let path = base.join(path.trim_start_matches('/')).join(name);
        make(&path)?;
        if hierarchy == "cpuset" {
            for key in ["cpuset.cpus", "cpuset.mems"] {
                fill(&base, &path, key)?;
            }
        }
        made.push(path);
    }
    Ok(made)
}

/// Lets children of a cgroup of the unified hierarchy have every controller that is there.
pub fn hand_down(path: &Path) -> Result<()> {
    let known = fs::read_to_string(path.join("cgroup.controllers"))
        .with_context(|| format!("read {}", path.join("cgroup.controllers").display()))?;
    for controller in known.split_ascii_whitespace() {
        let control = path.join("cgroup.subtree_control");
        fs::write(&control, format!("+{controller}"))
            .with_context(|| format!("hand {controller} down in {}", control.display()))?;
    }
    Ok(())
}

/// Moves the calling process, and so what it starts, into the cgroups.
///
/// # Errors
/// The kernel's refusal.
pub fn join(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let procs = path.join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("write {}", procs.display()))?;
    }
    Ok(())
}

/// Removes every cgroup whose name begins with `prefix`, once the processes have left.
///
/// # Errors
/// One is still in use after ten seconds.
pub fn remove(prefix: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut found = Vec::new();
        find(Path::new(ROOT), prefix, DEPTH, &mut found);
        found.retain(|path| !remove_tree(path));
        let Some(left) = found.first() else {
            return Ok(());
        };
        if began.elapsed() > LEAVE {
            bail!(
                "cgroup {} is still in use\n  next: cat {0}/cgroup.procs",
                left.display()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn find(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        } else if depth > 0 {
            find(&entry.path(), prefix, depth - 1, found);
        }
    }
}

/// Removes a cgroup and those below; whether it is gone.
fn remove_tree(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    match fs::remove_dir(path) {
        Err(error) => error.kind() == ErrorKind::NotFound,
        Ok(()) => true,
    }
}

/// A new cpuset is empty and takes no process.
fn fill(base: &Path, path: &Path, key: &str) -> Result<()> {
    let value =
        fs::read_to_string(base.join(key)).with_context(|| format!("read {key} of {}", base.display()))?;
    let file = path.join(key);
    fs::write(&file, value).with_context(|| format!("write {}", file.display()))
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create cgroup {}", path.display()))
}

/// Reads a line of `/proc/self/cgroup`: ID, hierarchy's controllers, path. Returns the directory of the hierarchy and
/// the path in it.
fn parse_own(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.splitn(3, ':').skip(1);
    let controllers = fields.next()?;
    let hierarchy = match controllers.strip_prefix("name=").unwrap_or(controllers) {
        "" => "unified",
        named => named,
    };
    Some((hierarchy, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_the_names_of_their_directories() {
        assert_eq!(parse_own("4:memory:/a/b"), Some(("memory", "/a/b")));
        assert_eq!(parse_own("9:name=systemd:/"), Some(("systemd", "/")));
        assert_eq!(parse_own("1:cpu,cpuacct:/x:y"), Some(("cpu,cpuacct", "/x:y")));
        assert_eq!(parse_own("0::/user.slice"), Some(("unified", "/user.slice")));
        assert_eq!(parse_own("nothing"), None);
    }
}
