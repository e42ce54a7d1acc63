use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::attach::Hook;
use crate::error::{Cause, Context, Error, Result};
use crate::mount;

const MAPS: &str = "maps";
const LINKS: &str = "links";

/// The directory that a node's maps and attachments are pinned in.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    root: PathBuf,
    number: u32,
    version: PathBuf,
}

// === impl Pins ===

impl Pins {
    /// Where pins below `root` are, whether there are any or not.
    pub(super) fn at(root: &Path, version: u32) -> Self {
        Self {
            root: root.to_owned(),
            number: version,
            version: root.join(format!("v{version}")),
        }
    }

    /// The same, with directories that exist.
    pub(super) fn open(root: &Path, version: u32) -> Result<Self> {
        const OPERATION: &str = "prepare pin directory";
        let existing = root.ancestors().find(|dir| dir.exists()).unwrap_or(root);
        if !mount::is_bpffs(existing)? {
            let why = format!(
                "{} is not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf",
                existing.display()
            );
            return Err(Error::new(OPERATION, root.display(), Cause::Invalid(why)));
        }
        let pins = Self::at(root, version);
        for dir in [MAPS, LINKS] {
            let dir = pins.version.join(dir);
            fs::create_dir_all(&dir).context(OPERATION, dir.display())?;
        }
        Ok(pins)
    }

    /// The version.
    pub(super) fn number(&self) -> u32 {
        self.number
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

    /// The pins of every other version below the same root.
    pub(super) fn other_versions(&self) -> Result<Vec<Self>> {
        let entries = fs::read_dir(&self.root).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.context("read directory", self.root.display())?;
        Ok(entries
            .iter()
            .filter_map(|entry| version_of(&entry.file_name()))
            .map(|version| Self::at(&self.root, version))
            .filter(|other| other.number != self.number)
            .collect())
    }

    /// Removes the pins of all versions, and the directory if that leaves it empty.
    pub(super) fn remove_all(&self) -> Result<()> {
        if self.root.exists() {
            for other in self.other_versions()? {
                other.remove_version()?;
            }
            self.remove()?;
        }
        Ok(())
    }

    /// Removes the pins of this version.
    pub(super) fn remove_version(&self) -> Result<()> {
        fs::remove_dir_all(&self.version)
            .or_else(ignore_missing)
            .context("remove pins", self.version.display())
    }

    pub(super) fn remove(&self) -> Result<()> {
        self.remove_version()?;
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

/// The version whose directory has this name. A BPF file system has entries of its own at its root.
fn version_of(name: &OsStr) -> Option<u32> {
    name.to_str()?.strip_prefix('v')?.parse().ok()
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
