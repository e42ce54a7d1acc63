//! The node agent: index, desired state, reconciler, and the server behind the CNI plugin.
//!
//! ```text
//!  Kubernetes API ─▶ watch ─▶ Index ─▶ Desired ─▶ keep ─▶ NodeNet ─▶ kernel
//!                                         └─▶ blocks ─▶ ledger ◀─ Pods ◀─ serve ◀─ weft-cni
//!  NodeNetwork.status ◀─ report ◀──────────────────────────┘
//! ```
//!
//! An agent that ends leaves everything in place: running pods keep talking, and the next agent adopts what it finds.
#![forbid(unsafe_code)]

mod audit;
mod chain;
pub mod cleanup;
mod configuration;
pub mod desired;
pub mod index;
mod keep;
mod metrics;
mod node;
mod originals;
mod pass;
mod peers;
mod pods;
mod preflight;
mod probe;
mod report;
mod saved;
mod serve;
mod steps;
mod takeover;
mod watch;
mod wiring;

use crate::audit::Desk;
use crate::configuration::Configuration;
use crate::desired::Desired;
use crate::keep::{Findings, Keeper, Wake};
use crate::metrics::{Metrics, Totals};
use crate::node::{NodeNet, Readiness, Settings};
use crate::originals::Originals;
use crate::pods::Pods;
use crate::probe::Probe;
use crate::saved::Saved;
use crate::wiring::{PodKernel, Wiring};
use anyhow::Context;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as channel;
use weft_cni::install::{CONF_NAME, Chained, ConfName};
use weft_cni::intent::Intents;
use weft_ipam::{Ledger, LedgerError, Recovery, SystemClock};
use weft_kernel::bpf::{ABI_VERSION, Counters, Datapath, Options};
use weft_model::{NodeName, TransportChoice, UserError, codes};

/// The socket that the plugin calls, in the run directory.
const SOCKET: &str = "agent.sock";
/// The ledger, in the state directory.
const LEDGER: &str = "ledger.redb";
/// How long the end of the agent waits for its parts.
const STOP: Duration = Duration::from_secs(2);
/// The DEL intents, in the state directory.
const INTENTS: &str = "intents";

/// How to start the agent of one node.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: NodeName,

    /// How to reach the Kubernetes API; in a pod the pod's own service account where absent.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Directory of the socket that the plugin calls.
    #[arg(long, value_name = "DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,

    /// Directory of what has to survive a restart: the ledger and DEL intents.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,

    /// Directory in a BPF file system for programs and maps.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/weft")]
    pub pin_dir: PathBuf,

    /// Interface to the other nodes; the one that has the node's InternalIP where absent.
    #[arg(long, value_name = "INTERFACE")]
    pub uplink: Option<String>,

    /// UDP port of the overlay, the same on all nodes.
    #[arg(long, value_name = "PORT", default_value_t = 8472)]
    pub vxlan_port: u16,

    /// How packets get to other nodes: direct, past the VXLAN device, where the node can; device; or auto, the first
    /// where it is possible and else the second. Nodes of all kinds understand each other.
    #[arg(long, value_name = "auto|direct|device", default_value_t)]
    pub transport: TransportChoice,

    /// Where to serve /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9465")]
    pub metrics_address: SocketAddr,

    /// Directory of the container runtime's network configurations, to keep Weft's in from the moment the node serves
    /// pods; none is written where absent.
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// Name of Weft's network configuration.
    #[arg(long, value_name = "NAME", default_value = CONF_NAME, requires = "cni_conf_dir")]
    pub cni_conf_name: ConfName,

    /// Directory of the container runtime's plugins, to see whether a chained one is there.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// Reference plugin to run after Weft's: portmap, for hostPort. Left out as long as the program isn't there.
    #[arg(long, value_name = "PLUGIN", requires = "cni_conf_dir")]
    pub cni_chain: Vec<Chained>,

    /// Where the node's /proc/sys is mounted: in a container that is not privileged its own is read-only.
    #[arg(long, value_name = "DIR", default_value = "/proc/sys")]
    pub proc_sys: PathBuf,

    /// Version that pins go by: tests of upgrades take another in the place of a build that has it.
    #[arg(long, value_name = "NUMBER", default_value_t = ABI_VERSION, hide = true)]
    pub pin_version: u32,

    /// Where the node's boot ID is read: a lab's nodes reboot while the kernel does not.
    #[arg(long, value_name = "FILE", default_value = SystemClock::BOOT_ID, hide = true)]
    pub boot_id: PathBuf,
}

impl Args {
    fn socket(&self) -> PathBuf {
        socket_in(&self.run_dir)
    }

    fn intent_dir(&self) -> PathBuf {
        self.state_dir.join(INTENTS)
    }
}

fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

