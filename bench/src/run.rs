//! `weft-bench run`: everything, one after the other, with what can't be measured here named at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::agents::Effort;
use crate::cni::Amount;
use crate::competitor::{self, Competitor};
use crate::lab::{Lab, Transport};
use crate::netns::Underlay;
use crate::peers::{self, Kind, Peer};
use crate::report::{Meta, Report};
use crate::{datapath, html, interrupt, modules, place, plugins, print};

/// Rounds of ADD and DEL: the fewest that show a spread, since each has as many at a time as the others.
const CNI_ROUNDS: usize = 3;

/// Arguments of `weft-bench run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The `weft` binary; without it, only the alternatives are measured
    #[arg(long)]
    weft: Option<PathBuf>,
    /// Directory for the report and for what is built
    #[arg(long)]
    out: PathBuf,
    /// Rounds of load
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each test
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Weft's ways to other nodes, a competitor each
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["device", "direct"])]
    transports: Vec<Transport>,
    /// Other projects' networks, run for real; the first time they are built, which takes minutes
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Kind>,
    /// Where their programs are kept [default: ~/.cache/weft/bench]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    amount: Amount,
    /// Nodes of the clusters in which Weft's agents know many
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(3..=5000))]
    known_nodes: u32,
    #[command(flatten)]
    effort: Effort,
    /// Leave out parts
    #[arg(long, value_enum, value_delimiter = ',')]
    without: Vec<Part>,
}

/// What can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Latency, streams and packet rates
    Datapath,
    /// ADD and DEL
    Cni,
    /// Many pods at once in the lab, agents, sizes
    Footprint,
    /// Clusters of many nodes
    Crowd,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the measurements make network namespaces and need root\n  next: cargo xtask bench, as root");
    }
    interrupt::install()?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("create {}", args.out.display()))?;
    let out = args
        .out
        .canonicalize()
        .with_context(|| format!("find {}", args.out.display()))?;

    let wanted = |part: Part| !args.without.contains(&part);
    let mut report = Report {
        meta: Meta {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: place::cpus()?.len(),
            rounds: args.rounds,
            seconds: args.seconds,
            realtime: place::realtime_permitted(),
            load: [load_average()?; 2],
            noise: None,
            known_nodes: wanted(Part::Crowd).then_some(args.known_nodes),
            competitors: Vec::new(),
        },
        samples: Vec::new(),
        cni: Vec::new(),
        agents: Vec::new(),
        weft: None,
        skipped: Vec::new(),
    };
    if args.weft.is_none() {
        report.skipped.push("everything of Weft: no --weft given".into());
    }
    let cache = match &args.cache {
        Some(cache) => cache.clone(),
        None => modules::default_cache()?,
    };
    let underlay = Underlay::with_outside()?;
    let peers = peers::start(&args.peers, &cache, &out, &underlay)?;
    if wanted(Part::Datapath) {
        measure_datapath(args, &out, &underlay, &peers, &mut report)?;
    }
    let agents: Vec<_> = peers.iter().filter_map(|peer| peer.agent.clone()).collect();
    if wanted(Part::Footprint) && !agents.is_empty() {
        print::note("the peers' agents with nothing to do");
        report.agents = args.effort.idle(&agents, peers::PODS, peers::NODES)?;
    }
    if wanted(Part::Cni) {
        measure_cni(args, &out, &cache, &peers, &mut report)?;
    }
    drop(peers);
    if wanted(Part::Footprint)
        && let Some(weft) = &args.weft
    {
        let pods = args.amount.pods;
        print::note(&format!(
            "{pods} pods on one node of a lab cluster, and its agent"
        ));
        let lab = Lab::create(weft, &out, "fill", 1, Transport::Direct)?;
        let known = report.meta.known_nodes.unwrap_or(1);
        report.weft = Some(lab.footprint(pods, known, args.effort)?);
    }
    interrupt::check()?;
    report.meta.load[1] = load_average()?;
    write(&report, &out)
}

fn measure_datapath(
    args: &Args,
    out: &Path,
    underlay: &Underlay,
    peers: &[Peer],
    report: &mut Report,
) -> Result<()> {
    let own = [competitor::node(underlay)?, competitor::bridge(underlay)?];
    let mut ours = Vec::new();
    let mut labs = Vec::new();
    if let Some(weft) = &args.weft {
        for &transport in &args.transports {
            interrupt::check()?;
            let lab = Lab::create(weft, out, "path", 2, transport)?;
            let mut competitor = lab.competitor()?;
            labs.push(lab);
            if let Some(known) = report.meta.known_nodes {
                print::note(&format!("a cluster of {known} nodes for {}", competitor.name));
                let crowded = Lab::create(weft, out, "many", 2, transport)?;
                crowded.crowd(known)?;
                competitor.crowded = Some(crowded.cross()?);
                labs.push(crowded);
            }
            ours.push(competitor);
        }
    }
    let competitors: Vec<&Competitor> = own
        .iter()
        .chain(peers.iter().map(|peer| &peer.competitor))
        .chain(&ours)
        .collect();
    report.meta.competitors = competitors
        .iter()
        .map(|c| (c.name.to_owned(), c.about.clone()))
        .collect();
    let (noise, samples) = datapath::measure(&competitors, args.rounds, args.seconds)?;
    report.meta.noise = Some(noise);
    report.samples = samples;
    print::note(&format!("removing {} competitors", competitors.len()));
    Ok(())
}

/// Attaches pods by one plugin after the other, and so in each round.
fn measure_cni(args: &Args, out: &Path, cache: &Path, peers: &[Peer], report: &mut Report) -> Result<()> {
    let reference = plugins::find(cache);
    if let Err(reason) = &reference {
        report.skipped.push(reason.clone());
    }
    let lab = match &args.weft {
        Some(weft) => Some(Lab::create(weft, out, "cni", 1, Transport::Direct)?),
        None => None,
    };
    let in_memory = is_in_memory(out)?;
    if lab.is_some() && in_memory {
        report.skipped.push(format!(
            "ADD and DEL with the node's state on a disk: {} is in memory; --out names a directory on one",
            out.display()
        ));
    }
    for round in 0..CNI_ROUNDS {
        interrupt::check()?;
        print::note(&format!("attaching pods, round {} of {CNI_ROUNDS}", round + 1));
        let amount = args.amount.of_round(round, CNI_ROUNDS);
        if let Ok((dir, version)) = &reference {
            report.cni.push(plugins::measure(dir, version, out, &amount)?);
        }
        for peer in peers {
            report.cni.push(peer.latency(&amount)?);
        }
        if let Some(lab) = &lab {
            report.cni.push(lab.latency(&amount)?);
            if !in_memory {
                report.cni.push(lab.latency_on(out, &amount)?);
            }
        }
    }
    Ok(())
}

/// Whether files there are gone when the machine is switched off (`f_type` of statfs(2)).
fn is_in_memory(directory: &Path) -> Result<bool> {
    const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
    let stat = rustix::fs::statfs(directory).with_context(|| format!("examine {}", directory.display()))?;
    Ok(IN_MEMORY.contains(&(stat.f_type as u32)))
}

fn write(report: &Report, out: &Path) -> Result<()> {
    let tables = report.tables();
    for (name, text) in [
        ("report.md", tables.clone()),
        ("report.json", serde_json::to_string_pretty(report)?),
        ("report.html", html::page(report)),
    ] {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    print::line(&tables);
    print::note(&format!("written to {}", out.display()));
    Ok(())
}

/// Runnable processes, averaged over a minute.
pub(crate) fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").context("read the load")?;
    text.split(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .context("parse the load")
}
