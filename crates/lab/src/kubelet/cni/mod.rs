//! The runtime's side of CNI: what libcni hands to each plugin, in what order, and what it remembers.
//!
//! Follows the CNI specification 1.1.0, sections 3 ("Execution of Network Configurations") and 4 ("Plugin
//! Delegation"), in the words of libcni where people will look for them: error texts and the cache on disk.

mod network;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use weft_kernel::NetNs;

pub use self::network::NetworkList;

/// How long one execution of a plugin may take. The kubelet gives a sandbox four minutes in all.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// libcni tries again when the plugin's file is being written at that moment.
const BUSY_RETRIES: u32 = 5;
const BUSY_DELAY: Duration = Duration::from_secs(1);

/// One attachment of a container to a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// Container ID: 64 hexadecimal digits.
    pub container_id: String,
    /// Path of the network namespace; `None` once it is gone.
    pub netns: Option<PathBuf>,
    /// Name of the interface inside.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What is offered to plugins that declare the capability of that name.
    pub capability_args: Map<String, Value>,
}

/// The plugins of one node: its configuration, binaries and cache, run in its network namespace.
#[derive(Clone, Debug)]
pub struct Cni {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    cache_dir: PathBuf,
    netns: Arc<NetNs>,
}

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

/// Why the network of a sandbox could not be changed or asked.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no usable configuration; containerd's words for it.
    #[error("cni plugin not initialized: {0}")]
    NotInitialized(String),
    /// A plugin is in the configuration, its binary not in the directory.
    #[error("failed to find plugin {plugin:?} in path [{}]", path.display())]
    NotFound {
        /// Type of the plugin.
        plugin: String,
        /// Directory searched.
        path: PathBuf,
    },
    /// A plugin failed.
    #[error("plugin type={plugin:?} name={network:?} failed ({command}): {cause}")]
    Failed {
        /// Type of the plugin.
        plugin: String,
        /// Name of the network.
        network: String,
        /// Command, in lower case.
        command: &'static str,
        /// What it said.
        cause: PluginFailure,
    },
    /// The cache on disk can't be written or read.
    #[error("CNI cache {}: {source}", path.display())]
    Cache {
        /// File concerned.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// How a plugin failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PluginFailure {
    /// It answered with an error object.
    #[error("{}", with_details(msg, details))]
    Answered {
        /// Error code: below 100 of the specification, above of the plugin.
        code: u64,
        /// Message.
        msg: String,
        /// Details, may be empty.
        details: String,
    },
    /// It ended badly without one.
    #[error("{0}")]
    Broken(String),
}

// === impl Cni ===

impl Cni {
    /// The plugins of the node whose directory is `node_dir` (`cni/net.d`, `cni/bin`, `cni/cache`), executed in
    /// `netns`.
    pub fn new(node_dir: &Path, netns: Arc<NetNs>) -> Self {
        let dir = node_dir.join("cni");
        Self {
            conf_dir: dir.join("net.d"),
            bin_dir: dir.join("bin"),
            cache_dir: dir.join("cache"),
            netns,
        }
    }

    /// The network list in force. Read anew each time: it may be replaced while nodes run.
    ///
    /// # Errors
    /// There is none, or it is not valid.
    pub fn list(&self) -> Result<NetworkList, CniError> {
        NetworkList::load(&self.conf_dir)
    }

    /// Attaches a container: ADD to every plugin in turn, each with the result of the one before.
    ///
    /// # Errors
    /// The first plugin's that fails; the caller then calls [`del`](Self::del).
    pub async fn add(&self, attachment: &Attachment) -> Result<Value, CniError> {
        let list = self.list()?;
        let mut result = None;
        for plugin in &list.plugins {
            let config = list.plugin_config(plugin, result.as_ref(), Some(attachment));
            let stdout = self
                .exec(&list, plugin, Command::Add, Some(attachment), &config)
                .await?;
            let answer: Value = serde_json::from_slice(&stdout).map_err(|error| {
                failed(
                    &list,
                    plugin,
                    Command::Add,
                    PluginFailure::Broken(format!("error decoding result: {error}")),
                )
            })?;
            result = Some(answer);
        }
        let result = result.unwrap_or_else(|| json!({}));
        self.remember(&list, attachment, &result)?;
        Ok(result)
    }

