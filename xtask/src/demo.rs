//! `cargo xtask demo`: what Weft does, told by the `weft` command as a user would call it.

mod cluster;
mod load;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dist::{self, Dist};
use crate::interrupt::Interrupt;
use crate::{exec, host, setup, term};
use cluster::{Cluster, Pod};

/// Both clusters hang on this virtual network.
const VNET: &str = "demo";
/// And both have this pod CIDR.
const POD_CIDR: &str = "10.244.0.0/16";
/// Small nodes, so that a surge of pods finds them full.
const MAX_PODS: &str = "30";

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the clusters running and say how to go on
    #[arg(long)]
    keep: bool,
}

/// The tour, and what it needs.
#[derive(Debug)]
struct Tour {
    dist: Dist,
    interrupt: Interrupt,
    started: Instant,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(reason) = host::lacks_privileges() {
        bail!(
            "the demo makes network namespaces and loads eBPF programs: {reason}\n  next: {}",
            host::as_root("demo")
        );
    }
    setup::ensure(setup::Scope::Build, false)?;
    term::section("build");
    let dist = dist::build()?;

    let tour = Tour {
        dist,
        interrupt: Interrupt::install()?,
        started: Instant::now(),
    };
    let clusters = ["blue", "green"].map(|name| Cluster::new(&tour.dist.weft(), name));
    for cluster in &clusters {
        if cluster.exists()? {
            bail!(
                "a lab cluster `{}` exists already\n  next: {} lab delete {}",
                cluster.name,
                tour.weft(),
                cluster.name
            );
        }
    }
    let result = tour.tell(&clusters);
    let took = tour.started.elapsed();
    if args.keep && result.is_ok() {
        tour.leave(&clusters);
    } else {
        tour.clean_up(&clusters)?;
    }
    result?;
    let total = tour.started.elapsed();
    term::line(&format!(
        "\nShown in {}, cleaned up after {}.",
        term::duration(took),
        term::duration(total)
    ));
    Ok(())
}

// === impl Tour ===

impl Tour {
    fn tell(&self, [blue, green]: &[Cluster; 2]) -> Result<()> {
        self.chapter("Two clusters in one virtual network, both with the pod CIDR 10.244.0.0/16");
        for cluster in [blue, green] {
            self.show(
                cluster
                    .lab("create")
                    .args(["--vnet", VNET, "--pod-cidr", POD_CIDR, "--max-pods", MAX_PODS])
                    .args([
                        "--node-count",
                        "2",
                        "--enable-cluster-autoscaler",
                        "--min-count",
                        "2",
                        "--max-count",
                        "10",
                    ]),
            )?;
        }

        self.chapter("The same manifests in both: a shop of twelve workloads in three namespaces");
        for cluster in [blue, green] {
            let mut apply = cluster.lab("apply");
            apply.args(["-f", "examples/shop", "-f", "examples/udp-echo.yaml"]);
            // Names of objects go to standard output, the sum to standard error.
            self.show(apply.stdout(Stdio::null()))?;
        }
        for cluster in [blue, green] {
            let (pods, took) = self.wait_for(cluster, "every pod of the shop runs", Cluster::settled)?;
            term::line(&format!(
                "{}: {pods} pods run, {} later",
                cluster.name,
                term::duration(took)
            ));
        }

        self.chapter("One address, two pods: each cluster reaches its own");
        self.show_shared_address(blue, green)?;

        self.chapter("Who reaches whom, and who must not");
        self.show(&mut blue.lab("check"))?;
        self.show_verdict(&mut green.lab("check"))?;

        self.chapter("Outside, a pod has its node's address");
        self.show_outside(blue)?;

        self.chapter("A surge of pods finds the nodes full: nodes appear");
        let before = blue.nodes()?;
        self.show(blue.lab("apply").args(["-f", "examples/surge.yaml"]))?;
        let (pods, took) = self.wait_for(blue, "every pod of the surge runs", Cluster::settled)?;
        let after = blue.nodes()?;
        term::line(&format!(
            "{before} nodes became {after}; all {pods} pods run, {} later",
            term::duration(took)
        ));
        self.show(&mut blue.lab("status"))?;

        self.chapter("What the overlay costs here: pods of two nodes beside the nodes themselves");
        load::show(self, green)
    }

    /// Asks one address in both clusters.
    fn show_shared_address(&self, blue: &Cluster, green: &Cluster) -> Result<()> {
        let [in_blue, in_green] = [blue.pods()?, green.pods()?];
        let serving = |pod: &&Pod| pod.port.is_some();
        let (a, b) = in_blue
            .iter()
            .filter(serving)
            .find_map(|a| {
                Some((
                    a,
                    in_green.iter().filter(serving).find(|b| b.address == a.address)?,
                ))
            })
            .context(
                "no address is in use in both clusters, which can happen, but hardly with so many pods",
            )?;
        for (cluster, pods, pod) in [(blue, &in_blue, a), (green, &in_green, b)] {
            let client = pods.iter().find(|client| client.node != pod.node).unwrap_or(pod);
            let url = format!("http://{}:{}/hostname", pod.address, pod.port.unwrap_or_default());
            self.show_answer(&mut self.get(cluster.exec(client), &url))?;
        }
        Ok(())
    }

