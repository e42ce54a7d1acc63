//! The last wish that was carried out, on disk.
//!
//! An agent that starts while the API server is away goes on from it: rules, routes and programs are kept, and new pods
//! get addresses of the blocks the node has. What the API says later replaces it.

use crate::desired::Desired;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_cni::install::{open_own, place};

pub const FILE: &str = "desired.json";

/// Changes of other nodes are written this far apart at least: in a cluster of thousands there is one every second, and
/// a megabyte to sync each time. What an agent that is killed meanwhile has not written, the API tells the next one, or
/// if it is away too, the next one reaches those nodes when it is back. What is the node's own is written at once: no
/// address may be given twice.
const PACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Saved {
    dir: PathBuf,
    last: Option<Arc<Desired>>,
    /// Waits for its time.
    pending: Option<Arc<Desired>>,
    not_before: Instant,
}

// === impl Saved ===

impl Saved {
    /// Reads what an earlier agent left in `directory`. A file that can't be read counts as none: the API has it all.
    pub fn open(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let last = match open_own(&path).and_then(io::read_to_string) {
            Ok(text) => serde_json::from_str(&text)
                .inspect_err(
                    |error| tracing::warn!(path = %path.display(), %error, "ignoring the saved wish"),
                )
                .ok()
                .map(Arc::new),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the saved wish");
                None
            }
        };
        Self {
            dir: directory.to_owned(),
            last,
            pending: None,
            not_before: Instant::now(),
        }
    }

    /// What was saved last.
    pub fn last(&self) -> Option<&Arc<Desired>> {
        self.last.as_ref()
    }

    /// Saves `desired` if it is another than last time, now or, where only other nodes changed, when it is
    /// [due](Self::due). A failure is logged: the node works without.
    pub fn save(&mut self, desired: &Arc<Desired>) {
        self.pending = None;
        match &self.last {
            Some(last) if last == desired => {}
            Some(last) if last.is_same_but_peers(desired) && Instant::now() < self.not_before => {
                self.pending = Some(Arc::clone(desired));
            }
            _ => self.write(desired),
        }
    }

    /// When [`flush`](Self::flush) has something to write.
    pub fn due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|_| self.not_before)
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        if let Some(desired) = self.pending.take() {
            self.write(&desired);
        }
    }

    fn write(&mut self, desired: &Arc<Desired>) {
        self.not_before = Instant::now() + PACE;
        let written = serde_json::to_vec(&**desired)
            .map_err(io::Error::from)
            .and_then(|text| place(&self.dir, FILE, &text, 0o600));
        match written {
            Ok(_) => self.last = Some(Arc::clone(desired)),
            Err(error) => {
                tracing::warn!(directory = %self.dir.display(), %error, "cannot save the node's wish");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Prefix;
    use std::fs;

    fn desired() -> Desired {
        let underlay = "10.224.0.5".parse().unwrap();
        Desired {
            node_uid: "a-b".parse().unwrap(),
            address: "10.224.0.4".parse().unwrap(),
            addresses: vec!["10.224.0.4".parse().unwrap()],
            max_pods: Some(250),
            blocks: vec!["10.244.0.0/24".parse().unwrap()],
            retiring: vec![],
            pod_cidrs: ["10.244.0.0/16".parse().unwrap()].into(),
            non_masquerade: [].into(),
            prefixes: [
                ("10.244.0.0/24".parse().unwrap(), Prefix::LocalBlock),
                ("10.244.1.0/24".parse().unwrap(), Prefix::RemoteBlock { underlay }),
            ]
            .into(),
            nodes: [underlay].into(),
        }
    }

    #[test]
    fn the_next_agent_reads_what_the_last_one_saved() {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = Saved::open(dir.path());
        assert_eq!(saved.last(), None);
        let desired = Arc::new(desired());
        saved.save(&desired);
        assert_eq!(Saved::open(dir.path()).last(), Some(&desired));
    }

    #[test]
    fn a_link_in_its_place_is_not_followed_and_goes_with_the_next_save() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let desired = Arc::new(desired());
        Saved::open(elsewhere.path()).save(&desired);
        let (link, target) = (dir.path().join(FILE), elsewhere.path().join(FILE));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let before = fs::read(&target).unwrap();
        let mut saved = Saved::open(dir.path());
        assert_eq!(saved.last(), None);
        let other = Arc::new(Desired {
            max_pods: None,
            ..(*desired).clone()
        });
        saved.save(&other);
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(fs::read(&target).unwrap(), before);
    }

    #[test]
    fn other_nodes_wait_for_their_turn_and_the_nodes_own_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let on_disk = || Saved::open(dir.path()).last().cloned().unwrap();
        let mut saved = Saved::open(dir.path());
        let first = Arc::new(desired());
        saved.save(&first);

        let mut with_peer = desired();
        with_peer.nodes.insert("10.224.0.6".parse().unwrap());
        let with_peer = Arc::new(with_peer);
        saved.save(&with_peer);
        assert_eq!((on_disk(), saved.due().is_some()), (Arc::clone(&first), true));
        saved.flush();
        assert_eq!((on_disk(), saved.due()), (Arc::clone(&with_peer), None));

        saved.save(&first);
        let with_block = Arc::new(Desired {
            blocks: vec![],
            ..desired()
        });
        saved.save(&with_block);
        assert_eq!((on_disk(), saved.due()), (with_block, None));
    }

    #[test]
    fn a_file_that_cannot_be_read_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"address\":").unwrap();
        assert_eq!(Saved::open(dir.path()).last(), None);
    }
}
