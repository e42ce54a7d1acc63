//! `weft install`, pods that talk, `weft uninstall`.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Step, Tools, nodes, pods};
use crate::cache::Cache;
use crate::image;
use crate::kubectl::Kubectl;
use crate::state::Cluster;

/// How all nodes look.
type Pictures = BTreeMap<String, BTreeMap<&'static str, String>>;

pub(super) struct Scene {
    cluster: Cluster,
    cache: Cache,
    kubectl: Kubectl,
    tools: Tools,
    before: Pictures,
}

pub(super) const STEPS: &[Step<Scene>] = &[
    Step {
        name: "install-foreign-conflist",
        description: "Where another plugin's configuration is first, the installer says so and leaves the node alone",
        run: Scene::another_plugin_is_there,
    },
    Step {
        name: "install",
        description: "`weft install` returns when every node has an agent, and goes on by itself where it was kept up",
        run: Scene::install,
    },
    Step {
        name: "install-pods-talk",
        description: "Pods of all nodes reach each other, Services, and are reached by nodes",
        run: |scene| {
            scene.kubectl.apply(&pods::manifest(&scene.cache)?.to_string())?;
            let pods = pods::ready(&scene.kubectl, &scene.cluster)?;
            pods::all_talk(&scene.kubectl, &scene.cluster, &pods)
        },
    },
    Step {
        name: "uninstall-refuses",
        description: "`weft uninstall` refuses while pods have addresses of Weft",
        run: |scene| {
            let Err(refused) = scene.weft(&["uninstall"]) else {
                bail!("it went on");
            };
            let said = refused.to_string();
            if !said.contains("pod(s) have addresses of Weft") {
                bail!("it said {said}");
            }
            Ok("refused, with the first pod's name".to_owned())
        },
    },
    Step {
        name: "uninstall",
        description: "`weft uninstall` takes everything off the cluster, and every node is as it was",
        run: Scene::uninstall,
    },
];

/// What an administrator who tries another network leaves.
const FOREIGN: &str = r#"{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"bridge"}]}"#;

// === impl Scene ===

impl Scene {
    pub(super) fn set(cluster: &Cluster, cache: &Cache, tools: &Tools) -> Result<Self> {
        let mut scene = Self {
            cluster: cluster.clone(),
            cache: cache.clone(),
            kubectl: Kubectl::new(cache, cluster),
            tools: tools.clone(),
            before: Pictures::new(),
        };
        scene.before = scene.pictures()?;
        Ok(scene)
    }

    fn pictures(&self) -> Result<Pictures> {
        let members = self.cluster.members();
        members
            .iter()
            .map(|node| {
                Ok((
                    node.name.clone(),
                    nodes::picture(&self.cluster, &self.cache, &node.name)?,
                ))
            })
            .collect()
    }

    fn weft(&self, args: &[&str]) -> Result<String> {
        nodes::output(
            Command::new(&self.tools.weft)
                .args(args)
                .arg("--kubeconfig")
                .arg(self.cluster.kubeconfig()),
        )
    }

    fn another_plugin_is_there(&mut self) -> Result<String> {
        let node = &self.cluster.nodes[0].name;
        let foreign = self
            .cluster
            .node_data(node)
            .join("etc-cni/net.d/05-other.conflist");
        std::fs::write(&foreign, FOREIGN)?;
        self.weft(&["install", "--no-wait", "--image", image::REFERENCE])?;
        let said = crate::check::live::wait_for("the installer to say what it found", || {
            let text = self.kubectl.read(&[
                "--namespace=weft-system",
                "get",
                "pods",
                &format!("--field-selector=spec.nodeName={node}"),
                "--selector=app.kubernetes.io/component=agent",
                "--output=jsonpath={.items[*].status.initContainerStatuses[0].lastState.terminated.message}",
            ])?;
            Ok(Some(text).filter(|text| !text.is_empty()))
        })?;
        if !said.contains("WEFT-1411") || !said.contains("05-other.conflist") {
            bail!("it said {said:?}");
        }
        let left = std::fs::read_to_string(&foreign)?;
        let ours = foreign.with_file_name("10-weft.conflist").exists();
        if left != FOREIGN || ours {
            bail!("the other plugin's configuration is {left:?}, ours is there: {ours}");
        }
        std::fs::remove_file(&foreign)?;
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }

    fn install(&mut self) -> Result<String> {
        let said = self.weft(&["install", "--image", image::REFERENCE])?;
        self.kubectl
            .read(&["wait", "nodes", "--all", "--for=condition=Ready", "--timeout=90s"])?;
        Ok(said.lines().last().unwrap_or_default().to_owned())
    }

    fn uninstall(&mut self) -> Result<String> {
        self.kubectl
            .read(&["delete", "namespace", pods::NAMESPACE, "--timeout=90s"])?;
        // DNS pods, in their place until another network comes.
        self.weft(&["uninstall", "--force"])?;
        let mut kept = String::new();
        crate::check::live::wait_for("the nodes to be as they were", || {
            let after = self.pictures()?;
            let differences: Vec<String> = self
                .before
                .iter()
                .filter_map(|(node, before)| {
                    let difference = nodes::difference(before, after.get(node)?)?;
                    Some(format!("{node}: {difference}"))
                })
                .collect();
            kept = differences.join("\n");
            Ok(differences.is_empty().then_some(()))
        })
        .map_err(|error| error.context(kept.clone()))?;
        let left = self.kubectl.read(&[
            "get",
            "crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding,namespace",
            "--selector=app.kubernetes.io/name=weft",
            "--output=name",
        ])?;
        if !left.is_empty() {
            bail!("left in the cluster: {left}");
        }
        Ok(format!("{} nodes, nothing differs", self.before.len()))
    }
}
