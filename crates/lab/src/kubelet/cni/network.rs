//! Network configuration lists (CNI specification 1.1.0, section 1), and what of them a plugin gets to see.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Attachment, CniError};

/// A network configuration list, as read from `net.d`.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// Name of the network.
    pub name: String,
    /// Version that the plugins are spoken to in.
    pub cni_version: String,
    /// Whether CHECK is to be left out.
    pub disable_check: bool,
    /// Whether GC is to be left out.
    pub disable_gc: bool,
    pub(super) plugins: Vec<Map<String, Value>>,
    pub(super) text: String,
}

// === impl NetworkList ===

impl NetworkList {
    /// Reads the first network configuration list of a directory in the order of names, as containerd does.
    ///
    /// # Errors
    /// There is none, or it is not valid.
    pub fn load(conf_dir: &Path) -> Result<Self, CniError> {
        let unusable = |what: String| CniError::NotInitialized(what);
        let mut files: Vec<PathBuf> = fs::read_dir(conf_dir)
            .map_err(|error| unusable(format!("read {}: {error}", conf_dir.display())))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "conflist"))
            .collect();
        files.sort();
        let file = files
            .first()
            .ok_or_else(|| unusable(format!("no network config found in {}", conf_dir.display())))?;
        let text = fs::read_to_string(file)
            .map_err(|error| unusable(format!("read {}: {error}", file.display())))?;
        Self::parse(&text).map_err(|error| unusable(format!("{}: {error}", file.display())))
    }

    /// Parses a network configuration list.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let list: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let string = |key: &str| list.get(key).and_then(Value::as_str).map(str::to_owned);
        let plugins: Vec<Map<String, Value>> = list
            .get("plugins")
            .and_then(Value::as_array)
            .ok_or("key \"plugins\" is missing or no array")?
            .iter()
            .map(|plugin| {
                plugin
                    .as_object()
                    .cloned()
                    .ok_or("a plugin's configuration is no object")
            })
            .collect::<Result<_, _>>()?;
        if plugins.is_empty() {
            return Err("no plugins in list".to_owned());
        }
        if plugins
            .iter()
            .any(|plugin| plugin.get("type").and_then(Value::as_str).is_none())
        {
            return Err("a plugin has no \"type\"".to_owned());
        }
        let cni_version = list
            .get("cniVersions")
            .and_then(Value::as_array)
            .and_then(|versions| {
                versions
                    .iter()
                    .filter_map(Value::as_str)
                    .filter(|v| version_number(v) <= (1, 1, 0))
                    .max_by_key(|v| version_number(v))
            })
            .map(str::to_owned)
            .or_else(|| string("cniVersion"))
            .unwrap_or_else(|| "0.1.0".to_owned());
        Ok(Self {
            name: string("name")
                .filter(|name| !name.is_empty())
                .ok_or("key \"name\" is missing")?,
            cni_version,
            disable_check: list.get("disableCheck") == Some(&Value::Bool(true)),
            disable_gc: list.get("disableGC") == Some(&Value::Bool(true)),
            plugins,
            text: text.to_owned(),
        })
    }

    /// Whether the list's version is at least `major.minor.patch`.
    pub fn at_least(&self, version: (u64, u64, u64)) -> bool {
        version_number(&self.cni_version) >= version
    }

    /// What a plugin of the list finds on its standard input.
    pub(super) fn plugin_config(
        &self,
        plugin: &Map<String, Value>,
        prev_result: Option<&Value>,
        attachment: Option<&Attachment>,
    ) -> Map<String, Value> {
        let mut config = plugin.clone();
        config.insert("name".to_owned(), json!(self.name));
        config.insert("cniVersion".to_owned(), json!(self.cni_version));
        if let Some(result) = prev_result {
            config.insert("prevResult".to_owned(), result.clone());
        }
        let declared = config.remove("capabilities");
        if let (Some(Value::Object(declared)), Some(attachment)) = (declared, attachment) {
            let runtime: Map<String, Value> = attachment
                .capability_args
                .iter()
                .filter(|(name, _)| declared.get(*name) == Some(&Value::Bool(true)))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            if !runtime.is_empty() {
                config.insert("runtimeConfig".to_owned(), Value::Object(runtime));
            }
        }
        config
    }
}

/// A version as numbers that compare; what is missing counts as 0.
fn version_number(version: &str) -> (u64, u64, u64) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}
