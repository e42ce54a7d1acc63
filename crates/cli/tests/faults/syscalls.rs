//! What an ADD and a DEL cost, counted in system calls: the same on every machine, and no quiet growth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::bed::{Bed, Sandbox};
use crate::support::text;
use crate::sweep::{Attached, has_strace, strace};

/// How many system calls there may be. What was counted is a little below: a debug build on Linux 6.18 with glibc.
const BUDGETS: [(&str, Counts); 2] = [
    (
        "ADD",
        Counts {
            plugin: 95,
            agent: 150,
        },
    ),
    (
        "DEL",
        Counts {
            plugin: 88,
            agent: 48,
        },
    ),
];

/// How often each is counted. The fewest are compared: a call that waits is repeated on a busy machine.
const TRIES: usize = 5;

/// Calls that wait for others: their number says how busy the machine is.
const WAITS: [&str; 4] = ["clock_nanosleep", "futex", "restart_syscall", "sched_yield"];

/// Name of the agent's threads that serve a request each.
const SERVING: &str = "cni";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    plugin: usize,
    /// Of the threads that serve the request, without the ledger's, which several requests share.
    agent: usize,
}

#[test]
fn an_add_and_a_del_take_no_more_system_calls_than_they_may() {
    if !has_strace("an_add_and_a_del_take_no_more_system_calls_than_they_may") {
        return;
    }
    let bed = Bed::new("calls");
    let counted: Vec<_> = (0..TRIES)
        .map(|number| count(&bed, &format!("s{number}")))
        .collect();
    let mut over = Vec::new();
    for (index, (verb, budget)) in BUDGETS.into_iter().enumerate() {
        let tries = || counted.iter().map(|both| &both[index]);
        let fewest = |of: fn(&[Calls; 2]) -> &Calls| {
            tries()
                .map(of)
                .min_by_key(|calls| total(calls))
                .expect("a try")
                .clone()
        };
        let (plugin, agent) = (fewest(|[plugin, _]| plugin), fewest(|[_, agent]| agent));
        for (who, calls, may) in [("plugin", plugin, budget.plugin), ("agent", agent, budget.agent)] {
            eprintln!(
                "{verb}: {} system calls of the {who}, may be {may}",
                total(&calls)
            );
            if total(&calls) > may {
                over.push(format!(
                    "{verb}: the {who} takes {} more system calls than the {may} it may: {calls:?}",
                    total(&calls) - may
                ));
            }
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// How often each system call was made.
type Calls = BTreeMap<String, usize>;

/// Those of the plugin and of the agent, for ADD and DEL of one sandbox.
fn count(bed: &Bed, label: &str) -> [[Calls; 2]; 2] {
    let sandbox = bed.sandbox(label);
    ["ADD", "DEL"].map(|verb| one(bed, verb, &sandbox))
}

fn one(bed: &Bed, verb: &str, sandbox: &Sandbox) -> [Calls; 2] {
    let logs =
        ["plugin", "agent"].map(|who| std::env::temp_dir().join(format!("{}.{who}.strace", bed.lab())));
    let by = logs
        .each_ref()
        .map(|log| strace(&["-o", log.to_str().expect("UTF-8")]));
    let attached = Attached::to(bed.agent(), &by[1]);
    let output = bed.cni_by(&by[0], verb, sandbox, &bed.configuration());
    // What the agent does after its answer counts too. Cut short, it counts for less.
    std::thread::sleep(Duration::from_millis(200));
    drop(attached);
    assert!(output.status.success(), "{verb}: {}", text(&output));
    let [plugin, agent] = logs.map(|log| {
        let text = std::fs::read_to_string(&log).expect("strace's log");
        std::fs::remove_file(&log).expect("the log goes");
        text
    });
    [calls(&plugin, None), calls(&agent, Some(SERVING))]
}

/// Counts the calls in a log of `strace -f`: of all threads, or of those of that name and the ones they started.
fn calls(log: &str, of: Option<&str>) -> Calls {
    let mut threads: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in log.lines() {
        if let Some((thread, rest)) = line.split_once(' ') {
            threads.entry(thread).or_default().push(rest.trim_start());
        }
    }
    if let Some(name) = of {
        let itself = format!("prctl(PR_SET_NAME, \"{name}\"");
        let is_named = |own: &[&str]| own.iter().any(|line| line.starts_with(&itself));
        let started: BTreeSet<String> = threads
            .values()
            .filter(|own| is_named(own))
            .flatten()
            .filter(|line| line.contains("clone3"))
            .filter_map(|line| Some(line.rsplit_once(" = ")?.1.to_owned()))
            .collect();
        threads.retain(|thread, own| is_named(own) || started.contains(*thread));
    }
    let mut calls = Calls::new();
    for own in threads.values() {
        // Neither signals nor the second half of a call that another thread interrupted.
        let names = own
            .iter()
            .filter_map(|line| line.split_once('('))
            .map(|(name, _)| name);
        let is_name = |name: &&str| {
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        for name in names.filter(is_name).filter(|name| !WAITS.contains(name)) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

fn total(calls: &Calls) -> usize {
    calls.values().sum()
}
