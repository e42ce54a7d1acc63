//! The last wish that was carried out, on disk.
//!
//! An agent that starts while the API server is away goes on from it: rules, routes and programs are kept, and new pods
//! get addresses of the blocks the node has. What the API says later replaces it.

use crate::desired::Desired;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use weft_cni::install::place;

pub const FILE: &str = "desired.json";

#[derive(Debug)]
pub struct Saved {
    dir: PathBuf,
    last: Option<Desired>,
}

// === impl Saved ===

impl Saved {
    /// Reads what an earlier agent left in `directory`. A file that can't be read counts as none: the API has it all.
    pub fn open(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let last = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(
                    |error| tracing::warn!(path = %path.display(), %error, "ignoring the saved wish"),
                )
                .ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the saved wish");
                None
            }
        };
        Self {
            dir: directory.to_owned(),
            last,
        }
    }

    /// What was saved last.
    pub fn last(&self) -> Option<&Desired> {
        self.last.as_ref()
    }

    /// Saves `desired` if it is another than last time. A failure is logged: the node works without.
    pub fn save(&mut self, desired: &Desired) {
        if self.last.as_ref() == Some(desired) {
            return;
        }
        let written = serde_json::to_vec(desired)
            .map_err(io::Error::from)
            .and_then(|text| place(&self.dir, FILE, &text, 0o600));
        match written {
            Ok(_) => self.last = Some(desired.clone()),
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

    fn desired() -> Desired {
        let underlay = "10.224.0.5".parse().unwrap();
        Desired {
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
        saved.save(&desired());
        assert_eq!(Saved::open(dir.path()).last(), Some(&desired()));
    }

    #[test]
    fn a_file_that_cannot_be_read_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"address\":").unwrap();
        assert_eq!(Saved::open(dir.path()).last(), None);
    }
}
