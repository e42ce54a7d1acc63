//! `weft-bench scale`: the real operator and real agents on a real control plane with thousands of Nodes and Pods that
//! no kubelet stands behind. docs/scale.md says what the figures mean.

mod agent;
mod cluster;
pub(crate) mod objects;
mod plane;
mod report;
mod requests;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::agent::{Agent, Machine, Traffic, UNDERLAY_BITS};
use self::cluster::{Cluster, Setting};
use self::objects::Life;
use self::plane::{AGENT, OPERATOR, Programs};
use self::report::{Churn, Join, Meta, Recovery, Report, Start};
use crate::netns::{self, Underlay};
use crate::{interrupt, print, run};

/// The control plane's address, and the operator's.
const PLANE: Ipv4Addr = Ipv4Addr::new(10, 225, 255, 1);
const CONTROLLERS: Ipv4Addr = Ipv4Addr::new(10, 225, 255, 2);
/// Blocks of /24 and of /26 for 5,000 nodes.
const POOL_24: (&str, u8) = ("10.32.0.0/11", 24);
const POOL_26: (&str, u8) = ("10.64.0.0/13", 26);
/// How often an agent is started per size.
const STARTS: usize = 3;
/// Longest time for a thing that takes moments.
const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of `weft-bench scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The `weft` binary
    #[arg(long)]
    weft: PathBuf,
    /// Directory with `etcd` and `kube-apiserver`
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// Directory for the report, logs and etcd's data
    #[arg(long)]
    out: PathBuf,
    /// Node objects; at most 5,000, what the pools hold
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(50..=5000))]
    nodes: u32,
    /// Pod objects
    #[arg(long, default_value_t = 200_000)]
    pods: u32,
    /// Agents that run while nodes join and go
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    agents: u32,
    /// Nodes that join one after the other
    #[arg(long, default_value_t = 20)]
    joins: u32,
    /// Seconds of idling, and of replacing 1 % of the nodes a minute
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Keep logs and etcd's data
    #[arg(long)]
    keep: bool,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the measurements make network namespaces and need root\n  next: cargo xtask scale, as root");
    }
    let programs = Programs::find(&args.programs).map_err(anyhow::Error::msg)?;
    interrupt::install()?;
    fs::create_dir_all(&args.out).with_context(|| format!("create {}", args.out.display()))?;
    let out = args
        .out
        .canonicalize()
        .with_context(|| format!("find {}", args.out.display()))?;
    let scratch = out.join(format!("scale-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    let mut report = Report::default();
    let measured = measure(args, &programs, &scratch, &mut report);
    if args.keep || measured.is_err() {
        print::note(&format!("logs are in {}", scratch.display()));
    } else {
        fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    }
    // What was found before a failure is told all the same, and that it is not all.
    report.meta.complete = measured.is_ok();
    let tables = report.tables();
    for (name, text) in [
        ("scale.md", tables.clone()),
        ("scale.json", serde_json::to_string_pretty(&report)?),
    ] {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    print::line(&tables);
    print::note(&format!("written to {}", out.display()));
    measured
}

fn measure(args: &Args, programs: &Programs, scratch: &Path, report: &mut Report) -> Result<()> {
    let underlay = Underlay::create()?;
    let plane = underlay.node("cp", PLANE, UNDERLAY_BITS)?;
    let operator = underlay.node("op", CONTROLLERS, UNDERLAY_BITS)?;
    netns::enter(plane.name())?;
    let weft = args
        .weft
        .canonicalize()
        .with_context(|| format!("find {}", args.weft.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let setting = Setting {
        runtime: &runtime,
        programs,
        weft,
        plane: &plane,
        operator: &operator,
        address: PLANE,
    };
    let machines: Vec<Machine> = (0..args.agents)
        .map(|number| Machine::create(&underlay, number, scratch))
        .collect::<Result<_>>()?;
    report.meta = Meta {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: crate::place::cpus()?.len(),
        programs: programs.versions()?,
        weft: crate::netns::read(std::process::Command::new(&setting.weft).arg("--version"))?
            .trim()
            .to_owned(),
        nodes: args.nodes,
        pods: args.pods,
        load: [run::load_average()?; 2],
        complete: false,
    };
    sizes(args, &setting, &machines, scratch, report)?;
    small_blocks(args, &setting, scratch, report)?;
    full(args, &setting, &machines, scratch, report)?;
    report.meta.load[1] = run::load_average()?;
    Ok(())
}

/// What a start costs an agent in small clusters.
fn sizes(
    args: &Args,
    setting: &Setting<'_>,
    machines: &[Machine],
    scratch: &Path,
    report: &mut Report,
) -> Result<()> {
    let mut cluster = Cluster::start(setting, "sizes", scratch, POOL_24)?;
    cluster.start_operator()?;
    let mut made = 0;
    for nodes in [2, args.nodes / 5] {
        print::note(&format!("{nodes} nodes"));
        cluster.block_on(objects::create_nodes(&cluster.client, made..nodes))?;
        made = nodes;
        cluster.wait_published(nodes, Instant::now())?;
        starts(&mut cluster, &machines[0], nodes, 0, report)?;
    }
    Ok(())
}

/// How long 5,000 blocks of /26 take.
fn small_blocks(args: &Args, setting: &Setting<'_>, scratch: &Path, report: &mut Report) -> Result<()> {
    print::note(&format!("{} nodes, blocks of /26", args.nodes));
    let mut cluster = Cluster::start(setting, "blocks", scratch, POOL_26)?;
    cluster.block_on(objects::create_nodes(&cluster.client, 0..args.nodes))?;
    report
        .hand_outs
        .push(cluster.hand_out("/26 from a /13", args.nodes)?);
    cluster.blocks().map(drop)
}

fn full(
    args: &Args,
    setting: &Setting<'_>,
    machines: &[Machine],
    scratch: &Path,
    report: &mut Report,
) -> Result<()> {
    print::note(&format!("{} nodes, blocks of /24", args.nodes));
    let mut cluster = Cluster::start(setting, "full", scratch, POOL_24)?;
    cluster.block_on(objects::create_nodes(&cluster.client, 0..args.nodes))?;
    report
        .hand_outs
        .push(cluster.hand_out("/24 from a /11", args.nodes)?);
    starts(&mut cluster, &machines[0], args.nodes, 0, report)?;

    let blocks = cluster.blocks()?;
    let kubeconfig = cluster.plane.kubeconfig(AGENT)?;
    let mut agents = Vec::new();
    for machine in machines {
        let mut agent = machine.start(&setting.weft, &kubeconfig, true)?;
        agent.wait_full(machine.address(), &blocks)?;
        agents.push(agent);
    }
    let mut stage = Stage {
        args,
        cluster,
        machines,
        agents,
    };
    let idle = Life {
        nodes: args.nodes,
        replaced_per_minute: 0,
        replace: (0, 0),
    };
    print::note("idle");
    report.idle = Some(stage.live(idle)?);
    print::note(&format!("{} Pods elsewhere", args.pods));
    report.pods = Some(stage.pods()?);
    // The first machine makes room for agents that start.
    stage.agents.remove(0);
    starts(&mut stage.cluster, &machines[0], args.nodes, args.pods, report)?;
    let mut again = machines[0].start(&setting.weft, &kubeconfig, true)?;
    let blocks = stage.cluster.blocks()?;
    again.wait_full(machines[0].address(), &blocks)?;
    stage.agents.insert(0, again);

    print::note("nodes join");
    report.joins = stage.joins()?;
    print::note("1 % of the nodes replaced a minute");
    let last = args.nodes + args.joins;
    let churn = Life {
        nodes: args.nodes,
        replaced_per_minute: args.nodes / 100,
        replace: (args.agents, last),
    };
    let churned = stage.live(churn)?;
    let last = last + churned.replaced;
    report.churn = Some(churned);
    stage.verify(Duration::from_secs(60))?;

    print::note("sizes");
    report.stored = stage.cluster.stored()?;
    report.database = stage.cluster.database()?;
    report.etcd = stage.cluster.plane.etcd.usage()?;
    report.apiserver = stage.cluster.plane.apiserver.usage()?;
    for path in [
        "/apis/weft.dev/v1alpha1/nodeslices",
        "/apis/weft.dev/v1alpha1/nodenetworks",
        "/api/v1/nodes",
    ] {
        let bytes = stage.cluster.answer_size(path)?;
        report.answers.push((path.to_owned(), bytes));
    }
    print::note("restarts");
    report.operator_restart = Some(stage.restart_operator(last, false)?);
    report.operator_crash = Some(stage.restart_operator(last + 1, true)?);
    report.apiserver_crash = Some(stage.restart_apiserver(last + 2)?);
    stage.verify(Duration::from_secs(60))?;
    Ok(())
}

/// Starts an agent several times, as on a new node, and once more as one that was there before.
fn starts(
    cluster: &mut Cluster<'_>,
    machine: &Machine,
    nodes: u32,
    pods: u32,
    report: &mut Report,
) -> Result<()> {
    let blocks = cluster.blocks()?;
    let kubeconfig = cluster.plane.kubeconfig(AGENT)?;
    for round in 0..=STARTS {
        let anew = round < STARTS;
        cluster.requests()?;
        let before = machine.traffic()?;
        let mut agent = machine.start(&cluster.setting.weft, &kubeconfig, anew)?;
        let full_seconds = agent.wait_full(machine.address(), &blocks)?;
        let at_full = agent.usage()?;
        // The lists are behind it, and what it says about itself.
        std::thread::sleep(Duration::from_secs(5));
        let mut requests = cluster.requests()?;
        report.starts.push(Start {
            nodes,
            pods,
            anew,
            full_seconds,
            cpu_seconds_at_full: at_full.cpu_seconds,
            usage: agent.usage()?,
            traffic: machine.traffic()?.since(before),
            requests: requests.remove(AGENT).unwrap_or_default(),
        });
        agent.process.stop()?;
    }
    Ok(())
}

/// A full cluster with agents that run.
struct Stage<'a> {
    args: &'a Args,
    cluster: Cluster<'a>,
    machines: &'a [Machine],
    agents: Vec<Agent>,
}

// === impl Stage ===

impl Stage<'_> {
    /// That every agent knows all nodes and blocks, and nothing else, within some time.
    fn verify(&mut self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let verified = self.verify_now();
            match verified {
                Err(error) if start.elapsed() > patience => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
                Ok(()) => return Ok(()),
            }
            interrupt::check()?;
        }
    }

    fn verify_now(&mut self) -> Result<()> {
        let blocks = self.cluster.blocks()?;
        for (machine, agent) in self.machines.iter().zip(&mut self.agents) {
            agent.usage()?;
            agent.maps()?.verify(machine.address(), &blocks)?;
        }
        Ok(())
    }

    fn traffic(&self) -> Result<Vec<Traffic>> {
        self.machines.iter().map(Machine::traffic).collect()
    }

    /// Lets the cluster live and measures what that takes.
    fn live(&mut self, life: Life) -> Result<Churn> {
        let time = Duration::from_secs(self.args.seconds);
        self.during(|stage| stage.cluster.block_on(life.live(&stage.cluster.client, time)))
    }

    /// Makes the Pods.
    fn pods(&mut self) -> Result<Churn> {
        let (pods, nodes) = (self.args.pods, self.args.nodes);
        self.during(|stage| {
            let made = objects::create_pods(&stage.cluster.client, 0..pods, nodes);
            stage.cluster.block_on(made).map(|()| 0)
        })
    }

    fn during(&mut self, act: impl FnOnce(&Self) -> Result<u32>) -> Result<Churn> {
        self.cluster.requests()?;
        let events = |stage: &Self, part: &str| {
            let name = format!("apiserver_watch_events_sizes_{part}");
            stage.cluster.metric(&name, &["resource=\"nodeslices\""])
        };
        let (count, sum) = (events(self, "count")?, events(self, "sum")?);
        let traffic = self.traffic()?;
        let operator = self.cluster.operator_usage()?;
        let agents = self
            .agents
            .iter_mut()
            .map(Agent::usage)
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let replaced = act(self)?;
        let seconds = start.elapsed().as_secs_f64();
        let operator_after = self.cluster.operator_usage()?;
        let agents_after = self
            .agents
            .iter_mut()
            .map(Agent::usage)
            .collect::<Result<Vec<_>>>()?;
        let traffic_after = self.traffic()?;
        let mut requests = self.cluster.requests()?;
        // Every agent watches the slices, and so does the operator.
        let watchers = (self.agents.len() + 1) as f64;
        Ok(Churn {
            seconds,
            replaced,
            agent_cpu_seconds: agents
                .iter()
                .zip(&agents_after)
                .map(|(before, after)| after.cpu_seconds - before.cpu_seconds)
                .collect(),
            agent_usage: agents_after,
            traffic: traffic
                .iter()
                .zip(traffic_after)
                .map(|(before, after)| after.since(*before))
                .collect(),
            operator_cpu_seconds: operator_after.cpu_seconds - operator.cpu_seconds,
            operator_usage: operator_after,
            slice_events_per_watcher: (events(self, "count")? - count) / watchers,
            slice_event_bytes_per_watcher: (events(self, "sum")? - sum) / watchers,
            operator_requests: requests.remove(OPERATOR).unwrap_or_default(),
            agent_requests: requests.remove(AGENT).unwrap_or_default(),
        })
    }

    /// Lets nodes join one at a time.
    fn joins(&mut self) -> Result<Vec<Join>> {
        (0..self.args.joins)
            .map(|index| {
                interrupt::check()?;
                // Not always at the same moment of anybody's period.
                std::thread::sleep(Duration::from_millis(500 + u64::from(index) * 137 % 1000));
                self.join(self.args.nodes + index)
            })
            .collect()
    }

    fn join(&self, number: u32) -> Result<Join> {
        let address = objects::node_address(number);
        let maps = self.agents.iter().map(Agent::maps).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let seconds = std::thread::scope(|scope| {
            let waits: Vec<_> = maps
                .iter()
                .map(|maps| {
                    scope.spawn(move || {
                        wait_for(&format!("node {address} in the maps"), PATIENCE, || {
                            Ok(maps.has_node(address)?.then(|| start.elapsed().as_secs_f64()))
                        })
                    })
                })
                .collect();
            self.cluster.block_on(objects::create(
                &self.cluster.client,
                "/api/v1/nodes",
                objects::node(number),
            ))?;
            waits
                .into_iter()
                .map(|wait| {
                    wait.join()
                        .map_err(|_| anyhow::anyhow!("a waiting thread panicked"))?
                })
                .collect::<Result<Vec<f64>>>()
        })?;
        Ok(Join { seconds })
    }

    /// Ends the operator, or kills it as a crash does, makes a Node, and starts the operator again.
    fn restart_operator(&mut self, number: u32, crash: bool) -> Result<Recovery> {
        self.cluster.stop_operator(crash)?;
        self.cluster.block_on(objects::create(
            &self.cluster.client,
            "/api/v1/nodes",
            objects::node(number),
        ))?;
        self.cluster.requests()?;
        let start = Instant::now();
        self.cluster.start_operator()?;
        self.cluster.wait_block(number)?;
        let seconds = start.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(5));
        self.recovered(seconds, Vec::new())
    }

    /// Ends the API server, starts it again, and lets a node join.
    fn restart_apiserver(&mut self, number: u32) -> Result<Recovery> {
        let before = self.traffic()?;
        let start = Instant::now();
        self.cluster.plane.restart_apiserver()?;
        self.cluster.client = self.cluster.plane.client(self.cluster.setting.runtime)?;
        let ready = start.elapsed().as_secs_f64();
        // From here on the control plane answers; what follows is the watchers' doing.
        let join = self.join(number)?;
        let worst = join.seconds.iter().copied().fold(0.0, f64::max);
        print::note(&format!(
            "API server ready after {ready:.1} s, a node known {worst:.1} s later"
        ));
        std::thread::sleep(Duration::from_secs(5));
        let traffic = self
            .traffic()?
            .into_iter()
            .zip(before)
            .map(|(after, before)| after.since(before));
        let traffic = traffic.collect();
        self.recovered(worst, traffic)
    }

    fn recovered(&mut self, seconds: f64, traffic: Vec<Traffic>) -> Result<Recovery> {
        let mut requests = self.cluster.requests()?;
        Ok(Recovery {
            seconds,
            traffic,
            operator_usage: self.cluster.operator_usage()?,
            operator_requests: requests.remove(OPERATOR).unwrap_or_default(),
            agent_requests: requests.remove(AGENT).unwrap_or_default(),
        })
    }
}

/// Waits for `done`, asking again and again.
fn wait_for<T>(what: &str, patience: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = done()? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("waited {patience:?} for {what}");
        }
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(3));
    }
}
