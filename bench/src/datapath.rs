//! Rounds of load: in each, every competitor takes every test once, in an order that changes from round to round, so that
//! the machine's moods hit all alike. Figures to compare are ratios formed inside a round.

use std::io::{BufRead, BufReader};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::competitor::{BASE, Competitor, Path};
use crate::netns::{self, Place};
use crate::{cpu, interrupt, place, print, stats};

/// Port of the server for tests at real-time priority; the two after it are its own, too.
const EAGER_PORT: u16 = 7000;
/// Port of the server for streams. A stream at real-time priority would starve the kernel's own softirq threads.
const FAIR_PORT: u16 = 7100;
/// Clients that connect ten thousand times a second come round to a port later.
const CLIENT: &[(&str, &str)] = &[("net/ipv4/ip_local_port_range", "\"10000 65000\"")];
/// Longest time until a path carries.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which pods talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// Pods of two nodes.
    Cross,
    /// Pods of one node.
    Same,
    /// A pod, and a host that is no node and knows no pods.
    Outside,
    /// Pods of two nodes that know thousands of others.
    Crowded,
}

/// How they talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Test {
    /// Round trips of one byte, both ends on one CPU: no wake-up of another CPU hides the datapath.
    TcpRr,
    /// The same with an end on each of two CPUs, mostly the time that waking the other one takes.
    TcpRrTwoCpus,
    /// Connect, one byte each way, close; an end on each of two CPUs, as servers have it.
    TcpCrr,
    /// Small datagrams, sender and receiver on two CPUs.
    UdpPps,
    /// One stream whose packets cross the underlay at MTU size, without offloads.
    Stream,
    /// Four of them at once.
    FourStreams,
    /// One stream whose packets are merged when they arrive, as most NICs' drivers have it.
    MergedStream,
}

/// One run of a test.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) scenario: Scenario,
    pub(crate) test: Test,
    pub(crate) competitor: &'static str,
    /// All that the client said, or why it failed.
    pub(crate) detail: Value,
}

/// How quiet the machine is when nothing is measured and all competitors are up.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Noise {
    /// Share of all CPUs' time that is not idle, what a hypervisor takes included; 0 to 1.
    pub(crate) busy_share: f64,
    /// Largest by smallest of five short runs of the base's one-CPU round trips.
    pub(crate) base_spread: f64,
}

/// A server process, ended with its owner.
#[derive(Debug)]
struct Server(Child);

// === impl Scenario ===

impl Scenario {
    pub(crate) const ALL: [Self; 4] = [Self::Cross, Self::Crowded, Self::Same, Self::Outside];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Cross => "pods of two nodes",
            Self::Same => "pods of one node",
            Self::Outside => "a pod and a host outside, by SNAT",
            Self::Crowded => "pods of two nodes among thousands",
        }
    }

    fn path(self, competitor: &Competitor) -> Option<&Path> {
        match self {
            Self::Cross => Some(&competitor.cross),
            Self::Same => Some(&competitor.same),
            Self::Outside => Some(&competitor.outside),
            Self::Crowded => competitor.crowded.as_ref(),
        }
    }

    /// In which scenario a competitor has the figures that its own are set against, and which competitor that is.
    pub(crate) fn base(self, competitor: &str) -> (Self, &str) {
        match self {
            Self::Crowded => (Self::Cross, competitor),
            _ => (self, BASE),
        }
    }
}

// === impl Test ===

impl Test {
    const ALL: [Self; 7] = [
        Self::TcpRr,
        Self::TcpRrTwoCpus,
        Self::TcpCrr,
        Self::UdpPps,
        Self::Stream,
        Self::FourStreams,
        Self::MergedStream,
    ];

    fn command(self) -> &'static [&'static str] {
        match self {
            Self::TcpRr | Self::TcpRrTwoCpus => &["tcp-rr"],
            Self::TcpCrr => &["tcp-crr"],
            Self::UdpPps => &["udp-pps"],
            Self::Stream | Self::MergedStream => &["stream"],
            Self::FourStreams => &["stream", "--streams", "4"],
        }
    }

    fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::FourStreams | Self::MergedStream)
    }

    /// Whether both ends run on one CPU.
    fn one_cpu(self) -> bool {
        self == Self::TcpRr
    }

    /// On one node no packet crosses an underlay. What tells datapaths apart is measured everywhere, the rest once.
    fn fits(self, scenario: Scenario) -> bool {
        match self {
            Self::TcpRr | Self::UdpPps => true,
            // SNAT to one address and port has 64 k source ports, which connections keep for minutes after their end.
            Self::TcpCrr => scenario != Scenario::Outside,
            Self::Stream => matches!(scenario, Scenario::Cross | Scenario::Outside),
            Self::TcpRrTwoCpus | Self::FourStreams | Self::MergedStream => scenario == Scenario::Cross,
        }
    }
}

// === impl Server ===

