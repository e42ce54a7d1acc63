//! `weft audit`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use weft_cni::protocol::{self, Command, Reply, Request};
use weft_inspect::{ClusterAudit, Snapshot, pods};
use weft_model::audit::{Finding, NodeAudit, Repaired};
use weft_model::{UserError, codes};

use super::ClusterArgs;
use crate::args::{Output, OutputArgs};
use crate::out::{self, Cell, Tone};
use crate::{DEGRADED, OK, runtime};

/// How long an agent gets to look at its node.
const PATIENCE: Duration = Duration::from_secs(10);

/// Repairs older than this are history.
const LATELY: Duration = Duration::from_secs(600);

/// Repairs told for each node.
const REPAIRS_SHOWN: usize = 5;

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Audits a cluster: of a lab the nodes too, of others what the API shows.
pub(crate) fn run(args: &AuditArgs) -> Result<u8, UserError> {
    let cluster = &args.cluster;
    let (mut nodes, mut unreached) = (Vec::new(), BTreeMap::new());
    if let Some(lab) = &cluster.lab {
        for (node, socket) in weft_lab::exec::agent_sockets(lab)? {
            match ask(&socket) {
                Ok(audit) => nodes.push(audit),
                Err(error) => _ = unreached.insert(node, error.message().to_owned()),
            }
        }
    }
    let audit = runtime()?.block_on(async {
        let client = cluster.client().await?;
        let read = async { tokio::try_join!(Snapshot::read(&client), pods(&client)) };
        let (seen, pods) = read.await.map_err(|error| cluster.in_reach(error))?;
        Ok::<_, UserError>(ClusterAudit::new(&seen, &pods, nodes, unreached))
    })?;
    match args.output.output {
        Output::Json | Output::Yaml => out::document(&audit, args.output.output)?,
        Output::Table | Output::Wide => render(&audit, cluster).iter().for_each(out::line),
    }
    Ok(if audit.is_clean() { OK } else { DEGRADED })
}

/// Audits one node by the socket of its agent.
pub(crate) fn of_node(socket: &Path, output: Output) -> Result<u8, UserError> {
    let audit = ask(socket)?;
    match output {
        Output::Json | Output::Yaml => out::document(&audit, output)?,
        Output::Table | Output::Wide => {
            for line in differences(&audit.findings) {
                out::line(line);
            }
            repairs(&audit).iter().for_each(out::line);
            out::line(verdict(audit.findings.len(), audit.held.len(), 1));
        }
    }
    Ok(if audit.findings.is_empty() { OK } else { DEGRADED })
}

fn ask(socket: &Path) -> Result<NodeAudit, UserError> {
    let request = Request {
        network: String::new(),
        wait_ms: u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX),
        times: None,
        command: Command::Audit,
    };
    let wrong = |why: String| UserError::new(codes::AGENT_UNREACHABLE, why, "weft status");
    match protocol::call(socket, &request, None, PATIENCE) {
        Ok(Reply::Audited(audit)) => Ok(audit),
        Ok(Reply::Failed(failure)) => Err(wrong(failure.msg)),
        Ok(Reply::Added(_) | Reply::Done) => Err(wrong(
            "the agent answered with something else than an audit; weft and the agent must be of one version"
                .into(),
        )),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn render(audit: &ClusterAudit, cluster: &ClusterArgs) -> Vec<String> {
    let mut lines = Vec::new();
    if !audit.nodes.is_empty() {
        let rows = audit.nodes.iter().map(|node| {
            let count = node.findings.len();
            vec![
                Cell::from(node.node.as_str()),
                node.held.len().to_string().into(),
                node.checked.nodes.to_string().into(),
                node.checked.prefixes.to_string().into(),
                if count == 0 {
                    count.to_string().into()
                } else {
                    Cell::toned(count.to_string(), Tone::Bad)
                },
                lately(node).count().to_string().into(),
            ]
        });
        let header = ["node", "pods", "peers", "prefixes", "differences", "repaired"];
        lines.extend(out::table_lines(&header, rows.collect()));
        lines.push(String::new());
    }
    for node in &audit.nodes {
        lines.extend(differences(&node.findings).map(|line| format!("{line} [{}]", node.node)));
        lines.extend(repairs(node));
    }
    lines.extend(differences(&audit.objects));
    let mark = out::tone(out::mark(false), Tone::Bad);
    for (node, why) in &audit.unreached {
        lines.push(format!("{mark} node {node} was not looked at: {why}"));
    }
    let found = audit.objects.len() + audit.nodes.iter().map(|node| node.findings.len()).sum::<usize>();
    let held = audit.nodes.iter().map(|node| node.held.len()).sum();
    if audit.nodes.is_empty() && audit.unreached.is_empty() {
        lines.push(if found == 0 {
            format!(
                "{} the API's objects agree; nodes are asked one by one",
                out::tone(out::mark(true), Tone::Good)
            )
        } else {
            format!("{mark} {found} difference(s) between the API's objects")
        });
        lines.push(format!(
            "  next: {}",
            cluster.kubectl("-n weft-system exec ds/weft-agent -- weft node audit")
        ));
    } else {
        lines.push(verdict(found, held, audit.nodes.len()));
    }
    lines
}

fn differences(findings: &[Finding]) -> impl Iterator<Item = String> {
    let mark = out::tone(out::mark(false), Tone::Bad);
    findings.iter().map(move |found| {
        format!(
            "{mark} {} of {}: {}; {}",
            found.kind, found.owner, found.what, found.remedy
        )
    })
}

fn lately(node: &NodeAudit) -> impl Iterator<Item = &Repaired> {
    let limit = LATELY.as_millis();
    node.repaired
        .iter()
        .take_while(move |repaired| u128::from(repaired.ago_ms) <= limit)
}

fn repairs(node: &NodeAudit) -> Vec<String> {
    let all = lately(node).count();
    let mut lines: Vec<String> = lately(node)
        .take(REPAIRS_SHOWN)
        .map(|Repaired { finding, ago_ms }| {
            format!(
                "  {} repaired {} s ago: {} of {}: {}",
                node.node,
                ago_ms / 1000,
                finding.kind,
                finding.owner,
                finding.what
            )
        })
        .collect();
    if all > REPAIRS_SHOWN {
        lines.push(format!(
            "  {} and {} repairs more",
            node.node,
            all - REPAIRS_SHOWN
        ));
    }
    lines
}

fn verdict(found: usize, pods: usize, nodes: usize) -> String {
    if found == 0 {
        format!(
            "{} nothing differs: {pods} attachments on {nodes} node(s), ledger, kernel, maps, rules and packets",
            out::tone(out::mark(true), Tone::Good)
        )
    } else {
        format!("{} {found} difference(s)", out::tone(out::mark(false), Tone::Bad))
    }
}
