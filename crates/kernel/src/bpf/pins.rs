use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use weft_abi::ABI_VERSION;

use super::attach::Hook;
use crate::error::{Cause, Context, Error, Result};
use crate::mount;

const MAPS: &str = "maps";
const LINKS: &str = "links";

/// The directory that a node's maps and attachments are pinned in.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
}

// === impl Pins ===

impl Pins {
    /// Where pins below `root` are, whether there are any or not.
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            version: root.join(format!("v{ABI_VERSION}")),
        }
    }

    /// The same, with directories that exist.
    pub(super) fn open(root: &Path) -> Result<Self> {
        const OPERATION: &str = "prepare pin directory";
        let existing = root.ancestors().find(|dir| dir.exists()).unwrap_or(root);
        if !mount::is_bpffs(existing)? {
            let why = format!(
                "{} is not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf",
                existing.display()
            );
            return Err(Error::new(OPERATION, root.display(), Cause::Invalid(why)));
        }
        let pins = Self::at(root);
        for dir in [MAPS, LINKS] {
            let dir = pins.version.join(dir);
            fs::create_dir_all(&dir).context(OPERATION, dir.display())?;
        }
        Ok(pins)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.version.join(MAPS).join(name)
    }

    pub(super) fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.version
            .join(LINKS)
            .join(format!("{ifindex}-{}", hook.name()))
    }

    /// Interfaces and hooks that have a pinned link.
    pub(super) fn links(&self) -> Result<Vec<(u32, Hook)>> {
        let dir = self.version.join(LINKS);
        let entries = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.context("read directory", dir.display())?;
        Ok(entries
            .iter()
            .filter_map(|entry| parse_link(entry.file_name().to_str()?))
            .collect())
    }

    pub(super) fn remove_other_versions(&self) -> Result<()> {
        let entries = fs::read_dir(&self.root).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.context("read directory", self.root.display())? {
            let path = entry.path();
            if path != self.version && is_version(&entry.file_name()) {
                fs::remove_dir_all(&path).context("remove pins", path.display())?;
            }
        }
        Ok(())
    }

    /// Removes the pins of all versions, and the directory if that leaves it empty.
    pub(super) fn remove_all(&self) -> Result<()> {
        if self.root.exists() {
            self.remove_other_versions()?;
            self.remove()?;
        }
        Ok(())
    }

    pub(super) fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.version)
            .or_else(ignore_missing)
            .context("remove pins", self.version.display())?;
        match fs::remove_dir(&self.root) {
            // Another version's pins, or the mount point itself: not ours to remove.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy | io::ErrorKind::NotFound
                ) =>
            {
                Ok(())
            }
            removed => removed.context("remove pins", self.root.display()),
        }
    }
}

/// Whether a name is one of a version's directory. A BPF file system has entries of its own at its root.
fn is_version(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix('v'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Removes a file; that it isn't there is no error.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path)
        .or_else(ignore_missing)
        .context("remove pin", path.display())
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

fn parse_link(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, hook) = name.split_once('-')?;
    Some((ifindex.parse().ok()?, Hook::by_name(hook)?))
}
