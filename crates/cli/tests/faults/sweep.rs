//! Crash sweep: plugin and agent are killed, or refused something by the kernel, at one system call after the other
//! (`strace --inject`); the agent recovers, an audit finds nothing, no address is lost or given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::bed::{Bed, Sandbox, is_valid_answer, keeping, was_killed};
use crate::invariants::Invariant;
use crate::support::{is_root, text, weft_ok};

/// Set for every point instead of a sample of the agent's.
const FULL: &str = "WEFT_FAULTS_FULL";

/// Of the agent's system calls the first of each kind is a kill point, and then one in this many, unless all are.
const STRIDE: usize = 31;

/// Calls that can't fail in the way they are made: an error in place of one would be no fault but a lie, such as a wake
/// that never was.
const INFALLIBLE: [&str; 9] = [
    "clone3",
    "epoll_wait",
    "exit",
    "futex",
    "madvise",
    "munmap",
    "rt_sigprocmask",
    "sched_yield",
    "sigaltstack",
];

/// Errors the kernel may answer any call with.
const ERRORS: [&str; 4] = ["ENOSPC", "EIO", "EMFILE", "EINTR"];

/// A pod that lives through everything, and must keep its address.
struct Witness<'a> {
    bed: &'a Bed,
    sandbox: Sandbox,
    address: std::net::Ipv4Addr,
}

// === impl Witness ===

impl<'a> Witness<'a> {
    fn new(bed: &'a Bed) -> Self {
        let sandbox = bed.sandbox("witness");
        let address = bed.add(&sandbox);
        Self {
            bed,
            sandbox,
            address,
        }
    }

    /// Checks everything after a fault, with nothing but the witness attached.
    fn check(&self, point: &str) {
        let alone = |held: usize| held == 1;
        let (_, audit) = self.bed.until(point, |audit| {
            audit.findings().is_empty() && alone(audit.held().len())
        });
        let kept = audit.held().get(&self.sandbox.id) == Some(&self.address);
        Invariant::NoLeak.count(1, audit.held().len().saturating_sub(1));
        Invariant::NoDuplicate.count(1, audit.duplicates());
        Invariant::NoWrongFree.count(1, usize::from(!kept));
        Invariant::KernelOwned.count(1, audit.findings().len());
        assert!(kept, "{point}: {audit:?}");
        assert_eq!(audit.duplicates(), 0, "{point}: {audit:?}");
    }
}

pub(crate) fn has_strace(test: &str) -> bool {
    if !is_root(test) {
        return false;
    }
    let there = Command::new("strace").arg("--version").output().is_ok();
    if !there {
        eprintln!("skipped: strace is not installed, next: cargo xtask setup");
    }
    there
}

pub(crate) fn is_full() -> bool {
    std::env::var_os(FULL).is_some()
}

/// A system call of a run, which strace can hit: it counts each call by itself, in each thread.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    call: String,
    /// From 1 on.
    number: usize,
}

impl Point {
    fn inject(&self, injection: &str) -> String {
        format!("inject={}:{injection}:when={}", self.call, self.number)
    }

    /// Every system call of every thread in a log of `strace -f`.
    fn all(log: &str) -> Vec<Self> {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut points = BTreeSet::new();
        for line in log.lines() {
            let Some((thread, rest)) = line.split_once(' ') else {
                continue;
            };
            // Neither signals nor the second half of a call that another thread interrupted.
            let Some((call, _)) = rest.trim_start().split_once('(') else {
                continue;
            };
            if !call
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            {
                continue;
            }
            let number = counts.entry((thread, call)).or_default();
            *number += 1;
            points.insert(Self {
                call: call.to_owned(),
                number: *number,
            });
        }
        points.into_iter().collect()
    }

    /// All of them, or the first of each call and one in `stride` of the others.
    fn sample(points: Vec<Self>, stride: usize) -> Vec<Self> {
        if is_full() {
            return points;
        }
        points
            .into_iter()
            .filter(|point| point.number == 1 || point.number % stride == 0)
            .collect()
    }
}

pub(crate) fn strace(arguments: &[&str]) -> Vec<String> {
    ["strace", "-f", "-qq"]
        .iter()
        .chain(arguments)
        .map(|word| (*word).to_owned())
        .collect()
}

fn injecting(point: &Point, injection: &str) -> Vec<String> {
    strace(&["-o", "/dev/null", "-e", &point.inject(injection)])
}

