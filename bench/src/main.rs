//! `weft-bench`: a load generator that can be started inside any network namespace, and the measurements that
//! put Weft beside its alternatives. docs/benchmarks.md says what the figures mean.

#![forbid(unsafe_code)]

mod agents;
mod api;
mod attaching;
mod client;
mod cni;
mod competitor;
mod cpu;
mod datapath;
mod figure;
mod html;
mod interrupt;
mod lab;
mod left;
mod maps;
mod modules;
mod netns;
mod offload;
mod peers;
mod place;
mod plugins;
mod print;
mod process;
mod report;
mod run;
mod scale;
mod server;
mod stats;

use std::net::SocketAddrV4;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measure pod networks.
#[derive(Debug, Parser)]
#[command(name = "weft-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure everything, side by side, in interleaved rounds (root)
    Run(run::Args),
    /// Measure the operator and agents on a real control plane with thousands of Nodes and Pods (root)
    Scale(scale::Args),
    /// Answer the load of the commands below until standard input ends; prints `ready` when listening
    Serve {
        /// Address and TCP port; the next takes datagrams, the one after it short connections
        listen: SocketAddrV4,
        #[command(flatten)]
        place: place::Args,
    },
    /// TCP request/response: one byte each way, one request outstanding; prints JSON
    TcpRr(Load),
    /// TCP connections, one after the other, each for one byte each way; prints JSON
    TcpCrr(Load),
    /// TCP streams; prints JSON
    Stream {
        #[command(flatten)]
        load: Load,
        /// How many at once
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        streams: u8,
    },
    /// UDP datagrams of 64 bytes as fast as they go; what arrives counts; prints JSON
    UdpPps(Load),
    /// Print what an HTTP server answers
    Get {
        /// http://ADDRESS:PORT/PATH
        url: String,
    },
    /// ADD and DEL of a CNI configuration as a runtime sees them, then many pods at once; prints JSON (root)
    Cni(cni::Args),
    /// Switch the offloads of a link of this namespace
    Offload {
        /// The link
        link: String,
        /// What the link is to be like
        #[arg(value_enum)]
        mode: offload::Mode,
    },
}

/// Arguments of the load commands.
#[derive(Debug, clap::Args)]
struct Load {
    /// The address that `serve` listens on
    server: SocketAddrV4,
    /// Seconds to measure, after a short warm-up
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[command(flatten)]
    place: place::Args,
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Serve { listen, place } => {
            place.take()?;
            server::serve(listen)
        }
        Command::TcpRr(load) => load.print(client::request_response),
        Command::TcpCrr(load) => load.print(client::connections),
        Command::Stream { load, streams } => {
            load.print(|server, time| client::streams(server, time, usize::from(streams)))
        }
        Command::UdpPps(load) => load.print(client::datagrams),
        Command::Get { url } => client::get(&url).map(|body| print::line(body.trim_end())),
        Command::Cni(args) => cni::run(&args),
        Command::Offload { link, mode } => offload::set(&link, mode),
    }
}

// === impl Load ===

impl Load {
    fn print<T: serde::Serialize>(
        &self,
        measure: impl FnOnce(SocketAddrV4, std::time::Duration) -> Result<T>,
    ) -> Result<()> {
        self.place.take()?;
        let result = measure(self.server, std::time::Duration::from_secs_f64(self.seconds))?;
        print::line(&serde_json::to_string(&result)?);
        Ok(())
    }
}
