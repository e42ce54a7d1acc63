//! Sandboxes: a pod's network namespace, its attachment, and the record on disk that outlives the daemon.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::RwLock;
use tokio::task::spawn_blocking;
use weft_kernel::NetNs;
use weft_kernel::netns::named_path;
use weft_kernel::rtnl::Rtnl;

use super::cni::{Attachment, Cni, CniError, addresses};
use super::pod::PodConfig;

/// Name of a pod's interface inside its namespace.
const IFNAME: &str = "eth0";
/// Directory of the records, in a node's directory.
const DIR: &str = "sandboxes";

/// What is on disk of a sandbox. Written before anything is made in the kernel, removed after everything is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) container_id: String,
    pub(super) netns: String,
    pub(super) pod_uid: String,
    pub(super) pod_namespace: String,
    pub(super) pod_name: String,
    #[serde(default)]
    pub(super) capability_args: Map<String, Value>,
}

/// A sandbox whose namespace exists.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pub(super) record: Record,
    pub(super) netns: Arc<NetNs>,
    pub(super) ips: Vec<IpAddr>,
}

/// The sandboxes of one node.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    netns_prefix: String,
    cni: Cni,
    /// Held for reading by ADD and DEL, for writing by GC, which excludes them.
    gate: Arc<RwLock<()>>,
}

/// Why a sandbox could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    /// containerd's words for a failed ADD.
    #[error("failed to setup network for sandbox {id:?}: {source}")]
    Setup { id: String, source: Box<CniError> },
    /// containerd's words for a failed DEL.
    #[error("failed to destroy network for sandbox {id:?}: {source}")]
    Destroy { id: String, source: Box<CniError> },
    #[error("failed to create network namespace for sandbox {id:?}: {source}")]
    Namespace { id: String, source: weft_kernel::Error },
    #[error("record of sandbox {}: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
}

// === impl Store ===

impl Store {
    pub(super) fn new(node_dir: &Path, netns_prefix: String, cni: Cni) -> Self {
        Self {
            dir: node_dir.join(DIR),
            netns_prefix,
            cni,
            gate: Arc::default(),
        }
    }

    pub(super) fn cni(&self) -> &Cni {
        &self.cni
    }

    /// Makes a namespace for `pod` and attaches it. After an error nothing is left but, where the DEL failed too, a
    /// record, by which [`leftovers`](Self::leftovers) finds it again.
    pub(super) async fn create(&self, pod: &PodConfig) -> Result<Sandbox, SandboxError> {
        let id = container_id();
        let record = Record {
            netns: format!("{}pod.{}", self.netns_prefix, &id[..12]),
            container_id: id,
            pod_uid: pod.uid.clone(),
            pod_namespace: pod.namespace.clone(),
            pod_name: pod.name.clone(),
            capability_args: pod.capability_args.clone(),
        };
        let path = self.path(&record);
        let write = || {
            fs::create_dir_all(&self.dir)?;
            fs::write(&path, serde_json::to_vec(&record)?)
        };
        write().map_err(|source| SandboxError::Record {
            path: path.clone(),
            source,
        })?;
        let outcome = self.attach(&record).await;
        if outcome.is_err()
            && let Err(error) = self.remove(&record).await
        {
            tracing::warn!(pod = %pod.name, %error, "sandbox that failed to start is left over");
        }
        outcome
    }

    async fn attach(&self, record: &Record) -> Result<Sandbox, SandboxError> {
        let name = record.netns.clone();
        // Held in the closure, which goes on where this task is dropped.
        let open = Arc::clone(&self.gate).read_owned().await;
        let make = move || {
            let _open = open;
            let netns = NetNs::create_named(&name)?;
            Rtnl::open_in(&netns)?.set_up("lo", true)?;
            Ok(netns)
        };
        let netns = spawn_blocking(make)
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
            .map_err(|source| SandboxError::Namespace {
                id: record.container_id.clone(),
                source,
            })?;
        let _open = self.gate.read().await;
        let result = self
            .cni
            .add(&attachment(record, true))
            .await
            .map_err(|source| SandboxError::Setup {
                id: record.container_id.clone(),
                source: Box::new(source),
            })?;
        Ok(Sandbox {
            record: record.clone(),
            netns: Arc::new(netns),
            ips: addresses(&result),
        })
    }

