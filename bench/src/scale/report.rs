//! What was measured, as tables for people; the JSON beside them is for programs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::agent::Traffic;
use super::cluster::{HandOut, Stored};
use crate::process::Usage;
use crate::stats;

/// All that a run found out.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) meta: Meta,
    pub(super) hand_outs: Vec<HandOut>,
    pub(super) starts: Vec<Start>,
    pub(super) idle: Option<Churn>,
    pub(super) pods: Option<Churn>,
    pub(super) joins: Vec<Join>,
    pub(super) churn: Option<Churn>,
    pub(super) stored: Vec<Stored>,
    /// Bytes of etcd's database in use, and of its file.
    pub(super) database: (f64, f64),
    pub(super) etcd: Usage,
    pub(super) apiserver: Usage,
    /// Bytes of the answers to lists of everything.
    pub(super) answers: Vec<(String, u64)>,
    pub(super) operator_restart: Option<Recovery>,
    pub(super) operator_crash: Option<Recovery>,
    pub(super) apiserver_crash: Option<Recovery>,
}

/// Under which circumstances it was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Meta {
    pub(super) kernel: String,
    pub(super) cpus: usize,
    pub(super) programs: Vec<String>,
    pub(super) weft: String,
    pub(super) nodes: u32,
    pub(super) pods: u32,
    /// One-minute load average at the beginning and at the end.
    pub(super) load: [f64; 2],
    /// Whether all was measured, and all that must hold did.
    pub(super) complete: bool,
}

/// A start of an agent.
#[derive(Debug, Serialize)]
pub(super) struct Start {
    pub(super) nodes: u32,
    /// Pods elsewhere.
    pub(super) pods: u32,
    /// As on a new node; otherwise as one that was there before.
    pub(super) anew: bool,
    /// From the start of the process until its maps held all nodes.
    pub(super) full_seconds: f64,
    pub(super) cpu_seconds_at_full: f64,
    /// Five seconds later.
    pub(super) usage: Usage,
    pub(super) traffic: Traffic,
    pub(super) requests: BTreeMap<String, u64>,
}

/// What a stretch of the cluster's life took.
#[derive(Debug, Serialize)]
pub(super) struct Churn {
    pub(super) seconds: f64,
    pub(super) replaced: u32,
    pub(super) agent_cpu_seconds: Vec<f64>,
    pub(super) agent_usage: Vec<Usage>,
    /// Of each agent's machine.
    pub(super) traffic: Vec<Traffic>,
    pub(super) operator_cpu_seconds: f64,
    pub(super) operator_usage: Usage,
    pub(super) slice_events_per_watcher: f64,
    pub(super) slice_event_bytes_per_watcher: f64,
    pub(super) operator_requests: BTreeMap<String, u64>,
    /// Of all agents together.
    pub(super) agent_requests: BTreeMap<String, u64>,
}

/// A node that joined.
#[derive(Debug, Serialize)]
pub(super) struct Join {
    /// From before its Node was made until each agent's maps had it.
    pub(super) seconds: Vec<f64>,
}

/// A restart.
#[derive(Debug, Serialize)]
pub(super) struct Recovery {
    /// Until a new node was served.
    pub(super) seconds: f64,
    pub(super) traffic: Vec<Traffic>,
    pub(super) operator_usage: Usage,
    pub(super) operator_requests: BTreeMap<String, u64>,
    pub(super) agent_requests: BTreeMap<String, u64>,
}

// === impl Report ===

