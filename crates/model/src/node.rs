use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Node object's name: a DNS subdomain (RFC 1123) of at most 253 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// A Node object's UID, as the API server gave it: opaque, but never empty.
///
/// A node that is deleted and made again under its old name has another UID,
/// and must not inherit the first one's addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeUid(String);

/// A text that can't be a Node's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a node name: lower-case letters, digits, \"-\" and \".\", at most 253 characters, each label starting and ending with a letter or digit"
)]
pub struct NodeNameError(String);

/// A text that can't be an object's UID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an object UID: 1 to 128 printable ASCII characters without spaces")]
pub struct NodeUidError(String);

// === impl NodeName ===

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = NodeNameError;

    fn try_from(name: String) -> Result<Self, NodeNameError> {
        let label = |label: &str| {
            label
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() <= 253 && name.split('.').all(label) {
            Ok(Self(name))
        } else {
            Err(NodeNameError(name))
        }
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(name: &str) -> Result<Self, NodeNameError> {
        Self::try_from(name.to_owned())
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl NodeUid ===

impl NodeUid {
    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeUid {
    type Error = NodeUidError;

    fn try_from(uid: String) -> Result<Self, NodeUidError> {
        if (1..=128).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(uid))
        } else {
            Err(NodeUidError(uid))
        }
    }
}

impl FromStr for NodeUid {
    type Err = NodeUidError;

    fn from_str(uid: &str) -> Result<Self, NodeUidError> {
        Self::try_from(uid.to_owned())
    }
}

impl From<NodeUid> for String {
    fn from(uid: NodeUid) -> String {
        uid.0
    }
}

impl fmt::Display for NodeUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_dns_subdomains() {
        for name in ["a", "node-1", "ip-10-0-0-1.eu-west-1.compute.internal", "0"] {
            assert_eq!(name.parse::<NodeName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            "-a",
            "a-",
            "a..b",
            ".a",
            "a.",
            "A",
            "a_b",
            "a b",
            &"a".repeat(254),
        ] {
            assert_eq!(name.parse::<NodeName>(), Err(NodeNameError(name.to_owned())));
        }
    }

    #[test]
    fn a_uid_is_never_empty() {
        assert!("".parse::<NodeUid>().is_err());
        assert!("a b".parse::<NodeUid>().is_err());
        assert!("9b0e4e0e-4ef1-4f2b-b6cb-7a6cf8d5a2f1".parse::<NodeUid>().is_ok());
    }
}
