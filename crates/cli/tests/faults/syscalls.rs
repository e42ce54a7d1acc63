//! What an ADD, a DEL and an agent at rest cost, counted in system calls: the same on every machine, and no quiet growth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::bed::{Bed, Sandbox};
use crate::support::{text, weft_ok};
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
    let mut serving = threads(&agent);
    let itself = format!("prctl(PR_SET_NAME, \"{SERVING}\"");
    let is_named = |own: &[&str]| own.iter().any(|line| line.starts_with(&itself));
    let started: BTreeSet<String> = serving
        .values()
        .filter(|own| is_named(own))
        .flatten()
        .filter(|line| line.contains("clone3"))
        .filter_map(|line| Some(line.rsplit_once(" = ")?.1.to_owned()))
        .collect();
    serving.retain(|thread, own| is_named(own) || started.contains(*thread));
    [calls(&threads(&plugin)), calls(&serving)]
}

/// The lines of a log of `strace -f`, by thread.
type Threads<'a> = BTreeMap<&'a str, Vec<&'a str>>;

fn threads(log: &str) -> Threads<'_> {
    let mut threads = Threads::new();
    for line in log.lines() {
        if let Some((thread, rest)) = line.split_once(' ') {
            threads.entry(thread).or_default().push(rest.trim_start());
        }
    }
    threads
}

fn calls(threads: &Threads<'_>) -> Calls {
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

/// What an agent at rest may do; what was counted is a little below.
const REST: Rest = Rest {
    pass: 385,
    pass_of_pod: 8,
    look: 52,
};

/// The same for so many nodes more: a batch of map entries takes one call, and all that share a route one question.
const MORE_NODES: usize = 200;
const FOR_MORE_NODES: usize = 20;
const MORE_PODS: usize = 5;

/// System calls of an agent at rest.
#[derive(Clone, Copy, Debug)]
struct Rest {
    /// A full pass, every 30 s, without pods and other nodes.
    pass: usize,
    /// For each pod more.
    pass_of_pod: usize,
    /// A look at the maps, twice a second.
    look: usize,
}

#[test]
fn an_agent_at_rest_takes_no_more_system_calls_than_it_may() {
    if !has_strace("an_agent_at_rest_takes_no_more_system_calls_than_it_may") {
        return;
    }
    let bed = Bed::new("rest");
    bed.until("at rest", |audit| audit.findings().is_empty());
    let alone = at_rest(&bed, "alone");
    let sandboxes: Vec<Sandbox> = (0..MORE_PODS)
        .map(|number| bed.sandbox(&format!("p{number}")))
        .collect();
    for sandbox in &sandboxes {
        bed.add(sandbox);
    }
    let with_pods = at_rest(&bed, "with pods");
    add_nodes(&bed);
    bed.until("the nodes", |audit| {
        audit.nodes() == MORE_NODES as u64 && audit.findings().is_empty()
    });
    let with_nodes = at_rest(&bed, "with nodes");

    let mut over = Vec::new();
    for (what, took, may) in [
        ("a full pass", alone.pass, REST.pass),
        (
            "a full pass with pods",
            with_pods.pass,
            alone.pass + MORE_PODS * REST.pass_of_pod,
        ),
        (
            "a full pass with pods and nodes",
            with_nodes.pass,
            with_pods.pass + FOR_MORE_NODES,
        ),
        ("a look", alone.look, REST.look),
        ("a look with pods and nodes", with_nodes.look, REST.look),
    ] {
        eprintln!("{what}: {took} system calls, may be {may}");
        if took > may {
            over.push(format!(
                "{what} takes {} more system calls than the {may} it may",
                took - may
            ));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// The pass with the fewest calls, and the middle one of the looks: some are cut short.
fn at_rest(bed: &Bed, when: &str) -> Observed {
    let tries: Vec<Observed> = (0..TRIES).map(|_| observe(bed)).collect();
    eprintln!("{when}: {tries:?}");
    let mut looks: Vec<usize> = tries.iter().map(|seen| seen.look).collect();
    looks.sort_unstable();
    Observed {
        pass: tries.iter().map(|seen| seen.pass).min().expect("a try"),
        look: looks[TRIES / 2],
    }
}

/// What the agent's two threads that look at the kernel did.
#[derive(Clone, Copy, Debug)]
struct Observed {
    pass: usize,
    look: usize,
}

fn observe(bed: &Bed) -> Observed {
    let agent = bed.agent();
    let thread = |name: &str| {
        let tasks = std::fs::read_dir(format!("/proc/{agent}/task")).expect("the agent runs");
        let named = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let task = tasks.flatten().find(named).expect("a thread of that name");
        task.file_name().into_string().expect("a number")
    };
    let (keep, watch) = (thread("keep"), thread("watch-maps"));
    let log = std::env::temp_dir().join(format!("{}.rest.strace", bed.lab()));
    let attached = Attached::to(agent, &strace(&["-o", log.to_str().expect("UTF-8")]));
    // A link that is nobody's pod's has changed: the occasion for a full pass.
    let alias = |text: &str| {
        let set = || {
            let mut rtnl = weft_kernel::rtnl::Rtnl::open().expect("a socket");
            rtnl.set_alias("eth0", text).expect("an alias");
        };
        bed.node().run(set).expect("the node's namespace");
    };
    alias("rest");
    std::thread::sleep(Duration::from_secs(2));
    drop(attached);
    let text = std::fs::read_to_string(&log).expect("strace's log");
    std::fs::remove_file(&log).expect("the log goes");
    alias("");
    // Its pass is over before the next try.
    std::thread::sleep(Duration::from_secs(1));
    let all = threads(&text);
    let of = |thread: String| -> Threads<'_> {
        let own = all.iter().filter(|(of, _)| **of == thread);
        own.map(|(of, lines)| (*of, lines.clone())).collect()
    };
    let (keep, watch) = (of(keep), of(watch));
    let pass = total(&calls(&keep));
    assert!(pass > 100, "no full pass: {pass} calls");
    let looks = watch
        .values()
        .flatten()
        .filter(|line| line.starts_with("clock_nanosleep"));
    Observed {
        pass,
        look: total(&calls(&watch)) / looks.count().max(1),
    }
}

/// Nodes without machines on the node's own subnet.
fn add_nodes(bed: &Bed) {
    let nodes: Vec<String> = (0..MORE_NODES)
        .map(|number| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: ghost-{number}\nstatus:\n  addresses:\n  - type: \
                 InternalIP\n    address: 10.224.7.{}\n  capacity: {{pods: '250'}}\n",
                number + 1
            )
        })
        .collect();
    let file = std::env::temp_dir().join(format!("{}.nodes.yaml", bed.lab()));
    std::fs::write(&file, nodes.join("---\n")).expect("a file");
    weft_ok(&["lab", "apply", bed.lab(), "-f", file.to_str().expect("UTF-8")]);
    std::fs::remove_file(&file).expect("the file goes");
}
