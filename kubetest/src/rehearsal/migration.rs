//! From bridge and host-local to Weft, node by node, and one node back: docs/operations/migration.md.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use weft_kernel::NetNs;
use weft_kernel::rtnl::Rtnl;

use super::pods::{self, Pod};
use super::{Step, Tools, nodes};
use crate::cache::Cache;
use crate::check::live::{Connections, wait_for};
use crate::check::scene::PORT;
use crate::cni;
use crate::kubectl::Kubectl;
use crate::state::{Cluster, Node};

/// The label of nodes on Weft.
const LABEL: &str = "weft.dev/network";

/// The bridge's configuration.
const CONFLIST: &str = "20-bridge.conflist";

pub(super) struct Scene {
    cluster: Cluster,
    cache: Cache,
    kubectl: Kubectl,
    tools: Tools,
    pods: BTreeMap<String, Pod>,
}

pub(super) const STEPS: &[Step<Scene>] = &[
    Step {
        name: "migration-bridge",
        description: "All nodes on the bridge: everybody talks",
        run: |scene| {
            scene.kubectl.apply(&pods::manifest(&scene.cache)?.to_string())?;
            scene.talk()
        },
    },
    Step {
        name: "migration-installed",
        description: "Weft is installed and serves no node: all are native, and nothing has changed",
        run: Scene::install,
    },
    Step {
        name: "migration-first-node",
        description: "The first node changes; 64 connections between the others don't notice, and both kinds talk",
        run: |scene| scene.meanwhile(1, 2, |scene| scene.to_weft(0)),
    },
    Step {
        name: "migration-second-node",
        description: "The second node changes; 64 connections from Weft to the bridge don't notice",
        run: |scene| scene.meanwhile(0, 2, |scene| scene.to_weft(1)),
    },
    Step {
        name: "migration-last-node",
        description: "The last node changes; 64 connections on Weft don't notice, and all nodes are on Weft",
        run: |scene| scene.meanwhile(0, 1, |scene| scene.to_weft(2)),
    },
    Step {
        name: "migration-back",
        description: "The first node goes back to the bridge; 64 connections on Weft don't notice, and both kinds talk",
        run: |scene| scene.meanwhile(1, 2, |scene| scene.to_bridge(0)),
    },
];

// === impl Scene ===

impl Scene {
    pub(super) fn set(cluster: &Cluster, cache: &Cache, tools: &Tools) -> Result<Self> {
        Ok(Self {
            cluster: cluster.clone(),
            cache: cache.clone(),
            kubectl: Kubectl::new(cache, cluster),
            tools: tools.clone(),
            pods: BTreeMap::new(),
        })
    }

    fn talk(&mut self) -> Result<String> {
        self.pods = pods::ready(&self.kubectl, &self.cluster)?;
        pods::all_talk(&self.kubectl, &self.cluster, &self.pods)
    }

    fn node(&self, number: usize) -> Result<Node> {
        let node = self.cluster.nodes.get(number).cloned();
        node.with_context(|| format!("the rehearsal needs {} nodes", number + 1))
    }

