//! Putting together what a cluster looks like now.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use weft_api::{NodeNetwork, PodPool};
use weft_model::UserError;

use crate::daemon::{Daemon, RunningMachine, api_error};
use crate::machine::Machine;
use crate::registration::readiness;
use crate::state::{ClusterDir, ClusterState};
use crate::status::{API_VERSION, BlockCounts, ClusterStatus, NetworkStatus, NodeStatus, Phase, PodCounts};
use crate::vnet::INTERNET_HOST;

// === impl Daemon ===

impl Daemon {
    /// The cluster now, as its API and its processes show it.
    pub(crate) async fn report(&self) -> Result<ClusterStatus, UserError> {
        if self.api.faults().refusing() {
            // A client would try again for minutes.
            return Ok(self.report_without_api());
        }
        let client = &self.handle.client;
        let failed = |error: kube::Error| api_error("reading the cluster's state", &error);
        let everything = ListParams::default();
        let (nodes, networks, pods, pools) = (
            Api::<Node>::all(client.clone()),
            Api::<NodeNetwork>::all(client.clone()),
            Api::<Pod>::all(client.clone()),
            Api::<PodPool>::all(client.clone()),
        );
        let nodes = nodes.list(&everything).await.map_err(failed)?;
        // The types are registered a moment after the API begins to answer.
        let networks = networks
            .list(&everything)
            .await
            .map(|list| list.items)
            .unwrap_or_default();
        let pools = pools
            .list(&everything)
            .await
            .map(|list| list.items)
            .unwrap_or_default();
        let pods = pods.list(&everything).await.map_err(failed)?;

        let state = self.state();
        let mut status = written_down(&self.dir, &state);
        status.pods = count(pods.iter());
        status.blocks.allocated = networks
            .iter()
            .map(|network| u32::try_from(network.spec.blocks.len()).unwrap_or(u32::MAX))
            .sum();
        if let Some(capacity) = pools
            .iter()
            .find_map(|pool| pool.status.as_ref())
            .map(|pool| pool.capacity)
        {
            status.blocks.capacity = capacity;
        }
        let nodes: BTreeMap<String, &Node> = nodes
            .iter()
            .filter_map(|node| Some((node.metadata.name.clone()?, node)))
            .collect();
        for machine in self.machines() {
            let Some(shown) = status
                .nodes
                .iter_mut()
                .find(|node| node.name == machine.handle.name)
            else {
                continue;
            };
            self.show_machine(&machine, shown);
        }
        for shown in &mut status.nodes {
            let Some(node) = nodes.get(&shown.name) else {
                status
                    .problems
                    .push(format!("node {} has no Node object", shown.name));
                continue;
            };
            match readiness(node) {
                Ok(()) => shown.ready = true,
                Err(why) => status
                    .problems
                    .push(format!("node {} is not Ready: {why}", shown.name)),
            }
            shown.schedulable = !node
                .spec
                .as_ref()
                .and_then(|spec| spec.unschedulable)
                .unwrap_or(false);
            shown.blocks = networks
                .iter()
                .find(|network| network.metadata.name.as_deref() == Some(&shown.name))
                .map(|network| {
                    network
                        .spec
                        .blocks
                        .iter()
                        .map(|block| block.cidr.clone())
                        .collect()
                })
                .unwrap_or_default();
            shown.pods = u32::try_from(pods.iter().filter(|pod| is_live_on(pod, &shown.name)).count())
                .unwrap_or(u32::MAX);
        }
        self.add_faults(&mut status);
        match self.outcome() {
            None => status.phase = Phase::Creating,
            Some(Err(error)) => {
                status.phase = Phase::Degraded;
                status.problems.push(error.message().to_owned());
            }
            Some(Ok(())) => {
                if self
                    .operator()
                    .is_some_and(|operator| operator.now().id.is_none())
                {
                    status.problems.push("the operator does not run".to_owned());
                }
                status.phase = if status.problems.is_empty() {
                    Phase::Ready
                } else {
                    Phase::Degraded
                };
            }
        }
        Ok(status)
    }

    /// The cluster now, as its processes show it.
    fn report_without_api(&self) -> ClusterStatus {
        let mut status = written_down(&self.dir, &self.state());
        status.phase = Phase::Degraded;
        for machine in self.machines() {
            let mut nodes = status.nodes.iter_mut();
            if let Some(shown) = nodes.find(|node| node.name == machine.handle.name) {
                self.show_machine(&machine, shown);
            }
        }
        self.add_faults(&mut status);
        status
    }

    fn show_machine(&self, machine: &RunningMachine, shown: &mut NodeStatus) {
        let process = machine.agent.now();
        shown.agent_pid = process.id.and_then(|id| u32::try_from(id.pid).ok());
        shown.agent_restarts = process.restarts;
        shown.faults = self.faults.of(Some(&shown.name));
    }

    fn add_faults(&self, status: &mut ClusterStatus) {
        let of_cluster = self.faults.of(None);
        let of_cluster = of_cluster
            .iter()
            .map(|fault| format!("the cluster has a fault: {fault}"));
        let of_nodes = status.nodes.iter().flat_map(|node| {
            let faults = node.faults.iter();
            faults.map(|fault| format!("node {} has a fault: {fault}", node.name))
        });
        let all: Vec<String> = of_cluster.chain(of_nodes).collect();
        status.problems.extend(all);
    }
}

/// What is known of a cluster whose daemon can't be asked.
pub(crate) fn written_down(dir: &ClusterDir, state: &ClusterState) -> ClusterStatus {
    let config = &state.config;
    let nodes = state.nodes.iter().map(|node| NodeStatus {
        name: node.name.clone(),
        address: node.address,
        ready: false,
        schedulable: true,
        blocks: Vec::new(),
        pods: 0,
        max_pods: config.max_pods,
        netns: Machine::new(dir, node).netns_name,
        agent_pid: node.agent.and_then(|id| u32::try_from(id.pid).ok()),
        agent_restarts: 0,
        faults: Vec::new(),
    });
    ClusterStatus {
        api_version: API_VERSION.to_owned(),
        kind: "LabCluster".to_owned(),
        name: config.name.clone(),
        phase: Phase::Unreachable,
        problems: Vec::new(),
        api: state.api_url(),
        kubeconfig: dir.kubeconfig().to_string_lossy().into_owned(),
        network: NetworkStatus {
            gateway: config.subnet.gateway(),
            host: config.subnet.host(),
            internet: INTERNET_HOST,
            api: state.api_address,
        },
        nodes: nodes.collect(),
        pods: PodCounts::default(),
        blocks: BlockCounts {
            allocated: 0,
            capacity: config.pod_cidr.blocks(config.block_size),
        },
        config: config.clone(),
    }
}

fn count<'a>(pods: impl Iterator<Item = &'a Pod>) -> PodCounts {
    let mut counts = PodCounts::default();
    for pod in pods {
        let counter = match phase(pod) {
            "Running" => &mut counts.running,
            "Succeeded" => &mut counts.succeeded,
            "Failed" => &mut counts.failed,
            _ => &mut counts.pending,
        };
        *counter += 1;
    }
    counts
}

fn is_live_on(pod: &Pod, node: &str) -> bool {
    let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    here && !matches!(phase(pod), "Succeeded" | "Failed")
}

fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}
