//! `weft install` and `weft uninstall`: thin wrappers around objects that anybody could apply, which print what they do.

mod cluster;
mod objects;
mod preflight;
#[cfg(test)]
mod tests;
pub(crate) mod uninstall;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::Ipv4Net;
use kube::api::DynamicObject;
use kube::{Api, Client};
use tokio::time::Instant;
use weft_api::{Ipam, PodPool, PodPoolSpec};
use weft_model::{BlockSize, PodCidr, UserError, codes};

use self::cluster::{Applied, apply, is_absent, refused, wait};
use self::objects::{Changes, describe, kind};
use self::preflight::Facts;
use crate::args::{Output, parse_duration};
use crate::{OK, out, runtime};

/// Which cluster is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetArgs {
    /// The cluster this kubeconfig leads to [default: KUBECONFIG, or ~/.kube/config]
    #[arg(long, help_heading = "Cluster", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, help_heading = "Cluster", value_name = "NAME")]
    context: Option<String>,
}

/// Arguments of `weft install`. The chart has many more values.
#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Range of pod addresses; may be repeated [default: 10.244.0.0/16]
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<PodCidr>,
    /// Prefix length of the block that a node gets at a time, 20 to 30 [default: 24]
    #[arg(long, value_name = "LENGTH", value_parser = block_size)]
    block_size: Option<BlockSize>,
    /// Who gives ranges to nodes: pool (Weft's operator) or node (kube-controller-manager) [default: pool]
    #[arg(long, value_name = "MODE", value_parser = ipam)]
    ipam: Option<Ipam>,
    /// The container image, in a registry or loaded on the nodes [default: localhost/weft:VERSION]
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Where the container runtime looks for plugins [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Option<String>,
    /// Where the container runtime looks for configurations [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<String>,
    /// Label of the nodes that Weft is to serve; may be repeated, and a node has to have all [default: all nodes]
    #[arg(long = "node-selector", value_name = "KEY=VALUE", value_parser = label)]
    node_labels: Vec<(String, String)>,
    /// Chain the reference plugin portmap after Weft's, for hostPort; the nodes have to have it
    #[arg(long)]
    chain_portmap: bool,
    /// Print the objects as YAML and change nothing; needs no cluster
    #[arg(long)]
    dry_run: bool,
    /// Return when the objects are applied
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
    /// How long to wait until all nodes have an agent, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    wait_duration: Duration,
    #[command(flatten)]
    target: TargetArgs,
}

// === impl InstallArgs ===

impl InstallArgs {
    fn changes(&self) -> Result<Changes, UserError> {
        if let (Some(Ipam::Node), Some(size)) = (self.ipam, self.block_size) {
            return Err(UserError::new(
                codes::CONFLICTING_FLAGS,
                format!(
                    "--ipam node and --block-size {} exclude each other",
                    u8::from(size)
                ),
                "leave --block-size out: kube-controller-manager has --node-cidr-mask-size",
            ));
        }
        Ok(Changes {
            pod_cidrs: self.pod_cidrs.clone(),
            block_size: self.block_size,
            ipam: self.ipam,
            image: self.image.clone(),
            cni_bin_dir: self.cni_bin_dir.clone(),
            cni_conf_dir: self.cni_conf_dir.clone(),
            node_labels: self.node_labels.iter().cloned().collect(),
            chain_portmap: self.chain_portmap,
            one_node: false,
        })
    }
}

// === impl TargetArgs ===

impl TargetArgs {
    async fn client(&self) -> Result<Client, UserError> {
        weft_inspect::client(self.kubeconfig.as_deref(), self.context.as_deref()).await
    }

    /// The flags, with a space before each, for commands that are named next.
    fn flags(&self) -> String {
        let file = self
            .kubeconfig
            .as_ref()
            .map(|path| format!(" --kubeconfig {}", path.display()));
        let context = self.context.as_ref().map(|name| format!(" --context {name}"));
        [file, context].into_iter().flatten().collect()
    }
}

/// Carries `weft install` out.
pub(crate) fn run(args: &InstallArgs) -> Result<u8, UserError> {
    let changes = args.changes()?;
    if args.dry_run {
        for object in objects::all(&changes, None)? {
            out::line("---");
            out::document(&object, Output::Yaml)?;
        }
        return Ok(OK);
    }
    runtime()?.block_on(install(args, changes))?;
    Ok(OK)
}

async fn install(args: &InstallArgs, mut changes: Changes) -> Result<(), UserError> {
    let client = args.target.client().await?;
    let facts = Facts::read(&client).await?;
    changes.one_node = facts.nodes.len() == 1;
    let existing = default_pool(&client).await?;
    let mut objects = objects::all(&changes, existing.as_ref())?;

    if existing.is_some() && !changes.pool() {
        // Applying it would make this command the owner of what others have set.
        objects.retain(|object| kind(object) != "PodPool");
        out::note("note: PodPool default is there and left as it is");
    }
    let pool = pool_of(&objects, existing)?;
    let cidrs: Vec<Ipv4Net> = pool.ranges()?.cidrs.into_iter().map(PodCidr::net).collect();
    facts.judge(&cidrs, pool.ipam)?;
    for note in facts.notes(pool.ipam) {
        out::note(format!("note: {note}"));
    }

    let until = Instant::now() + args.wait_duration;
    for object in &objects {
        let applied = apply(&client, object).await?;
        let word = match applied {
            Applied::Created => "created",
            Applied::Changed => "changed",
            Applied::Unchanged => "unchanged",
        };
        out::line(format!("{word:<9} {}", describe(object)));
        if kind(object) == "CustomResourceDefinition" {
            wait(until, async || workload::definition(&client, object).await).await?;
        }
    }
    if !args.no_wait {
        wait(until, async || workload::rollout(&client).await).await?;
        out::line("all nodes have an agent that serves");
    }
    out::note(format!("  next: weft status{}", args.target.flags()));
    Ok(())
}

/// The pool as it will be.
fn pool_of(objects: &[DynamicObject], existing: Option<PodPoolSpec>) -> Result<PodPoolSpec, UserError> {
    let applied = objects.iter().find(|object| kind(object) == "PodPool");
    match (applied, existing) {
        (Some(object), _) => serde_json::from_value(object.data["spec"].clone()).map_err(|error| {
            UserError::new(
                codes::MALFORMED_YAML,
                format!("the PodPool in this binary: {error}"),
                "report it",
            )
        }),
        (None, Some(spec)) => Ok(spec),
        (None, None) => Err(UserError::new(
            codes::MALFORMED_YAML,
            "there is no PodPool in this binary",
            "report it",
        )),
    }
}

/// The specification of the pool named `default`, if the cluster has one.
async fn default_pool(client: &Client) -> Result<Option<PodPoolSpec>, UserError> {
    let pools: Api<PodPool> = Api::all(client.clone());
    match pools.get("default").await {
        Ok(pool) => Ok(Some(pool.spec)),
        // The pool, or its type.
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(refused("get the PodPool", &error)),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as weft.dev/network=weft".to_owned()),
    }
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    let length: u8 = text
        .trim_start_matches('/')
        .parse()
        .map_err(|_| "expected a prefix length, 20 to 30".to_owned())?;
    BlockSize::new(length).map_err(|error| error.to_string())
}

fn ipam(text: &str) -> Result<Ipam, String> {
    match text {
        "pool" => Ok(Ipam::Pool),
        "node" => Ok(Ipam::Node),
        _ => Err("expected pool or node".to_owned()),
    }
}