impl Server {
    fn start(at: &Place, port: u16, cpu: usize, realtime: bool) -> Result<Self> {
        let mut command = at.command(this_program()?);
        command.args(["serve", &format!("0.0.0.0:{port}"), "--cpu", &cpu.to_string()]);
        if realtime {
            command.arg("--realtime");
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut server = Self(child.with_context(|| format!("start {}", netns::line(&command)))?);
        let stdout = server.0.stdout.take().context("a server without output")?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("wait for the server")?;
        ensure!(
            line.trim_end() == "ready",
            "{} did not get ready",
            netns::line(&command)
        );
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends, and with it the server.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Runs all rounds.
pub(crate) fn measure(
    competitors: &[&Competitor],
    rounds: usize,
    seconds: f64,
) -> Result<(Noise, Vec<Sample>)> {
    let cpus = place::cpus()?;
    let (Some(&first), Some(&last)) = (cpus.first(), cpus.last()) else {
        bail!("no CPU to run on")
    };
    let mut servers = Vec::new();
    let mut served: Vec<String> = Vec::new();
    for competitor in competitors {
        for scenario in Scenario::ALL {
            let Some(path) = scenario.path(competitor) else {
                continue;
            };
            path.client.sysctl(CLIENT)?;
            // The host outside serves several.
            let key = path.server.0.join(" ");
            if !served.contains(&key) {
                servers.push(Server::start(&path.server, EAGER_PORT, last, true)?);
                servers.push(Server::start(&path.server, FAIR_PORT, last, false)?);
                served.push(key);
            }
            reachable(competitor.name, scenario, path, last)?;
        }
    }

    let noise = Noise::measure(&competitors[0].cross, last)?;
    let mut samples = Vec::new();
    for round in 0..rounds {
        // What a scenario's figures may be set against comes right before it.
        for test in Test::ALL {
            for scenario in Scenario::ALL.into_iter().filter(|scenario| test.fits(*scenario)) {
                for turn in order(round, competitors.len()) {
                    interrupt::check()?;
                    let competitor = competitors[turn];
                    let Some(path) = scenario.path(competitor) else {
                        continue;
                    };
                    let cpu = if test.one_cpu() { last } else { first };
                    let answer = with_offloads(competitor, test, || load(path, test, cpu, seconds));
                    let detail = answer.unwrap_or_else(|error| Value::String(format!("{error:#}")));
                    if detail.is_string() {
                        print::note(&format!("{} {test:?} {scenario:?}: {detail}", competitor.name));
                    }
                    samples.push(Sample {
                        round,
                        scenario,
                        test,
                        competitor: competitor.name,
                        detail,
                    });
                }
            }
        }
        print::note(&format!("round {} of {rounds} done", round + 1));
    }
    Ok((noise, samples))
}

/// The order in which `count` competitors take a test. A round begins with another one than that before, and goes the
/// other way round: nobody comes always after the same one, in whose wake a virtual CPU may be slower.
fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|turn| (turn + round) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Waits until a path carries: agents of some competitors tell each other of their nodes only after they are ready.
fn reachable(competitor: &str, scenario: Scenario, path: &Path, cpu: usize) -> Result<()> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        match load(path, Test::TcpRr, cpu, 0.01) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => {
                let what = format!("{competitor}: {} don't reach each other", scenario.title());
                return Err(error.context(what));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

// === impl Noise ===

impl Noise {
    fn measure(path: &Path, cpu: usize) -> Result<Self> {
        let busy_share = cpu::busy_share(Duration::from_secs(1))?;
        let runs: Result<Vec<f64>> = (0..5)
            .map(|_| {
                let answer = load(path, Test::TcpRr, cpu, 0.1)?;
                answer["p50_us"].as_f64().context("an answer without p50_us")
            })
            .collect();
        let (least, most) = stats::spread(&runs?).context("no run")?;
        Ok(Self {
            busy_share,
            base_spread: most / least,
        })
    }
}

/// Switches uplinks and wire to packets at MTU size for the tests that ask for it. As long as one end of a veth pair would
/// segment, the kernel leaves what arrives at the other out of its receive offload (`veth_skb_is_eligible_for_gro`,
/// drivers/net/veth.c), so both ends are switched.
fn with_offloads(competitor: &Competitor, test: Test, body: impl FnOnce() -> Result<Value>) -> Result<Value> {
    if !test.streams() {
        return body();
    }
    let switch = |modes: [&str; 2]| -> Result<()> {
        let ends = competitor
            .uplinks
            .iter()
            .flat_map(|uplink| uplink.ends.iter().zip(modes));
        ends.into_iter().try_for_each(|(end, mode)| {
            netns::run(end.at.command(this_program()?).args(["offload", &end.link, mode]))
        })
    };
    let node = match test {
        Test::MergedStream => "merging",
        _ => "bare",
    };
    switch([node, "bare"])?;
    let result = body();
    switch(["veth", "veth"])?;
    result
}

fn load(path: &Path, test: Test, cpu: usize, seconds: f64) -> Result<Value> {
    let eager = !test.streams();
    let server = SocketAddrV4::new(path.address, if eager { EAGER_PORT } else { FAIR_PORT });
    let mut command: Command = path.client.command(this_program()?);
    command.args(test.command()).args([
        &server.to_string(),
        "--seconds",
        &seconds.to_string(),
        "--cpu",
        &cpu.to_string(),
    ]);
    if eager {
        command.arg("--realtime");
    }
    serde_json::from_str(&netns::read(&mut command)?).context("parse the client's answer")
}

/// This program, as it can be started from another namespace.
pub(crate) fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("find the running program")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn nobody_always_comes_after_the_same_one() {
        let before = |round: usize, who: usize| {
            let order = order(round, 4);
            let place = order.iter().position(|one| *one == who).unwrap();
            place.checked_sub(1).map(|place| order[place])
        };
        for who in 0..4 {
            let others: BTreeSet<_> = (0..4).filter_map(|round| before(round, who)).collect();
            assert!(others.len() > 1, "{who} only ever after {others:?}");
        }
        for round in 0..9 {
            assert_eq!(order(round, 7).into_iter().collect::<BTreeSet<_>>().len(), 7);
        }
    }
}
