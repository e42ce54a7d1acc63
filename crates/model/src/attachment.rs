use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What names one interface of one sandbox: (container ID, interface name).
///
/// The only key of an attachment. Pod names, namespace paths and process ids
/// are used again by the next pod; a container ID is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttachmentKey {
    container_id: String,
    if_name: String,
}

/// Why a pair of texts does not name an attachment (CNI specification 1.1,
/// section 2, "Parameters").
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentKeyError {
    /// The container ID breaks the specification's pattern.
    #[error(
        "container ID \"{0}\" has to start with a letter or digit and go on with letters, digits, \"_\", \".\" or \"-\""
    )]
    ContainerId(String),
    /// The container ID is longer than [`AttachmentKey::MAX_CONTAINER_ID`].
    #[error("container ID has {0} characters, more than {max}", max = AttachmentKey::MAX_CONTAINER_ID)]
    ContainerIdLength(usize),
    /// The interface name is none the kernel would accept.
    #[error(
        "interface name \"{0}\" has to have 1 to 15 characters, without \"/\", \":\" or white space, and not be \".\" or \"..\""
    )]
    IfName(String),
    /// A text without the "/" between the two.
    #[error("\"{0}\" is not of the form containerID/interface")]
    Form(String),
}

// === impl AttachmentKey ===

impl AttachmentKey {
    /// The longest container ID. The specification sets no limit; the alias
    /// `weft:<containerID>/<ifname>` of the host interface has one, 255 bytes.
    /// Runtimes use 64.
    pub const MAX_CONTAINER_ID: usize = 234;

    /// The longest interface name: the kernel's `IFNAMSIZ` less its NUL.
    pub const MAX_IF_NAME: usize = 15;

    /// # Errors
    /// [`AttachmentKeyError`] if one of the two breaks the CNI specification.
    pub fn new(
        container_id: impl Into<String>,
        if_name: impl Into<String>,
    ) -> Result<Self, AttachmentKeyError> {
        let (container_id, if_name) = (container_id.into(), if_name.into());
        if container_id.len() > Self::MAX_CONTAINER_ID {
            return Err(AttachmentKeyError::ContainerIdLength(container_id.len()));
        }
        let pattern = container_id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if !pattern || !container_id.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            return Err(AttachmentKeyError::ContainerId(container_id));
        }
        let forbidden = |c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace();
        if if_name.is_empty()
            || if_name.len() > Self::MAX_IF_NAME
            || if_name == "."
            || if_name == ".."
            || if_name.contains(forbidden)
        {
            return Err(AttachmentKeyError::IfName(if_name));
        }
        Ok(Self {
            container_id,
            if_name,
        })
    }

    /// `CNI_CONTAINERID`.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// `CNI_IFNAME`: the interface's name inside the sandbox.
    pub fn if_name(&self) -> &str {
        &self.if_name
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.if_name)
    }
}

impl FromStr for AttachmentKey {
    type Err = AttachmentKeyError;

    fn from_str(text: &str) -> Result<Self, AttachmentKeyError> {
        let (container_id, if_name) = text
            .split_once('/')
            .ok_or_else(|| AttachmentKeyError::Form(text.to_owned()))?;
        Self::new(container_id, if_name)
    }
}

impl TryFrom<String> for AttachmentKey {
    type Error = AttachmentKeyError;

    fn try_from(text: String) -> Result<Self, AttachmentKeyError> {
        text.parse()
    }
}

impl From<AttachmentKey> for String {
    fn from(key: AttachmentKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_container_id_and_interface_make_a_key_that_reads_back() {
        let id = "4f1c".repeat(16);
        let key = AttachmentKey::new(id.clone(), "eth0").unwrap();
        assert_eq!((key.container_id(), key.if_name()), (id.as_str(), "eth0"));
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn names_the_specification_forbids_make_no_key() {
        for id in ["", "-a", ".a", "_a", "a/b", "a b", "é", "a\n"] {
            assert_eq!(
                AttachmentKey::new(id, "eth0"),
                Err(AttachmentKeyError::ContainerId(id.to_owned()))
            );
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "abcdefghijklmnop",
            "a\0",
        ] {
            assert_eq!(
                AttachmentKey::new("a", name),
                Err(AttachmentKeyError::IfName(name.to_owned()))
            );
        }
        assert_eq!(
            AttachmentKey::new("a".repeat(235), "eth0"),
            Err(AttachmentKeyError::ContainerIdLength(235))
        );
        assert!(AttachmentKey::new("a".repeat(234), "abcdefghijklmno").is_ok());
    }
}