    /// Does something to a third node while pods of these two hold connections, then lets everybody talk.
    fn meanwhile(
        &mut self,
        from: usize,
        to: usize,
        job: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<String> {
        let (from, to) = (self.node(from)?, self.node(to)?);
        let server = self.pods[&to.name].address;
        let client =
            crate::check::scene::netns_of(&self.kubectl, pods::NAMESPACE, &self.pods[&from.name].name)?;
        let connections = Connections::open(&client, (server, PORT).into())?;
        let done = job(self);
        let longest = connections.close();
        done?;
        let talked = self.talk()?;
        Ok(format!("longest wait {} ms; then {talked}", longest?.as_millis()))
    }

    fn install(&mut self) -> Result<String> {
        cni::install_weft_beside(&self.cluster, &self.kubectl, &self.tools.manifests, LABEL)?;
        self.kubectl.read(&[
            "--namespace=weft-system",
            "rollout",
            "status",
            "deployment/weft-operator",
            "--timeout=120s",
        ])?;
        self.until_routing("native", &["node1", "node2", "node3"])?;
        self.talk()
    }

    /// Waits until the slices list these nodes so.
    fn until_routing(&self, wanted: &str, names: &[&str]) -> Result<()> {
        wait_for(&format!("{names:?} to be {wanted}"), || {
            let listed = self.kubectl.read(&[
                "get",
                "nodeslices",
                "--output=jsonpath={range .items[*].nodes[*]}{.name}={.routing} {end}",
            ])?;
            let routing: BTreeMap<&str, &str> = listed
                .split_ascii_whitespace()
                .filter_map(|entry| entry.split_once('='))
                .collect();
            let all = names.iter().all(|name| match wanted {
                "native" => routing.get(name) == Some(&"native"),
                _ => routing.get(name).is_some_and(|routing| *routing != "native"),
            });
            Ok(all.then_some(()))
        })
    }

    fn drain(&self, node: &str) -> Result<()> {
        self.kubectl.read(&["cordon", node])?;
        self.kubectl.read(&[
            "drain",
            node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            "--timeout=90s",
        ])?;
        Ok(())
    }

    /// Deletes the pod that a drain leaves, of the DaemonSet.
    fn delete_pod_of(&self, node: &str) -> Result<()> {
        self.kubectl.read(&[
            "--namespace",
            pods::NAMESPACE,
            "delete",
            "pod",
            &self.pods[node].name,
            "--wait=false",
        ])?;
        Ok(())
    }

    /// Moves the bridge's configuration to where runtimes don't look, or back.
    fn move_configuration(&self, node: &str, away: bool) -> Result<()> {
        let data = self.cluster.node_data(node);
        let place = data.join("etc-cni/net.d").join(CONFLIST);
        // In the same directory: runtimes don't notice a file that is renamed in from elsewhere.
        let aside = place.with_extension("conflist.aside");
        let (from, to) = if away { (place, aside) } else { (aside, place) };
        fs::rename(&from, &to).with_context(|| format!("rename {}", from.display()))
    }

    fn to_weft(&self, number: usize) -> Result<()> {
        let node = self.node(number)?;
        self.drain(&node.name)?;
        self.move_configuration(&node.name, true)?;
        self.delete_pod_of(&node.name)?;
        let netns = NetNs::named(&self.cluster.node_netns(&node.name))?;
        Rtnl::open_in(&netns)?.delete_link("cni0")?;
        self.kubectl
            .read(&["label", "node", &node.name, &format!("{LABEL}=weft")])?;
        let network = format!("nodenetwork/{}", node.name);
        self.kubectl
            .read(&["wait", "--for=create", "--timeout=60s", &network])?;
        self.kubectl
            .read(&["wait", "--for=condition=Ready", "--timeout=120s", &network])?;
        self.until_routing("overlay", &[&node.name])?;
        self.kubectl.read(&["uncordon", &node.name])?;
        Ok(())
    }

    fn to_bridge(&self, number: usize) -> Result<()> {
        let node = self.node(number)?;
        self.drain(&node.name)?;
        self.kubectl
            .read(&["label", "node", &node.name, &format!("{LABEL}-")])?;
        wait_for("the agent to go", || {
            let agents = self.kubectl.read(&[
                "--namespace=weft-system",
                "get",
                "pods",
                "--selector=app.kubernetes.io/component=agent",
                &format!("--field-selector=spec.nodeName={}", node.name),
                "--output=name",
            ])?;
            Ok(agents.is_empty().then_some(()))
        })?;
        self.delete_pod_of(&node.name)?;
        // The pod's sandbox goes a moment after the pod does.
        let weft = self.tools.weft.to_string_lossy().into_owned();
        wait_for("the node to be cleaned up", || {
            match nodes::read(
                &self.cluster,
                &self.cache,
                &node.name,
                &[&weft, "node", "cleanup"],
            ) {
                Ok(_) => Ok(Some(())),
                Err(error) if error.to_string().contains("WEFT-") => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        self.kubectl
            .read(&["delete", "nodenetwork", &node.name, "--timeout=60s"])?;
        self.until_routing("native", &[&node.name])?;
        self.move_configuration(&node.name, false)?;
        self.kubectl.read(&["uncordon", &node.name])?;
        let left = nodes::read(&self.cluster, &self.cache, &node.name, &["ip", "-o", "link"])?;
        if left.contains("weft0") {
            bail!("weft0 is left on {}", node.name);
        }
        Ok(())
    }
}
