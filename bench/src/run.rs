//! `weft-bench run`: everything, one after the other, with what can't be measured here named at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::competitor::{self, Competitor};
use crate::lab::{Lab, TRANSPORTS};
use crate::netns::Underlay;
use crate::report::{Meta, Report};
use crate::{datapath, interrupt, place, plugins, print};

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
    /// Pods attached and detached one after the other
    #[arg(long, default_value_t = 100)]
    cycles: usize,
    /// Pods at once on one node
    #[arg(long, default_value_t = 250)]
    pods: usize,
    /// Leave out the datapath or the attaching of pods
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
    /// Many pods at once in the lab, memory, sizes
    Footprint,
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

    let mut report = Report {
        meta: Meta {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: place::cpus()?.len(),
            rounds: args.rounds,
            seconds: args.seconds,
            realtime: place::realtime_permitted(),
            load: [load_average()?; 2],
            competitors: Vec::new(),
        },
        samples: Vec::new(),
        cni: Vec::new(),
        weft: None,
        skipped: Vec::new(),
    };
    if args.weft.is_none() {
        report.skipped.push("everything of Weft: no --weft given".into());
    }
    let wanted = |part: Part| !args.without.contains(&part);
    if wanted(Part::Datapath) {
        measure_datapath(args, &out, &mut report)?;
    }
    if wanted(Part::Cni) {
        measure_cni(args, &out, &mut report)?;
    }
    if wanted(Part::Footprint)
        && let Some(weft) = &args.weft
    {
        print::note(&format!("{} pods on one node of a lab cluster", args.pods));
        report.weft = Some(Lab::create(weft, &out, "fill", 1)?.footprint(args.pods)?);
    }
    interrupt::check()?;
    report.meta.load[1] = load_average()?;
    write(&report, &out)
}

fn measure_datapath(args: &Args, out: &Path, report: &mut Report) -> Result<()> {
    let underlay = Underlay::create()?;
    let mut competitors: Vec<Competitor> = vec![competitor::node(&underlay)?, competitor::bridge(&underlay)?];
    let mut labs = Vec::new();
    if let Some(weft) = &args.weft {
        for (transport, name) in TRANSPORTS {
            let lab = Lab::create_with(weft, out, transport, 2, transport)?;
            competitors.push(lab.competitor(name)?);
            labs.push(lab);
        }
    }
    report.meta.competitors = competitors
        .iter()
        .map(|c| (c.name.to_owned(), c.about.clone()))
        .collect();
    report.samples = datapath::measure(&competitors, args.rounds, args.seconds)?;
    let held: usize = competitors.iter().map(|c| c.namespaces.len()).sum();
    print::note(&format!("removing {held} namespaces"));
    Ok(())
}

fn measure_cni(args: &Args, out: &Path, report: &mut Report) -> Result<()> {
    match plugins::find(out) {
        Ok((dir, version)) => {
            print::note("attaching pods by bridge + host-local");
            report
                .cni
                .push(plugins::measure(&dir, &version, out, args.cycles, args.pods)?);
        }
        Err(reason) => report.skipped.push(reason),
    }
    if let Some(weft) = &args.weft {
        print::note("attaching pods by weft-cni");
        report
            .cni
            .push(Lab::create(weft, out, "cni", 1)?.latency(args.cycles, args.pods)?);
    }
    Ok(())
}

fn write(report: &Report, out: &Path) -> Result<()> {
    let tables = report.tables();
    for (name, text) in [
        ("report.md", tables.clone()),
        ("report.json", serde_json::to_string_pretty(report)?),
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
