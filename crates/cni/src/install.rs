//! The plugin and its network configuration in the directories that a container runtime reads.
//!
//! What a runtime reads appears whole or not at all: it is written under another name in the same directory, synced and
//! renamed (containerd does not notice a file that is renamed in from elsewhere). A symbolic link at the target is
//! replaced, never followed. Runtimes take the configuration whose name sorts first, so that one of another plugin
//! before ours would take all pods: nothing here fights over that place, it tells.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use weft_model::{UserError, codes};

use crate::plugin::ABOUT;
use crate::spec::Version;

/// File name of the plugin, and its `type` in configurations.
pub const PLUGIN: &str = "weft-cni";

/// File name under which the plugin brings up loopback interfaces.
pub const LOOPBACK: &str = "loopback";

/// Name of the network in the configuration.
pub const NETWORK: &str = "weft";

/// Name of the configuration unless told otherwise.
pub const CONF_NAME: &str = "10-weft.conflist";

/// What runtimes read of a directory (libcni `ConfFiles`).
const READ: [&str; 3] = ["conf", "conflist", "json"];

/// Types that hand on to the configuration behind them and are meant to come first: Multus, in both of its forms.
const DELEGATES: [&str; 2] = ["multus", "multus-shim"];

/// File name of a configuration: `*.conflist`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfName(String);

/// A text that names no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the name of a file that ends in .conflist, such as {CONF_NAME}")]
pub struct ConfNameError;

/// A reference plugin that can run after ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chained {
    /// `portmap`, which makes a pod's hostPort.
    Portmap,
}

/// A text that names no [`Chained`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected portmap")]
pub struct ChainedError;

/// A directory of configurations, and our name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfDir {
    dir: PathBuf,
    name: ConfName,
}

/// Who a configuration belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Weft,
    Delegate,
    Other,
}

/// The configuration for an agent that listens at `socket` and replays the intents in `intent_dir`. Every plugin of it has
/// to know `version`: runtimes ask the whole chain for its STATUS.
pub fn conflist(socket: &Path, intent_dir: &Path, chained: &[Chained], version: Version) -> Vec<u8> {
    let ours = json!({ "type": PLUGIN, "socket": socket, "intentDir": intent_dir });
    let plugins: Vec<Value> = std::iter::once(ours)
        .chain(chained.iter().map(|plugin| plugin.configuration()))
        .collect();
    let list = json!({ "cniVersion": version.as_str(), "name": NETWORK, "plugins": plugins });
    format!("{list:#}\n").into_bytes()
}

/// Puts the plugin at `source` into `bin_dir`, which is made if need be. Returns whether it was not there already.
///
/// # Errors
/// [`codes::CNI_INSTALL`]: `source` can't be read, or `bin_dir` not be written.
pub fn install_plugin(source: &Path, bin_dir: &Path) -> Result<bool, UserError> {
    let plugin = fs::read(source).map_err(|error| refused("read", source, &error))?;
    put(bin_dir, PLUGIN, &plugin, 0o755)
}

/// Puts the plugin at `source` into `bin_dir` also as [`LOOPBACK`], which containerd calls for every pod, where there is
/// none or an earlier version of ours. One of another's making stays. Returns whether it was not there already.
///
/// It is a copy: whoever installs the reference plugins later may write through a link.
///
/// # Errors
/// [`codes::CNI_INSTALL`]: a file can't be read, or `bin_dir` not be written.
pub fn install_loopback(source: &Path, bin_dir: &Path) -> Result<bool, UserError> {
    let target = bin_dir.join(LOOPBACK);
    if is_there(&target)? && !is_plugin(&target)? {
        return Ok(false);
    }
    let plugin = fs::read(source).map_err(|error| refused("read", source, &error))?;
    put(bin_dir, LOOPBACK, &plugin, 0o755)
}

/// Removes the plugin from `bin_dir`, under both of its names. Returns whether there was one.
///
/// # Errors
/// [`codes::CNI_INSTALL`]
pub fn remove_plugin(bin_dir: &Path) -> Result<bool, UserError> {
    let loopback = bin_dir.join(LOOPBACK);
    let ours = is_there(&loopback)? && is_plugin(&loopback)? && remove(&loopback)?;
    Ok(remove(&bin_dir.join(PLUGIN))? || ours)
}

/// Opens a file of a state directory for reading, without following a link or waiting at a FIFO that somebody put there.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is no regular file; otherwise what the kernel says, `ELOOP` of a link.
pub fn open_own(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "is no regular file"));
    }
    Ok(file)
}

/// Writes `dir/name` so that nobody ever sees half of it, also after a power cut; `dir` is made if need be. Returns
/// `false`, and leaves it alone, if it is a file with this content and mode already.
///
/// # Errors
/// What the file system says. What was there is there still.
pub fn place(dir: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<bool> {
    let target = dir.join(name);
    fs::create_dir_all(dir)?;
    // Two at work at once would write into one temporary file.
    let locked = File::open(dir)?;
    rustix::fs::flock(&locked, FlockOperation::LockExclusive)?;
    if is_in_place(&target, content, mode)? {
        return Ok(false);
    }
    let next = dir.join(format!(".{name}.next"));
    remove_if_there(&next)?;
    let written = write_new(&next, content, mode).and_then(|()| fs::rename(&next, &target));
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&next);
    }
    written?;
    locked.sync_all()?;
    Ok(true)
}

// === impl ConfName ===

impl ConfName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConfName {
    type Err = ConfNameError;

