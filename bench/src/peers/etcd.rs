//! One etcd on the underlay's router, in which a peer's nodes find each other.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::netns::Underlay;
use crate::process::Process;
use crate::{client, interrupt, modules};

/// Longest time until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Etcd {
    pub(super) process: Process,
    pub(super) url: String,
    port: u16,
    netns: String,
}

// === impl Etcd ===

impl Etcd {
    /// Starts one on a port of its own.
    pub(super) fn start(cache: &Path, dir: &Path, underlay: &Underlay, port: u16) -> Result<Self> {
        let program = modules::ETCD.programs(cache)?.join("etcd");
        let url = format!("http://{}:{port}", Underlay::GATEWAY);
        let mut command = underlay.router().command(program);
        command.arg("--data-dir").arg(dir.join("etcd"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        let peer = format!("http://127.0.0.1:{}", port + 1);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.args(["--unsafe-no-fsync", "--log-level", "error"]);
        let mut etcd = Self {
            process: Process::start("etcd", command, dir)?,
            url,
            port,
            netns: underlay.router_name().to_owned(),
        };
        let start = Instant::now();
        while let Err(error) = etcd.put("bench", "ready") {
            interrupt::check()?;
            etcd.process.usage()?;
            if start.elapsed() > PATIENCE {
                return Err(error.context("etcd does not answer"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(etcd)
    }

    /// Writes a key through its JSON gateway.
    pub(super) fn put(&self, key: &str, value: &str) -> Result<()> {
        let body = json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)}).to_string();
        let (netns, port) = (self.netns.clone(), self.port);
        // A thread of its own enters the namespace, and ends there.
        let asked = std::thread::spawn(move || -> Result<String> {
            crate::netns::enter(&netns)?;
            let stream = TcpStream::connect((Underlay::GATEWAY, port)).context("connect to etcd")?;
            client::exchange_http(stream, "POST /v3/kv/put", &[], &body)
        });
        asked
            .join()
            .map_err(|_| anyhow!("asking etcd panicked"))?
            .map(drop)
    }
}
