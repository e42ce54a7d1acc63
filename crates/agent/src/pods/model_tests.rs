//! Random requests of container runtimes against the agent's pods and ledger, which die at any step and lose power;
//! compared with the plainest model of what each runtime was told.
//!
//! `WEFT_MODEL_OPS` says how many operations each variant runs, `WEFT_MODEL_SEED` repeats a run.

use super::tests::code_and_words;
use super::*;
use crate::audit::Desk;
use crate::pass::Pass;
use crate::wiring::WiringError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;
use tempfile::TempDir;
use weft_cni::intent::Intent;
use weft_cni::protocol::{Del, Netns, Pod};
use weft_cni::spec::AddResult;
use weft_ipam::ledger::COOLING;
use weft_ipam::ledger::disk::{Disk, Fuse};
use weft_ipam::{BootId, Clock, Moment};

/// xorshift64*, which gives the same numbers for a seed everywhere.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll()).unwrap() % bound
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, of: impl IntoIterator<Item = T>) -> Option<T> {
        let all: Vec<T> = of.into_iter().collect();
        (!all.is_empty()).then(|| all[self.below(all.len())].clone())
    }
}

#[derive(Debug, Default)]
struct Time {
    boots: u64,
    since_boot_ms: u64,
    /// Since the test began, for the model.
    total_ms: u64,
}

#[derive(Clone, Debug, Default)]
struct TestClock(Arc<Mutex<Time>>);

impl TestClock {
    fn advance(&self, ms: u64) {
        let mut time = self.0.lock().unwrap();
        time.since_boot_ms += ms;
        time.total_ms += ms;
    }

    fn reboot(&self) {
        let mut time = self.0.lock().unwrap();
        time.boots += 1;
        time.since_boot_ms = 0;
    }