    fn from_str(text: &str) -> Result<Self, ConfNameError> {
        let stem = text.strip_suffix(".conflist").ok_or(ConfNameError)?;
        if stem.is_empty() || stem.starts_with('.') || stem.contains(['/', '\0']) {
            return Err(ConfNameError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ConfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Chained ===

impl Chained {
    /// File name of the plugin.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portmap => "portmap",
        }
    }

    fn configuration(self) -> Value {
        match self {
            // `snat` lets a pod reach itself, and the node its own loopback, by the host port.
            Self::Portmap => {
                json!({ "type": self.name(), "capabilities": { "portMappings": true }, "snat": true })
            }
        }
    }
}

impl FromStr for Chained {
    type Err = ChainedError;

    fn from_str(text: &str) -> Result<Self, ChainedError> {
        [Self::Portmap]
            .into_iter()
            .find(|plugin| plugin.name() == text)
            .ok_or(ChainedError)
    }
}

// === impl ConfDir ===

impl ConfDir {
    /// Our configuration `name` in `dir`; neither need exist.
    pub fn new(dir: impl Into<PathBuf>, name: ConfName) -> Self {
        Self {
            dir: dir.into(),
            name,
        }
    }

    /// Our configuration's path.
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.name.as_str())
    }

    /// The configuration of another plugin that runtimes take in place of ours, because it sorts before. One that can't
    /// be read counts: runtimes stop at it.
    ///
    /// # Errors
    /// [`codes::CNI_INSTALL`] if the directory can't be read; that it is missing is no error.
    pub fn shadowed_by(&self) -> Result<Option<PathBuf>, UserError> {
        Ok(self
            .configurations()?
            .into_iter()
            .take_while(|name| name.as_os_str() < OsStr::new(self.name.as_str()))
            .map(|name| self.dir.join(name))
            .find(|path| owner(path) == Owner::Other))
    }

    /// The error of a directory in which `other` sorts first.
    pub fn conflict(&self, other: &Path) -> UserError {
        UserError::new(
            codes::CNI_CONFLICT,
            format!(
                "{} sorts before {}, so that runtimes give all pods to the plugin it names",
                other.display(),
                self.name
            ),
            format!(
                "mv {0} {0}.disabled, once the plugin it belongs to is to serve no more pods",
                other.display()
            ),
        )
    }

    /// Puts our configuration in place and removes any we had under another name. Returns whether it was not there
    /// already.
    ///
    /// # Errors
    /// [`codes::CNI_INSTALL`]
    pub fn write(&self, conflist: &[u8]) -> Result<bool, UserError> {
        let written = put(&self.dir, self.name.as_str(), conflist, 0o600)?;
        for path in self.ours()?.into_iter().filter(|path| *path != self.path()) {
            remove(&path)?;
        }
        Ok(written)
    }

    /// Removes our configuration, under whatever name, and returns what it removed.
    ///
    /// # Errors
    /// [`codes::CNI_INSTALL`]
    pub fn remove(&self) -> Result<Vec<PathBuf>, UserError> {
        let ours = self.ours()?;
        for path in &ours {
            remove(path)?;
        }
        Ok(ours)
    }

    fn ours(&self) -> Result<Vec<PathBuf>, UserError> {
        Ok(self
            .configurations()?
            .into_iter()
            .map(|name| self.dir.join(name))
            .filter(|path| owner(path) == Owner::Weft)
            .collect())
    }

    /// Names of what runtimes read, in their order.
    fn configurations(&self) -> Result<Vec<OsString>, UserError> {
        let list = || -> io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.dir)? {
                let entry = entry?;
                let name = entry.file_name();
                let read = Path::new(&name)
                    .extension()
                    .is_some_and(|extension| READ.iter().any(|read| extension == *read));
                if read && !entry.file_type()?.is_dir() {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|error| refused("read", &self.dir, &error)),
        }
    }
}

// === private ===

fn is_there(path: &Path) -> Result<bool, UserError> {
    path.try_exists()
        .map_err(|error| refused("look at", path, &error))
}

/// Whether a file is our plugin, of whatever version.
fn is_plugin(path: &Path) -> Result<bool, UserError> {
    let content = fs::read(path).map_err(|error| refused("read", path, &error))?;
    let about = ABOUT.as_bytes();
    Ok(content.windows(about.len()).any(|window| window == about))
}

fn put(dir: &Path, name: &str, content: &[u8], mode: u32) -> Result<bool, UserError> {
    place(dir, name, content, mode).map_err(|error| refused("write", &dir.join(name), &error))
}

fn owner(path: &Path) -> Owner {
    let configuration: Option<Value> = fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let first = configuration.as_ref().and_then(|value| {
        let plugin = match value.get("plugins") {
            Some(plugins) => plugins.get(0)?,
            None => value,
        };
        plugin.get("type")?.as_str()
    });
    match first {
        Some(PLUGIN) => Owner::Weft,
        Some(other) if DELEGATES.contains(&other) => Owner::Delegate,
        _ => Owner::Other,
    }
}

fn is_in_place(target: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(found) if !found.is_file() || found.permissions().mode() & 0o7777 != mode => Ok(false),
        Ok(_) => Ok(fs::read(target)? == content),
    }
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(content)?;
    // Not when it is opened, where the umask has a say.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn remove(path: &Path) -> Result<bool, UserError> {
    let remove = || -> io::Result<bool> {
        let removed = remove_if_there(path)?;
        if let Some(dir) = path.parent().filter(|_| removed) {
            File::open(dir)?.sync_all()?;
        }
        Ok(removed)
    };
    remove().map_err(|error| refused("remove", path, &error))
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn refused(operation: &str, path: &Path, error: &io::Error) -> UserError {
    let dir = path.parent().unwrap_or(path);
    UserError::new(
        codes::CNI_INSTALL,
        format!("{operation} {}: {error}", path.display()),
        format!("findmnt -T {0}; ls -ld {0}", dir.display()),
    )
}

#[cfg(test)]
mod tests;