    /// Lets a host of the virtual network, no node, say from where a pod's request came.
    fn show_outside(&self, cluster: &Cluster) -> Result<()> {
        const PORT: u16 = 7080;
        let host = cluster.host()?;
        let pods = cluster.pods()?;
        let pod = pods.first().context("no pod runs")?;
        let mut serve = cluster.lab("vnet-exec");
        serve
            .arg("--")
            .arg(self.dist.bench())
            .args(["serve", &format!("0.0.0.0:{PORT}")]);
        let _server = load::Server::start(&mut serve)?;
        self.show_answer(&mut self.get(cluster.exec(pod), &format!("http://{host}:{PORT}/")))?;
        term::line(&format!("(the pod is {}, on {})", pod.address, pod.node));
        Ok(())
    }

    /// Extends a command that runs in a pod by a fetch of `url`.
    fn get(&self, mut inside: Command, url: &str) -> Command {
        if host::which("curl").is_some() {
            inside.args(["curl", "--silent", "--max-time", "5", url]);
        } else {
            inside.arg(self.dist.bench()).args(["get", url]);
        }
        inside
    }

    fn chapter(&self, title: &str) {
        term::section(&format!("{title}  [{}]", term::duration(self.started.elapsed())));
    }

    /// Shows a command and lets it run; its failure ends the tour.
    fn show(&self, command: &mut Command) -> Result<()> {
        let line = exec::line(command);
        term::command(&line);
        let status = self.interrupt.run(command)?;
        if !status.success() {
            bail!("`{line}` ended with {status}");
        }
        Ok(())
    }

    /// Shows a command and its answer, which may lack a line end.
    fn show_answer(&self, command: &mut Command) -> Result<()> {
        self.interrupt.check()?;
        term::command(&exec::line(command));
        term::line(&exec::read(command)?);
        Ok(())
    }

    /// Shows a command whose output was seen before: only its verdict, or all of it if it fails.
    fn show_verdict(&self, command: &mut Command) -> Result<()> {
        self.interrupt.check()?;
        let line = exec::line(command);
        term::command(&line);
        let output = exec::output(command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            term::line(&format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
            bail!("`{line}` ended with {}", output.status);
        }
        text.lines()
            .filter(|line| line.contains(" passed"))
            .for_each(term::line);
        Ok(())
    }

    /// Waits until `done` says how many pods run. Returns that and how long it took.
    fn wait_for(
        &self,
        cluster: &Cluster,
        what: &str,
        done: impl Fn(&Cluster) -> Result<Option<u64>>,
    ) -> Result<(u64, Duration)> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let start = Instant::now();
        loop {
            self.interrupt.check()?;
            if let Some(pods) = done(cluster)? {
                return Ok((pods, start.elapsed()));
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "waited {} for: {what}\n  next: {} lab status {}",
                    term::duration(PATIENCE),
                    self.weft(),
                    cluster.name
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How a person calls the binary from where they are.
    fn weft(&self) -> String {
        self.dist
            .weft()
            .strip_prefix(crate::root())
            .map_or_else(|_| self.dist.weft(), Into::into)
            .display()
            .to_string()
    }

    fn leave(&self, clusters: &[Cluster]) {
        let weft = self.weft();
        term::section("The clusters stay. Go on with");
        term::line(&format!(
            "  export KUBECONFIG=$({weft} lab kubeconfig blue); kubectl get pods -A -o wide"
        ));
        term::line(&format!("  {weft} lab exec blue shop/POD -- bash"));
        term::line(&format!(
            "  {weft} lab fault blue loss --value 20 --for 10s; {weft} lab check blue"
        ));
        let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name).collect();
        term::line(&format!("and end with\n  {weft} lab delete {}", names.join(" ")));
    }

    /// Removes what is there, in a process group of its own: a second Ctrl-C doesn't stop it half-way.
    fn clean_up(&self, clusters: &[Cluster]) -> Result<()> {
        use std::os::unix::process::CommandExt;
        self.chapter("Nothing stays");
        let there: Vec<&Cluster> = clusters
            .iter()
            .filter(|cluster| cluster.exists().unwrap_or(true))
            .collect();
        if there.is_empty() {
            return Ok(());
        }
        let mut command = exec::command(&self.dist.weft().to_string_lossy());
        command
            .args(["lab", "delete"])
            .args(there.iter().map(|cluster| cluster.name))
            .process_group(0);
        term::command(&exec::line(&command));
        exec::run(&mut command)
    }
}