impl Report {
    /// The tables, in Markdown.
    pub(super) fn tables(&self) -> String {
        let meta = &self.meta;
        let mut out = format!(
            "Kernel {}, {} CPUs, load {:.1} to {:.1}; {}; {}; {} Nodes, {} Pods.\n",
            meta.kernel,
            meta.cpus,
            meta.load[0],
            meta.load[1],
            meta.programs.join(", "),
            meta.weft,
            meta.nodes,
            meta.pods
        );
        if !meta.complete {
            out += "\n**The run failed: what follows is not all.**\n";
        }
        out += "\n**Blocks for nodes that wait for the operator**\n\n\
                | blocks | nodes | all granted | in slices | at rest | requests | a second | CPU | peak RSS | received |\n\
                |---|---|---|---|---|---|---|---|---|---|\n";
        for hand_out in &self.hand_outs {
            let requests: u64 = hand_out.requests.values().sum();
            out += &format!(
                "| {} | {} | {:.1} s | {:.1} s | {:.1} s | {requests} | {:.0} | {:.1} s | {} | {} |\n",
                hand_out.pool,
                hand_out.nodes,
                hand_out.blocks_seconds,
                hand_out.slices_seconds,
                hand_out.settled_seconds,
                requests as f64 / hand_out.settled_seconds,
                hand_out.usage.cpu_seconds,
                mib(hand_out.usage.peak_rss),
                mib(hand_out.traffic.received),
            );
        }
        for hand_out in &self.hand_outs {
            out += &format!("\n{}: {}\n", hand_out.pool, listed(&hand_out.requests));
        }
        out += "\n**An agent starts**: median (smallest to largest)\n\n\
                | nodes | Pods elsewhere | | maps full | CPU until then | RSS | its own | peak RSS | received | sent | requests |\n\
                |---|---|---|---|---|---|---|---|---|---|---|\n";
        let mut rest = self.starts.as_slice();
        while let Some(first) = rest.first() {
            let same = |start: &&Start| {
                (start.nodes, start.pods, start.anew) == (first.nodes, first.pods, first.anew)
            };
            let count = rest.iter().take_while(same).count();
            let (group, others) = rest.split_at(count);
            rest = others;
            let row = |value: &dyn Fn(&Start) -> f64| spread(group.iter().map(value));
            let requests: u64 = first.requests.values().sum();
            out += &format!(
                "| {} | {} | {} | {} s | {} s | {} | {} | {} | {} | {} | {requests} |\n",
                first.nodes,
                first.pods,
                if first.anew { "new node" } else { "restart" },
                row(&|start| start.full_seconds),
                row(&|start| start.cpu_seconds_at_full),
                row(&|start| start.usage.rss as f64 / MIB) + " MiB",
                row(&|start| start.usage.anonymous as f64 / MIB) + " MiB",
                row(&|start| start.usage.peak_rss as f64 / MIB) + " MiB",
                row(&|start| start.traffic.received as f64 / 1024.0) + " KiB",
                row(&|start| start.traffic.sent as f64 / 1024.0) + " KiB",
            );
        }
        if let Some(start) = self.starts.last() {
            out += &format!("\nrequests of a start: {}\n", listed(&start.requests));
        }
        out += "\n**The cluster's life**, per minute\n\n\
                | | seconds | nodes replaced | slice events | their bytes | received by an agent | sent | CPU of an agent | its RSS | CPU of the operator | its RSS | its requests |\n\
                |---|---|---|---|---|---|---|---|---|---|---|---|\n";
        for (name, churn) in [
            ("idle", &self.idle),
            ("Pods are made", &self.pods),
            ("churn", &self.churn),
        ] {
            let Some(churn) = churn else { continue };
            let per_minute = 60.0 / churn.seconds;
            let requests: u64 = churn.operator_requests.values().sum();
            let median = |values: Vec<f64>| stats::median(&values).unwrap_or_default();
            let traffic = |bytes: fn(&Traffic) -> u64| {
                median(
                    churn
                        .traffic
                        .iter()
                        .map(|traffic| bytes(traffic) as f64)
                        .collect(),
                ) * per_minute
                    / 1024.0
            };
            out += &format!(
                "| {name} | {:.0} | {:.0} | {:.1} | {:.0} KiB | {:.0} KiB | {:.0} KiB | {:.2} s | {:.1} MiB | {:.2} s | {} | {:.0} |\n",
                churn.seconds,
                f64::from(churn.replaced) * per_minute,
                churn.slice_events_per_watcher * per_minute,
                churn.slice_event_bytes_per_watcher * per_minute / 1024.0,
                traffic(|traffic| traffic.received),
                traffic(|traffic| traffic.sent),
                median(churn.agent_cpu_seconds.clone()) * per_minute,
                median(
                    churn
                        .agent_usage
                        .iter()
                        .map(|usage| usage.rss as f64 / MIB)
                        .collect()
                ),
                churn.operator_cpu_seconds * per_minute,
                mib(churn.operator_usage.rss),
                requests as f64 * per_minute,
            );
        }
        if let Some(churn) = &self.churn {
            out += &format!(
                "\nin all of the churn: operator {}; agents {}\n",
                listed(&churn.operator_requests),
                listed(&churn.agent_requests)
            );
        }
        out += &self.joined();
        out += "\n**In etcd**\n\n| kind | objects | bytes | mean | largest |\n|---|---|---|---|---|\n";
        for stored in &self.stored {
            out += &format!(
                "| {} | {} | {} | {:.0} B | {} B |\n",
                stored.kind,
                stored.objects,
                mib(stored.bytes),
                stored.bytes as f64 / stored.objects.max(1) as f64,
                stored.largest
            );
        }
        out += &format!(
            "\ndatabase: {:.1} MiB in use, file {:.1} MiB\n",
            self.database.0 / MIB,
            self.database.1 / MIB
        );
        for (name, usage) in [("etcd", self.etcd), ("kube-apiserver", self.apiserver)] {
            out += &format!(
                "\n{name}: {} resident, {:.0} s of CPU\n",
                mib(usage.rss),
                usage.cpu_seconds
            );
        }
        for (path, bytes) in &self.answers {
            out += &format!("\n`GET {path}`: {}\n", mib(*bytes));
        }
        for (name, recovery) in [
            ("a restart of the operator", &self.operator_restart),
            ("a crash of the operator", &self.operator_crash),
            ("a crash of the API server", &self.apiserver_crash),
        ] {
            let Some(recovery) = recovery else { continue };
            out += &format!(
                "\n**After {name}** a new node was served after {:.2} s; operator: {}, peak RSS {}; agents: {}; received by each: {}\n",
                recovery.seconds,
                listed(&recovery.operator_requests),
                mib(recovery.operator_usage.peak_rss),
                listed(&recovery.agent_requests),
                recovery
                    .traffic
                    .iter()
                    .map(|traffic| mib(traffic.received))
                    .collect::<Vec<_>>()
                    .join(", "),
            );
        }
        out
    }

