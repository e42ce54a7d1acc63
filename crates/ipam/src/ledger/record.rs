//! What the ledger knows of an address.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weft_model::AttachmentKey;

use crate::clock::{BootId, Moment};

/// What a runtime's ADD says of an attachment, beside its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// The network's name in the CNI configuration: a runtime's GC speaks of one network only.
    #[serde(default)]
    pub network: String,
    /// The pod, as far as `CNI_ARGS` name it.
    #[serde(default)]
    pub pod: PodRef,
    /// The pod's network namespace.
    pub netns: NetnsId,
    /// Where the runtime keeps it. Another namespace may be there by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_path: Option<PathBuf>,
    /// The host's end of the pod's veth pair.
    pub host_if_name: String,
}

/// A pod, as `CNI_ARGS` name it. Never a key: the next pod may have the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `K8S_POD_UID`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Identity of a network namespace for as long as it lives (`namespaces(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device number of the nsfs file.
    pub dev: u64,
    /// Inode number of the nsfs file.
    pub ino: u64,
}

/// An attachment and the address it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// (container ID, interface name)
    pub key: AttachmentKey,
    /// The pod's address.
    #[serde(skip_serializing, default = "unspecified")]
    pub address: Ipv4Addr,
    /// What the ADD said of it.
    #[serde(flatten)]
    pub details: Details,
    /// The boot the ADD came in. Nothing of an attachment outlives it.
    pub boot: BootId,
    /// When the ADD came, in milliseconds since 1970, by the wall clock: for people only.
    pub created_ms: u64,
}

/// The state of an address that has been given out at least once.
///
/// ```text
///             reserve          activate          release
///   (never) ◀──────────▶ reserved ──────▶ active ──────▶ released
///             release,     ▲                               │
///             restart      └──── reserve, after 130 s ─────┘
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Entry {
    /// An ADD is under way. Kept in memory only; what earlier versions wrote is undone when the ledger is opened.
    Reserved(Attachment),
    /// The pod has the address.
    Active(Attachment),
    /// The pod is gone. The address is *cooling* for [`super::COOLING`], then free.
    Released(Released),
    /// Nobody gets the address.
    Quarantined(Quarantined),
}

/// See [`Entry::Released`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// When.
    pub at: Moment,
    /// Counts releases, so that their order outlives a boot.
    pub sequence: u64,
    /// Who had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Attachment>,
}

/// See [`Entry::Quarantined`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined {
    /// Why, in a sentence.
    pub reason: String,
    /// Who holds the address by the ledger. Stays when that pod goes: the other
    /// claimant may still be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Attachment>,
}

// === impl Entry ===

impl Entry {
    /// The attachment that holds the address at present.
    pub fn owner(&self) -> Option<&Attachment> {
        match self {
            Self::Reserved(owner) | Self::Active(owner) => Some(owner),
            Self::Quarantined(quarantined) => quarantined.owner.as_ref(),
            Self::Released(_) => None,
        }
    }

    /// Puts the address, which is the record's key and not stored twice, into
    /// the attachments of an entry just read.
    pub(super) fn at(mut self, address: Ipv4Addr) -> Self {
        let attachment = match &mut self {
            Self::Reserved(owner) | Self::Active(owner) => Some(owner),
            Self::Released(released) => released.last.as_mut(),
            Self::Quarantined(quarantined) => quarantined.owner.as_mut(),
        };
        if let Some(attachment) = attachment {
            attachment.address = address;
        }
        self
    }
}

fn unspecified() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}
