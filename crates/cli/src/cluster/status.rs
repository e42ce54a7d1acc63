//! `weft status`.

use std::time::Duration;

use clap::Args;
use tokio::time::Instant;
use weft_api::Transport;
use weft_inspect::{NetworkStatus, NodeState, PoolState, Problem, Subject, Verdict, assess};
use weft_model::{UserError, codes};

use super::ClusterArgs;
use crate::args::{Output, OutputArgs, parse_duration};
use crate::out::{self, Cell, Tone};
use crate::{DEGRADED, OK, runtime};

/// How often the cluster is looked at while it is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Nodes that fit on a screen; beyond, those that are fine are only counted.
const NODES_SHOWN: usize = 30;

/// Problems listed below the tables.
const PROBLEMS_SHOWN: usize = 10;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Wait until the pod network is healthy
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration, requires = "wait")]
    wait_duration: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

/// Shows the status; the exit code tells the verdict.
pub(crate) fn run(args: &StatusArgs) -> Result<u8, UserError> {
    let status = runtime()?.block_on(async {
        if args.wait {
            healthy(&args.cluster, args.wait_duration).await
        } else {
            args.cluster.snapshot().await.map(|seen| assess(&seen))
        }
    })?;
    match args.output.output {
        Output::Json | Output::Yaml => out::document(&status, args.output.output)?,
        Output::Table => render(&status, &args.cluster, false).iter().for_each(out::line),
        Output::Wide => render(&status, &args.cluster, true).iter().for_each(out::line),
    }
    Ok(match status.verdict {
        Verdict::Healthy => OK,
        Verdict::Degraded => DEGRADED,
    })
}

/// The status as soon as it is healthy, or what it is when the time is over.
async fn healthy(cluster: &ClusterArgs, allowed: Duration) -> Result<NetworkStatus, UserError> {
    let until = Instant::now() + allowed;
    let mut told = String::new();
    loop {
        let found = cluster.snapshot().await.map(|seen| assess(&seen));
        let waiting_for = match &found {
            Ok(status) => match status.problems.first() {
                None => return found,
                Some(problem) => sentence(problem),
            },
            Err(error) if error.code() == codes::API_UNREACHABLE || error.code() == codes::CRD_MISSING => {
                error.message().to_owned()
            }
            Err(_) => return found,
        };
        if Instant::now() >= until {
            return found;
        }
        if told != waiting_for {
            out::note(format!("waiting: {waiting_for}"));
            told = waiting_for;
        }
        tokio::time::sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await;
    }
}

/// One screen: pools, nodes, slices, verdict, next command.
fn render(status: &NetworkStatus, cluster: &ClusterArgs, wide: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if !status.pools.is_empty() {
        let header = ["pool", "cidrs", "block", "blocks", "condition"];
        lines.extend(out::table_lines(
            &header,
            status.pools.iter().map(pool_row).collect(),
        ));
        lines.push(String::new());
    }
    lines.extend(nodes(&status.nodes, wide));
    let shown = status.problems.len().min(PROBLEMS_SHOWN);
    for problem in &status.problems[..shown] {
        lines.push(format!(
            "{} {}",
            out::tone(out::mark(false), Tone::Bad),
            sentence(problem)
        ));
    }
    if shown < status.problems.len() {
        lines.push(format!(
            "  and {} more: -o json has them all",
            status.problems.len() - shown
        ));
    }
    lines.push(verdict(status));
    lines.push(format!("  next: {}", next(status, cluster)));
    lines
}

fn nodes(nodes: &[NodeState], wide: bool) -> Vec<String> {
    if nodes.is_empty() {
        return Vec::new();
    }
    let all = wide || nodes.len() <= NODES_SHOWN;
    let shown: Vec<&NodeState> = nodes
        .iter()
        .filter(|node| all || !node.problems.is_empty())
        .take(if wide { usize::MAX } else { NODES_SHOWN })
        .collect();
    let mut lines = Vec::new();
    if !shown.is_empty() {
        let mut header = vec![
            "node",
            "status",
            "address",
            "blocks",
            "used",
            "cooling",
            "capacity",
            "mtu",
            "transport",
        ];
        if wide {
            header.push("why");
        }
        let rows = shown.iter().map(|node| node_row(node, wide)).collect();
        lines.extend(out::table_lines(&header, rows));
    }
    if shown.len() < nodes.len() {
        let fine = nodes.iter().filter(|node| node.problems.is_empty()).count();
        lines.push(format!(
            "{fine} of {} nodes are fine; -o wide lists all",
            nodes.len()
        ));
    }
    lines.push(String::new());
    lines
}

