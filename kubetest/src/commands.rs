//! The commands of `cargo xtask kube`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use weft_model::TransportChoice;
use weft_model::checks::{Checked, Report, Verdict};

use crate::cache::Cache;
use crate::node;
use crate::progress::Progress;
use crate::rehearsal::{Rehearsal, Tools};
use crate::state::{Cluster, Cni, Config, Ipam, Proxy};
use crate::{check, cluster, logs, preflight, remove};

/// A command about clusters.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a cluster: control plane, nodes, Weft, DNS
    Up(Up),
    /// Remove a cluster and everything of it
    Down {
        /// Names of clusters
        #[arg(default_value = DEFAULT)]
        names: Vec<String>,
    },
    /// Try with real pods what a cluster's network has to do
    Check {
        /// Name of the cluster
        #[arg(default_value = DEFAULT)]
        name: String,
        /// Another cluster of the VNet, with the same pod addresses
        #[arg(long, value_name = "NAME")]
        beside: Option<String>,
        /// Only checks whose name contains this
        #[arg(long = "test", value_name = "NAME")]
        tests: Vec<String>,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        /// Write that document to a file
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Print the checks' names and run none
        #[arg(long)]
        list: bool,
    },
    /// Walk through a procedure of the documentation, on a cluster made for it, while pods talk
    Rehearse {
        /// The procedure
        #[arg(value_enum)]
        rehearsal: Rehearsal,
        /// Name of the cluster
        #[arg(default_value = DEFAULT)]
        name: String,
        /// The program weft
        #[arg(long, value_name = "FILE", default_value = "target/dist/debug/weft")]
        weft: PathBuf,
        /// Directory of Weft's manifests
        #[arg(long, value_name = "DIR", default_value = "deploy")]
        weft_manifests: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
        /// Write that document to a file
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Print the steps' names and take none
        #[arg(long)]
        list: bool,
    },
    /// List the clusters of this machine
    List,
    /// Print where the logs of a cluster are, or copy them
    Logs {
        /// Name of the cluster
        #[arg(default_value = DEFAULT)]
        name: String,
        /// Copy them to this directory, which is emptied first
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
    /// Print the path of a cluster's kubeconfig
    Kubeconfig {
        /// Name of the cluster
        #[arg(default_value = DEFAULT)]
        name: String,
    },
    /// Run kubectl on a cluster
    Kubectl {
        /// Name of the cluster
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a command in all namespaces of a node
    NodeExec {
        /// Name of the node
        node: String,
        /// Name of the cluster
        #[arg(long, default_value = DEFAULT)]
        name: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Add nodes
    NodeAdd {
        /// Name of the cluster
        #[arg(default_value = DEFAULT)]
        name: String,
        /// How many
        #[arg(long, default_value_t = 1)]
        count: usize,
    },
    /// Remove a node and its object
    NodeRemove {
        /// Name of the node
        node: String,
        /// Name of the cluster
        #[arg(long, default_value = DEFAULT)]
        name: String,
    },
    /// Cut a node's power and start it again: all processes and links go, its disk stays
    NodeReboot {
        /// Name of the node
        node: String,
        /// Name of the cluster
        #[arg(long, default_value = DEFAULT)]
        name: String,
    },
    /// Say what this machine lacks for a cluster
    Preflight {
        /// How many nodes it is to have
        #[arg(default_value_t = 3)]
        nodes: usize,
    },
    #[command(hide = true)]
    NodeLaunch { dir: PathBuf },
    #[command(hide = true)]
    NodeInit { dir: PathBuf },
}

/// Flags of `up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Name of the cluster
    #[arg(default_value = DEFAULT)]
    name: String,
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Who implements Services
    #[arg(long, value_enum, default_value_t = Proxy::Nftables)]
    proxy: Proxy,
    /// The virtual network; clusters that name the same share it
    #[arg(long, default_value = "vnet")]
    vnet: String,
    /// The pods' network
    #[arg(long, value_enum, default_value_t = Cni::Weft)]
    cni: Cni,
    /// Who gives a node its pod addresses
    #[arg(long, value_enum, default_value_t = Ipam::Pool)]
    ipam: Ipam,
    /// How Weft's packets get to other nodes
    #[arg(long, value_name = "auto|direct|device", default_value_t)]
    transport: TransportChoice,
    /// Range of the pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: Ipv4Net,
    /// Range of the Services
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: Ipv4Net,
    /// Leave CoreDNS out
    #[arg(long)]
    no_dns: bool,
    /// Leave what was made when it fails
    #[arg(long)]
    keep: bool,
    /// Built programs and images
    #[arg(long, env = "WEFT_KUBE_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Archive of Weft's image
    #[arg(long, value_name = "FILE", default_value = "target/dist/debug/weft-image.tar")]
    weft_image: PathBuf,
    /// Directory of Weft's manifests
    #[arg(long, value_name = "DIR", default_value = "deploy")]
    weft_manifests: PathBuf,
}

/// Name of the cluster where none is given.
const DEFAULT: &str = "dev";

/// Runs a command.
///
/// # Errors
/// What it says.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(up) => runtime()?.block_on(up.run()),
        Command::Down { names } => down(&names),
        Command::Check { list: true, .. } => {
            for name in check::names() {
                print(name);
            }
            Ok(())
        }
        Command::Check {
            name,
            beside,
            tests,
            json,
            report,
            ..
        } => check(&name, beside.as_deref(), &tests, json, report.as_deref()),
        Command::Rehearse {
            rehearsal,
            list: true,
            ..
        } => {
            for name in rehearsal.steps() {
                print(name);
            }
            Ok(())
        }
        Command::Rehearse {
            rehearsal,
            name,
            weft,
            weft_manifests,
            json,
            report,
            ..
        } => {
            let absolute =
                |path: &Path| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
            let tools = Tools {
                weft: absolute(&weft)?,
                manifests: absolute(&weft_manifests)?,
            };
            rehearse(rehearsal, &name, &tools, json, report.as_deref())
        }
        Command::Logs { name, output } => show_logs(&Cluster::load(&name)?, output.as_deref()),
        Command::Preflight { nodes } => preflight::check(nodes),
        Command::List => {
            list();
            Ok(())
        }
        Command::Kubeconfig { name } => {
            print(&Cluster::load(&name)?.kubeconfig().display().to_string());
            Ok(())
        }
        Command::Kubectl { name, args } => {
            let cluster = Cluster::load(&name)?;
            let cache = Cache::open(&cluster.config.cache)?;
            let mut command = std::process::Command::new(cache.program("kubectl"));
            command.env("KUBECONFIG", cluster.kubeconfig()).args(args);
            become_program(command)
        }
        Command::NodeExec { node, name, command } => {
            let cluster = Cluster::load(&name)?;
            let cache = Cache::open(&cluster.config.cache)?;
            become_program(node::exec(&cluster, &cache, &node, &command)?)
        }
        Command::NodeAdd { name, count } => {
            runtime()?.block_on(cluster::add_nodes(&name, count, Progress::start()))
        }
        Command::NodeRemove { node, name } => runtime()?.block_on(cluster::remove_node(&name, &node)),
        Command::NodeReboot { node, name } => cluster::reboot_node(&name, &node),
        Command::NodeLaunch { dir } => match node::init::launch(&dir)? {},
        Command::NodeInit { dir } => match node::init::run(&dir)? {},
    }
}

