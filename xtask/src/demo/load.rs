//! Latency and throughput between pods of two nodes, beside those between the nodes.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Tour;
use super::cluster::Cluster;
use crate::{exec, term};

const PORT: u16 = 7000;

/// A `weft-bench serve` somewhere in the lab, ended with its owner.
#[derive(Debug)]
pub(crate) struct Server(Child);

/// Figures of one pair of ends.
#[derive(Debug, Clone, Copy)]
struct Figures {
    round_trip_us: f64,
    gbit_per_s: f64,
}

// === impl Server ===

impl Server {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut server = Self(child.with_context(|| format!("start `{}`", exec::line(command)))?);
        let stdout = server.0.stdout.take().context("a server without output")?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("wait for the server")?;
        ensure!(
            line.trim_end() == "ready",
            "`{}` did not get ready",
            exec::line(command)
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

/// Measures both pairs and prints them side by side.
pub(super) fn show(tour: &Tour, cluster: &Cluster) -> Result<()> {
    let pods = cluster.pods()?;
    let client = pods.first().context("no pod runs")?;
    let server = pods
        .iter()
        .find(|pod| pod.node != client.node)
        .context("all pods run on one node")?;
    let between_pods = measure(tour, &cluster.exec(client), &cluster.exec(server), server.address)?;

    let status = cluster.status()?;
    let node = |name: &str| {
        status["nodes"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|node| node["name"] == name))
    };
    let address = node(&server.node)
        .and_then(|node| node["address"].as_str())
        .context("a node without address")?;
    let [from, to] = [&client.node, &server.node].map(|name| cluster.node_exec(name));
    let between_nodes = measure(
        tour,
        &from,
        &to,
        address.parse().context("parse a node's address")?,
    )?;

    term::line(&format!("{:<44}{:>12}  {:>12}", "", "pod to pod", "node to node"));
    let row = |title: &str, unit: &str, value: fn(&Figures) -> f64| {
        let [pods, nodes] = [&between_pods, &between_nodes].map(value);
        term::line(&format!(
            "{title:<44}{pods:>7.1} {unit:<4}  {nodes:>7.1} {unit:<4}   ×{:.2}",
            pods / nodes
        ));
    };
    row("TCP, 1 byte there and back, one CPU, median", "µs", |figures| {
        figures.round_trip_us
    });
    row("TCP, one stream", "Gb/s", |figures| figures.gbit_per_s);
    term::line("(single short runs on a busy machine; `cargo xtask bench` does it properly)");
    Ok(())
}

fn measure(tour: &Tour, client: &Command, server: &Command, address: Ipv4Addr) -> Result<Figures> {
    let bench = tour.dist.bench();
    let run = |kind: &str, place: &[&str]| -> Result<Value> {
        tour.interrupt.check()?;
        let mut serve = copy(server);
        serve
            .arg(&bench)
            .args(["serve", &format!("0.0.0.0:{PORT}")])
            .args(place);
        let _server = Server::start(&mut serve)?;
        let mut load = copy(client);
        load.arg(&bench)
            .args([kind, &format!("{address}:{PORT}"), "--seconds", "1"])
            .args(place);
        serde_json::from_str(&exec::read(&mut load)?).context("parse the figures")
    };
    let field = |value: &Value, name: &str| value[name].as_f64().with_context(|| format!("no {name}"));
    Ok(Figures {
        round_trip_us: field(&run("tcp-rr", &["--cpu", "0", "--realtime"])?, "p50_us")?,
        gbit_per_s: field(&run("stream", &[])?, "gbit_per_s")?,
    })
}

/// The same program and arguments, to be extended.
fn copy(command: &Command) -> Command {
    let mut twin = exec::command(&command.get_program().to_string_lossy());
    twin.args(command.get_args());
    twin
}
