//! Starting what plays the rest of Kubernetes: scheduler, controllers, kubelets, autoscaler.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::node::{ClusterHandle, NodeHandle};
use crate::{autoscaler, controllers, kubelet, scheduler};

/// Starts what a cluster has once.
pub(crate) fn start(cluster: &ClusterHandle) {
    tokio::spawn(scheduler::run(cluster.clone()));
    tokio::spawn(controllers::run(cluster.clone()));
}

/// Starts what a node has; the tracker is empty when it has ended.
pub(crate) fn start_node(cluster: &ClusterHandle, node: &Arc<NodeHandle>) -> TaskTracker {
    let (cluster, node) = (cluster.clone(), Arc::clone(node));
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        let name = node.name.clone();
        if let Err(error) = kubelet::run(cluster, node).await {
            tracing::error!(node = name, %error, "the kubelet ended");
        }
    });
    tasks.close();
    tasks
}

/// Starts what changes the number of nodes, where the cluster was made with it.
pub(crate) fn start_autoscaler(cluster: &ClusterHandle) {
    tokio::spawn(autoscaler::run(cluster.clone()));
}
