//! The CNI specification's own types: versions, error codes, configurations, results.

mod config;
mod result;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_model::UserError;

pub use config::NetConf;
pub use result::{AddResult, Dns, Interface, Ip, ResultError, Route};

/// The error codes of CNI 1.1 ("Well-known Error Codes"); 100 and above are a
/// plugin's own.
pub mod code {
    /// The configuration's version is not supported, or too old for the command.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is not known or does not exist; nothing has to be cleaned up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A necessary environment variable is missing or invalid.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// What was read is not JSON.
    pub const DECODE: u32 = 6;
    /// The configuration is invalid.
    pub const CONFIG: u32 = 7;
    /// The namespace is invalid. In the reference implementation, not in the text.
    pub const NETNS: u32 = 8;
    /// Something passing; the runtime should try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: an ADD can't be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: an ADD can't be served, and running pods may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// A fault in Weft. The reference implementation's "internal".
    pub const INTERNAL: u32 = 999;
}

/// A version of the CNI protocol that Weft speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: ADD and DEL; also what a configuration without a version means.
    V0_1_0,
    /// 0.2.0: VERSION.
    V0_2_0,
    /// 0.3.0: results list interfaces.
    V0_3_0,
    /// 0.3.1: plugin chains.
    V0_3_1,
    /// 0.4.0: CHECK, and DEL gets the previous result.
    V0_4_0,
    /// 1.0.0: addresses in results have no `version` any more.
    V1_0_0,
    /// 1.1.0: GC, STATUS; MTU in results.
    V1_1_0,
}

/// A version that Weft does not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI version \"{0}\" is not one of {list}", list = Version::list())]
pub struct VersionError(String);

/// The CNI error object, less the protocol version, which is the runtime's to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg} (CNI error {code}): {details}")]
pub struct Failure {
    /// One of [`code`], or 100 and above.
    pub code: u32,
    /// What failed, where and why, with the measured value, after Weft's own
    /// code: `WEFT-1401: …`.
    pub msg: String,
    /// The next command.
    #[serde(default)]
    pub details: String,
}

// === impl Version ===

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest version, in which results and errors are kept internally.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it is written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// All versions for a sentence.
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| VersionError(text.to_owned()))
    }
}

// === impl Failure ===

impl Failure {
    /// A CNI error from an error that is meant for a person.
    pub fn new(code: u32, error: &UserError) -> Self {
        Self {
            code,
            msg: format!("{}: {}", error.code(), error.message()),
            details: format!("next: {}", error.next()),
        }
    }

    /// The error object for standard output.
    pub fn to_json(&self, version: Version) -> Value {
        json!({
            "cniVersion": version.as_str(),
            "code": self.code,
            "msg": self.msg,
            "details": self.details,
        })
    }
}

#[cfg(test)]
mod tests;