fn pool_row(pool: &PoolState) -> Vec<Cell> {
    let count = |count: Option<u32>| count.map_or("?".to_owned(), |count| count.to_string());
    vec![
        pool.name.as_str().into(),
        pool.cidrs.join(" ").into(),
        format!("/{}", pool.block_size).into(),
        format!("{}/{}", count(pool.allocated), count(pool.capacity)).into(),
        if pool.problems.is_empty() {
            Cell::toned("ok", Tone::Good)
        } else {
            // What it means stands below the tables.
            let reasons = pool
                .problems
                .iter()
                .map(|text| text.split(':').next().unwrap_or(text));
            Cell::toned(reasons.collect::<Vec<_>>().join(" "), Tone::Warn)
        },
    ]
}

fn node_row(node: &NodeState, wide: bool) -> Vec<Cell> {
    // A node of a large block and one of many small ones are told alike.
    let blocks = match node.blocks.as_slice() {
        [] => "-".to_owned(),
        [first, rest @ ..] if !wide && rest.len() > 1 => format!("{first} and {} more", rest.len()),
        all => all.join(" "),
    };
    let mut row = vec![
        node.name.as_str().into(),
        if node.ready {
            Cell::toned("Ready", Tone::Good)
        } else {
            Cell::toned("NotReady", Tone::Bad)
        },
        node.address
            .map_or("-".to_owned(), |address| address.to_string())
            .into(),
        blocks.into(),
        node.used.to_string().into(),
        node.cooling.to_string().into(),
        node.capacity.to_string().into(),
        node.mtu.map_or("-".to_owned(), |mtu| mtu.to_string()).into(),
        match node.transport {
            Some(Transport::Device) => "device",
            Some(Transport::Direct) => "direct",
            None => "-",
        }
        .into(),
    ];
    if wide {
        row.push(node.transport_reason.as_deref().unwrap_or("-").into());
    }
    row
}

fn verdict(status: &NetworkStatus) -> String {
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let ready = status.nodes.iter().filter(|node| node.ready).count();
    let facts = format!(
        "{ready} of {} ready, {} of {} addresses used, {} in {}",
        counted(status.nodes.len(), "node"),
        status.addresses.used,
        status.addresses.capacity,
        counted(status.slices.nodes, "node"),
        counted(status.slices.slices, "slice"),
    );
    match status.verdict {
        Verdict::Healthy => format!("{} healthy: {facts}", out::tone(out::mark(true), Tone::Good)),
        Verdict::Degraded => format!(
            "{} degraded, {}: {facts}",
            out::tone(out::mark(false), Tone::Bad),
            counted(status.problems.len(), "problem"),
        ),
    }
}

fn sentence(problem: &Problem) -> String {
    match &problem.subject {
        Subject::Cluster => problem.message.clone(),
        Subject::Pool(name) => format!("pool {name}: {}", problem.message),
        Subject::Node(name) => format!("node {name}: {}", problem.message),
        Subject::Slices => format!("node slices: {}", problem.message),
    }
}

/// What to look at: the gravest problem.
fn next(status: &NetworkStatus, cluster: &ClusterArgs) -> String {
    match status.problems.first().map(|problem| &problem.subject) {
        None => format!("weft ip list{}", cluster.flags()),
        Some(Subject::Cluster) => cluster.kubectl("get podpools,nodes"),
        Some(Subject::Pool(name)) => cluster.kubectl(&format!("describe podpool {name}")),
        Some(Subject::Node(name)) => cluster.kubectl(&format!("describe node/{name} nodenetwork/{name}")),
        Some(Subject::Slices) => cluster.kubectl("get nodeslices -o yaml"),
    }
}

#[cfg(test)]
mod tests;
