//! `weft ip`.

use std::net::Ipv4Addr;

use clap::{Args, Subcommand};
use weft_inspect::{
    AddressAnswer, AddressList, AddressOwner, BlockRef, Snapshot, list_addresses, look_up, pods, pods_with,
};
use weft_model::{UserError, codes};

use super::ClusterArgs;
use crate::args::{Output, OutputArgs};
use crate::out::{self, Cell, Tone};
use crate::{DEGRADED, OK, runtime};

#[derive(Debug, Subcommand)]
pub(crate) enum IpCommand {
    /// List the nodes' blocks, and the addresses of pods
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Say who owns an address: a pod, a node, nobody yet, or somebody outside
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only what belongs to this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The IPv4 address
    address: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Carries out a `weft ip` command; returns its exit code.
pub(crate) fn run(command: &IpCommand) -> Result<u8, UserError> {
    match command {
        IpCommand::List(args) => list(args),
        IpCommand::Show(args) => show(args),
    }
}

fn list(args: &ListArgs) -> Result<u8, UserError> {
    let cluster = &args.cluster;
    let mut list = runtime()?.block_on(async {
        let client = cluster.client().await?;
        let read = async { tokio::try_join!(Snapshot::read(&client), pods(&client)) };
        let (seen, pods) = read.await.map_err(|error| cluster.in_reach(error))?;
        Ok::<_, UserError>(list_addresses(&seen, &pods))
    })?;
    if let Some(node) = &args.node {
        list.blocks.retain(|held| held.block.node == *node);
        list.addresses.retain(|held| held.pod.node == *node);
    }
    match args.output.output {
        Output::Json | Output::Yaml => out::document(&list, args.output.output)?,
        Output::Table | Output::Wide => render_list(&list).iter().for_each(out::line),
    }
    Ok(OK)
}

fn show(args: &ShowArgs) -> Result<u8, UserError> {
    let cluster = &args.cluster;
    let address: Ipv4Addr = args.address.parse().map_err(|_| {
        UserError::new(
            codes::OUT_OF_RANGE,
            format!("{:?} is not an IPv4 address", args.address),
            "weft ip show 10.244.0.7",
        )
    })?;
    let answer = runtime()?.block_on(async {
        let client = cluster.client().await?;
        let read = async { tokio::try_join!(Snapshot::read(&client), pods_with(&client, address)) };
        let (seen, pods) = read.await.map_err(|error| cluster.in_reach(error))?;
        Ok::<_, UserError>(look_up(address, &seen, &pods))
    })?;
    match args.output.output {
        Output::Json | Output::Yaml => out::document(&answer, args.output.output)?,
        Output::Table | Output::Wide => render_answer(&answer, cluster).iter().for_each(out::line),
    }
    Ok(if answer.problems.is_empty() { OK } else { DEGRADED })
}

fn render_list(list: &AddressList) -> Vec<String> {
    let blocks = list.blocks.iter().map(|held| {
        vec![
            Cell::from(held.block.block.to_string()),
            held.block.pool.as_str().into(),
            held.block.node.as_str().into(),
            format!("{}/{}", held.used, held.capacity).into(),
        ]
    });
    let addresses = list.addresses.iter().map(|held| {
        vec![
            Cell::from(held.address.to_string()),
            held.pod.to_string().into(),
            held.pod.node.as_str().into(),
            match held.block {
                Some(block) => block.to_string().into(),
                None => Cell::toned("none", Tone::Warn),
            },
        ]
    });
    let mut lines = out::table_lines(&["block", "pool", "node", "used"], blocks.collect());
    if !list.addresses.is_empty() {
        lines.push(String::new());
        lines.extend(out::table_lines(
            &["address", "pod", "node", "block"],
            addresses.collect(),
        ));
    }
    lines
}

fn render_answer(answer: &AddressAnswer, cluster: &ClusterArgs) -> Vec<String> {
    let address = out::tone(&answer.address.to_string(), Tone::Strong);
    let of_block = |block: &BlockRef| {
        [
            ("node", block.node.clone()),
            ("block", block.block.to_string()),
            ("pool", block.pool.clone()),
        ]
    };
    let (what, facts, next) = match &answer.owner {
        AddressOwner::Pod { pods, block } => {
            let names: Vec<String> = pods.iter().map(ToString::to_string).collect();
            let what = format!("{address} is pod {}", names.join(" and pod "));
            let next = pods
                .first()
                .map(|pod| cluster.kubectl(&format!("-n {} get pod {} -o wide", pod.namespace, pod.name)));
            (what, block.as_ref().map(of_block), next)
        }
        AddressOwner::Node { node } => {
            let next = cluster.kubectl(&format!("describe node/{node} nodenetwork/{node}"));
            (format!("{address} is node {node}'s own"), None, Some(next))
        }
        AddressOwner::Unused {
            block,
            cooling,
            free,
            ended,
        } => {
            let state = match (cooling, free) {
                (0, _) => "free".to_owned(),
                (_, 0) => "cooling".to_owned(),
                (1, _) => "free or cooling: 1 address of its node cools".to_owned(),
                _ => format!("free or cooling: {cooling} addresses of its node cool"),
            };
            let ended = ended
                .as_ref()
                .map(|pod| format!("; pod {pod}, which has ended, had it"))
                .unwrap_or_default();
            let next = format!("weft ip list --node {}{}", block.node, cluster.flags());
            (
                format!("{address} is {state}{ended}"),
                Some(of_block(block)),
                Some(next),
            )
        }
        AddressOwner::Unassigned { pool, excluded } => {
            let why = if *excluded {
                format!("pool {pool} excludes it")
            } else {
                format!("it lies in pool {pool}, in no node's block yet")
            };
            let next = cluster.kubectl(&format!("describe podpool {pool}"));
            (format!("{address} is unassigned: {why}"), None, Some(next))
        }
        AddressOwner::Outside => {
            let next = format!("weft status{}", cluster.flags());
            (
                format!("{address} is outside: neither a pod, a node nor a pool has it"),
                None,
                Some(next),
            )
        }
    };
    let mut lines = vec![what];
    lines.extend(
        facts
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("  {name:<6} {value}")),
    );
    let mark = out::tone(out::mark(false), Tone::Bad);
    lines.extend(answer.problems.iter().map(|problem| format!("{mark} {problem}")));
    lines.extend(next.map(|next| format!("  next: {next}")));
    lines
}

#[cfg(test)]
mod tests;
