mod overlap;

use super::pass::GRACE;
use super::*;
use crate::pass::Pass;
use crate::wiring::WiringError;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use tempfile::TempDir;
use weft_cni::protocol::{Del, Netns, Pod};
use weft_cni::spec::AddResult;
use weft_ipam::SystemClock;

/// The kernel as a table of attachments, with switches for what can go wrong.
#[derive(Clone, Default)]
struct FakeKernel(Arc<Fake>);

#[derive(Default)]
struct Fake {
    wired: Mutex<BTreeMap<AttachmentKey, Ipv4Addr>>,
    /// Runs when an interface is about to be made.
    before_attach: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    finished: AtomicUsize,
    attach_fails: AtomicBool,
    finish_fails: AtomicBool,
    detach_fails: AtomicBool,
    differs: AtomicBool,
}

impl FakeKernel {
    fn wired(&self) -> Vec<(String, Ipv4Addr)> {
        let wired = self.0.wired.lock().unwrap();
        wired
            .iter()
            .map(|(key, address)| (key.to_string(), *address))
            .collect()
    }

    fn finished(&self) -> usize {
        self.0.finished.load(Ordering::Relaxed)
    }
}

fn broken() -> WiringError {
    WiringError::HostNameTaken {
        name: "weft0000000000".into(),
        owner: "somebody".into(),
    }
}

impl PodKernel for FakeKernel {
    fn attach(&self, attachment: &Attachment, _: &NetNs, _: u32, _: &Steps) -> Result<(), WiringError> {
        if let Some(before) = &*self.0.before_attach.lock().unwrap() {
            before();
        }
        if self.0.attach_fails.load(Ordering::Relaxed) {
            return Err(broken());
        }
        self.0
            .wired
            .lock()
            .unwrap()
            .insert(attachment.key.clone(), attachment.address);
        Ok(())
    }

    fn finish(&self, _: &Attachment) -> Result<(), WiringError> {
        if self.0.finish_fails.load(Ordering::Relaxed) {
            return Err(broken());
        }
        self.0.finished.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), WiringError> {
        Ok(())
    }

    fn detach(&self, attachment: &Attachment) -> Result<(), WiringError> {
        if self.0.detach_fails.load(Ordering::Relaxed) {
            return Err(broken());
        }
        self.0.wired.lock().unwrap().remove(&attachment.key);
        Ok(())
    }

    fn check(&self, _: &Attachment, _: &NetNs, _: u32) -> Result<Vec<Difference>, WiringError> {
        Ok(if self.0.differs.load(Ordering::Relaxed) {
            vec![Difference("eth0 is down".into())]
        } else {
            vec![]
        })
    }

    fn attached(&self) -> Result<Vec<AttachmentKey>, WiringError> {
        Ok(self.0.wired.lock().unwrap().keys().cloned().collect())
    }

    fn pass(&self, _: &[Attachment], _: u32, _: &mut Pass) -> Result<(), WiringError> {
        if self.0.differs.load(Ordering::Relaxed) {
            return Err(broken());
        }
        Ok(())
    }
}

struct Bed {
    pods: Arc<Pods<FakeKernel>>,
    kernel: FakeKernel,
    ready: watch::Sender<Readiness>,
    dir: TempDir,
}

impl Bed {
    fn new(block: &str) -> Self {
        let bed = Self::without_blocks();
        bed.pods.set_blocks(&[block.parse().unwrap()], &[], None);
        bed
    }