    /// Detaches a container: DEL to every plugin in reverse order, then forgets it.
    ///
    /// # Errors
    /// The first plugin's that fails; the attachment then is still remembered.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let list = self.list()?;
        let cached = self.cached_result(&list, attachment);
        let prev_result = cached.as_ref().filter(|_| list.at_least((0, 4, 0)));
        for plugin in list.plugins.iter().rev() {
            let config = list.plugin_config(plugin, prev_result, Some(attachment));
            self.exec(&list, plugin, Command::Del, Some(attachment), &config)
                .await?;
        }
        let path = self.cache_file(&list, attachment);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CniError::Cache { path, source }),
            _ => Ok(()),
        }
    }

    /// Asks every plugin whether the attachment is as it was made. Without effect where the list's version or
    /// `disableCheck` rules it out.
    ///
    /// # Errors
    /// The first plugin's that finds a difference.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        let list = self.list()?;
        if list.disable_check || !list.at_least((0, 4, 0)) {
            return Ok(());
        }
        let cached = self.cached_result(&list, attachment);
        for plugin in &list.plugins {
            let config = list.plugin_config(plugin, cached.as_ref(), Some(attachment));
            self.exec(&list, plugin, Command::Check, Some(attachment), &config)
                .await?;
        }
        Ok(())
    }

    /// Asks every plugin whether it could serve an ADD now. Below version 1.1.0 a valid list is all there is.
    ///
    /// # Errors
    /// No valid list, or the first plugin's that is not ready.
    pub async fn status(&self) -> Result<(), CniError> {
        let list = self.list()?;
        if !list.at_least((1, 1, 0)) {
            return Ok(());
        }
        for plugin in &list.plugins {
            let config = list.plugin_config(plugin, None, None);
            self.exec(&list, plugin, Command::Status, None, &config).await?;
        }
        Ok(())
    }

    /// Tells every plugin which attachments are alive, so that it can drop all others. The caller sees to it that
    /// no ADD or DEL runs meanwhile. Without effect below version 1.1.0 and where `disableGC` is set.
    ///
    /// # Errors
    /// The last plugin's that failed; all are asked.
    pub async fn gc(&self, valid: &[(String, String)]) -> Result<(), CniError> {
        let list = self.list()?;
        if list.disable_gc || !list.at_least((1, 1, 0)) {
            return Ok(());
        }
        let valid: Vec<Value> = valid
            .iter()
            .map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname }))
            .collect();
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let mut config = list.plugin_config(plugin, None, None);
            config.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
            // libcni sends the older spelling beside it.
            config.insert("cni.dev/attachments".to_owned(), json!(valid));
            if let Err(error) = self.exec(&list, plugin, Command::Gc, None, &config).await {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// The result of the ADD, where the attachment is remembered.
    pub fn result(&self, attachment: &Attachment) -> Option<Value> {
        self.cached_result(&self.list().ok()?, attachment)
    }

    async fn exec(
        &self,
        list: &NetworkList,
        plugin: &Map<String, Value>,
        command: Command,
        attachment: Option<&Attachment>,
        config: &Map<String, Value>,
    ) -> Result<Vec<u8>, CniError> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let binary = self.bin_dir.join(kind);
        if kind.contains('/') || !binary.is_file() {
            return Err(CniError::NotFound {
                plugin: kind.to_owned(),
                path: self.bin_dir.clone(),
            });
        }
        let broken = |what: String| failed(list, plugin, command, PluginFailure::Broken(what));
        let env = environment(command, attachment, &self.bin_dir);
        let stdin = serde_json::to_vec(config).map_err(|error| broken(error.to_string()))?;
        let mut tries = 0;
        let output = loop {
            let run = run_in(Arc::clone(&self.netns), binary.clone(), env.clone(), &stdin);
            match tokio::time::timeout(PLUGIN_TIMEOUT, run).await {
                Ok(Ok(output)) => break output,
                Ok(Err(error))
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_RETRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(BUSY_DELAY).await;
                }
                Ok(Err(error)) => return Err(broken(format!("exec {}: {error}", binary.display()))),
                Err(_) => return Err(broken(format!("no answer within {} s", PLUGIN_TIMEOUT.as_secs()))),
            }
        };
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failed(list, plugin, command, plugin_failure(&output)))
    }

    fn cache_file(&self, list: &NetworkList, attachment: &Attachment) -> PathBuf {
        let name = format!("{}-{}-{}", list.name, attachment.container_id, attachment.ifname);
        self.cache_dir.join("results").join(name)
    }

    fn cached_result(&self, list: &NetworkList, attachment: &Attachment) -> Option<Value> {
        let text = fs::read(self.cache_file(list, attachment)).ok()?;
        let cached: Value = serde_json::from_slice(&text).ok()?;
        cached.get("result").cloned()
    }

    /// Writes what libcni writes, under the name libcni uses.
    fn remember(&self, list: &NetworkList, attachment: &Attachment, result: &Value) -> Result<(), CniError> {
        let entry = json!({
            "kind": "cniCacheV1",
            "containerId": attachment.container_id,
            "config": ByteString(list.text.clone().into_bytes()),
            "ifName": attachment.ifname,
            "networkName": list.name,
            "netns": attachment.netns,
            "cniArgs": attachment.args,
            "capabilityArgs": attachment.capability_args,
            "result": result,
        });
        let path = self.cache_file(list, attachment);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.cache_dir))?;
            fs::write(&path, entry.to_string())
        };
        write().map_err(|source| CniError::Cache {
            path: path.clone(),
            source,
        })
    }
}

