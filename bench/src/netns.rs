//! Network namespaces of the measurements, made with iproute2 and removed when the owner goes out of scope.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fd::AsFd;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::competitor::Uplink;
use crate::interrupt;

/// The host outside; Weft's lab has the same.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// How often a running command's fate is looked at when a signal may have come.
const TICK: Duration = Duration::from_millis(50);

/// A way into a network namespace: the words to put before a command line.
#[derive(Debug, Clone)]
pub(crate) struct Place(pub(crate) Vec<String>);

/// A namespace of our own. Everything in it goes with it.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

// === impl Place ===

impl Place {
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, program: S) -> Command {
        let mut words = self.0.iter();
        match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// Sets sysctls, by their path under `/proc/sys`. Those that this kernel doesn't have are left out.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        let script: String = settings
            .iter()
            .map(|(path, value)| format!("[ ! -e /proc/sys/{path} ] || echo {value} >/proc/sys/{path}\n"))
            .collect();
        run(self.command("sh").args(["-ec", &script]))
    }

    /// A namespace that has a name for `ip netns`.
    pub(crate) fn named(name: &str) -> Self {
        Self(["ip", "netns", "exec", name].map(str::to_owned).to_vec())
    }
}

// === impl Namespace ===

impl Namespace {
    /// Makes a namespace, with its loopback up. The name carries our process ID, so that runs don't meet.
    pub(crate) fn create(purpose: &str) -> Result<Self> {
        let name = format!("wb{}-{purpose}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip(&["link set lo up"])?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn place(&self) -> Place {
        Place::named(&self.name)
    }

    /// Runs `ip` commands, one per line, in this namespace.
    pub(crate) fn ip(&self, lines: &[impl AsRef<str>]) -> Result<()> {
        let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
        feed(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            &lines.join("\n"),
        )
    }

    /// Runs `bridge` commands in this namespace.
    pub(crate) fn bridge(&self, line: &str) -> Result<()> {
        feed(
            Command::new("bridge").args(["-n", &self.name, "-batch", "-"]),
            line,
        )
    }

    /// Loads an nftables rule set.
    pub(crate) fn nft(&self, rules: &str) -> Result<()> {
        feed(self.place().command("nft").args(["-f", "-"]), rules)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and `ip` has said what it is.
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// One network for nodes: a bridge that lets packets through and does nothing else.
#[derive(Debug)]
pub(crate) struct Underlay {
    namespace: Namespace,
    outside: Option<Namespace>,
}

// === impl Underlay ===

impl Underlay {
    /// Largest packet of the underlay, bytes.
    pub(crate) const MTU: u32 = 1500;
    /// The router of an underlay with outside.
    pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);

    pub(crate) fn create() -> Result<Self> {
        let namespace = Namespace::create("net")?;
        namespace.ip(&[
            "link add br0 type bridge",
            &format!("link set br0 mtu {} up", Self::MTU),
        ])?;
        // The default runs bridged packets through netfilter; a wire has none.
        namespace.place().sysctl(&[
            ("net/bridge/bridge-nf-call-iptables", "0"),
            ("net/bridge/bridge-nf-call-arptables", "0"),
        ])?;
        Ok(Self {
            namespace,
            outside: None,
        })
    }

    /// The same with a router to a host that knows the nodes' subnet and nothing of pods, as in Weft's lab.
    pub(crate) fn with_outside() -> Result<Self> {
        let mut underlay = Self::create()?;
        let outside = Namespace::create("out")?;
        underlay.namespace.ip(&[
            format!("addr add {}/24 dev br0", Self::GATEWAY),
            format!(
                "link add out mtu {} type veth peer name eth0 mtu {} netns {}",
                Self::MTU,
                Self::MTU,
                outside.name()
            ),
            "link set out up".into(),
            "addr add 198.51.100.1/24 dev out".into(),
        ])?;
        underlay.namespace.place().sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        outside.ip(&[
            "link set eth0 up".into(),
            format!("addr add {OUTSIDE}/24 dev eth0"),
            "route add 172.30.0.0/24 via 198.51.100.1".into(),
        ])?;
        underlay.outside = Some(outside);
        Ok(underlay)
    }

    /// The host outside.
    pub(crate) fn outside(&self) -> Result<Place> {
        let outside = self.outside.as_ref().context("an underlay without outside")?;
        Ok(outside.place())
    }

    /// Where the router and what belongs to no node run.
    pub(crate) fn router(&self) -> Place {
        self.namespace.place()
    }

    /// The router's name for `ip netns`.
    pub(crate) fn router_name(&self) -> &str {
        self.namespace.name()
    }

    /// The uplinks of nodes that this underlay made.
    pub(crate) fn uplinks<'a>(&self, nodes: impl IntoIterator<Item = &'a Namespace>) -> Result<Vec<Uplink>> {
        let uplink = |node: &Namespace| Uplink::find(node.place(), "eth0", self.router());
        nodes.into_iter().map(uplink).collect()
    }

    /// A node with a default route by way of the router.
    pub(crate) fn routed_node(&self, name: &str, address: Ipv4Addr) -> Result<Namespace> {
        let node = self.node(name, address, 24)?;
        node.ip(&[format!("route add default via {}", Self::GATEWAY)])?;
        Ok(node)
    }

    /// A node: a namespace whose `eth0` hangs on the bridge, with an address in a subnet of this length.
    pub(crate) fn node(&self, name: &str, address: Ipv4Addr, prefix_len: u8) -> Result<Namespace> {
        let node = Namespace::create(name)?;
        let net = self.namespace.name();
        node.ip(&[
            &format!(
                "link add eth0 mtu {} type veth peer name {name} mtu {} netns {net}",
                Self::MTU,
                Self::MTU
            ),
            "link set eth0 up",
            &format!("addr add {address}/{prefix_len} dev eth0"),
        ])?;
        self.namespace.ip(&[format!("link set {name} master br0 up")])?;
        node.place().sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        Ok(node)
    }
}

/// Moves this thread, and those that it will start, into a namespace.
pub(crate) fn enter(name: &str) -> Result<()> {
    let path = format!("/run/netns/{name}");
    let file = std::fs::File::open(&path).with_context(|| format!("open {path}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {path}"))
}

// === running programs ===

/// Runs a command whose output matters only if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    read(command).map(drop)
}

/// Standard output of a command that has to succeed. A signal to this process ends it, and is an error afterwards.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", line(command)))?;
    let pid = Pid::from_child(&child);
    let (done, end) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    // What cleans up after a signal runs to its end: only what ran when it came is told.
    let mut told = interrupt::check().is_err();
    let output = loop {
        match end.recv_timeout(TICK) {
            Ok(output) => break output.with_context(|| format!("wait for {}", line(command)))?,
            Err(RecvTimeoutError::Disconnected) => bail!("lost {}", line(command)),
            Err(RecvTimeoutError::Timeout) if !told && interrupt::check().is_err() => {
                let _ = kill_process(pid, Signal::TERM);
                told = true;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    if !output.status.success() {
        if told {
            interrupt::check()?;
        }
        bail!(
            "{} ended with {}: {}",
            line(command),
            output.status,
            words(&output.stderr, &output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", line(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended before it had read all says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}\n{input}",
            line(command),
            output.status,
            words(&output.stderr, &output.stdout)
        );
    }
    Ok(())
}

fn words(stderr: &[u8], stdout: &[u8]) -> String {
    let text = if stderr.is_empty() { stdout } else { stderr };
    String::from_utf8_lossy(text).trim().to_owned()
}

/// The command line, for messages.
pub(crate) fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    format!("`{}`", words.join(" "))
}
