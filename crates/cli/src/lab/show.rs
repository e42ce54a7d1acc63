//! Clusters as tables and documents.

use weft_lab::status::{API_VERSION, ClusterList, ClusterStatus, NodeStatus, Phase};
use weft_model::UserError;

use crate::args::Output;
use crate::out::{self, Cell, Tone};

/// All clusters.
pub(crate) fn list(clusters: Vec<ClusterStatus>, output: Output) -> Result<(), UserError> {
    if matches!(output, Output::Json | Output::Yaml) {
        let list = ClusterList {
            api_version: API_VERSION,
            kind: "LabClusterList",
            items: clusters,
        };
        return out::document(&list, output);
    }
    if clusters.is_empty() {
        out::note("there are no lab clusters\n  next: weft lab create blue");
        return Ok(());
    }
    let mut header = vec!["name", "status", "nodes", "pods", "vnet", "subnet", "pod cidr"];
    if output == Output::Wide {
        header.extend(["service cidr", "blocks", "api"]);
    }
    let rows = clusters.iter().map(|cluster| {
        let config = &cluster.config;
        let ready = cluster.nodes.iter().filter(|node| node.ready).count();
        let mut row = vec![
            Cell::from(cluster.name.as_str()),
            phase(cluster.phase),
            format!("{ready}/{}", cluster.nodes.len()).into(),
            cluster.pods.running.to_string().into(),
            config.vnet.as_str().into(),
            config.subnet.net().to_string().into(),
            config.pod_cidr.to_string().into(),
        ];
        if output == Output::Wide {
            row.extend([
                config.service_cidr.to_string().into(),
                format!("{}/{}", cluster.blocks.allocated, cluster.blocks.capacity).into(),
                cluster.api.clone().unwrap_or_default().into(),
            ]);
        }
        row
    });
    out::table(&header, rows.collect());
    Ok(())
}

/// One cluster.
pub(crate) fn status(cluster: &ClusterStatus, output: Output) -> Result<(), UserError> {
    if matches!(output, Output::Json | Output::Yaml) {
        return out::document(cluster, output);
    }
    let config = &cluster.config;
    let facts = [
        (
            "Cluster",
            format!("{}  {}", out::tone(&cluster.name, Tone::Strong), {
                let (word, tone) = phase_word(cluster.phase);
                out::tone(word, tone)
            }),
        ),
        (
            "API",
            format!(
                "{}  (in the VNet {})",
                cluster.api.as_deref().unwrap_or("none"),
                cluster.network.api
            ),
        ),
        (
            "VNet",
            format!(
                "{} {}  gateway {}  host {}  internet {}",
                config.vnet,
                config.subnet.net(),
                cluster.network.gateway,
                cluster.network.host,
                cluster.network.internet
            ),
        ),
        (
            "Pods",
            format!(
                "{} in blocks of {}  {} of {} blocks with nodes",
                config.pod_cidr, config.block_size, cluster.blocks.allocated, cluster.blocks.capacity
            ),
        ),
        (
            "",
            format!(
                "{} running, {} pending, {} succeeded, {} failed",
                cluster.pods.running, cluster.pods.pending, cluster.pods.succeeded, cluster.pods.failed
            ),
        ),
        (
            "Services",
            format!("{}  DNS {}", config.service_cidr, config.dns_service_ip),
        ),
    ];
    for (name, value) in facts {
        out::line(format!("{name:<9} {value}"));
    }
    if let Some(scaling) = config.autoscaler {
        out::line(format!(
            "{:<9} {} to {} nodes, unneeded ones go after {:?}",
            "Scaling", scaling.range.min, scaling.range.max, scaling.idle
        ));
    }
    out::line("");
    nodes(cluster, output);
    for problem in &cluster.problems {
        out::line(format!("{} {problem}", out::tone(out::mark(false), Tone::Bad)));
    }
    let next = match cluster.phase {
        Phase::Ready => format!("weft lab check {}", cluster.name),
        Phase::Creating => format!("weft lab status {}", cluster.name),
        Phase::Degraded => format!("look at {}", log_dir(cluster)),
        Phase::Unreachable => format!("weft lab delete {}", cluster.name),
    };
    out::line(format!("  next: {next}"));
    Ok(())
}

/// The nodes of one cluster.
pub(crate) fn nodes(cluster: &ClusterStatus, output: Output) {
    let mut header = vec!["node", "status", "address", "blocks", "pods"];
    if output == Output::Wide {
        header.extend(["namespace", "agent", "restarts"]);
    }
    let rows = cluster.nodes.iter().map(|node| {
        let mut row = vec![
            Cell::from(node.name.as_str()),
            node_phase(node),
            node.address.to_string().into(),
            if node.blocks.is_empty() {
                "-".into()
            } else {
                node.blocks.join(" ").into()
            },
            format!("{}/{}", node.pods, node.max_pods).into(),
        ];
        if output == Output::Wide {
            row.extend([
                node.netns.as_str().into(),
                node.agent_pid
                    .map_or("-".to_owned(), |pid| pid.to_string())
                    .into(),
                node.agent_restarts.to_string().into(),
            ]);
        }
        row
    });
    out::table(&header, rows.collect());
}

fn log_dir(cluster: &ClusterStatus) -> String {
    cluster.kubeconfig.replace("kubeconfig", "daemon.log")
}

fn phase(phase: Phase) -> Cell {
    let (word, tone) = phase_word(phase);
    Cell::toned(word, tone)
}

fn phase_word(phase: Phase) -> (&'static str, Tone) {
    match phase {
        Phase::Creating => ("Creating", Tone::Warn),
        Phase::Ready => ("Ready", Tone::Good),
        Phase::Degraded => ("Degraded", Tone::Warn),
        Phase::Unreachable => ("Unreachable", Tone::Bad),
    }
}

fn node_phase(node: &NodeStatus) -> Cell {
    let word = if node.ready { "Ready" } else { "NotReady" };
    let cordoned = if node.schedulable {
        ""
    } else {
        ",SchedulingDisabled"
    };
    Cell::toned(
        format!("{word}{cordoned}"),
        if node.ready { Tone::Good } else { Tone::Bad },
    )
}