    fn without_blocks() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(
            &dir.path().join("ledger.redb"),
            Arc::new(SystemClock::read(SystemClock::BOOT_ID.as_ref()).unwrap()),
        )
        .unwrap();
        Self::with_ledger(ledger, dir)
    }

    fn with_ledger(ledger: Ledger, dir: TempDir) -> Self {
        let kernel = FakeKernel::default();
        let (ready, readiness) = watch::channel(Readiness::Ready { mtu: 1450 });
        let intents = Intents::at(dir.path().join("intents"));
        let pods = Arc::new(Pods::new(
            "n1".parse().unwrap(),
            ledger,
            kernel.clone(),
            intents,
            readiness,
            Desk::new(std::sync::mpsc::channel().0),
        ));
        Self {
            pods,
            kernel,
            ready,
            dir,
        }
    }

    fn call(&self, command: Command, patience: Duration) -> Reply {
        self.call_of("weft", command, patience, false)
    }

    fn call_of(&self, network: &str, command: Command, patience: Duration, gone: bool) -> Reply {
        let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
        let wait_ms = u64::try_from((patience + Duration::from_secs(2)).as_millis()).unwrap();
        self.pods.handle(
            &Request {
                network: network.into(),
                wait_ms,
                times: None,
                command,
            },
            Some(netns.into()),
            &|| gone,
            &Steps::begin(),
        )
    }

    fn add(&self, id: &str) -> Reply {
        self.call(add(id), Duration::ZERO)
    }

    fn address(&self, id: &str) -> Ipv4Addr {
        Self::given(self.add(id))
    }

    /// The address of an attachment whose namespace the runtime keeps at `path`.
    fn address_in(&self, id: &str, path: &Path) -> Ipv4Addr {
        let Command::Add(mut add) = add(id) else {
            unreachable!("it is one");
        };
        add.netns.path = path.to_owned();
        Self::given(self.call(Command::Add(add), Duration::ZERO))
    }

    fn given(reply: Reply) -> Ipv4Addr {
        match reply {
            Reply::Added(attached) => match attached.addresses[0].address {
                std::net::IpAddr::V4(address) => address,
                other => panic!("{other}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn del(&self, id: &str) -> Reply {
        self.call(
            Command::Del(Del {
                key: key(id),
                pod: Pod::default(),
            }),
            Duration::ZERO,
        )
    }

    fn used(&self) -> u32 {
        self.pods.ledger().stats().unwrap().used()
    }
}

fn key(id: &str) -> AttachmentKey {
    AttachmentKey::new(id, "eth0").unwrap()
}

fn add(id: &str) -> Command {
    Command::Add(Add {
        key: key(id),
        netns: Netns {
            path: "/proc/self/ns/net".into(),
            dev: 4,
            ino: 1,
        },
        pod: Pod::default(),
        runtime_config: serde_json::Map::new(),
        prev_result: None,
    })
}

pub(super) fn code_and_words(reply: Reply) -> (u32, String) {
    match reply {
        Reply::Failed(failure) => (failure.code, failure.msg),
        other => panic!("{other:?} is no failure"),
    }
}

#[test]
fn add_wires_the_address_it_answers_and_del_takes_both_back() {
    let bed = Bed::new("10.244.0.0/30");
    let address = bed.address("a");
    assert_eq!(bed.kernel.wired(), vec![("a/eth0".into(), address)]);
    assert_eq!(bed.used(), 1);
    assert_eq!(bed.del("a"), Reply::Done);
    assert_eq!((bed.kernel.wired(), bed.used()), (vec![], 0));
}

#[test]
fn every_address_of_a_block_is_a_pods() {
    let bed = Bed::new("10.244.0.0/30");
    let addresses: BTreeSet<_> = ["a", "b", "c", "d"].map(|id| bed.address(id)).into();
    let all: BTreeSet<Ipv4Addr> = (0..4).map(|last| Ipv4Addr::new(10, 244, 0, last)).collect();
    assert_eq!(addresses, all);
}

#[test]
fn a_second_add_of_an_attachment_is_refused_and_the_first_stays() {
    let bed = Bed::new("10.244.0.0/30");
    let address = bed.address("a");
    let (code, words) = code_and_words(bed.add("a"));
    assert_eq!(code, code::ENVIRONMENT);
    assert!(words.starts_with("WEFT-1304: "), "{words}");
    assert_eq!(bed.kernel.wired(), vec![("a/eth0".into(), address)]);
}

#[test]
fn an_add_the_kernel_refuses_leaves_nothing() {
    let bed = Bed::new("10.244.0.0/30");
    bed.kernel.0.attach_fails.store(true, Ordering::Relaxed);
    let (code, words) = code_and_words(bed.add("a"));
    assert_eq!(code, code::TRY_AGAIN);
    assert!(
        words.contains("on n1: interface weft0000000000 exists"),
        "{words}"
    );
    assert_eq!((bed.kernel.wired(), bed.used()), (vec![], 0));
    // Nor does it cost an address, however often it is tried.
    for _ in 0..10 {
        bed.add("a");
    }
    assert_eq!(bed.pods.ledger().stats().unwrap().free(), 4);
}

#[test]
fn an_add_that_cannot_be_finished_leaves_nothing_and_its_address_rests() {
    let bed = Bed::new("10.244.0.0/30");
    bed.kernel.0.finish_fails.store(true, Ordering::Relaxed);
    assert_eq!(code_and_words(bed.add("a")).0, code::TRY_AGAIN);
    let stats = bed.pods.ledger().stats().unwrap();
    assert_eq!(
        (bed.kernel.wired(), stats.used(), stats.cooling()),
        (vec![], 0, 1)
    );
}

#[test]
fn an_address_whose_wiring_cannot_be_taken_back_stays_taken() {
    let bed = Bed::new("10.244.0.0/30");
    let address = bed.address("a");
    bed.kernel.0.detach_fails.store(true, Ordering::Relaxed);
    assert_eq!(code_and_words(bed.del("a")).0, code::TRY_AGAIN);
    assert_eq!(
        (bed.kernel.wired(), bed.used()),
        (vec![("a/eth0".into(), address)], 1)
    );
}

#[test]
fn del_of_something_unknown_is_a_success() {
    let bed = Bed::new("10.244.0.0/30");
    assert_eq!(bed.del("never-there"), Reply::Done);
}

#[test]
fn a_full_node_says_how_full_it_is() {
    let bed = Bed::new("10.244.0.0/30");
    for id in ["a", "b", "c", "d"] {
        bed.address(id);
    }
    assert_eq!(
        code_and_words(bed.call(Command::Status, Duration::ZERO)).0,
        code::NOT_AVAILABLE
    );
    bed.del("d");
    let (code, words) = code_and_words(bed.add("e"));
    assert_eq!(code, code::TRY_AGAIN);
    assert_eq!(
        words,
        "WEFT-1302: node n1 has no free pod address: of 4 in 1 block(s), 3 are in use and 1 cool down for at most 130 s"
    );
    // Not a reason to make a node unready: the address comes back by itself.
    assert_eq!(bed.call(Command::Status, Duration::ZERO), Reply::Done);
}

#[test]
fn a_full_node_at_its_limit_of_pods_is_as_ready_as_any() {
    let bed = Bed::new("10.244.0.0/30");
    for id in ["a", "b", "c", "d"] {
        bed.address(id);
    }
    bed.pods
        .set_blocks(&["10.244.0.0/30".parse().unwrap()], &[], Some(4));
    assert_eq!(bed.call(Command::Status, Duration::ZERO), Reply::Done);
    bed.pods
        .set_blocks(&["10.244.0.0/30".parse().unwrap()], &[], Some(5));
    assert_eq!(
        code_and_words(bed.call(Command::Status, Duration::ZERO)).0,
        code::NOT_AVAILABLE
    );
}

#[test]
fn an_add_that_finds_no_address_goes_on_when_a_block_comes() {
    let bed = Bed::without_blocks();
    let pods = Arc::clone(&bed.pods);
    let granting = thread::spawn(move || {
        // Granted once the ADD has told that it wants one.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(pods.changed());
        pods.set_blocks(&["10.244.7.0/30".parse().unwrap()], &[], None);
    });
    let reply = bed.call(add("a"), Duration::from_secs(60));
    granting.join().unwrap();
    assert!(matches!(&reply, Reply::Added(_)), "{reply:?}");
    assert_eq!(
        bed.kernel.wired(),
        vec![("a/eth0".into(), Ipv4Addr::new(10, 244, 7, 0))]
    );
}

#[test]
fn a_node_that_is_not_ready_refuses_add_and_says_what_it_waits_for() {
    let bed = Bed::new("10.244.0.0/30");
    bed.ready.send_replace(Readiness::Waiting {
        why: "NodeSlices from the Kubernetes API".into(),
    });
    let (code, words) = code_and_words(bed.add("a"));
    assert_eq!(code, code::TRY_AGAIN);
    assert_eq!(
        words,
        "WEFT-1501: the agent on n1 waits for NodeSlices from the Kubernetes API"
    );
    assert_eq!(
        code_and_words(bed.call(Command::Status, Duration::ZERO)).0,
        code::NOT_AVAILABLE
    );
    bed.ready.send_replace(Readiness::Broken {
        why: "weft0 is gone".into(),
    });
    assert_eq!(
        code_and_words(bed.call(Command::Status, Duration::ZERO)).0,
        code::LIMITED_CONNECTIVITY
    );
    bed.ready.send_replace(Readiness::Ready { mtu: 1450 });
    assert_eq!(bed.call(Command::Status, Duration::ZERO), Reply::Done);
}

#[test]
fn gc_with_a_list_keeps_the_list_and_nothing_else() {
    let bed = Bed::new("10.244.0.0/29");
    for id in ["a", "b", "c"] {
        bed.address(id);
    }
    let kept = bed.kernel.wired()[1].clone();
    let gc = |valid| bed.call(Command::Gc(Gc { valid }), Duration::ZERO);
    assert_eq!(gc(Some(vec![key("b"), key("unknown")])), Reply::Done);
    assert_eq!((bed.kernel.wired(), bed.used()), (vec![kept], 1));
    assert_eq!(gc(Some(vec![])), Reply::Done);
    assert_eq!((bed.kernel.wired(), bed.used()), (vec![], 0));
}

#[test]
fn gc_without_a_list_removes_only_what_lost_its_interface() {
    let bed = Bed::new("10.244.0.0/29");
    bed.address("a");
    bed.address("b");
    bed.kernel.0.wired.lock().unwrap().remove(&key("a"));
    assert_eq!(
        bed.call(Command::Gc(Gc { valid: None }), Duration::ZERO),
        Reply::Done
    );
    assert_eq!(bed.used(), 1);
    assert_eq!(bed.kernel.wired().len(), 1);
}

#[test]
fn gc_goes_on_after_an_attachment_that_cannot_be_removed() {
    let bed = Bed::new("10.244.0.0/29");
    bed.address("a");
    bed.address("b");
    bed.kernel.0.detach_fails.store(true, Ordering::Relaxed);
    let (_, words) = code_and_words(bed.call(Command::Gc(Gc { valid: Some(vec![]) }), Duration::ZERO));
    assert!(
        words.starts_with("WEFT-1506: 2 attachment(s) could not be removed"),
        "{words}"
    );
}

#[test]
fn check_names_the_difference_and_compares_the_runtimes_address() {
    let bed = Bed::new("10.244.0.0/30");
    bed.address("a");
    let check = |id: &str, result: &str| {
        let prev_result: AddResult = serde_json::from_str(result).unwrap();
        let netns = Netns {
            path: "/proc/self/ns/net".into(),
            dev: 4,
            ino: 1,
        };
        let command = Command::Check(Check {
            key: key(id),
            netns,
            pod: Pod::default(),
            prev_result,
        });
        bed.call(command, Duration::ZERO)
    };
    let right = r#"{"ips":[{"address":"10.244.0.0/32"}]}"#;
    assert_eq!(check("a", right), Reply::Done);
    assert_eq!(code_and_words(check("b", right)).0, code::UNKNOWN_CONTAINER);
    let (_, words) = code_and_words(check("a", r#"{"ips":[{"address":"10.244.0.9/32"}]}"#));
    assert!(
        words.contains("the runtime's result does not have 10.244.0.0"),
        "{words}"
    );
    bed.kernel.0.differs.store(true, Ordering::Relaxed);
    let (code, words) = code_and_words(check("a", right));
    assert_eq!(
        (code, words.ends_with("eth0 is down")),
        (CHECK_FAILED, true),
        "{words}"
    );
}

#[test]
fn what_was_deleted_while_no_agent_listened_is_freed_before_the_next_add() {
    let bed = Bed::new("10.244.0.0/30");
    bed.address("a");
    let intents = Intents::at(bed.dir.path().join("intents"));
    let intent = |id| weft_cni::intent::Intent {
        key: key(id),
        network: "weft".into(),
        pod: Pod::default(),
    };
    intents.leave(&intent("a")).unwrap();
    bed.pods.replay_intents().unwrap();
    assert_eq!((bed.kernel.wired(), bed.used()), (vec![], 0));
    assert!(!intents.contains(&key("a")));

    // Left behind the agent's back, by a plugin that lost patience: the ADD that comes next is not the one deleted.
    bed.address("b");
    intents.leave(&intent("b")).unwrap();
    bed.address("b");
    assert_eq!(bed.used(), 1);
    assert!(!intents.contains(&key("b")));
}

#[test]
fn an_add_nobody_waited_for_is_taken_back() {
    let bed = Bed::new("10.244.0.0/30");
    bed.address("a");
    bed.pods.abandoned(&Request {
        network: "weft".into(),
        wait_ms: 1,
        times: None,
        command: add("a"),
    });
    assert_eq!((bed.kernel.wired(), bed.used()), (vec![], 0));
}

#[test]
fn adds_at_once_get_addresses_of_their_own() {
    let bed = Bed::new("10.244.0.0/26");
    thread::scope(|scope| {
        for n in 0..64 {
            let bed = &bed;
            scope.spawn(move || bed.address(&format!("c{n}")));
        }
    });
    let addresses: BTreeSet<_> = bed
        .kernel
        .wired()
        .into_iter()
        .map(|(_, address)| address)
        .collect();
    assert_eq!((addresses.len(), bed.used()), (64, 64));
}

#[test]
fn what_the_plugin_gave_up_while_it_waited_is_not_carried_out() {
    let bed = Bed::new("10.244.0.0/30");
    let gone = |command| bed.call_of("weft", command, Duration::ZERO, true);
    assert_eq!(code_and_words(gone(add("a"))).0, code::TRY_AGAIN);
    assert_eq!((bed.kernel.wired(), bed.used()), (vec![], 0));
    let address = bed.address("a");
    let late = Command::Del(Del {
        key: key("a"),
        pod: Pod::default(),
    });
    assert_eq!(code_and_words(gone(late)).0, code::TRY_AGAIN);
    assert_eq!(bed.kernel.wired(), vec![("a/eth0".into(), address)]);
}

#[test]
fn a_repair_that_fails_is_told_until_it_succeeds() {
    let bed = Bed::new("10.244.0.0/24");
    bed.address("a");
    bed.kernel.0.differs.store(true, Ordering::Relaxed);
    let error = bed.pods.repair(1450).unwrap_err();
    assert_eq!(error.code(), codes::RECONCILE);
    assert!(error.message().contains("weft0000000000"), "{error}");
    bed.kernel.0.differs.store(false, Ordering::Relaxed);
    assert_eq!(bed.pods.repair(1450).unwrap(), []);
}

#[test]
fn gc_of_one_network_leaves_the_pods_of_another_alone() {
    let bed = Bed::new("10.244.0.0/30");
    bed.address("a");
    let gc = |network| {
        let all = Command::Gc(Gc { valid: Some(vec![]) });
        bed.call_of(network, all, Duration::ZERO, false)
    };
    assert_eq!(gc("other"), Reply::Done);
    assert_eq!(bed.used(), 1);
    assert_eq!(gc("weft"), Reply::Done);
    assert_eq!(bed.used(), 0);
}

#[test]
fn an_interface_whose_address_was_given_back_goes_with_the_next_pass() {
    let bed = Bed::new("10.244.0.0/30");
    let address = bed.address("a");
    // As by a start that undid a reservation and ended before it had looked at the kernel.
    bed.pods.ledger().release(&key("a")).unwrap();
    let lost = Ipv4Addr::new(10, 244, 9, 9);
    bed.kernel
        .0
        .wired
        .lock()
        .unwrap()
        .insert(key("of-a-lost-ledger"), lost);
    let kept = ("of-a-lost-ledger/eth0".to_owned(), lost);
    assert_eq!(bed.kernel.wired(), vec![("a/eth0".into(), address), kept.clone()]);
    bed.pods.repair(1450).unwrap();
    assert_eq!(bed.kernel.wired(), vec![kept]);
}

/// Makes the interface of an attachment vanish, as the kernel does when its namespace ends.
fn loses_its_interface(bed: &Bed, name: &str) {
    bed.kernel.0.wired.lock().unwrap().remove(&key(name));
}

#[test]
fn an_attachment_whose_namespace_is_gone_is_given_up_after_the_second_look_and_a_time_of_grace() {
    let bed = Bed::new("10.244.0.0/30");
    let path = bed.dir.path().join("netns");
    std::fs::write(&path, "").unwrap();
    bed.address_in("a", &path);
    bed.pods.repair(1450).unwrap();
    loses_its_interface(&bed, "a");
    let start = Instant::now();
    let repair = |after| bed.pods.repair_at(1450, start + after).unwrap();

    // Something that is no namespace is where it was: that proves nothing.
    assert_eq!(repair(Duration::ZERO), []);
    assert_eq!(repair(GRACE * 2), []);
    assert_eq!(bed.used(), 1);

    std::fs::remove_file(&path).unwrap();
    assert_eq!(repair(GRACE * 3), [], "seen dead once");
    assert_eq!(repair(GRACE * 4 - Duration::from_millis(1)), []);
    assert_eq!(bed.used(), 1);
    let found = bed.pods.audit(1450).unwrap();
    assert!(
        found[0].what.contains("its namespace is gone and no DEL came"),
        "{found:?}"
    );
    let given_up = repair(GRACE * 4);
    assert_eq!(given_up.len(), 1, "{given_up:?}");
    assert_eq!((bed.used(), bed.pods.audit(1450).unwrap()), (0, vec![]));
}

#[test]
fn a_pod_that_lost_its_interface_and_lives_gets_it_again_with_its_address() {
    let bed = Bed::new("10.244.0.0/30");
    let address = bed.address_in("a", Path::new("/proc/self/ns/net"));
    bed.pods.repair(1450).unwrap();
    loses_its_interface(&bed, "a");
    let found = bed.pods.audit(1450).unwrap();
    assert_eq!(bed.kernel.wired(), [], "an audit changes nothing");
    assert_eq!(bed.pods.repair(1450).unwrap(), found);
    assert_eq!(bed.kernel.wired(), [("a/eth0".into(), address)]);
    assert_eq!(bed.pods.audit(1450).unwrap(), []);
}

#[test]
fn a_namespace_nobody_can_see_is_never_taken_for_gone() {
    let bed = Bed::new("10.244.0.0/30");
    bed.address_in("a", Path::new("/no/such/directory/netns"));
    bed.pods.repair(1450).unwrap();
    loses_its_interface(&bed, "a");
    let start = Instant::now();
    for passes in 1..4 {
        assert_eq!(bed.pods.repair_at(1450, start + GRACE * passes).unwrap(), []);
    }
    assert_eq!(bed.used(), 1);
}
