//! ADD and DEL as a container runtime sees them: from starting the plugin to having read its answer.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{interrupt, netns, print, stats};

/// Threads that attach pods at once; a kubelet starts about as many.
const WORKERS: usize = 8;

/// Arguments of `weft-bench cni`. To be started inside the node's network namespace, so that entering it is not measured.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The network configuration list
    #[arg(long)]
    conf: PathBuf,
    /// Directory with the plugins
    #[arg(long)]
    cni_path: PathBuf,
    /// What to call it in the result
    #[arg(long)]
    name: String,
    /// Pods attached and detached one after the other
    #[arg(long, default_value_t = 100)]
    cycles: usize,
    /// Pods attached at once afterwards
    #[arg(long, default_value_t = 250)]
    pods: usize,
}

/// How long a configuration takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) name: String,
    pub(crate) add: Times,
    pub(crate) del: Times,
    /// Pods attached at once.
    pub(crate) pods: usize,
    /// For all of them, the making of their namespaces included, seconds.
    pub(crate) fill_seconds: f64,
    /// Calls that failed.
    pub(crate) failed: usize,
    /// What the first of them said.
    pub(crate) first_failure: Option<String>,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// A configuration list and where its plugins are.
#[derive(Debug)]
struct Network {
    name: String,
    version: String,
    plugins: Vec<Value>,
    path: PathBuf,
}

/// A pod's namespace, removed with its owner.
#[derive(Debug)]
struct Pod {
    netns: String,
    container: String,
    /// The result of ADD, which DEL gets to see.
    result: Option<Value>,
}

/// Calls that failed.
#[derive(Debug, Default)]
struct Failures {
    count: AtomicUsize,
    first: Mutex<Option<String>>,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} / {:.1}", self.p50_ms, self.p99_ms)
    }
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::install()?;
    let network = Network::read(args)?;
    let failures = Failures::default();

    // The first ADD makes the bridge and the like.
    let mut warm = Pod::create(0)?;
    failures.note(network.add(&mut warm));
    failures.note(network.del(&mut warm));

    let mut add = Vec::new();
    let mut del = Vec::new();
    for number in 1..=args.cycles {
        interrupt::check()?;
        let mut pod = Pod::create(number)?;
        add.extend(failures.note(network.add(&mut pod)));
        del.extend(failures.note(network.del(&mut pod)));
    }

    let start = Instant::now();
    let pods = fill(&network, args.pods, args.cycles + 1, &failures)?;
    let fill_seconds = start.elapsed().as_secs_f64();
    for mut pod in pods {
        failures.note(network.del(&mut pod));
    }

    let latency = Latency {
        name: args.name.clone(),
        add: Times::of(&mut add).with_context(|| failures.sentence("no ADD succeeded"))?,
        del: Times::of(&mut del).with_context(|| failures.sentence("no DEL succeeded"))?,
        pods: args.pods,
        fill_seconds,
        failed: failures.count.load(Ordering::Relaxed),
        first_failure: failures.first.lock().ok().and_then(|first| first.clone()),
    };
    print::line(&serde_json::to_string(&latency)?);
    Ok(())
}

/// Attaches many pods by several workers.
fn fill(network: &Network, pods: usize, first: usize, failures: &Failures) -> Result<Vec<Pod>> {
    let next = AtomicUsize::new(first);
    let worker = || -> Result<Vec<Pod>> {
        let mut made = Vec::new();
        loop {
            interrupt::check()?;
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= first + pods {
                return Ok(made);
            }
            let mut pod = Pod::create(number)?;
            failures.note(network.add(&mut pod));
            made.push(pod);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::with_capacity(pods);
        for worker in workers {
            all.extend(
                worker
                    .join()
                    .map_err(|_| anyhow::anyhow!("a worker panicked"))??,
            );
        }
        Ok(all)
    })
}

// === impl Network ===

impl Network {
    fn read(args: &Args) -> Result<Self> {
        let text = std::fs::read(&args.conf).with_context(|| format!("read {}", args.conf.display()))?;
        let conf: Value =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", args.conf.display()))?;
        let field = |name: &str| {
            conf[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no `{name}`"))
        };
        Ok(Self {
            name: field("name")?,
            version: field("cniVersion")?,
            plugins: conf["plugins"].as_array().context("no `plugins`")?.clone(),
            path: args.cni_path.clone(),
        })
    }

    fn add(&self, pod: &mut Pod) -> Result<Duration> {
        let start = Instant::now();
        let mut result = None;
        for plugin in &self.plugins {
            result = self.call("ADD", plugin, pod, result)?;
        }
        pod.result = result;
        Ok(start.elapsed())
    }

    fn del(&self, pod: &mut Pod) -> Result<Duration> {
        let start = Instant::now();
        let result = pod.result.take();
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin, pod, result.clone())?;
        }
        Ok(start.elapsed())
    }

    fn call(&self, verb: &str, plugin: &Value, pod: &Pod, previous: Option<Value>) -> Result<Option<Value>> {
        let kind = plugin["type"].as_str().context("a plugin without `type`")?;
        let mut conf = plugin.clone();
        conf["name"] = json!(self.name);
        conf["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            conf["prevResult"] = previous;
        }
        let mut child = Command::new(self.path.join(kind))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_NETNS", format!("/run/netns/{}", pod.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={}",
                    pod.netns
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start plugin {kind}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that refuses early says why on standard output.
            let _ = stdin.write_all(conf.to_string().as_bytes());
        }
        let output = child.wait_with_output()?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if !output.status.success() {
            let text = answer.map_or_else(
                || String::from_utf8_lossy(&output.stderr).into_owned(),
                |v| v.to_string(),
            );
            bail!("{kind} {verb}: {text}");
        }
        Ok(answer)
    }
}

// === impl Pod ===

impl Pod {
    fn create(number: usize) -> Result<Self> {
        let netns = format!("wb{}-c{number}", std::process::id());
        netns::run(Command::new("ip").args(["netns", "add", &netns]))?;
        // Plugins name links after the first characters of an ID, which differ in real ones.
        let digits =
            |salt: u64| scatter(number as u64 ^ (u64::from(std::process::id()) << 32) ^ (salt << 56));
        let container = (0..4).map(|salt| format!("{:016x}", digits(salt))).collect();
        Ok(Self {
            netns,
            container,
            result: None,
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = netns::run(Command::new("ip").args(["netns", "del", &self.netns]));
    }
}

/// The finaliser of SplitMix64: spreads neighbouring numbers over all bits.
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

// === impl Times ===

impl Times {
    fn of(samples: &mut [Duration]) -> Option<Self> {
        let mut ms: Vec<f64> = samples.iter().map(|d| d.as_secs_f64() * 1e3).collect();
        Some(Self {
            p50_ms: stats::quantile(&mut ms, 0.5)?,
            p99_ms: stats::quantile(&mut ms, 0.99)?,
        })
    }
}

// === impl Failures ===

impl Failures {
    fn note(&self, result: Result<Duration>) -> Option<Duration> {
        match result {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut first) = self.first.lock() {
                    first.get_or_insert_with(|| format!("{error:#}"));
                }
                None
            }
        }
    }

    fn sentence(&self, what: &str) -> String {
        let first = self.first.lock().ok().and_then(|first| first.clone());
        format!("{what}: {}", first.unwrap_or_default())
    }
}