/// Runs the agent until SIGTERM or SIGINT, in the network namespace of the calling process.
///
/// # Errors
/// What keeps the agent from starting at all. What can pass by itself, such as an API server that is away, is waited
/// for.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    preflight::run(&args)?;
    let datapath = Datapath::load(&Options {
        version: args.pin_version,
        ..Options::new(&args.pin_dir)
    })?;
    let (counters, fingerprint) = (datapath.counters()?, datapath.fingerprint()?);
    let datapath = Arc::new(Mutex::new(datapath));
    let metrics = Arc::new(Metrics::new(args.node_name.as_str(), move || {
        kernel_totals(&counters)
    }));
    let (ready, readiness) = channel::channel(Readiness::Waiting {
        why: "the first answer of the Kubernetes API".into(),
    });

    let wiring = Wiring::new(Arc::clone(&datapath));
    let saved = Saved::open(&args.state_dir);
    let Opened {
        ledger,
        recovery,
        damage,
    } = open_ledger(&args, &wiring, saved.last().map(|last| &**last))?;
    recover(&wiring, &ledger, &recovery).context("remove what was left of an ADD")?;
    let intents = Intents::at(args.intent_dir());
    let (waker, wakes) = mpsc::channel();
    let pods = Arc::new(Pods::new(
        args.node_name.clone(),
        ledger,
        wiring,
        intents,
        readiness.clone(),
        Desk::new(waker.clone()),
    ));
    pods.replay_intents()
        .with_context(|| format!("read DEL intents in {}", args.state_dir.display()))?;

    let (ended, mut endings) = tokio::sync::mpsc::channel(4);
    let vital = |name| Vital {
        name,
        ended: ended.clone(),
    };
    let settings = Settings {
        uplink: args.uplink.clone(),
        vxlan_port: args.vxlan_port,
        transport: args.transport,
        originals: Originals::of(&args.state_dir),
    };
    keep::watch_kernel(&waker, &datapath, fingerprint)?;
    let net = NodeNet::new(settings, datapath, Arc::clone(&metrics))?;

    let socket = args.socket();
    let listener = weft_cni::protocol::bind(&socket).map_err(|error| {
        UserError::new(
            codes::AGENT_SOCKET,
            format!("listen at {}: {error}", socket.display()),
            "weft status",
        )
    })?;
    let (handler, counted) = (Arc::clone(&pods), Arc::clone(&metrics));
    let serving = vital("cni-socket");
    thread::Builder::new().name(serving.name.into()).spawn(move || {
        let _serving = serving;
        serve::run(&listener, &handler, &counted);
    })?;

    let client = weft_api::client(weft_api::config(args.kubeconfig.as_deref(), None).await?)?;
    let (view, mut views) = channel::channel(watch::View {
        desired: None,
        waiting_for: "the first answer of the Kubernetes API".into(),
    });
    let last = saved.last().cloned();
    let (findings, found) = channel::channel(Findings::default());
    let keeper = Keeper {
        net,
        pods: Arc::clone(&pods),
        view: views.clone(),
        saved,
        readiness: ready,
        configuration: Configuration::of(&args),
        probe: Probe::new().context("make a namespace for the probe")?,
        findings,
    };
    let reported = views.clone();
    let keeping = vital("keep");
    waker.send(Wake::Wish)?;
    let stopper = waker.clone();
    thread::Builder::new().name(keeping.name.into()).spawn(move || {
        let _keeping = keeping;
        keep::run(keeper, &wakes);
    })?;
    tokio::spawn(async move { while views.changed().await.is_ok() && waker.send(Wake::Wish).is_ok() {} });
    let watching = vital("watch");
    let (listed, told) = channel::channel(None);
    let watch = watch::run(client.clone(), args.node_name.clone(), last, view, listed);
    tokio::spawn(async move {
        let _watching = watching;
        watch.await;
    });
    tokio::spawn(report::run(
        client,
        args.node_name.clone(),
        Arc::clone(&pods),
        Arc::clone(&metrics),
        report::Sources {
            view: reported,
            readiness: readiness.clone(),
            findings: found,
            listed: told,
            damage,
        },
    ));
    serve_metrics(args.metrics_address, metrics, readiness).await;

    let ending = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        name = endings.recv() => name,
    };
    // Nobody is to call a socket that nobody answers.
    let _ = std::fs::remove_file(&socket);
    if let Some(name) = ending {
        // Going on would look alive and keep nothing; whoever supervises the agent starts it anew.
        anyhow::bail!("the agent's part \"{name}\" ended, see the log above");
    }
    if stopper.send(Wake::Stop).is_ok() {
        // A pass under way is waited for no longer than this: what it does, the next agent does again.
        let _ = tokio::time::timeout(STOP, endings.recv()).await;
    }
    tracing::info!("stopping; pods go on without the agent");
    Ok(())
}

