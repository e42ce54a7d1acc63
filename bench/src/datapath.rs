//! Rounds of load: in each, every competitor takes every test once, in an order that rotates, so that the machine's
//! moods hit all alike. Figures to compare are ratios formed inside a round.

use std::io::{BufRead, BufReader};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::competitor::{Competitor, Path};
use crate::netns::{self, Place};
use crate::{interrupt, place, print};

/// Port of the server for tests at real-time priority; the next is its datagram sink.
const EAGER_PORT: u16 = 7000;
/// Port of the server for streams. A stream at real-time priority would starve the kernel's own softirq threads.
const FAIR_PORT: u16 = 7100;

/// Which pods talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// Pods of two nodes.
    Cross,
    /// Pods of one node.
    Same,
}

/// How they talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Test {
    /// Round trips of one byte, both ends on one CPU: no wake-up of another CPU hides the datapath.
    TcpRr,
    /// One stream whose packets cross the underlay at MTU size.
    Stream,
    /// Small datagrams, sender and receiver on two CPUs.
    UdpPps,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) scenario: Scenario,
    pub(crate) test: Test,
    pub(crate) competitor: &'static str,
    /// In the test's unit; absent if the run failed.
    pub(crate) value: Option<f64>,
    /// All that the client said, or why it failed.
    pub(crate) detail: Value,
}

/// A server process, ended with its owner.
#[derive(Debug)]
struct Server(Child);

// === impl Scenario ===

impl Scenario {
    pub(crate) const ALL: [Self; 2] = [Self::Cross, Self::Same];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Cross => "pods of two nodes",
            Self::Same => "pods of one node",
        }
    }

    fn path(self, competitor: &Competitor) -> Option<&Path> {
        match self {
            Self::Cross => Some(&competitor.cross),
            Self::Same => competitor.same.as_ref(),
        }
    }
}

// === impl Test ===

impl Test {
    pub(crate) const ALL: [Self; 3] = [Self::TcpRr, Self::Stream, Self::UdpPps];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::TcpRr => "TCP 1 byte request/response, one CPU, p50",
            Self::Stream => "TCP stream, packets at MTU size",
            Self::UdpPps => "UDP 64 bytes, arrived",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::TcpRr => "µs",
            Self::Stream => "Gbit/s",
            Self::UdpPps => "packets/s",
        }
    }

    /// The field of the client's answer that is compared.
    fn field(self) -> &'static str {
        match self {
            Self::TcpRr => "p50_us",
            Self::Stream => "gbit_per_s",
            Self::UdpPps => "arrived_per_s",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::TcpRr => "tcp-rr",
            Self::Stream => "stream",
            Self::UdpPps => "udp-pps",
        }
    }

    /// On one node no packet crosses an underlay.
    fn fits(self, scenario: Scenario) -> bool {
        self != Self::Stream || scenario == Scenario::Cross
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
pub(crate) fn measure(competitors: &[Competitor], rounds: usize, seconds: f64) -> Result<Vec<Sample>> {
    let cpus = place::cpus()?;
    let (Some(&first), Some(&last)) = (cpus.first(), cpus.last()) else {
        bail!("no CPU to run on")
    };
    let mut servers = Vec::new();
    for competitor in competitors {
        let mut served: Vec<String> = Vec::new();
        for path in Scenario::ALL
            .iter()
            .filter_map(|scenario| scenario.path(competitor))
        {
            // One pod may be the server of both scenarios.
            let key = path.server.0.join(" ");
            if !served.contains(&key) {
                servers.push(Server::start(&path.server, EAGER_PORT, last, true)?);
                servers.push(Server::start(&path.server, FAIR_PORT, last, false)?);
                served.push(key);
            }
        }
    }

    let mut samples = Vec::new();
    for round in 0..rounds {
        for scenario in Scenario::ALL {
            for test in Test::ALL.into_iter().filter(|test| test.fits(scenario)) {
                for turn in 0..competitors.len() {
                    interrupt::check()?;
                    let competitor = &competitors[(turn + round) % competitors.len()];
                    let Some(path) = scenario.path(competitor) else {
                        continue;
                    };
                    let cpu = if test == Test::TcpRr { last } else { first };
                    let answer = with_offloads(competitor, test, || load(path, test, cpu, seconds));
                    let detail = answer.unwrap_or_else(|error| Value::String(format!("{error:#}")));
                    let value = detail[test.field()].as_f64();
                    if value.is_none() {
                        print::note(&format!("{} {test:?} {scenario:?}: {detail}", competitor.name));
                    }
                    samples.push(Sample {
                        round,
                        scenario,
                        test,
                        competitor: competitor.name,
                        value,
                        detail,
                    });
                }
            }
        }
        print::note(&format!("round {} of {rounds} done", round + 1));
    }
    Ok(samples)
}

/// Switches the uplinks to packets at MTU size for the tests that ask for it.
fn with_offloads(competitor: &Competitor, test: Test, body: impl FnOnce() -> Result<Value>) -> Result<Value> {
    if test != Test::Stream {
        return body();
    }
    let switch = |mode: &str| -> Result<()> {
        competitor.uplinks.iter().try_for_each(|uplink| {
            netns::run(
                uplink
                    .node
                    .command(this_program()?)
                    .args(["offload", &uplink.link, mode]),
            )
        })
    };
    switch("mtu")?;
    let result = body();
    switch("nic")?;
    result
}

fn load(path: &Path, test: Test, cpu: usize, seconds: f64) -> Result<Value> {
    let eager = test != Test::Stream;
    let server = SocketAddrV4::new(path.address, if eager { EAGER_PORT } else { FAIR_PORT });
    let mut command: Command = path.client.command(this_program()?);
    command.args([
        test.command(),
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
