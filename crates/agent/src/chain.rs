//! Which version of CNI a chained plugin knows. Runtimes ask every plugin of a chain for its STATUS since 1.1, and one
//! that does not know the command would make the node NotReady for good.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use weft_cni::spec::Version;
use weft_model::{UserError, codes};

/// What a plugin that can't be asked is taken to know: one that is linked to the node's libraries does not start in the
/// agent's container. Every reference plugin since 2021 does, and without STATUS the Node's conditions have to do.
const UNASKED: Version = Version::V1_0_0;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A plugin that was asked.
#[derive(Debug)]
pub(crate) struct Asked {
    file: FileId,
    newest: Result<Version, UserError>,
}

/// Another file, or other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

// === impl Asked ===

impl Asked {
    /// The newest version that the plugin at `path` and ours know. It is asked once: `known` is what came of that.
    ///
    /// # Errors
    /// [`codes::CNI_CHAIN`]: it can't be looked at, or knows no version of ours.
    pub(crate) fn newest(known: &mut Option<Self>, path: &Path) -> Result<Version, UserError> {
        let file = FileId::of(path).map_err(|error| {
            UserError::new(
                codes::CNI_CHAIN,
                format!("look at {}: {error}", path.display()),
                "install the reference CNI plugins, or leave out --cni-chain",
            )
        })?;
        if known.as_ref().is_none_or(|known| known.file != file) {
            let newest = ask(path);
            if let Ok(version) = newest
                && version < Version::LATEST
            {
                tracing::info!(path = %path.display(), %version, "the chain speaks an older CNI");
            }
            *known = Some(Self { file, newest });
        }
        known.as_ref().map_or(Ok(UNASKED), |known| known.newest.clone())
    }
}

// === impl FileId ===

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

// === private ===

fn ask(path: &Path) -> Result<Version, UserError> {
    let answer = match call(path) {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(
                path = %path.display(), %error,
                "the plugin can't be asked for its versions here: taking it for one of CNI {UNASKED}"
            );
            return Ok(UNASKED);
        }
    };
    let supported: Vec<&str> = answer["supportedVersions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str)
        .collect();
    let common = |version: &Version| supported.contains(&version.as_str());
    Version::ALL.into_iter().rev().find(common).ok_or_else(|| {
        UserError::new(
            codes::CNI_CHAIN,
            format!(
                "{} knows the CNI versions {supported:?}, and Weft {}",
                path.display(),
                Version::list()
            ),
            "install a release of the reference CNI plugins that knows one of them, or leave out --cni-chain",
        )
    })
}

/// The answer to VERSION.
fn call(path: &Path) -> io::Result<serde_json::Value> {
    // libcni gives the variables that VERSION has no use for as well: old plugins insist on them.
    let mut child = Command::new(path)
        .env_clear()
        .envs([
            ("CNI_COMMAND", "VERSION"),
            ("CNI_CONTAINERID", "dummy"),
            ("CNI_NETNS", "dummy"),
            ("CNI_IFNAME", "dummy"),
            ("CNI_PATH", "dummy"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that answers without reading has closed it.
        let _ = write!(input, r#"{{"cniVersion":"{}"}}"#, Version::LATEST);
    }
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= until => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} s", PATIENCE.as_secs()),
                ));
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(1 << 16).read_to_end(&mut answer)?;
    }
    if !status.success() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    Ok(serde_json::from_slice(&answer)?)
}
