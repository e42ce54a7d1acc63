//! Logs of a cluster: where they are, and a copy that outlives it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::kubectl::Kubectl;
use crate::state::Cluster;

/// What is asked of the API for a copy: `kubectl get` of these, in all namespaces.
const OBJECTS: &str = "nodes,pods,services,events,podpools,nodenetworks,nodeslices";

/// Directories of logs: of the control plane, and of every node, with those of its pods below `pods/`.
pub fn directories(cluster: &Cluster) -> Vec<(String, PathBuf)> {
    let nodes = cluster
        .members()
        .into_iter()
        .map(|node| (node.name.clone(), cluster.node_data(&node.name).join("var/log")));
    std::iter::once(("control-plane".to_owned(), cluster.dir().join("logs")))
        .chain(nodes)
        .collect()
}

/// Copies all logs to `output`, and beside them the cluster's objects as a table, where its API still answers.
///
/// # Errors
/// `output` can't be emptied or written.
pub fn copy(cluster: &Cluster, output: &Path) -> Result<()> {
    match fs::remove_dir_all(output) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("empty {}", output.display()));
        }
        _ => {}
    }
    for (name, dir) in directories(cluster) {
        copy_files(&dir, &output.join(name))?;
    }
    let objects = output.join("objects.txt");
    let mut file = fs::File::create(&objects).with_context(|| format!("create {}", objects.display()))?;
    let cache = Cache::open(&cluster.config.cache)?;
    let args = [
        "get",
        OBJECTS,
        "--all-namespaces",
        "--output=wide",
        "--request-timeout=10s",
    ];
    let said = Kubectl::new(&cache, cluster).output(&args)?;
    file.write_all(&said.stdout)
        .and_then(|()| file.write_all(&said.stderr))
        .with_context(|| format!("write {}", objects.display()))
}

/// Copies a tree's regular files; what else is there are links to them.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    // A cluster that never came to run a program has no directory of its logs.
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_files(&path, &target)?;
        } else if kind.is_file() {
            fs::copy(&path, &target).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}