// === impl Up ===

impl Up {
    async fn run(self) -> Result<()> {
        let progress = Progress::start();
        let name = self.name.clone();
        let (nodes, keep) = (self.nodes, self.keep);
        let config = self.config()?;
        let made = tokio::select! {
            made = cluster::up(&name, config, nodes, keep, progress) => made?,
            () = interrupted() => {
                progress.say("interrupted: removing what was made");
                remove::remove(&name)?;
                anyhow::bail!("interrupted");
            }
        };
        progress.say(&format!("cluster {name} is there"));
        print(&format!(
            "export KUBECONFIG={} PATH={}:$PATH",
            made.kubeconfig().display(),
            made.config.cache.join("bin").display()
        ));
        Ok(())
    }

    fn config(self) -> Result<Config> {
        let absolute =
            |path: &Path| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
        let weft = self.cni == Cni::Weft;
        let (image, manifests) = (absolute(&self.weft_image)?, absolute(&self.weft_manifests)?);
        if weft && !image.exists() {
            anyhow::bail!(
                "{} is missing\n  next: cargo xtask image --debug",
                image.display()
            );
        }
        Ok(Config {
            vnet: self.vnet,
            proxy: self.proxy,
            cni: self.cni,
            ipam: self.ipam,
            transport: self.transport,
            pod_cidr: self.pod_cidr.trunc(),
            service_cidr: self.service_cidr.trunc(),
            dns: !self.no_dns,
            cache: match self.cache {
                Some(dir) => absolute(&dir)?,
                None => crate::build::default_dir()?,
            },
            // On nodes of another network, too: Weft may come later.
            weft_image: Some(image).filter(|image| image.exists()),
            weft_manifests: weft.then_some(manifests),
        })
    }
}