    fn total_ms(&self) -> u64 {
        self.0.lock().unwrap().total_ms
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        let time = self.0.lock().unwrap();
        Moment {
            boot: BootId::new(time.boots.to_string()),
            since_boot_ms: time.since_boot_ms,
        }
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

/// The kernel: which attachment has an interface with which address. Refuses to give an address to two.
#[derive(Clone, Default)]
struct Kernel(Arc<KernelState>);

#[derive(Default)]
struct KernelState {
    wired: Mutex<BTreeMap<AttachmentKey, Ipv4Addr>>,
    /// Those of them whose ADD has not ended.
    unfinished: Mutex<BTreeSet<AttachmentKey>>,
    /// How many of the next changes fail, with nothing done.
    failing: AtomicU32,
    fuse: Fuse,
    violations: Mutex<Vec<String>>,
}

impl Kernel {
    fn wired(&self) -> BTreeMap<AttachmentKey, Ipv4Addr> {
        self.0.wired.lock().unwrap().clone()
    }

    fn step(&self) -> Result<(), WiringError> {
        let failing = &self.0.failing;
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if fails.is_ok() || self.0.fuse.step().is_err() {
            return Err(WiringError::InterfaceExists { name: "eth0".into() });
        }
        Ok(())
    }
}

impl PodKernel for Kernel {
    fn attach(&self, attachment: &Attachment, _: &NetNs, _: u32, _: &Steps) -> Result<(), WiringError> {
        self.step()?;
        let mut wired = self.0.wired.lock().unwrap();
        let other = wired
            .iter()
            .find(|(key, address)| **address == attachment.address && **key != attachment.key);
        if let Some((other, _)) = other {
            let words = format!("{attachment} is wired while {other} has its address");
            self.0.violations.lock().unwrap().push(words);
        }
        wired.insert(attachment.key.clone(), attachment.address);
        self.0.unfinished.lock().unwrap().insert(attachment.key.clone());
        Ok(())
    }

    fn finish(&self, attachment: &Attachment) -> Result<(), WiringError> {
        self.step()?;
        self.0.unfinished.lock().unwrap().remove(&attachment.key);
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), WiringError> {
        self.step()?;
        let mut wired = self.0.wired.lock().unwrap();
        for key in std::mem::take(&mut *self.0.unfinished.lock().unwrap()) {
            wired.remove(&key);
        }
        Ok(())
    }

    fn detach(&self, attachment: &Attachment) -> Result<(), WiringError> {
        self.step()?;
        self.0.wired.lock().unwrap().remove(&attachment.key);
        self.0.unfinished.lock().unwrap().remove(&attachment.key);
        Ok(())
    }

    fn check(&self, held: &Attachment, _: &NetNs, _: u32) -> Result<Vec<Difference>, WiringError> {
        let right = self.0.wired.lock().unwrap().get(&held.key) == Some(&held.address);
        Ok(if right {
            vec![]
        } else {
            vec![Difference("eth0 is missing".into())]
        })
    }

    fn attached(&self) -> Result<Vec<AttachmentKey>, WiringError> {
        let unfinished = self.0.unfinished.lock().unwrap().clone();
        let wired = self.wired().into_keys();
        Ok(wired.filter(|key| !unfinished.contains(key)).collect())
    }

    fn pass(&self, _: &[Attachment], _: u32, _: &mut Pass) -> Result<(), WiringError> {
        Ok(())
    }
}

/// A node: what survives its agent, and the agent.
struct Node {
    seed: u64,
    clock: TestClock,
    kernel: Kernel,
    fuse: Fuse,
    disk: Disk,
    /// The disk when the agent began.
    before: Vec<u8>,
    intents: TempDir,
    blocks: Mutex<(Vec<Block>, Vec<Block>)>,
    pods: Option<Pods<Kernel>>,
    told: Told,
}

/// What the runtimes know, all of them together.
#[derive(Default)]
struct Told {
    /// Addresses of sandboxes that run.
    live: Mutex<BTreeMap<Ipv4Addr, AttachmentKey>>,
    /// When an address was last taken from a sandbox that ran, at the earliest.
    released: Mutex<BTreeMap<Ipv4Addr, u64>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

/// A container runtime. It sends one request after another; several runtimes don't wait for each other.
struct Runtime {
    dice: Dice,
    name: String,
    /// Sandboxes it was told run.
    live: BTreeMap<AttachmentKey, Ipv4Addr>,
    /// Sandboxes it has to delete: their ADD or DEL failed, or their namespace is gone.
    ending: BTreeSet<AttachmentKey>,
    /// Sandboxes it has deleted, and may delete once more.
    ended: Vec<AttachmentKey>,
    made: u64,
}

const BLOCKS: [&str; 5] = [
    "10.244.0.0/28",
    "10.244.0.16/29",
    "10.244.7.0/27",
    "10.244.9.0/30",
    "10.244.1.0/26",
];

impl Node {
    fn new(seed: u64) -> Self {
        let shared_memory = std::path::Path::new("/dev/shm");
        let intents = if shared_memory.is_dir() {
            TempDir::new_in(shared_memory).unwrap()
        } else {
            TempDir::new().unwrap()
        };
        let before = Disk::formatted().contents();
        let fuse = Fuse::default();
        let kernel = Kernel(Arc::new(KernelState {
            fuse: fuse.clone(),
            ..KernelState::default()
        }));
        let mut node = Self {
            seed,
            clock: TestClock::default(),
            kernel,
            disk: Disk::fused(before.clone(), fuse.clone()),
            fuse,
            before,
            intents,
            blocks: Mutex::new((
                BLOCKS[..2].iter().map(|cidr| cidr.parse().unwrap()).collect(),
                vec![],
            )),
            pods: None,
            told: Told::default(),
        };
        node.start(i64::MAX);
        node
    }

    fn pods(&self) -> &Pods<Kernel> {
        self.pods.as_ref().expect("an agent runs")
    }

    fn count(&self, what: &'static str) {
        *self.told.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    /// Ends the agent where it stands and reads what its disk has: everything, or after a power cut what was synced
    /// and a random part of the rest.
    fn die(&mut self, dice: &mut Dice, power: bool) {
        self.fuse.set(0);
        self.pods = None;
        if power {
            let steps = self.disk.steps();
            self.before = self.disk.cut(&self.before, steps, || dice.one_in(2)).contents();
            self.clock.reboot();
            self.kernel.0.wired.lock().unwrap().clear();
            self.kernel.0.unfinished.lock().unwrap().clear();
            let now = self.clock.total_ms();
            let mut released = self.told.released.lock().unwrap();
            // What had rested has; for the rest nobody knows how long the machine was off.
            released.retain(|_, at| Duration::from_millis(now - *at) < COOLING);
            released.values_mut().for_each(|at| *at = now);
            self.told.live.lock().unwrap().clear();
        } else {
            self.before = self.disk.contents();
        }
    }

    /// Starts an agent as the real one starts, until the fuse blows. Whether it came up.
    fn start(&mut self, steps: i64) -> bool {
        self.fuse.set(steps);
        self.disk = Disk::fused(self.before.clone(), self.fuse.clone());
        let opened = Ledger::open_on(&self.disk, Arc::new(self.clock.clone()));
        let (ledger, recovery) = match opened {
            Ok(opened) => opened,
            Err(_) if self.fuse.is_blown() => return false,
            Err(error) => panic!("seed {}: the ledger does not open: {error}", self.seed),
        };
        assert_eq!(recovery.quarantined, vec![], "seed {}", self.seed);
        if crate::recover(&self.kernel, &ledger, &recovery).is_err() {
            drop(ledger);
            self.before = self.disk.contents();
            // Whoever supervises the agent starts it anew.
            return !self.fuse.is_blown() && self.start(steps);
        }
        let (_, readiness) = watch::channel(Readiness::Ready { mtu: 1450 });
        let intents = Intents::at(self.intents.path().join("intents"));
        let pods = Pods::new(
            "n1".parse().unwrap(),
            ledger,
            self.kernel.clone(),
            intents,
            readiness,
            Desk::new(std::sync::mpsc::channel().0),
        );
        pods.replay_intents().unwrap();
        self.pods = Some(pods);
        self.set_blocks();
        // The keeper's first pass, before which there is no ADD.
        let repaired = self.pods().repair(1450);
        assert!(
            repaired.is_ok() || self.fuse.is_blown(),
            "seed {}: {repaired:?}",
            self.seed
        );
        !self.fuse.is_blown()
    }

    fn set_blocks(&self) {
        let (serving, retiring) = self.blocks.lock().unwrap().clone();
        let all = [serving, retiring.clone()].concat();
        self.pods().set_blocks(&all, &retiring, None);
    }

    fn entries(&self) -> Vec<(Ipv4Addr, Entry)> {
        self.pods().ledger().list().unwrap()
    }

    /// Everything every runtime was told is still so.
    fn verify(&self, runtimes: &mut [Runtime], when: &str) {
        let seed = self.seed;
        let entries: BTreeMap<Ipv4Addr, Entry> = self.entries().into_iter().collect();
        let wired = self.kernel.wired();
        for runtime in runtimes {
            for (key, address) in &runtime.live {
                let owner = match entries.get(address) {
                    Some(Entry::Active(owner)) => Some(&owner.key),
                    _ => None,
                };
                assert_eq!(
                    owner,
                    Some(key),
                    "seed {seed}, {when}: {address} was freed while its owner lives"
                );
                assert_eq!(
                    wired.get(key),
                    Some(address),
                    "seed {seed}, {when}: {key} lost its interface"
                );
                assert!(
                    !self.kernel.0.unfinished.lock().unwrap().contains(key),
                    "seed {seed}, {when}: the next agent would remove {key}"
                );
            }
        }
        let violations = self.kernel.0.violations.lock().unwrap();
        assert_eq!(*violations, Vec::<String>::new(), "seed {seed}, {when}");
    }

    /// With all runtimes' deletions done and two passes of the keeper, nothing is left but what runs.
    fn settle(&self, runtimes: &mut [Runtime]) {
        for runtime in &mut *runtimes {
            if runtime.dice.one_in(2) {
                runtime.gc(self);
            }
            for key in runtime.ending.clone() {
                runtime.del(self, &key);
                assert!(
                    !runtime.ending.contains(&key),
                    "seed {}: DEL of {key} fails",
                    self.seed
                );
            }
        }
        for _ in 0..2 {
            self.pods().replay_intents().unwrap();
            self.pods().repair(1450).unwrap();
        }
        let live: BTreeMap<AttachmentKey, Ipv4Addr> =
            runtimes.iter().flat_map(|runtime| runtime.live.clone()).collect();
        let entries = self.entries();
        let owned: BTreeMap<AttachmentKey, Ipv4Addr> = entries
            .iter()
            .filter_map(|(address, entry)| Some((entry.owner()?.key.clone(), *address)))
            .collect();
        assert_eq!(owned, live, "seed {}: addresses leaked or lost", self.seed);
        assert_eq!(
            self.kernel.wired(),
            live,
            "seed {}: interfaces leaked or lost",
            self.seed
        );
        self.count("settled");
    }
}

impl Runtime {
    fn new(seed: u64, number: usize) -> Self {
        Self {
            dice: Dice::new(seed ^ (number as u64 + 1) << 40),
            name: format!("net{number}"),
            live: BTreeMap::new(),
            ending: BTreeSet::new(),
            ended: Vec::new(),
            made: 0,
        }
    }

    fn step(&mut self, node: &Node) {
        match self.dice.below(100) {
            0..32 => {
                let again = self
                    .dice
                    .one_in(12)
                    .then(|| self.dice.pick(self.ended.clone()))
                    .flatten();
                let key = again.unwrap_or_else(|| {
                    self.made += 1;
                    AttachmentKey::new(format!("{}-{}", self.name, self.made), "eth0").unwrap()
                });
                self.add(node, &key);
            }
            32..58 => {
                if let Some(key) = self.dice.pick(self.live.keys().cloned()) {
                    self.del(node, &key);
                }
            }
            58..66 => {
                if let Some(key) = self.dice.pick(self.ending.clone()) {
                    self.del(node, &key);
                }
            }
            66..72 => {
                if let Some(key) = self.dice.pick(self.ended.clone()) {
                    node.count("DEL repeated");
                    self.del(node, &key);
                }
            }
            72..84 => self.check(node),
            84 => self.gc(node),
            85 => {
                node.count("GC without a list");
                let _ = self.call(node, Command::Gc(Gc { valid: None }), false);
            }
            86..92 => {
                let ms = self.dice.roll() % 60_000;
                node.clock.advance(ms);
            }
            92 => {
                if let Some(key) = self.dice.pick(self.live.keys().cloned()) {
                    node.count("namespace gone");
                    self.take_down(node, &key);
                    node.kernel.0.wired.lock().unwrap().remove(&key);
                    self.ending.insert(key);
                }
            }
            93..95 => {
                if let Some(key) = self.dice.pick(self.live.keys().cloned()) {
                    self.leave_intent(node, &key);
                }
            }
            95 => node.pods().replay_intents().unwrap(),
            96 => drop(node.pods().repair(1450)),
            97 => {
                node.count("kernel fails");
                node.kernel.0.failing.fetch_add(1, Ordering::SeqCst);
            }
            98 => {
                node.count("disk fails");
                node.disk.fail_next_sync();
            }
            _ => {
                node.count("blocks change");
                let mut blocks = node.blocks.lock().unwrap();
                *blocks = Default::default();
                for cidr in BLOCKS {
                    match self.dice.below(3) {
                        0 => blocks.0.push(cidr.parse().unwrap()),
                        1 => blocks.1.push(cidr.parse().unwrap()),
                        _ => {}
                    }
                }
                drop(blocks);
                node.set_blocks();
            }
        }
    }

    fn call(&self, node: &Node, command: Command, gone: bool) -> (Request, Reply) {
        let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
        let request = Request {
            network: self.name.clone(),
            wait_ms: 0,
            times: None,
            command,
        };
        let reply = node
            .pods()
            .handle(&request, Some(netns.into()), &|| gone, &Steps::begin());
        (request, reply)
    }

    fn add(&mut self, node: &Node, key: &AttachmentKey) {
        node.count("ADD");
        self.ended.retain(|ended| ended != key);
        let command = Command::Add(Add {
            key: key.clone(),
            netns: Netns {
                path: "/run/netns/p".into(),
                dev: 4,
                ino: 1,
            },
            // Pods are made again under the same name all the time.
            pod: Pod {
                name: Some(format!("p{}", self.dice.below(8))),
                ..Pod::default()
            },
            runtime_config: serde_json::Map::new(),
            prev_result: None,
        });
        let gone = self.dice.one_in(40);
        let (request, reply) = self.call(node, command, gone);
        let Reply::Added(attached) = reply else {
            self.ending.insert(key.clone());
            return;
        };
        let std::net::IpAddr::V4(address) = attached.addresses[0].address else {
            panic!("{attached:?}");
        };
        let seed = node.seed;
        let now = node.clock.total_ms();
        let other = node.told.live.lock().unwrap().get(&address).cloned();
        assert_eq!(
            other, None,
            "seed {seed}: {key} got {address} of a sandbox that runs"
        );
        if let Some(at) = node.told.released.lock().unwrap().get(&address) {
            let rested = Duration::from_millis(now - at);
            assert!(
                rested >= COOLING,
                "seed {seed}: {key} got {address} after {rested:?}"
            );
        }
        if node.fuse.is_blown() {
            // The answer did not get out.
            self.ending.insert(key.clone());
        } else if self.dice.one_in(30) {
            node.count("ADD abandoned");
            node.pods().abandoned(&request);
            self.ending.insert(key.clone());
        } else {
            node.told.live.lock().unwrap().insert(address, key.clone());
            self.live.insert(key.clone(), address);
        }
    }

    /// A sandbox does not run any more; its address must rest from now on.
    fn take_down(&mut self, node: &Node, key: &AttachmentKey) {
        if let Some(address) = self.live.remove(key) {
            let now = node.clock.total_ms();
            node.told.released.lock().unwrap().insert(address, now);
            node.told.live.lock().unwrap().remove(&address);
        }
    }

    fn del(&mut self, node: &Node, key: &AttachmentKey) {
        node.count("DEL");
        self.take_down(node, key);
        let command = Command::Del(Del {
            key: key.clone(),
            pod: Pod::default(),
        });
        let done = matches!(self.call(node, command, false).1, Reply::Done) && !node.fuse.is_blown();
        if done {
            self.ending.remove(key);
            self.end(key);
        } else if self.dice.one_in(2) {
            self.leave_intent(node, key);
        } else {
            self.ending.insert(key.clone());
        }
    }

    /// What the plugin does where it can't reach the agent: for the runtime, the sandbox is gone.
    fn leave_intent(&mut self, node: &Node, key: &AttachmentKey) {
        node.count("DEL by intent");
        self.take_down(node, key);
        let intent = Intent {
            key: key.clone(),
            network: self.name.clone(),
            pod: Pod::default(),
        };
        node.pods().intents.leave(&intent).unwrap();
        self.ending.remove(key);
        self.end(key);
    }

    fn end(&mut self, key: &AttachmentKey) {
        if !self.ended.contains(key) {
            self.ended.push(key.clone());
        }
        if self.ended.len() > 16 {
            self.ended.remove(0);
        }
    }

    fn check(&mut self, node: &Node) {
        node.count("CHECK");
        let live = self.dice.pick(self.live.clone());
        let ended = self.dice.pick(self.ended.clone());
        let check = |key: &AttachmentKey, address: Ipv4Addr| {
            let result = serde_json::json!({"ips": [{"address": format!("{address}/32")}]});
            let prev_result: AddResult = serde_json::from_value(result).unwrap();
            let netns = Netns {
                path: "/run/netns/p".into(),
                dev: 4,
                ino: 1,
            };
            Command::Check(Check {
                key: key.clone(),
                netns,
                pod: Pod::default(),
                prev_result,
            })
        };
        if let Some((key, address)) = live {
            let reply = self.call(node, check(&key, address), false).1;
            // A full disk is told to all whose requests shared the write.
            let disk_failed = matches!(&reply, Reply::Failed(failure) if failure.code == code::IO);
            if !node.fuse.is_blown() && !disk_failed {
                assert_eq!(
                    reply,
                    Reply::Done,
                    "seed {}: CHECK of {key} ({address})",
                    node.seed
                );
            }
        }
        if let Some(key) = ended {
            let reply = self.call(node, check(&key, Ipv4Addr::LOCALHOST), false).1;
            assert_ne!(code_and_words(reply).0, 0, "seed {}", node.seed);
        }
    }

    fn gc(&mut self, node: &Node) {
        node.count("GC");
        let valid = Some(self.live.keys().cloned().collect());
        let _ = self.call(node, Command::Gc(Gc { valid }), false);
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

/// Runs so many operations by so many runtimes at once, each round of which ends in one of the ways agents and nodes
/// end.
fn run(runtimes: usize, default_ops: u64) {
    let fresh = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 >> 10;
    let seed = setting("WEFT_MODEL_SEED").unwrap_or(fresh);
    let ops = setting("WEFT_MODEL_OPS").unwrap_or(default_ops);
    eprintln!("WEFT_MODEL_SEED={seed} repeats this: {ops} operations, {runtimes} runtime(s) at once");
    let mut dice = Dice::new(seed);
    let mut node = Node::new(seed);
    let mut all: Vec<Runtime> = (0..runtimes).map(|number| Runtime::new(seed, number)).collect();
    let mut done = 0;
    let started = Instant::now();
    while done < ops {
        let each = 1 + dice.below(if runtimes > 2 { 8 } else { 60 });
        let fused = dice.one_in(2);
        node.fuse.set(if fused {
            i64::try_from(1 + dice.below(each * runtimes * if runtimes > 2 { 2 } else { 10 })).unwrap()
        } else {
            i64::MAX
        });
        let shared = &node;
        if let [only] = all.as_mut_slice() {
            play(only, shared, each);
        } else {
            thread::scope(|scope| {
                for runtime in &mut all {
                    scope.spawn(move || play(runtime, shared, each));
                }
            });
        }
        done += (each * runtimes) as u64;
        if node.fuse.is_blown() || dice.one_in(3) {
            node.count(if node.fuse.is_blown() {
                "died at a step"
            } else {
                "died at rest"
            });
            let power = dice.one_in(3);
            crash(&mut node, &mut all, &mut dice, power);
            // Often it dies again before it is up.
            for _ in 0..3 {
                if dice.one_in(2) {
                    break;
                }
                let steps = i64::try_from(dice.below(60)).unwrap();
                if dice.one_in(2) {
                    node.kernel.0.failing.store(1, Ordering::SeqCst);
                }
                if !node.start(steps) {
                    node.count("died at its start");
                }
                let power = dice.one_in(4);
                crash(&mut node, &mut all, &mut dice, power);
            }
            assert!(node.start(i64::MAX));
            node.verify(&mut all, "after a start");
        } else {
            node.fuse.set(i64::MAX);
            node.verify(&mut all, "after a round");
        }
        if dice.one_in(4) {
            node.kernel.0.failing.store(0, Ordering::SeqCst);
            // Takes what is left of a failing disk.
            let _ = node.pods().ledger().set_blocks(vec![], vec![]);
            node.set_blocks();
            node.settle(&mut all);
        }
    }
    let counts = node.told.counts.lock().unwrap();
    eprintln!("{done} operations in {:.1?}: {counts:?}", started.elapsed());
}

fn play(runtime: &mut Runtime, node: &Node, each: usize) {
    for _ in 0..each {
        if node.fuse.is_blown() {
            break;
        }
        runtime.step(node);
    }
}

fn crash(node: &mut Node, all: &mut [Runtime], dice: &mut Dice, power: bool) {
    if power {
        node.count("power cut");
        // No sandbox survives it.
        for runtime in all {
            runtime
                .ending
                .extend(std::mem::take(&mut runtime.live).into_keys());
        }
    }
    node.die(dice, power);
    let ms = dice.roll() % 30_000;
    node.clock.advance(ms);
}

#[test]
fn whatever_one_runtime_and_a_dying_node_do_addresses_are_neither_shared_nor_lost() {
    run(1, 20_000);
}

#[test]
fn whatever_two_runtimes_and_a_dying_node_do_addresses_are_neither_shared_nor_lost() {
    run(2, 20_000);
}

#[test]
fn whatever_64_runtimes_and_a_dying_node_do_addresses_are_neither_shared_nor_lost() {
    run(64, 20_000);
}