/// Held by what the agent can't do without, to tell when it ends.
struct Vital {
    name: &'static str,
    ended: tokio::sync::mpsc::Sender<&'static str>,
}

impl Drop for Vital {
    fn drop(&mut self) {
        // Full means that others have told already.
        let _ = self.ended.try_send(self.name);
    }
}

/// The ledger, and what came of opening it.
struct Opened {
    ledger: Ledger,
    recovery: Recovery,
    /// That it was damaged and made anew, in words.
    damage: Option<String>,
}

/// Opens the ledger. One that is damaged as a whole is set aside, and made anew from the pods that are attached and the
/// blocks of the `last` wish: refusing would leave the node without new pods until somebody looks, and starting empty
/// would give the addresses of running pods to others.
fn open_ledger(args: &Args, wiring: &Wiring, last: Option<&Desired>) -> anyhow::Result<Opened> {
    let clock = SystemClock::read(&args.boot_id)
        .with_context(|| format!("read the boot ID in {}", args.boot_id.display()))?;
    let (path, clock) = (args.state_dir.join(LEDGER), Arc::new(clock));
    let opened = Ledger::open(&path, clock.clone());
    let Err(LedgerError::Damaged { reason, .. }) = opened else {
        let (ledger, recovery) = opened.map_err(UserError::from)?;
        return Ok(Opened {
            ledger,
            recovery,
            damage: None,
        });
    };
    let found = wiring.found().context("look for pods that are attached")?;
    let attached: BTreeSet<_> = found.iter().map(|found| &found.key).collect();
    let attached = attached.len();
    let retiring = last.map_or_else(Vec::new, |last| last.retiring.clone());
    let mut serving = last.map_or_else(Vec::new, |last| last.blocks.clone());
    serving.retain(|block| !retiring.contains(block));
    let aside = Ledger::rebuild(&path, clock.clone(), serving, retiring, found).map_err(UserError::from)?;
    let damage = format!(
        "the ledger was damaged ({reason}), set aside as {} and made anew from {attached} attached pods",
        aside.display()
    );
    tracing::error!(code = %codes::LEDGER_CORRUPT, "{damage}");
    let (ledger, recovery) = Ledger::open(&path, clock).map_err(UserError::from)?;
    Ok(Opened {
        ledger,
        recovery,
        damage: Some(damage),
    })
}

/// Takes out of the kernel what an earlier agent left half done, and gives back what did not survive a reboot.
///
/// # Errors
/// What an ADD left can't be removed: the ledger would give its address to another.
fn recover(wiring: &impl PodKernel, ledger: &Ledger, recovery: &Recovery) -> Result<(), wiring::WiringError> {
    wiring.remove_unfinished()?;
    for (address, quarantined) in &recovery.quarantined {
        tracing::error!(%address, reason = quarantined.reason, "nobody gets this address");
    }
    for attachment in recovery.undone.iter().chain(&recovery.other_boot) {
        let wired = wiring::Attachment {
            key: attachment.key.clone(),
            address: attachment.address,
        };
        tracing::info!(attachment = %wired, "cleaning up after an earlier run");
        if let Err(error) = wiring.detach(&wired) {
            tracing::error!(attachment = %wired, %error, "could not clean up");
        }
    }
    // A namespace does not outlive its boot, whatever the runtime still remembers of it.
    for attachment in &recovery.other_boot {
        if let Err(error) = ledger.release(&attachment.key) {
            tracing::error!(attachment = %attachment.key, %error, "could not give back the address of an earlier boot");
        }
    }
    Ok(())
}

async fn serve_metrics(address: SocketAddr, metrics: Arc<Metrics>, readiness: channel::Receiver<Readiness>) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            // Pods do not depend on it.
            tracing::error!(%address, %error, "cannot serve metrics");
            return;
        }
    };
    let ready = Arc::new(move || match &*readiness.borrow() {
        Readiness::Ready { .. } => Ok("ok".to_owned()),
        Readiness::Waiting { why } => Err(format!("waiting for {why}")),
        Readiness::Broken { why } => Err(why.clone()),
    });
    let text = Arc::new(move || metrics.text());
    tokio::spawn(weft_api::http::serve(listener, text, ready));
}

fn kernel_totals(datapath: &Counters) -> Totals {
    let read = || -> Result<Totals, weft_kernel::Error> {
        let drops = datapath
            .drops()?
            .into_iter()
            .map(|(reason, counter)| (reason.name(), counter.packets));
        let forwards = datapath
            .forwards()?
            .into_iter()
            .map(|(path, counter)| (path.name(), counter.packets));
        Ok(Totals {
            drops: drops.collect(),
            forwards: forwards.collect(),
        })
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the datapath's counters");
        Totals::default()
    })
}
