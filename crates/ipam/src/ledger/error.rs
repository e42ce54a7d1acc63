use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weft_model::{AttachmentKey, Block, UserError, codes};

/// Why the ledger can't do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system refused something.
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's reason.
        cause: Arc<std::io::Error>,
    },
    /// The file is not one the ledger may trust.
    #[error("ledger {}: {reason}", path.display())]
    Untrusted {
        /// The ledger's file.
        path: PathBuf,
        /// What is wrong: a symbolic link, a directory, a foreign owner, a mode.
        reason: String,
    },
    /// Another process has the ledger open.
    #[error("ledger {} is open in another process", path.display())]
    InUse {
        /// The ledger's file.
        path: PathBuf,
    },
    /// The file is not a ledger, or a damaged one.
    #[error("ledger {} is damaged: {reason}", path.display())]
    Damaged {
        /// The ledger's file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file was written by a later version.
    #[error("ledger {} has format {found}, this version reads up to {known}", path.display())]
    Version {
        /// The ledger's file.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The highest format known.
        known: u32,
    },
    /// A transaction failed. Nothing of it holds; the next one opens the file anew.
    #[error("writing ledger {}: {cause}", path.display())]
    Write {
        /// The ledger's file.
        path: PathBuf,
        /// What the store said.
        cause: Arc<redb::Error>,
    },
    /// The ledger's thread has ended.
    #[error("the ledger is closed")]
    Closed,
    /// The node has no block to give addresses from.
    #[error("the node has no block of pod addresses yet")]
    NoBlock,
    /// No address is free.
    #[error(
        "no pod address is free: of {capacity} in {blocks} block(s) {used} are in use, {cooling} cooling and {quarantined} quarantined{}",
        in_seconds(*.next_free)
    )]
    Full {
        /// Addresses of the blocks new pods are served from.
        capacity: u32,
        /// The number of those blocks.
        blocks: usize,
        /// Reserved and active ones.
        used: u32,
        /// Released less than [`super::COOLING`] ago.
        cooling: u32,
        /// Given to nobody.
        quarantined: u32,
        /// When the first of the cooling ones becomes free.
        next_free: Option<Duration>,
    },
    /// The key has an address already.
    #[error("attachment {key} exists: it has {address}")]
    Exists {
        /// The key.
        key: AttachmentKey,
        /// Its address.
        address: Ipv4Addr,
    },
    /// The key has no address.
    #[error("there is no attachment {key}")]
    NotFound {
        /// The key.
        key: AttachmentKey,
    },
    /// The key's address is not waiting to become active.
    #[error("attachment {key} can't become active: {address} is {state}")]
    NotReserved {
        /// The key.
        key: AttachmentKey,
        /// Its address.
        address: Ipv4Addr,
        /// The state it is in.
        state: &'static str,
    },
    /// The address is in no block of the node.
    #[error("{address} is in no block of the node")]
    ForeignAddress {
        /// The address.
        address: Ipv4Addr,
    },
    /// Two blocks of the node share addresses.
    #[error("blocks {first} and {second} share addresses")]
    OverlappingBlocks {
        /// One block.
        first: Block,
        /// The other.
        second: Block,
    },
}

// === impl LedgerError ===

impl From<LedgerError> for UserError {
    fn from(error: LedgerError) -> UserError {
        (&error).into()
    }
}

impl From<&LedgerError> for UserError {
    fn from(error: &LedgerError) -> UserError {
        let message = error.to_string();
        let (code, next) = match error {
            LedgerError::Io { path, .. } => (codes::LEDGER_IO, format!("ls -ld {}", path.display())),
            LedgerError::Write { path, .. } => (codes::LEDGER_IO, format!("df -h {}", path.display())),
            LedgerError::Untrusted { path, .. } => (codes::LEDGER_IO, format!("ls -l {}", path.display())),
            LedgerError::InUse { path } => (codes::LEDGER_LOCKED, format!("fuser -v {}", path.display())),
            LedgerError::Damaged { .. } => (codes::LEDGER_CORRUPT, "weft explain WEFT-1306".to_owned()),
            LedgerError::Version { .. } => (
                codes::LEDGER_VERSION,
                "run the newer version of weft again, or drain the node before going back".to_owned(),
            ),
            LedgerError::Closed => (codes::AGENT_NOT_READY, "wait: the agent is stopping".to_owned()),
            LedgerError::NoBlock => (codes::NO_BLOCK, "kubectl get nodenetworks,podpools".to_owned()),
            LedgerError::Full { .. } => (codes::NODE_FULL, "kubectl get nodenetworks,podpools".to_owned()),
            LedgerError::Exists { .. } => (
                codes::ATTACHMENT_EXISTS,
                "send DEL for the attachment first".to_owned(),
            ),
            LedgerError::NotFound { .. } | LedgerError::NotReserved { .. } => {
                (codes::NO_SUCH_ATTACHMENT, "send DEL, then ADD".to_owned())
            }
            LedgerError::ForeignAddress { .. } => (
                codes::ADDRESS_NOT_FOUND,
                "kubectl get nodeslices -o yaml".to_owned(),
            ),
            LedgerError::OverlappingBlocks { .. } => {
                (codes::DUPLICATE_BLOCK, "kubectl get nodenetworks".to_owned())
            }
        };
        UserError::new(code, message, next)
    }
}

fn in_seconds(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!("; the next one is free in {} s", after.as_secs() + 1)
    })
}
