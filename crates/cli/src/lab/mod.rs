//! `weft lab`.

pub(crate) mod args;
mod check;
mod create;
mod run;
mod show;
mod signals;
mod steps;

use std::collections::BTreeMap;
use std::time::Instant;

use weft_lab::apply::{self, Change};
use weft_lab::check::Selection;
use weft_lab::exec::{self, VnetPlace};
use weft_lab::faults::{Ending, FaultKind, FaultRequest};
use weft_lab::state::ClusterDir;
use weft_lab::status::Phase;
use weft_lab::{cluster, control::Event};
use weft_model::UserError;

use self::args::LabCommand;
use self::steps::Steps;
use crate::args::Output;
use crate::log::LogFormat;
use crate::{DEGRADED, OK, USAGE, log, out, runtime};

/// Carries out a `weft lab` command; returns its exit code.
pub(crate) fn run(command: LabCommand) -> Result<u8, UserError> {
    match command {
        LabCommand::Create(args) => create::run(&args),
        LabCommand::List { output } => {
            let clusters = runtime()?.block_on(cluster::list());
            show::list(clusters, output.output)?;
            Ok(OK)
        }
        LabCommand::Status { cluster, output } => {
            let status = runtime()?.block_on(cluster::status(&cluster.name))?;
            show::status(&status, output.output)?;
            Ok(match status.phase {
                Phase::Ready => OK,
                Phase::Creating | Phase::Degraded => DEGRADED,
                Phase::Unreachable => USAGE,
            })
        }
        LabCommand::Delete { names, all, yes: _ } => {
            let names = if all {
                weft_lab::state::cluster_names()
            } else {
                names
            };
            for name in names {
                let began = Instant::now();
                let removed = cluster::delete(&name)?;
                out::line(format!(
                    "{} {name} deleted: {} namespaces, {} processes{} in {:.1} s",
                    out::tone(out::mark(true), out::Tone::Good),
                    removed.namespaces,
                    removed.processes,
                    if removed.vnets > 0 { ", its VNet" } else { "" },
                    began.elapsed().as_secs_f64(),
                ));
            }
            Ok(OK)
        }
        LabCommand::Scale { cluster, node_count } => {
            let mut steps = Steps::new();
            let status = runtime()?.block_on(cluster::scale(&cluster.name, node_count, |event| {
                steps.show(&event);
            }))?;
            steps.end();
            show::nodes(&status, Output::Table);
            Ok(OK)
        }
        LabCommand::Kubeconfig { cluster } => {
            let dir = ClusterDir::new(&cluster.name)?;
            dir.load()?;
            out::line(dir.kubeconfig().display().to_string());
            Ok(OK)
        }
        LabCommand::Apply {
            cluster,
            filename,
            namespace,
        } => apply(&cluster.name, &filename, &namespace),
        LabCommand::Exec {
            cluster,
            pod,
            namespace,
            command,
        } => {
            cluster::require_root()?;
            let netns = runtime()?.block_on(exec::pod_netns(&cluster.name, &pod, namespace.as_deref()))?;
            run::replace_with(&netns, &command)
        }
        LabCommand::NodeExec {
            cluster,
            node,
            command,
        } => {
            cluster::require_root()?;
            run::replace_with(&exec::node_netns(&cluster.name, &node)?, &command)
        }
        LabCommand::VnetExec { cluster, on, command } => {
            cluster::require_root()?;
            let place = match on {
                args::VnetPlace::Host => VnetPlace::Host,
                args::VnetPlace::Internet => VnetPlace::Internet,
                args::VnetPlace::Switch => VnetPlace::Switch,
            };
            run::replace_with(&exec::vnet_netns(&cluster.name, place)?, &command)
        }
        LabCommand::Check {
            cluster,
            test,
            list,
            keep,
            output,
        } => check::run(
            &cluster.name,
            &Selection { tests: test, keep },
            list,
            output.output,
        ),
        LabCommand::Fault {
            cluster,
            kind,
            nodes,
            duration,
            value,
            clear,
        } => {
            if kind == "list" {
                let rows = FaultKind::ALL
                    .iter()
                    .map(|kind| {
                        let ends = match kind.ending() {
                            Ending::Itself => "at once",
                            Ending::Mended => "--for, --clear",
                            Ending::Either => "at once, --for",
                        };
                        vec![kind.name().into(), ends.into(), kind.describe().into()]
                    })
                    .collect();
                out::table(&["fault", "over", "what it does"], rows);
                return Ok(OK);
            }
            let request = FaultRequest {
                kind: FaultKind::parse(&kind)?,
                nodes,
                value,
                for_ms: duration.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
                clear,
            };
            request.check()?;
            runtime()?.block_on(cluster::fault(&cluster.name, request, print_note))?;
            Ok(OK)
        }
        LabCommand::Transport {
            cluster,
            transport,
            nodes,
        } => {
            runtime()?.block_on(cluster::transport(&cluster.name, transport, nodes, print_note))?;
            Ok(OK)
        }
        LabCommand::Daemon { name } => {
            log::start(LogFormat::Text);
            runtime()?.block_on(weft_lab::run_daemon(ClusterDir::new(&name)?))?;
            Ok(OK)
        }
    }
}

fn print_note(event: Event) {
    if let Event::Note { text } = event {
        out::line(text);
    }
}

fn apply(name: &str, sources: &[String], namespace: &str) -> Result<u8, UserError> {
    let mut manifests = Vec::new();
    for source in sources {
        manifests.extend(apply::read(source)?);
    }
    let client_of = exec::client;
    let runtime = runtime()?;
    let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
    runtime.block_on(async {
        let client = client_of(name)?;
        let on_applied = |applied: &apply::Applied| {
            let word = match applied.change {
                Change::Created => "created",
                Change::Configured => "configured",
                Change::Unchanged => "unchanged",
            };
            *counts.entry(word).or_default() += 1;
            let namespace = applied
                .namespace
                .as_ref()
                .map(|namespace| format!(" in {namespace}"))
                .unwrap_or_default();
            out::line(format!(
                "{} {}{}",
                applied.object,
                word,
                out::tone(&namespace, out::Tone::Faint)
            ));
        };
        apply::apply(&client, manifests, namespace, on_applied).await
    })?;
    let summary: Vec<String> = counts
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    out::note(format!(
        "{} {}\n  next: weft lab status {name}",
        out::tone_err(out::mark(true), out::Tone::Good),
        summary.join(", ")
    ));
    Ok(OK)
}
