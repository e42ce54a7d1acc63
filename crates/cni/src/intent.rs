//! DEL intents: what the plugin was told to delete while the agent could not be told.
//!
//! One file for each attachment, named `<containerID>@<ifname>`, in a directory that
//! the plugin writes and the agent reads. A file appears whole or not at all: it is
//! written under another name, synced and renamed, and then the directory is synced.
//!
//! The agent replays all intents before it serves its first ADD, and looks again now
//! and then: an agent that hung did not restart. Before it serves an ADD it has to
//! replay an intent for the same attachment ([`Intents::contains`]), which would
//! otherwise delete what that ADD makes.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use weft_model::AttachmentKey;

use crate::install::open_own;
use crate::protocol::{Pod, make_private_dir};

/// A DEL that waits for the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What was deleted.
    pub key: AttachmentKey,
    /// The network's name in the CNI configuration.
    pub network: String,
    /// The pod, for logs.
    #[serde(default)]
    pub pod: Pod,
}

/// The directory of intents of one node.
#[derive(Clone, Debug)]
pub struct Intents {
    directory: PathBuf,
}

/// What [`Intents::pending`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// To be replayed, by key.
    pub intents: Vec<Intent>,
    /// Files that are no intent; they were moved here, into the directory's
    /// `quarantine`, and are for a person to look at.
    pub quarantined: Vec<PathBuf>,
}

const QUARANTINE: &str = "quarantine";

/// A plugin writes for two seconds at most; a file under a temporary name that is
/// older than this belonged to one that was killed.
const ABANDONED: Duration = Duration::from_secs(600);

/// Longer than any intent: id and names are bounded, a pod's UID is short.
const MAX_INTENT: u64 = 16 << 10;

// === impl Intents ===

