//! Starting what plays the rest of Kubernetes: scheduler, controllers, kubelets, autoscaler.

use std::sync::Arc;

use crate::node::{ClusterHandle, NodeHandle};
use crate::{autoscaler, controllers, kubelet, scheduler};

/// Starts what a cluster has once.
pub(crate) fn start(cluster: &ClusterHandle) {
    tokio::spawn(scheduler::run(cluster.clone()));
    tokio::spawn(controllers::run(cluster.clone()));
    tokio::spawn(controllers::run(cluster.clone()));
}

/// Starts what a node has.
pub(crate) fn start_node(cluster: &ClusterHandle, node: &Arc<NodeHandle>) {
    let (cluster, node) = (cluster.clone(), Arc::clone(node));
    tokio::spawn(async move {
        let name = node.name.clone();
        if let Err(error) = kubelet::run(cluster, node).await {
            tracing::error!(node = name, %error, "the kubelet ended");
        }
    });
}

/// Starts what changes the number of nodes, where the cluster was made with it.
pub(crate) fn start_autoscaler(cluster: &ClusterHandle) {
    tokio::spawn(autoscaler::run(cluster.clone()));
}