    fn joined(&self) -> String {
        let all: Vec<f64> = self.joins.iter().flat_map(|join| join.seconds.clone()).collect();
        let last: Vec<f64> = self
            .joins
            .iter()
            .filter_map(|join| stats::spread(&join.seconds).map(|(_, most)| most))
            .collect();
        let (Some(median), Some((least, most)), Some(slowest)) =
            (stats::median(&all), stats::spread(&all), stats::median(&last))
        else {
            return String::new();
        };
        format!(
            "\n**A node joins**: {} nodes, {} agents: in an agent's maps after {median:.3} s ({least:.3} to {most:.3}); in the last agent's, median {slowest:.3} s\n",
            self.joins.len(),
            self.joins.first().map_or(0, |join| join.seconds.len()),
        )
    }
}

const MIB: f64 = 1024.0 * 1024.0;

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB)
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    match (stats::median(&values), stats::spread(&values)) {
        (Some(median), Some((least, most))) if values.len() > 1 => {
            format!("{} ({} to {})", figure(median), figure(least), figure(most))
        }
        (Some(median), _) => figure(median),
        _ => "–".into(),
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn listed(requests: &BTreeMap<String, u64>) -> String {
    let listed: Vec<String> = requests
        .iter()
        .map(|(key, count)| format!("{count} {key}"))
        .collect();
    if listed.is_empty() {
        "none".into()
    } else {
        listed.join(", ")
    }
}