impl Intents {
    /// The intents in `directory`, which need not exist.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves an intent. Once this returns it survives a power cut. Another one
    /// for the same attachment is replaced.
    ///
    /// # Errors
    /// What the file system says; nothing is left behind then.
    pub fn leave(&self, intent: &Intent) -> io::Result<()> {
        let body = serde_json::to_vec(intent)?;
        make_private_dir(&self.directory)?;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let temporary = self.directory.join(format!(
            ".{}-{}",
            std::process::id(),
            since_epoch.unwrap_or_default().as_nanos()
        ));
        let written = write_new(&temporary, &body)
            .and_then(|()| fs::rename(&temporary, self.path(&intent.key)))
            .and_then(|()| self.sync());
        if written.is_err() {
            // The error that matters is the first one.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// All intents, by key. What can't be read as one is moved aside; it never
    /// keeps the others from being replayed.
    ///
    /// # Errors
    /// If the directory can't be read; that it is missing means no intents.
    pub fn pending(&self) -> io::Result<Pending> {
        let mut pending = Pending::default();
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pending),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if name == QUARANTINE {
                continue;
            }
            if name.as_encoded_bytes().starts_with(b".") {
                remove_if_abandoned(&entry.path());
                continue;
            }
            match read(&entry.path()) {
                Ok(intent) if name == *OsStr::new(&file_name(&intent.key)) => pending.intents.push(intent),
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) | Err(_) => pending.quarantined.push(self.quarantine(&name)?),
            }
        }
        pending.intents.sort_by(|a, b| a.key.cmp(&b.key));
        pending.quarantined.sort_unstable();
        Ok(pending)
    }

    /// Whether there is an intent for this attachment.
    pub fn contains(&self, key: &AttachmentKey) -> bool {
        self.path(key).is_file()
    }

    /// Removes an intent that was carried out. One that isn't there is fine.
    ///
    /// # Errors
    /// What the file system says. The intent will be replayed once more then, which
    /// does no harm as long as its attachment is not made again.
    pub fn remove(&self, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.directory.join(file_name(key))
    }

    fn quarantine(&self, name: &OsStr) -> io::Result<PathBuf> {
        let directory = self.directory.join(QUARANTINE);
        make_private_dir(&directory)?;
        let aside = directory.join(name);
        fs::rename(self.directory.join(name), &aside)?;
        Ok(aside)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

/// At most 234 + 1 + 15 bytes, and "@" is in no container id.
fn file_name(key: &AttachmentKey) -> String {
    format!("{}@{}", key.container_id(), key.if_name())
}

fn write_new(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(body)?;
    file.sync_all()
}

fn read(path: &Path) -> io::Result<Intent> {
    let file = open_own(path)?;
    if file.metadata()?.len() > MAX_INTENT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(serde_json::from_reader(io::BufReader::new(file))?)
}

/// Best effort: what stays is looked at again the next time.
fn remove_if_abandoned(path: &Path) {
    let age = fs::symlink_metadata(path)
        .and_then(|metadata| metadata.modified())
        .map(|written| written.elapsed().unwrap_or_default());
    if age.is_ok_and(|age| age > ABANDONED) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn intent(container_id: &str) -> Intent {
        Intent {
            key: AttachmentKey::new(container_id, "eth0").unwrap(),
            network: "weft".to_owned(),
            pod: Pod {
                namespace: Some("shop".to_owned()),
                ..Pod::default()
            },
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_left_is_pending_until_it_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let intents = Intents::at(state.path().join("weft/intents"));
        assert_eq!(intents.pending().unwrap(), Pending::default());

        for id in ["b", "a", "b"] {
            intents.leave(&intent(id)).unwrap();
        }
        assert_eq!(
            intents.pending().unwrap(),
            Pending {
                intents: vec![intent("a"), intent("b")],
                quarantined: vec![]
            }
        );
        assert_eq!(names(intents.directory()), ["a@eth0", "b@eth0"]);

        intents.remove(&intent("a").key).unwrap();
        intents.remove(&intent("a").key).unwrap();
        assert!(!intents.contains(&intent("a").key));
        assert!(intents.contains(&intent("b").key));
        assert_eq!(intents.pending().unwrap().intents, [intent("b")]);
    }

    #[test]
    fn only_the_owner_may_read_or_write_intents() {
        let state = tempfile::tempdir().unwrap();
        let intents = Intents::at(state.path().join("intents"));
        intents.leave(&intent("a")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(intents.directory()), 0o700);
        assert_eq!(mode(&intents.directory().join("a@eth0")), 0o600);
    }

    #[test]
    fn a_file_that_is_no_intent_is_moved_aside_and_the_others_are_replayed() {
        let state = tempfile::tempdir().unwrap();
        let intents = Intents::at(state.path());
        intents.leave(&intent("whole")).unwrap();
        let whole = fs::read(state.path().join("whole@eth0")).unwrap();
        fs::write(state.path().join("torn@eth0"), &whole[..whole.len() / 2]).unwrap();
        fs::write(state.path().join("empty@eth0"), "").unwrap();
        fs::write(state.path().join("renamed@eth0"), &whole).unwrap();
        fs::create_dir(state.path().join("directory@eth0")).unwrap();
        std::os::unix::fs::symlink("whole@eth0", state.path().join("link@eth0")).unwrap();

        let aside = |name: &str| state.path().join("quarantine").join(name);
        let expected = Pending {
            intents: vec![intent("whole")],
            quarantined: [
                "directory@eth0",
                "empty@eth0",
                "link@eth0",
                "renamed@eth0",
                "torn@eth0",
            ]
            .map(aside)
            .to_vec(),
        };
        assert_eq!(intents.pending().unwrap(), expected);
        assert_eq!(names(state.path()), ["quarantine", "whole@eth0"]);
        assert_eq!(intents.pending().unwrap().intents, [intent("whole")]);
    }

    #[test]
    fn every_prefix_of_an_intent_is_quarantined_and_none_is_fatal() {
        let state = tempfile::tempdir().unwrap();
        let intents = Intents::at(state.path());
        let body = serde_json::to_vec(&intent("a")).unwrap();
        for length in 0..body.len() {
            fs::write(state.path().join("a@eth0"), &body[..length]).unwrap();
            assert_eq!(
                intents.pending().unwrap(),
                Pending {
                    intents: vec![],
                    quarantined: vec![state.path().join("quarantine/a@eth0")]
                }
            );
        }
    }

    #[test]
    fn the_temporary_file_of_a_plugin_at_work_stays_and_an_abandoned_one_goes() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join(".1-1"), "{").unwrap();
        let old = File::create(state.path().join(".1-2")).unwrap();
        old.set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();

        assert_eq!(Intents::at(state.path()).pending().unwrap(), Pending::default());
        assert_eq!(names(state.path()), [".1-1"]);
    }
}
