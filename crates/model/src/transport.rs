use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a node's packets are to get to other nodes: what an administrator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TransportChoice {
    /// `direct` where the node can, else `device`.
    #[default]
    Auto,
    /// Past the overlay device: programs write and strip the outer headers.
    Direct,
    /// By the overlay device, which always works.
    Device,
}

/// A text that is no [`TransportChoice`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are auto, direct and device")]
pub struct UnknownTransport;

// === impl TransportChoice ===

impl TransportChoice {
    const ALL: [Self; 3] = [Self::Auto, Self::Direct, Self::Device];

    /// Its name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Device => "device",
        }
    }
}

impl fmt::Display for TransportChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TransportChoice {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        Self::ALL
            .into_iter()
            .find(|choice| choice.name() == text)
            .ok_or(UnknownTransport)
    }
}