/// What strace logs while `run` runs with its arguments.
fn traced(bed: &Bed, run: impl FnOnce(&[String])) -> Vec<Point> {
    let log = std::env::temp_dir().join(format!("{}.strace", bed.lab()));
    run(&strace(&["-o", log.to_str().unwrap()]));
    let text = std::fs::read_to_string(&log).expect("strace's log");
    std::fs::remove_file(&log).expect("the log goes");
    Point::all(&text)
}

/// strace on a running process; ends when this is dropped.
pub(crate) struct Attached(Child);

impl Attached {
    pub(crate) fn to(process: u32, by: &[String]) -> Self {
        let child = Command::new(&by[0])
            .args(&by[1..])
            .args(["-p", &process.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace starts");
        // Attached to every thread, or the process is gone.
        let traced = || {
            let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
            tasks.is_ok_and(|tasks| {
                tasks.flatten().all(|task| {
                    std::fs::read_to_string(task.path().join("status"))
                        .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
                })
            })
        };
        for _ in 0..500 {
            if traced() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Self(child)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_plugin_killed_at_any_system_call_leaves_nothing_behind() {
    if !has_strace("a_plugin_killed_at_any_system_call_leaves_nothing_behind") {
        return;
    }
    let bed = Bed::new("kplug");
    let witness = Witness::new(&bed);
    let configuration = bed.configuration();
    for verb in ["ADD", "DEL", "GC"] {
        let call = |by: &[String]| {
            let sandbox = bed.sandbox("a");
            if verb != "ADD" {
                bed.add(&sandbox);
            }
            let configuration = if verb == "GC" {
                keeping(configuration.clone(), &[&witness.sandbox])
            } else {
                configuration.clone()
            };
            let output = bed.cni_by(by, verb, &sandbox, &configuration);
            // What a runtime does after a failure, and at the end of every sandbox.
            bed.delete(&sandbox);
            output
        };
        let points = traced(&bed, |by| assert!(call(by).status.success()));
        let mut killed = 0;
        for point in &points {
            let output = call(&injecting(point, "signal=SIGKILL"));
            killed += usize::from(was_killed(&output));
            assert!(
                was_killed(&output) || output.status.success(),
                "{verb}, {point:?}: {}",
                text(&output)
            );
            witness.check(&format!("{verb} killed at {point:?}"));
        }
        eprintln!("{verb}: killed at {killed} of {} system calls", points.len());
        Invariant::KillPoint.count(killed, 0);
        assert!(
            killed * 10 > points.len() * 9,
            "{verb}: {killed} of {}",
            points.len()
        );
    }
}

#[test]
fn a_runtime_that_never_says_del_gets_its_addresses_back_all_the_same() {
    if !has_strace("a_runtime_that_never_says_del_gets_its_addresses_back_all_the_same") {
        return;
    }
    let bed = Bed::new("nodel");
    let witness = Witness::new(&bed);
    let configuration = bed.configuration();
    let points = traced(&bed, |by| {
        let sandbox = bed.sandbox("a");
        assert!(bed.cni_by(by, "ADD", &sandbox, &configuration).status.success());
        sandbox.vanish();
    });
    for (number, point) in points.iter().enumerate() {
        let sandbox = bed.sandbox(&format!("a{number}"));
        bed.cni_by(
            &injecting(point, "signal=SIGKILL"),
            "ADD",
            &sandbox,
            &configuration,
        );
        sandbox.vanish();
    }
    witness.check("namespaces removed without DEL");
}

#[test]
fn a_plugin_refused_anything_by_the_kernel_says_so_and_leaves_nothing_behind() {
    if !has_strace("a_plugin_refused_anything_by_the_kernel_says_so_and_leaves_nothing_behind") {
        return;
    }
    let bed = Bed::new("eplug");
    let witness = Witness::new(&bed);
    let configuration = bed.configuration();
    for verb in ["ADD", "DEL"] {
        let call = |by: &[String]| {
            let sandbox = bed.sandbox("a");
            if verb == "DEL" {
                bed.add(&sandbox);
            }
            let output = bed.cni_by(by, verb, &sandbox, &configuration);
            bed.delete(&sandbox);
            output
        };
        let points = traced(&bed, |by| assert!(call(by).status.success()));
        for (number, point) in points.iter().enumerate() {
            for (turn, error) in ERRORS.into_iter().enumerate() {
                if !is_full() && number % ERRORS.len() != turn {
                    continue;
                }
                let output = call(&injecting(point, &format!("error={error}")));
                // Before `main`, and when it can't write, a program has nothing to say.
                let answer = output.stdout.is_empty() || is_valid_answer(&output);
                Invariant::ValidAnswer.count(1, usize::from(!answer));
                assert!(answer, "{verb} with {error} at {point:?}: {}", text(&output));
                witness.check(&format!("{verb} with {error} at {point:?}"));
            }
        }
    }
}

#[test]
fn an_agent_killed_at_work_takes_up_where_it_was() {
    if !has_strace("an_agent_killed_at_work_takes_up_where_it_was") {
        return;
    }
    at_work("kwork", &["signal=SIGKILL"], |_| true);
}

#[test]
fn an_agent_refused_anything_by_the_kernel_keeps_its_books_right() {
    if !has_strace("an_agent_refused_anything_by_the_kernel_keeps_its_books_right") {
        return;
    }
    let errors = ERRORS.map(|error| format!("error={error}"));
    at_work("ework", &errors.each_ref().map(String::as_str), |call| {
        !INFALLIBLE.contains(&call)
    });
}

/// Injects into the agent while it serves ADD and DEL.
fn at_work(label: &str, injections: &[&str], hit: impl Fn(&str) -> bool) {
    let bed = Bed::new(label);
    let witness = Witness::new(&bed);
    let mut ended = 0;
    for verb in ["ADD", "DEL"] {
        let call = |by: &[String]| {
            let sandbox = bed.sandbox("a");
            if verb == "DEL" {
                bed.add(&sandbox);
            }
            let agent = bed.agent();
            let output = {
                let _strace = Attached::to(agent, by);
                bed.cni(verb, &sandbox)
            };
            let killed = has_ended(agent);
            if killed {
                // Whoever supervises agents waits longer each time; this one is wanted now.
                weft_ok(&["lab", "fault", bed.lab(), "kill-agent", "node-1", "--clear"]);
            }
            bed.delete(&sandbox);
            (output, killed)
        };
        let mut points = traced(&bed, |by| assert!(call(by).0.status.success()));
        points.retain(|point| hit(&point.call));
        let points = Point::sample(points, STRIDE);
        for (number, point) in points.iter().enumerate() {
            for (turn, injection) in injections.iter().enumerate() {
                if !is_full() && number % injections.len() != turn {
                    continue;
                }
                let name = format!("{verb}, {injection} at {point:?}");
                eprintln!("{name}");
                let (output, killed) = call(&injecting(point, injection));
                ended += usize::from(killed);
                let answer = is_valid_answer(&output);
                Invariant::ValidAnswer.count(1, usize::from(!answer));
                assert!(answer, "{name}: {}", text(&output));
                if verb == "DEL" {
                    Invariant::Delete.count(1, usize::from(!output.status.success()));
                    assert!(output.status.success(), "{name}: {}", text(&output));
                }
                witness.check(&name);
            }
        }
        eprintln!(
            "{label}, {verb}: {} points, the agent ended {ended} times so far",
            points.len()
        );
    }
    Invariant::KillPoint.count(ended, 0);
}

/// Whether a process is gone, or waits for its parent to learn that it is.
fn has_ended(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/status")).map_or(true, |status| {
        status.contains("State:\tZ") || status.contains("State:\tX")
    })
}

#[test]
fn an_agent_killed_at_any_moment_of_its_start_starts_the_next_time() {
    if !has_strace("an_agent_killed_at_any_moment_of_its_start_starts_the_next_time") {
        return;
    }
    let bed = Bed::new("kstart");
    let witness = Witness::new(&bed);
    let command = bed.agent_command();
    // Starts an agent by strace; returns whether it came to serve.
    let start = |by: &[String]| {
        weft_ok(&["lab", "fault", bed.lab(), "kill-agent", "node-1", "--for", "10m"]);
        let mut child = Command::new("ip")
            .args(["netns", "exec", &format!("weft-{}.node-1", bed.lab())])
            .args(by)
            .args(&command)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ip starts");
        let serves = loop {
            if child.try_wait().expect("a child").is_some() {
                break false;
            }
            if bed.serves() {
                break true;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        bed.kill_agent();
        let _ = child.wait();
        weft_ok(&["lab", "fault", bed.lab(), "kill-agent", "node-1", "--clear"]);
        serves
    };
    let points = traced(&bed, |by| assert!(start(by)));
    let points = Point::sample(points, STRIDE * 31);
    let mut killed = 0;
    for point in &points {
        killed += usize::from(!start(&injecting(point, "signal=SIGKILL")));
        witness.check(&format!("start killed at {point:?}"));
    }
    eprintln!("start: killed at {killed} of {} points", points.len());
    Invariant::KillPoint.count(killed, 0);
    assert!(killed * 2 > points.len(), "{killed} of {}", points.len());
}
