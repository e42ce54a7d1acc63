//! Two clusters of one VNet with the same pod addresses: each reaches its own and never the other's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::scene::PORT;
use super::{Outcome, yes};
use crate::cache::Cache;
use crate::kubectl::Kubectl;
use crate::state::Cluster;

pub(super) const NAME: &str = "two-clusters";

pub(super) const DESCRIPTION: &str =
    "Pods of two clusters have the same addresses, each reaches its own, and none the other's";

/// Namespace of the pods, in both clusters.
const NAMESPACE: &str = "weft-beside";

/// Pods in each cluster: enough that some have an address which the other cluster gave, too.
const PODS: usize = 12;

/// One of the two clusters, with its pods by address.
struct Side {
    name: String,
    kubectl: Kubectl,
    pods: BTreeMap<Ipv4Addr, String>,
}

/// Makes pods in both clusters and lets them ask for addresses that both have, and for some that only the other has.
pub(super) fn run(cluster: &Cluster, other: &Cluster, cache: &Cache) -> Outcome {
    if cluster.config.vnet != other.config.vnet {
        bail!(
            "clusters {} and {} are in different VNets",
            cluster.name,
            other.name
        );
    }
    let sides = [Side::set(cluster, cache)?, Side::set(other, cache)?];
    let outcome = try_on(&sides);
    for side in &sides {
        side.kubectl
            .read(&["delete", "namespace", NAMESPACE, "--timeout=90s"])?;
    }
    outcome
}

fn try_on([one, other]: &[Side; 2]) -> Outcome {
    let common: Vec<Ipv4Addr> = one
        .pods
        .keys()
        .filter(|address| other.pods.contains_key(address))
        .copied()
        .collect();
    if common.is_empty() {
        bail!(
            "no address is a pod's in both: {:?} and {:?}",
            one.pods.keys(),
            other.pods.keys()
        );
    }
    for address in &common {
        for (own, foreign) in [(one, other), (other, one)] {
            own.reaches_its_own(*address, foreign)?;
        }
    }
    let mut alone = 0;
    for (own, foreign) in [(one, other), (other, one)] {
        alone += own.reaches_none_of(foreign)?;
    }
    yes(format!(
        "{} addresses are pods of both, {alone} of one",
        common.len()
    ))
}

// === impl Side ===

impl Side {
    fn set(cluster: &Cluster, cache: &Cache) -> Result<Self> {
        let kubectl = Kubectl::new(cache, cluster);
        let labels = json!({"app": "beside"});
        let image = cache.image("AGNHOST")?;
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "beside", "namespace": NAMESPACE},
                "spec": {
                    "replicas": PODS,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{
                            "name": "agnhost",
                            "image": image,
                            "args": ["netexec", format!("--http-port={PORT}")],
                            "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
                        }],
                    }},
                },
            },
        ]});
        kubectl.apply(&objects.to_string())?;
        let mut side = Self {
            name: cluster.name.clone(),
            kubectl,
            pods: BTreeMap::new(),
        };
        side.read(&["rollout", "status", "deployment/beside", "--timeout=90s"])?;
        let list: Value = serde_json::from_str(&side.read(&["get", "pods", "--output=json"])?)?;
        for pod in list["items"].as_array().into_iter().flatten() {
            let address = pod["status"]["podIP"]
                .as_str()
                .context("a pod without an address")?;
            let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
            side.pods.insert(address.parse()?, name.to_owned());
        }
        Ok(side)
    }

    fn read(&self, args: &[&str]) -> Result<String> {
        let args: Vec<&str> = ["--namespace", NAMESPACE]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.kubectl.read(&args)
    }

    /// A request from a pod to an address that is not its own.
    fn ask(&self, address: Ipv4Addr, word: &str) -> Result<String> {
        let asking = self
            .pods
            .iter()
            .find(|(own, _)| **own != address)
            .map(|(_, name)| name)
            .context("a pod to ask from")?;
        let url = format!("http://{address}:{PORT}/echo?msg={word}");
        self.read(&[
            "exec",
            asking,
            "--",
            "curl",
            "--silent",
            "--fail",
            "--max-time",
            "3",
            &url,
        ])
        .with_context(|| format!("cluster {}, pod {asking} to {address}", self.name))
    }

    fn heard(&self, address: Ipv4Addr, word: &str) -> Result<bool> {
        Ok(self.read(&["logs", &self.pods[&address]])?.contains(word))
    }

    /// A request to an address of both is heard by the pod of this cluster alone.
    fn reaches_its_own(&self, address: Ipv4Addr, foreign: &Self) -> Result<()> {
        let word = format!("from-{}-{}", self.name, uuid::Uuid::new_v4().simple());
        self.ask(address, &word)?;
        // The answer may be here before the log is.
        let mut attempts = 0;
        while !self.heard(address, &word)? {
            attempts += 1;
            if attempts == 20 {
                bail!(
                    "cluster {}'s own pod {address} did not hear its request",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        if foreign.heard(address, &word)? {
            bail!(
                "cluster {}'s pod {address} heard a request of cluster {}",
                foreign.name,
                self.name
            );
        }
        Ok(())
    }

    /// Addresses that only the other cluster gave don't answer. Returns how many were asked.
    fn reaches_none_of(&self, foreign: &Self) -> Result<usize> {
        let all = self.kubectl.read(&[
            "get",
            "pods",
            "--all-namespaces",
            "--output=jsonpath={.items[*].status.podIP}",
        ])?;
        let own: Vec<&str> = all.split_ascii_whitespace().collect();
        let strange: Vec<Ipv4Addr> = foreign
            .pods
            .keys()
            .filter(|address| !own.contains(&address.to_string().as_str()))
            .copied()
            .take(2)
            .collect();
        for address in &strange {
            let word = format!("from-{}-{}", self.name, uuid::Uuid::new_v4().simple());
            if self.ask(*address, &word).is_ok() || foreign.heard(*address, &word)? {
                bail!(
                    "cluster {} reached {address}, which is a pod of cluster {} alone",
                    self.name,
                    foreign.name
                );
            }
        }
        Ok(strange.len())
    }
}