// === impl Command ===

impl Command {
    fn as_env(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }

    /// libcni's word for it in errors.
    fn in_words(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Del => "delete",
            Self::Check => "check",
            Self::Status => "status",
            Self::Gc => "gc",
        }
    }
}

// === impl CniError ===

impl CniError {
    /// Error code of a plugin's answer, where that is what failed.
    pub fn code(&self) -> Option<u64> {
        match self {
            Self::Failed {
                cause: PluginFailure::Answered { code, .. },
                ..
            } => Some(*code),
            _ => None,
        }
    }
}

fn failed(
    list: &NetworkList,
    plugin: &Map<String, Value>,
    command: Command,
    cause: PluginFailure,
) -> CniError {
    CniError::Failed {
        plugin: plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        network: list.name.clone(),
        command: command.in_words(),
        cause,
    }
}

fn with_details(msg: &str, details: &str) -> String {
    if details.is_empty() {
        msg.to_owned()
    } else {
        format!("{msg}; {details}")
    }
}

/// Makes sense of a plugin that ended with another code than 0, in libcni's words.
fn plugin_failure(output: &Output) -> PluginFailure {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    if stdout.trim().is_empty() {
        return PluginFailure::Broken(if stderr.trim().is_empty() {
            format!("netplugin failed with no error message: {}", output.status)
        } else {
            format!("netplugin failed: {:?}", stderr.trim())
        });
    }
    match serde_json::from_str::<Map<String, Value>>(&stdout) {
        Ok(answer) => {
            let string = |key: &str| {
                answer
                    .get(key)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            PluginFailure::Answered {
                code: answer.get("code").and_then(Value::as_u64).unwrap_or(0),
                msg: string("msg"),
                details: string("details"),
            }
        }
        Err(error) => PluginFailure::Broken(format!(
            "netplugin failed but error parsing its diagnostic message {:?}: {error}",
            stdout.trim()
        )),
    }
}

fn environment(
    command: Command,
    attachment: Option<&Attachment>,
    bin_dir: &Path,
) -> Vec<(&'static str, OsString)> {
    let mut env = vec![
        ("CNI_COMMAND", OsString::from(command.as_env())),
        ("CNI_PATH", bin_dir.as_os_str().to_owned()),
        // Of the rest of the environment a plugin only needs to find other programs.
        ("PATH", std::env::var_os("PATH").unwrap_or_default()),
    ];
    if let Some(attachment) = attachment {
        let args: Vec<String> = attachment
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let netns = attachment
            .netns
            .as_ref()
            .map(|path| path.as_os_str().to_owned())
            .unwrap_or_default();
        env.push(("CNI_CONTAINERID", OsString::from(&attachment.container_id)));
        env.push(("CNI_NETNS", netns));
        env.push(("CNI_IFNAME", OsString::from(&attachment.ifname)));
        env.push(("CNI_ARGS", OsString::from(args.join(";"))));
    }
    env
}

/// Runs a program in a network namespace, `stdin` as its input.
async fn run_in(
    netns: Arc<NetNs>,
    program: PathBuf,
    env: Vec<(&'static str, OsString)>,
    stdin: &[u8],
) -> io::Result<Output> {
    let runtime = tokio::runtime::Handle::current();
    // A child inherits the namespace of the thread that starts it. Started so, without a hook between fork and
    // exec, the standard library can use vfork, whose cost does not grow with the daemon's memory.
    let spawn = move || {
        netns
            .run(|| {
                let _runtime = runtime.enter();
                tokio::process::Command::new(&program)
                    .env_clear()
                    .envs(env)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()
            })
            .map_err(io::Error::other)?
    };
    let mut child = tokio::task::spawn_blocking(spawn)
        .await
        .map_err(io::Error::other)??;
    if let Some(mut input) = child.stdin.take() {
        // A plugin that ends without reading its input says more with its exit code.
        let _ = input.write_all(stdin).await;
    }
    child.wait_with_output().await
}

/// The addresses in a result of any version, IPv4 first as the kubelet reports them.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let listed = result
        .get("ips")
        .and_then(Value::as_array)
        .map(|ips| ips.iter().filter_map(|ip| ip.get("address")).collect::<Vec<_>>())
        .unwrap_or_default();
    let old = ["ip4", "ip6"]
        .into_iter()
        .filter_map(|family| result.get(family)?.get("ip"));
    let mut addresses: Vec<IpAddr> = listed
        .into_iter()
        .chain(old)
        .filter_map(Value::as_str)
        .filter_map(|cidr| cidr.split('/').next()?.parse().ok())
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

#[cfg(test)]
mod tests;
