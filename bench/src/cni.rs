//! ADD and DEL as a container runtime sees them: from starting the plugin to having read its answer.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::datapath::this_program;
use crate::left::{Books, Census, Left};
use crate::netns::Place;
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
    #[command(flatten)]
    amount: Amount,
}

/// How many pods.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Amount {
    /// Pods attached and detached one after the other
    #[arg(long, default_value_t = 100)]
    cycles: usize,
    /// Then so many of them attached at the same time, and detached at the same time
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64])]
    at_once: Vec<usize>,
    /// Pods attached without any being detached, at the end
    #[arg(long, default_value_t = 250)]
    pub(crate) pods: usize,
}

/// How long a configuration takes, in one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) name: String,
    pub(crate) add: Times,
    pub(crate) del: Times,
    pub(crate) at_once: Vec<AtOnce>,
    /// Pods attached at once.
    pub(crate) pods: usize,
    /// For all of them, the making of their namespaces included, seconds.
    pub(crate) fill_seconds: f64,
    /// Calls that failed.
    pub(crate) failed: usize,
    /// What the first of them said.
    pub(crate) first_failure: Option<String>,
    /// What stayed when all pods were detached.
    pub(crate) left: Left,
}

/// How long calls take beside each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AtOnce {
    /// Calls at the same time.
    pub(crate) calls: usize,
    pub(crate) add: Times,
    pub(crate) del: Times,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// A configuration list and where its plugins are.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    version: String,
    plugins: Vec<Value>,
    path: PathBuf,
    /// Where the plugins are started.
    node: Place,
}

/// A pod's namespace, removed with its owner.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) netns: String,
    container: String,
    /// The result of ADD, which DEL gets to see.
    pub(crate) result: Option<Value>,
}

/// Calls that failed.
#[derive(Debug, Default)]
struct Failures {
    count: AtomicUsize,
    first: Mutex<Option<String>>,
}

// === impl Amount ===

impl Amount {
    /// The amount of one of so many rounds, the first of which is 0. The last one fills the node.
    pub(crate) fn of_round(&self, round: usize, rounds: usize) -> Self {
        Self {
            cycles: self.cycles.div_ceil(rounds),
            at_once: self.at_once.clone(),
            pods: if round + 1 == rounds { self.pods } else { 0 },
        }
    }
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::install()?;
    let network = Network::read(&args.conf, &args.cni_path, Place(Vec::new()))?;
    let failures = Failures::default();

    // The first ADD makes the bridge and the like.
    let mut warm = Pod::create(0)?;
    failures.note(network.add(&mut warm));
    failures.note(network.del(&mut warm));
    drop(warm);
    let before = Census::settled()?;

    let mut add = Vec::new();
    let mut del = Vec::new();
    let amount = &args.amount;
    for number in 1..=amount.cycles {
        interrupt::check()?;
        let mut pod = Pod::create(number)?;
        add.extend(failures.note(network.add(&mut pod)));
        del.extend(failures.note(network.del(&mut pod)));
    }

    let mut next = amount.cycles + 1;
    let mut at_once = Vec::new();
    for &calls in &amount.at_once {
        let count = amount.cycles.max(2 * calls);
        let (mut add, mut del) = together(&network, next..next + count, calls, &failures)?;
        next += count;
        at_once.push(AtOnce {
            calls,
            add: Times::of(&mut add).with_context(|| failures.sentence("no ADD succeeded"))?,
            del: Times::of(&mut del).with_context(|| failures.sentence("no DEL succeeded"))?,
        });
    }

    let start = Instant::now();
    let pods = by_workers(next..next + amount.pods, WORKERS, |number| {
        let mut pod = Pod::create(number)?;
        failures.note(network.add(&mut pod));
        Ok(pod)
    })?;
    let fill_seconds = start.elapsed().as_secs_f64();
    by_workers(pods, WORKERS, |mut pod| {
        failures.note(network.del(&mut pod));
        Ok(())
    })?;

    let latency = Latency {
        name: args.name.clone(),
        add: Times::of(&mut add).with_context(|| failures.sentence("no ADD succeeded"))?,
        del: Times::of(&mut del).with_context(|| failures.sentence("no DEL succeeded"))?,
        at_once,
        pods: amount.pods,
        fill_seconds,
        failed: failures.count.load(Ordering::Relaxed),
        first_failure: failures.first.lock().ok().and_then(|first| first.clone()),
        left: before.left()?,
    };
    print::line(&serde_json::to_string(&latency)?);
    Ok(())
}

