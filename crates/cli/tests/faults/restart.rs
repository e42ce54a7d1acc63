//! Agents end, are killed, and are replaced by others, also of another ABI version; traffic between pods never notices.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use weft_kernel::process::{Enter, enter};

use crate::bed::Bed;
use crate::invariants::Invariant;
use crate::support::{is_root, weft_ok};
use crate::sweep::is_full;
use crate::traffic::{End, Traffic};

/// Connections with heartbeats: half of them to the other pod, half to an address that the node's stack translates
/// into the other pod's, as kube-proxy does it.
const CONNECTIONS: usize = 64;

/// The address of the other half.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);

/// The version of the first other build; each further one has the next.
const OTHER_VERSION: u32 = 1_000;

/// Ends a wait for an agent that never serves.
const HANG: Duration = Duration::from_secs(120);

/// An agent in the place of the lab's.
struct Agent<'a> {
    bed: &'a Bed,
    command: Vec<String>,
    child: Child,
}

// === impl Agent ===

impl<'a> Agent<'a> {
    /// Takes the place of the lab's agent, which is held back.
    fn instead(bed: &'a Bed) -> Self {
        let command = bed.agent_command();
        weft_ok(&[
            "lab",
            "fault",
            bed.lab(),
            "kill-agent",
            bed.node_name,
            "--for",
            "60m",
        ]);
        let child = spawn(bed, &command, None);
        let agent = Self { bed, command, child };
        agent.until_it_serves();
        agent
    }

    /// Ends the agent by `signal` and starts another, of another version where one is given. Returns how long the node
    /// was without an agent that serves.
    fn replace(&mut self, signal: Signal, version: Option<u32>) -> Duration {
        let began = Instant::now();
        self.end(signal);
        self.child = spawn(self.bed, &self.command, version);
        self.until_it_serves();
        began.elapsed()
    }

    fn end(&mut self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the agent runs");
        self.child.wait().expect("a child");
    }

    fn until_it_serves(&self) {
        let began = Instant::now();
        while !self.bed.serves() {
            assert!(
                began.elapsed() < HANG,
                "the agent of {} never serves",
                self.bed.node_name
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has told.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(bed: &Bed, command: &[String], version: Option<u32>) -> Child {
    let log = std::fs::OpenOptions::new()
        .append(true)
        .open(bed.node_dir().join("agent.log"))
        .expect("the agent's log");
    let mut process = Command::new(&command[0]);
    process
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log);
    if let Some(version) = version {
        process.args(["--pin-version", &version.to_string()]);
    }
    let how = Enter {
        parent_death_signal: Some(weft_kernel::process::Signal::KILL),
        ..Enter::default()
    };
    enter(&mut process, &bed.node(), how).expect("the node's namespace");
    process.spawn().expect("the agent starts")
}

/// How often an agent is replaced.
fn rounds() -> u32 {
    if is_full() { 100 } else { 12 }
}

/// Replaces agents under traffic, `how` saying by what in each round.
fn under_traffic(label: &str, how: impl Fn(u32) -> (Signal, Option<u32>)) {
    let beds = Bed::pair(label);
    let [near, far] = &beds;
    let sandboxes = [near.sandbox("a"), far.sandbox("b")];
    let addresses = [near.add(&sandboxes[0]), far.add(&sandboxes[1])];
    let [from, to] = [0, 1].map(|at| End {
        netns: sandboxes[at].netns(),
        address: addresses[at],
    });
    near.translate(SERVICE, to.address);
    let direct = Traffic::start(&from, &to, CONNECTIONS / 2, None);
    let service = SocketAddr::from((SERVICE, crate::traffic::PORT));
    let translated = Traffic::start(&from, &to, CONNECTIONS / 2, Some(service));
    let mut agents = beds.each_ref().map(Agent::instead);
    direct.until_it_flows();
    translated.until_it_flows();
    // What noise there is without a fault.
    direct.take();
    translated.take();
    std::thread::sleep(Duration::from_secs(3));
    eprintln!("{label}, nothing happens: {:?}", direct.take());
    translated.take();

    let mut longest = Duration::ZERO;
    for round in 0..rounds() {
        let at = round as usize % agents.len();
        let (signal, version) = how(round);
        let away = agents[at].replace(signal, version);
        longest = longest.max(away);
        let audit = agents[at].bed.audit();
        let kept = audit.held().get(&sandboxes[at].id) == Some(&addresses[at]);
        Invariant::NoWrongFree.count(1, usize::from(!kept));
        Invariant::NoLeak.count(1, audit.held().len() - 1);
        Invariant::KernelOwned.count(1, audit.findings().len());
        assert!(
            kept && audit.held().len() == 1,
            "{label}, round {round}: {audit:?}"
        );
        assert_eq!(audit.findings(), [""; 0], "{label}, round {round}");
    }
    for traffic in [&direct, &translated] {
        traffic.until_it_flows();
    }
    // Pods may only end when nobody speaks to them any more.
    let (direct, translated) = (direct.end(), translated.end());
    eprintln!(
        "{label}, {} agents replaced, each serving within {longest:?}",
        rounds()
    );
    eprintln!("{label}, pod to pod: {direct:?}");
    eprintln!("{label}, by a translated address: {translated:?}");
    let resets = direct.resets + translated.resets;
    Invariant::Restart.took(resets == 0, direct.silence.max(translated.silence));
    Invariant::Connections.count(CONNECTIONS, resets);
    Invariant::Lost.count(
        usize::try_from(direct.arrived + direct.lost).expect("less than memory"),
        usize::try_from(direct.lost).expect("less than memory"),
    );
    assert_eq!(resets, 0, "connections ended");
    // Generous: this machine may be busy with others. What it was is in the table.
    assert!(direct.gap < Duration::from_secs(2), "{direct:?}");
    assert!(direct.arrived > 1_000, "{direct:?}");
    for (bed, sandbox) in beds.iter().zip(&sandboxes) {
        bed.delete(sandbox);
    }
}

#[test]
fn an_agent_that_is_killed_again_and_again_costs_no_connection() {
    if !is_root("an_agent_that_is_killed_again_and_again_costs_no_connection") {
        return;
    }
    under_traffic("kill", |_| (Signal::KILL, None));
}

#[test]
fn an_agent_that_is_restarted_again_and_again_costs_no_connection() {
    if !is_root("an_agent_that_is_restarted_again_and_again_costs_no_connection") {
        return;
    }
    under_traffic("term", |_| (Signal::TERM, None));
}

#[test]
fn an_agent_of_another_abi_version_takes_over_and_costs_no_connection() {
    if !is_root("an_agent_of_another_abi_version_takes_over_and_costs_no_connection") {
        return;
    }
    under_traffic("abi", |round| (Signal::TERM, Some(OTHER_VERSION + round)));
}
