use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use weft_model::{AttachmentKey, UserError, codes};

use super::result::or_default;
use super::{AddResult, Dns, Failure, Version, code};

/// A plugin's configuration, as it arrives on standard input.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `cniVersion`; 0.1.0 if the configuration has none.
    pub version: Version,
    /// `name` of the network.
    pub name: String,
    /// `socket`: where the agent listens.
    pub socket: PathBuf,
    /// `intentDir`: where a DEL goes that the agent can't be told.
    pub intent_dir: PathBuf,
    /// `logFile`: gets one line per call.
    pub log_file: Option<PathBuf>,
    /// `timeoutSeconds`: the longest wait for the agent, if shorter than a
    /// command's own.
    pub timeout: Option<Duration>,
    /// `dns`: goes into the result of ADD as it is.
    pub dns: Dns,
    /// `runtimeConfig`: what the runtime fills in for the capabilities declared.
    pub runtime_config: Map<String, Value>,
    /// `cni.dev/valid-attachments` or its older name `cni.dev/attachments`.
    /// `Some` of an empty list is "none is valid", `None` "the runtime gave no list".
    pub valid_attachments: Option<Vec<AttachmentKey>>,
    /// `prevResult`, unread: a DEL must not fail because of it.
    prev_result: Option<Value>,
}

/// The keys that matter, as JSON has them. Others are other plugins' business.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    intent_dir: Option<PathBuf>,
    #[serde(default)]
    log_file: Option<PathBuf>,
    #[serde(default)]
    timeout_seconds: Option<u16>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Dns,
    #[serde(default, deserialize_with = "or_default")]
    runtime_config: Map<String, Value>,
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "given")]
    valid_attachments: Option<Vec<RawAttachment>>,
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "given")]
    attachments: Option<Vec<RawAttachment>>,
    #[serde(default)]
    prev_result: Option<Value>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

const DEFAULT_SOCKET: &str = "/run/weft/agent.sock";
const DEFAULT_INTENT_DIR: &str = "/var/lib/weft/intents";

// === impl NetConf ===

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// 6 if it is not JSON, 1 if its version is unknown, 7 for everything else.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| {
            let message = format!(
                "the network configuration on standard input ({} bytes) is not JSON: {error}",
                bytes.len()
            );
            config_error(code::DECODE, message)
        })?;
        if !value.is_object() {
            return Err(invalid(
                "the network configuration on standard input is no JSON object",
            ));
        }
        let version = version_in(&value)?;
        let name = name_in(&value)?;
        let raw = Raw::deserialize(value).map_err(|error| invalid(format!("network \"{name}\": {error}")))?;
        Ok(Self {
            version,
            socket: path("socket", raw.socket, DEFAULT_SOCKET)?,
            intent_dir: path("intentDir", raw.intent_dir, DEFAULT_INTENT_DIR)?,
            log_file: raw.log_file.filter(|path| !path.as_os_str().is_empty()),
            timeout: timeout(raw.timeout_seconds)?,
            dns: raw.dns,
            runtime_config: raw.runtime_config,
            valid_attachments: valid(raw.valid_attachments, raw.attachments),
            prev_result: raw.prev_result,
            name,
        })
    }

    /// The result of the plugins before this one, or for CHECK of the whole ADD.
    /// It is laid out as its own `cniVersion` says, or else as the configuration's.
    ///
    /// # Errors
    /// 7 if it can't be read.
    pub fn prev_result(&self) -> Result<Option<AddResult>, Failure> {
        let Some(value) = self.prev_result.clone() else {
            return Ok(None);
        };
        let version = match value.get("cniVersion") {
            None | Some(Value::Null) => self.version,
            Some(_) => version_in(&value)?,
        };
        let result = AddResult::from_json(value, version)
            .map_err(|error| invalid(format!("prevResult of network \"{}\": {error}", self.name)))?;
        Ok(Some(result))
    }
}

fn version_in(value: &Value) -> Result<Version, Failure> {
    let text = match value.get("cniVersion") {
        // As the reference implementation has it.
        None | Some(Value::Null) => "0.1.0",
        Some(Value::String(text)) if text.is_empty() => "0.1.0",
        Some(Value::String(text)) => text,
        Some(other) => return Err(invalid(format!("cniVersion is {other} and not a string"))),
    };
    text.parse().map_err(|error: super::VersionError| {
        Failure::new(
            code::INCOMPATIBLE_VERSION,
            &UserError::new(
                codes::CNI_VERSION,
                error.to_string(),
                "set cniVersion in the network configuration to 1.1.0",
            ),
        )
    })
}

/// The specification has names follow the pattern of container ids.
fn name_in(value: &Value) -> Result<String, Failure> {
    let name = match value.get("name") {
        None | Some(Value::Null) => return Err(invalid("the network configuration has no name")),
        Some(Value::String(name)) => name,
        Some(other) => return Err(invalid(format!("the network's name is {other} and not a string"))),
    };
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.bytes().all(rest) {
        return Ok(name.clone());
    }
    Err(invalid(format!(
        "the network's name {name:?} has to start with a letter or digit and go on with letters, digits, \"_\", \".\" or \"-\""
    )))
}

fn path(key: &str, given: Option<PathBuf>, default: &str) -> Result<PathBuf, Failure> {
    match given {
        None => Ok(Path::new(default).to_owned()),
        Some(path) if path.is_absolute() => Ok(path),
        Some(path) => Err(invalid(format!("{key} is {path:?} and not an absolute path"))),
    }
}

fn timeout(seconds: Option<u16>) -> Result<Option<Duration>, Failure> {
    match seconds {
        Some(0) => Err(invalid("timeoutSeconds is 0; it has to be at least 1")),
        seconds => Ok(seconds.map(|seconds| Duration::from_secs(seconds.into()))),
    }
}

/// A runtime that gives both keys gives the same list twice; should they differ,
/// what either calls valid is valid. A pair that breaks the specification's rules
/// names no attachment of ours: its ADD was refused.
fn valid(
    current: Option<Vec<RawAttachment>>,
    legacy: Option<Vec<RawAttachment>>,
) -> Option<Vec<AttachmentKey>> {
    if current.is_none() && legacy.is_none() {
        return None;
    }
    let mut keys: Vec<_> = [current, legacy]
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|raw| AttachmentKey::new(raw.container_id, raw.ifname).ok())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    Some(keys)
}

fn invalid(message: impl Into<String>) -> Failure {
    config_error(code::CONFIG, message)
}

fn config_error(code: u32, message: impl Into<String>) -> Failure {
    Failure::new(
        code,
        &UserError::new(codes::CNI_CONFIG, message, "weft explain WEFT-1402"),
    )
}

/// A key that is there is `Some`, also with the value `null`, which Go's encoder
/// writes for an empty slice.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<RawAttachment>>, D::Error> {
    or_default(deserializer).map(Some)
}
