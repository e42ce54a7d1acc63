//! `weft lab create`.

use weft_lab::cluster;
use weft_lab::config::{ClusterConfig, ClusterRequest};
use weft_lab::status::ClusterStatus;
use weft_model::{UserError, codes};

use super::args::CreateArgs;
use super::show;
use super::signals::Interruption;
use super::steps::Steps;
use crate::args::Output;
use crate::{OK, out, runtime};

/// Makes a cluster, or nothing.
pub(crate) fn run(args: &CreateArgs) -> Result<u8, UserError> {
    let request = request(args)?;
    let config = cluster::check(&request)?;
    if !args.azure.given.is_empty() {
        let flags: Vec<String> = args.azure.given.iter().map(|flag| format!("--{flag}")).collect();
        out::note(format!(
            "note: {} means nothing in a lab and is ignored",
            flags.join(", ")
        ));
    }
    let began = std::time::Instant::now();
    let mut steps = Steps::new();
    let outcome = runtime()?.block_on(create_or_stop(config, &mut steps));
    steps.end();
    let status = match outcome {
        Ok(status) => status,
        Err(error) => {
            cluster::delete(&request.name).map_err(|left| {
                UserError::new(
                    error.code(),
                    format!("{}; and cleaning up failed: {}", error.message(), left.message()),
                    format!("weft lab delete {}", request.name),
                )
            })?;
            return Err(error);
        }
    };
    if matches!(args.output.output, Output::Json | Output::Yaml) {
        out::document(&status, args.output.output)?;
        return Ok(OK);
    }
    show::nodes(&status, args.output.output);
    out::line("");
    out::line(format!(
        "{} Cluster {} is ready: {} nodes in {:.1} s",
        out::tone(out::mark(true), out::Tone::Good),
        out::tone(&status.name, out::Tone::Strong),
        status.nodes.len(),
        began.elapsed().as_secs_f64()
    ));
    out::line(format!("  next: weft lab check {}", status.name));
    Ok(OK)
}

/// Makes the cluster unless a signal comes first.
async fn create_or_stop(config: ClusterConfig, steps: &mut Steps) -> Result<ClusterStatus, UserError> {
    let name = config.name.clone();
    let mut interruption = Interruption::watch()?;
    tokio::select! {
        biased;
        by = interruption.comes() => Err(UserError::new(
            codes::INTERRUPTED,
            format!("interrupted by {by}; what was made of cluster {name} has been removed"),
            format!("weft lab create {name}"),
        )),
        outcome = cluster::create(config, |event| steps.show(&event)) => outcome,
    }
}

fn request(args: &CreateArgs) -> Result<ClusterRequest, UserError> {
    if args.network_plugin.as_deref() == Some("azure") && args.network_plugin_mode.is_none() {
        return Err(UserError::new(
            codes::CONFLICTING_FLAGS,
            "--network-plugin azure without --network-plugin-mode overlay would give pods addresses of the VNet, \
             which is not what Weft does",
            "add --network-plugin-mode overlay",
        ));
    }
    let vnet = match &args.vnet_subnet_id {
        Some(id) => Some(vnet_of(id)?),
        None => args.vnet.clone(),
    };
    Ok(ClusterRequest {
        name: args
            .name
            .clone()
            .or_else(|| args.name_flag.clone())
            .unwrap_or_default(),
        node_count: args.node_count,
        pod_cidr: args.pod_cidr.clone(),
        block_size: args.block_size,
        max_pods: args.max_pods,
        vnet,
        vnet_subnet_prefix: args.vnet_subnet_prefix.clone(),
        service_cidr: args.service_cidr.clone(),
        dns_service_ip: args.dns_service_ip.clone(),
        autoscaler: args.enable_cluster_autoscaler,
        min_count: args.min_count,
        max_count: args.max_count,
        scale_down_unneeded_time: args.scale_down_unneeded_time,
        transport: args.transport,
    })
}

/// The VNet's name in `/subscriptions/…/virtualNetworks/NAME/subnets/…`.
fn vnet_of(id: &str) -> Result<String, UserError> {
    let mut parts = id
        .split('/')
        .skip_while(|part| !part.eq_ignore_ascii_case("virtualNetworks"));
    parts
        .nth(1)
        .filter(|name| !name.is_empty())
        .map(str::to_ascii_lowercase)
        .ok_or_else(|| {
            UserError::new(
                codes::OUT_OF_RANGE,
                format!("--vnet-subnet-id {id:?} has no /virtualNetworks/NAME/ in it"),
                "use --vnet NAME",
            )
        })
}