    /// Detaches a sandbox and removes its namespace and record, in this order. May be repeated after an error.
    pub(super) async fn remove(&self, record: &Record) -> Result<(), SandboxError> {
        let exists = named_path(&record.netns).is_ok_and(|path| path.exists());
        {
            let _open = self.gate.read().await;
            self.cni
                .del(&attachment(record, exists))
                .await
                .map_err(|source| SandboxError::Destroy {
                    id: record.container_id.clone(),
                    source: Box::new(source),
                })?;
        }
        self.forget(record)
    }

    /// Removes a sandbox's namespace and record without a word to the plugins.
    fn forget(&self, record: &Record) -> Result<(), SandboxError> {
        NetNs::delete_named(&record.netns).map_err(|source| SandboxError::Namespace {
            id: record.container_id.clone(),
            source,
        })?;
        let path = self.path(record);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(SandboxError::Record { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The sandboxes that an earlier process recorded. A record cut short by a crash was written before anything
    /// else of its sandbox existed; it is dropped.
    pub(super) fn leftovers(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut records = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            match fs::read(&path).map(|text| serde_json::from_slice::<Record>(&text)) {
                Ok(Ok(record)) => records.push(record),
                Ok(Err(_)) => drop(fs::remove_file(&path)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "can't read record of a sandbox");
                }
            }
        }
        records
    }

    /// Takes a sandbox of an earlier process over, where it is whole: its namespace exists and its ADD succeeded.
    pub(super) fn adopt(&self, record: &Record) -> Option<Sandbox> {
        let result = self.cni.result(&attachment(record, true))?;
        let netns = NetNs::named(&record.netns).ok()?;
        Some(Sandbox {
            record: record.clone(),
            netns: Arc::new(netns),
            ips: addresses(&result),
        })
    }

    /// Lets the plugins drop what belongs to no recorded sandbox.
    pub(super) async fn collect_garbage(&self) -> Result<(), CniError> {
        let _closed = self.gate.write().await;
        let valid: Vec<(String, String)> = self
            .leftovers()
            .into_iter()
            .map(|record| (record.container_id, IFNAME.to_owned()))
            .collect();
        self.cni.gc(&valid).await
    }

    /// Removes the namespaces of all sandboxes as [`power_off`] does, when none is being made.
    pub(super) async fn power_off(&self) -> io::Result<()> {
        let _closed = self.gate.write().await;
        power_off_in(&self.dir)
    }

    fn path(&self, record: &Record) -> PathBuf {
        self.dir.join(format!("{}.json", record.container_id))
    }
}

/// Removes the namespaces of all sandboxes of a node, as a power cut does: the plugins are not told, the records
/// stay, and the next kubelet detaches what they name.
///
/// # Errors
/// A namespace can't be removed; the others are.
pub fn power_off(node_dir: &Path) -> io::Result<()> {
    power_off_in(&node_dir.join(DIR))
}

fn power_off_in(dir: &Path) -> io::Result<()> {
    let mut outcome = Ok(());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let Ok(record) = serde_json::from_slice::<Record>(&fs::read(entry?.path())?) else {
            continue;
        };
        if let Err(error) = NetNs::delete_named(&record.netns) {
            outcome = Err(io::Error::other(error));
        }
    }
    outcome
}

fn attachment(record: &Record, netns_exists: bool) -> Attachment {
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &record.pod_namespace),
        ("K8S_POD_NAME", &record.pod_name),
        ("K8S_POD_INFRA_CONTAINER_ID", &record.container_id),
        ("K8S_POD_UID", &record.pod_uid),
    ];
    Attachment {
        container_id: record.container_id.clone(),
        netns: netns_exists.then(|| named_path(&record.netns).ok()).flatten(),
        ifname: IFNAME.to_owned(),
        args: args
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec(),
        capability_args: record.capability_args.clone(),
    }
}

/// A new container ID: 64 hexadecimal digits, as containerd makes them.
fn container_id() -> String {
    format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    )
}