/// Measures a configuration from inside its node.
pub(crate) fn measure(
    node: &Place,
    conf: &Path,
    plugins: &Path,
    name: &str,
    books: &Books,
    amount: &Amount,
) -> Result<Latency> {
    let before = books.pods()?;
    let list = |numbers: &[usize]| {
        let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
        words.join(",")
    };
    let mut command = node.command(this_program()?);
    command.arg("cni").arg("--conf").arg(conf);
    command.arg("--cni-path").arg(plugins).args(["--name", name]);
    command.args(["--cycles", &amount.cycles.to_string()]);
    command.args(["--pods", &amount.pods.to_string()]);
    command.args(["--at-once", &list(&amount.at_once)]);
    let answer = netns::read(&mut command).with_context(|| format!("measure ADD and DEL of {name}"))?;
    let mut latency: Latency = serde_json::from_str(&answer).context("parse the latencies")?;
    latency.left.booked = books.left(before)?;
    Ok(latency)
}

/// Attaches pods, so many at the same time, and then detaches them so. Their namespaces are made before.
fn together(
    network: &Network,
    numbers: Range<usize>,
    calls: usize,
    failures: &Failures,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let pods = by_workers(numbers, WORKERS, Pod::create)?;
    let added = by_workers(pods, calls, |mut pod| {
        let time = failures.note(network.add(&mut pod));
        Ok((pod, time))
    })?;
    let (pods, add): (Vec<Pod>, Vec<_>) = added.into_iter().unzip();
    let deleted = by_workers(pods, calls, |mut pod| {
        let time = failures.note(network.del(&mut pod));
        Ok((pod, time))
    })?;
    let del = deleted.into_iter().filter_map(|(_, time)| time).collect();
    Ok((add.into_iter().flatten().collect(), del))
}

/// Does something with each item, by several threads. The first error ends it.
fn by_workers<T: Send, R: Send>(
    items: impl IntoIterator<Item = T, IntoIter: Send>,
    workers: usize,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let queue = Mutex::new(items.into_iter());
    let worker = || -> Result<Vec<R>> {
        let mut done = Vec::new();
        loop {
            interrupt::check()?;
            let item = queue.lock().map_err(|_| anyhow!("a worker panicked"))?.next();
            let Some(item) = item else {
                return Ok(done);
            };
            done.push(work(item)?);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        Ok(all)
    })
}

// === impl Network ===

impl Network {
    /// Reads a configuration list whose plugins are to be started at `node`.
    pub(crate) fn read(conf: &Path, plugins: &Path, node: Place) -> Result<Self> {
        let text = std::fs::read(conf).with_context(|| format!("read {}", conf.display()))?;
        let conf: Value =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", conf.display()))?;
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
            path: plugins.to_owned(),
            node,
        })
    }

    pub(crate) fn add(&self, pod: &mut Pod) -> Result<Duration> {
        let start = Instant::now();
        let mut result = None;
        for plugin in &self.plugins {
            result = self.call("ADD", plugin, Some(pod), result)?;
        }
        pod.result = result;
        Ok(start.elapsed())
    }

    fn del(&self, pod: &mut Pod) -> Result<Duration> {
        let start = Instant::now();
        let result = pod.result.take();
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin, Some(pod), result.clone())?;
        }
        Ok(start.elapsed())
    }

    /// Whether the first plugin would attach a pod, as a runtime asks.
    ///
    /// # Errors
    /// It says no, and why.
    pub(crate) fn status(&self) -> Result<()> {
        let plugin = self.plugins.first().context("a list without plugins")?;
        self.call("STATUS", plugin, None, None).map(drop)
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        pod: Option<&Pod>,
        previous: Option<Value>,
    ) -> Result<Option<Value>> {
        let kind = plugin["type"].as_str().context("a plugin without `type`")?;
        let mut conf = plugin.clone();
        conf["name"] = json!(self.name);
        conf["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            conf["prevResult"] = previous;
        }
        let mut command = self.node.command(self.path.join(kind));
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.path);
        if let Some(pod) = pod {
            let arguments = format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={}",
                pod.netns
            );
            command
                .env("CNI_CONTAINERID", &pod.container)
                .env("CNI_NETNS", format!("/run/netns/{}", pod.netns))
                .env("CNI_IFNAME", "eth0")
                .env("CNI_ARGS", arguments);
        }
        let mut child = command
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
    pub(crate) fn create(number: usize) -> Result<Self> {
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
