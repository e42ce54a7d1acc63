//! Builds what clusters are made of, once: Kubernetes, containerd and the rest from their Go modules, and archives of
//! the images that pods run.

mod go;
mod images;
mod recipe;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::build::go::Go;
use crate::build::recipe::{MODULES, Part};
use crate::progress::Progress;

/// Disk that a build takes where nothing is there yet, in MiB: measured 6,300 for Go's build cache, 3,700 for the
/// sources and 1,100 for the results.
const DISK_COLD: u64 = 12_000;
/// And where sources and compiled packages are there.
const DISK_WARM: u64 = 2_000;

/// Arguments of `cargo xtask kube build`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the conformance suite
    #[arg(long)]
    no_e2e: bool,
    /// Where to put what is built
    #[arg(long, env = "WEFT_KUBE_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
}

// === impl Args ===

impl Args {
    /// Builds what is missing and returns the directory.
    ///
    /// # Errors
    /// See [`ensure`].
    pub fn run(&self) -> Result<PathBuf> {
        let dir = self.cache.clone().map_or_else(default_dir, Ok)?;
        ensure(&dir, !self.no_e2e, Progress::start())?;
        Ok(dir)
    }
}

/// Where the results are kept: a directory named by what they are made of, in the user's cache.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set, or the modules can't be read.
pub fn default_dir() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("none of WEFT_KUBE_CACHE, XDG_CACHE_HOME and HOME is set")?;
    Ok(base.join("weft/kube").join(key()?))
}

/// Builds what is missing in `dir`, with the suite of `cargo xtask kube e2e` if `e2e`. Whatever is there is whole: every
/// file gets its name when it is finished, and one build at a time is at work.
///
/// # Errors
/// No Go, or one that is too old; programs of the machine that images are made of; disk; a build that fails.
pub fn ensure(dir: &Path, e2e: bool, progress: Progress) -> Result<()> {
    let bin = dir.join("bin");
    let creating = || format!("create {}", bin.display());
    fs::create_dir_all(&bin).with_context(creating)?;
    fs::create_dir_all(dir.join("cni")).with_context(creating)?;
    let _lock = lock(dir, progress)?;

    let wanted = |part: Part| part == Part::Cluster || e2e;
    let missing: Vec<_> = MODULES
        .iter()
        .flat_map(|module| module.programs.iter().map(move |program| (module, program)))
        .filter(|(_, program)| wanted(program.part) && !dir.join(program.file()).exists())
        .collect();
    let images_due = images::due(dir)?;
    if missing.is_empty() && !images_due {
        return Ok(());
    }
    let go = Go::find()?;
    refuse_full_disk(dir, &go)?;
    images::refuse_missing_programs()?;
    for (module, program) in missing {
        let began = progress.elapsed();
        go.build(module, program, &dir.join(program.file()))?;
        let took = (progress.elapsed() - began).as_secs_f64();
        progress.say(&format!("{} built in {took:.0} s", program.name));
    }
    if images_due {
        images::build(dir, &go, progress)?;
    }
    Ok(())
}

/// Waits until no other build is at work in `dir`; ends with the returned file.
fn lock(dir: &Path, progress: Progress) -> Result<File> {
    let path = dir.join(".lock");
    let locking = || format!("lock {}", path.display());
    let file = File::create(&path).with_context(locking)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => progress.say(&format!("waiting for another build in {}", dir.display())),
        Err(error) => return Err(error).with_context(locking),
    }
    rustix::fs::flock(&file, FlockOperation::LockExclusive).with_context(locking)?;
    Ok(file)
}

fn refuse_full_disk(dir: &Path, go: &Go) -> Result<()> {
    let needed = if go.has_sources()? { DISK_WARM } else { DISK_COLD };
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("look at {}", dir.display()))?;
    let free = (stat.f_bavail * stat.f_frsize) >> 20;
    if free < needed {
        bail!(
            "{} has {free} MiB free, and the build takes {needed}\n  next: make room, or name another disk by \
             WEFT_KUBE_CACHE, GOCACHE and GOMODCACHE",
            dir.display()
        );
    }
    Ok(())
}

/// The version of Kubernetes and a hash of all that the results depend on but Go itself.
fn key() -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(include_str!("recipe.rs"));
    hash.update(include_str!("go.rs"));
    let root = go::modules();
    for path in files_below(&root)? {
        let name = path.strip_prefix(&root).unwrap_or(&path);
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    let hash: String = hash
        .finalize()
        .iter()
        .take(5)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kubernetes = MODULES[0].version()?;
    Ok(format!("kubernetes-{kubernetes}-{hash}"))
}

/// In the order of their paths.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries = fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .with_context(|| format!("list {}", dir.display()))?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// What this crate's clusters consist of, as `(name, version)`.
///
/// # Errors
/// A `go.mod` can't be read, or requires no version.
pub fn versions() -> Result<Vec<(&'static str, String)>> {
    MODULES
        .iter()
        .map(|module| Ok((module.dir, module.version()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_of_kubernetes_move_together() {
        let version = MODULES[0].version().unwrap();
        let staging = format!("v0{}", version.trim_start_matches("v1"));
        let text = fs::read_to_string(go::modules().join("kubernetes/go.mod")).unwrap();
        let replaced: Vec<_> = text
            .lines()
            .filter_map(|line| line.trim_start_matches("replace ").split_once(" => k8s.io/"))
            .collect();
        assert!(replaced.len() > 20, "{replaced:?}");
        for (from, to) in replaced {
            assert_eq!(
                to,
                format!("{} {staging}", from.trim_start_matches("k8s.io/").trim())
            );
        }
    }

    #[test]
    fn each_program_is_a_tool_of_its_module() {
        for module in &MODULES {
            let text = fs::read_to_string(go::modules().join(module.dir).join("go.mod")).unwrap();
            for program in module.programs.iter().filter(|program| program.is_tool()) {
                let listed = text
                    .lines()
                    .any(|line| line.trim().trim_start_matches("tool ") == program.package);
                assert!(listed, "{} is no tool of {}", program.package, module.dir);
            }
        }
    }

    #[test]
    fn two_builds_of_one_directory_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), Progress::start()).unwrap();
        let second = File::open(dir.path().join(".lock")).unwrap();
        let attempt = || rustix::fs::flock(&second, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(attempt(), Err(Errno::WOULDBLOCK));
        drop(held);
        assert_eq!(attempt(), Ok(()));
    }
}