fn down(names: &[String]) -> Result<()> {
    for name in names {
        let progress = Progress::start();
        if remove::remove(name)? {
            progress.say(&format!("cluster {name} is gone"));
        } else {
            progress.say(&format!("there is no cluster {name}"));
        }
    }
    Ok(())
}

fn show_logs(cluster: &Cluster, output: Option<&Path>) -> Result<()> {
    if let Some(output) = output {
        return logs::copy(cluster, output);
    }
    for (name, dir) in logs::directories(cluster) {
        print(&format!("{name:<14} {}", dir.display()));
    }
    Ok(())
}

fn check(name: &str, beside: Option<&str>, tests: &[String], json: bool, file: Option<&Path>) -> Result<()> {
    let cluster = Cluster::load(name)?;
    let beside = beside.map(Cluster::load).transpose()?;
    let cache = Cache::open(&cluster.config.cache)?;
    let report = check::run(&cluster, beside.as_ref(), &cache, tests, |result| {
        tell(result, json);
    })?;
    finish(&report, json, file)
}

fn rehearse(rehearsal: Rehearsal, name: &str, tools: &Tools, json: bool, file: Option<&Path>) -> Result<()> {
    let cluster = Cluster::load(name)?;
    if !rehearsal.suits(&cluster.config) {
        let (cni, ipam) = rehearsal.begins_with();
        let value = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        anyhow::bail!(
            "cluster {name} was made for something else\n  next: cargo xtask kube up NAME --nodes {} --cni {} --ipam {} --no-dns",
            rehearsal.nodes(),
            value(cni.to_possible_value()),
            value(ipam.to_possible_value())
        );
    }
    let cache = Cache::open(&cluster.config.cache)?;
    let report = rehearsal.run(&cluster, &cache, tools, |result| tell(result, json))?;
    finish(&report, json, file)
}

/// Prints what came of a check.
fn tell(result: &Checked, json: bool) {
    if json {
        return;
    }
    let mark = match result.verdict {
        Verdict::Passed => "ok",
        Verdict::Failed => "!!",
        Verdict::Skipped => "--",
    };
    print(&format!("{mark:>4}  {:<24} {}", result.name, result.value));
}

fn finish(report: &Report, json: bool, file: Option<&Path>) -> Result<()> {
    let document = serde_json::to_string_pretty(report)?;
    if let Some(file) = file {
        std::fs::write(file, &document).with_context(|| format!("write {}", file.display()))?;
    }
    if json {
        print(&document);
    } else {
        print(&format!(
            "\n{} passed, {} failed, {} skipped in {:.1} s",
            report.passed,
            report.failed,
            report.skipped,
            report.duration_ms as f64 / 1000.0
        ));
    }
    if !report.ok {
        anyhow::bail!("{} of the checks failed", report.failed);
    }
    Ok(())
}

fn list() {
    for cluster in Cluster::all() {
        let running = cluster
            .nodes
            .iter()
            .filter(|node| node::first_process(&cluster, &node.name).is_some())
            .count();
        print(&format!(
            "{:<12} {running}/{} nodes  vnet {} ({})  pods {}  services {}  {}",
            cluster.name,
            cluster.nodes.len(),
            cluster.config.vnet,
            cluster.subnet,
            cluster.config.pod_cidr,
            cluster.config.service_cidr,
            cluster.server(),
        ));
    }
}

/// Becomes another program; its exit status is this one's.
fn become_program(mut command: std::process::Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(error).with_context(|| format!("start {}", command.get_program().display()))
}

/// Returns when a signal asks this process to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers a signal ends the process as it ends others.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")
}

fn print(text: &str) {
    // Nobody may read any more.
    let _ = writeln!(std::io::stdout(), "{text}");
}
