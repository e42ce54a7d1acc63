//! The ledger under power cuts, kills, failing disks, damage, and many callers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;

use super::disk::Disk;
use super::store::open_backend;
use super::tests::{TestClock, activate, block, key};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Reserve(usize),
    Record(usize),
    Activate(usize),
    Release(usize),
    Gc(BTreeSet<usize>),
    Wait(u64),
    Blocks(BTreeSet<usize>),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let number = 0..24_usize;
    prop_oneof![
        8 => number.clone().prop_map(Op::Reserve),
        4 => number.clone().prop_map(Op::Record),
        8 => number.clone().prop_map(Op::Activate),
        6 => number.clone().prop_map(Op::Release),
        1 => proptest::collection::btree_set(number, 0..24).prop_map(Op::Gc),
        3 => (1..140_u64).prop_map(Op::Wait),
        2 => proptest::collection::btree_set(0..4_usize, 1..4).prop_map(Op::Blocks),
        1 => Just(Op::Restart),
    ]
}

/// What a ledger must know, kept in the plainest way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    /// Key → address, and whether it is active.
    owned: BTreeMap<usize, (Ipv4Addr, bool)>,
    /// Those of them that are written as active, though they are not yet.
    recorded: BTreeSet<usize>,
    /// Address → second of its last release.
    released: HashMap<Ipv4Addr, u64>,
    serving: Vec<Block>,
    now: u64,
}

impl Model {
    fn free(&self) -> BTreeSet<Ipv4Addr> {
        let owned: BTreeSet<Ipv4Addr> = self.owned.values().map(|(at, _)| *at).collect();
        self.serving
            .iter()
            .flat_map(|block| block.addresses())
            .filter(|at| !owned.contains(at))
            .filter(|at| {
                self.released
                    .get(at)
                    .is_none_or(|since| self.now - since >= COOLING.as_secs())
            })
            .collect()
    }

    fn release(&mut self, number: usize) -> bool {
        let Some((address, active)) = self.owned.remove(&number) else {
            return false;
        };
        self.recorded.remove(&number);
        if active {
            self.released.insert(address, self.now);
        }
        true
    }

    fn active(&self) -> BTreeMap<usize, Ipv4Addr> {
        let active = self.owned.iter().filter(|(_, (_, active))| *active);
        active.map(|(number, (at, _))| (*number, *at)).collect()
    }

    /// What must be known after a crash: no reservations, unless they are recorded.
    fn recovered(&self) -> BTreeMap<usize, Ipv4Addr> {
        let recorded = self.recorded.iter().map(|number| (*number, self.owned[number].0));
        self.active().into_iter().chain(recorded).collect()
    }
}

fn number_of(key: &AttachmentKey) -> usize {
    key.container_id()[1..].parse().unwrap()
}

pub(super) fn owners(ledger: &Ledger) -> BTreeMap<usize, Ipv4Addr> {
    let entries = ledger.list().unwrap();
    let owners: Vec<(usize, Ipv4Addr)> = entries
        .iter()
        .filter_map(|(at, entry)| Some((number_of(&entry.owner()?.key), *at)))
        .collect();
    let by_number: BTreeMap<usize, Ipv4Addr> = owners.iter().copied().collect();
    assert_eq!(owners.len(), by_number.len(), "a key has two addresses");
    by_number
}

const BLOCKS: [&str; 4] = ["10.244.0.0/30", "10.244.0.4/30", "10.244.7.0/29", "10.244.1.0/30"];

/// Does `op` to both and compares what they say.
fn step(disk: &Disk, clock: &Arc<TestClock>, ledger: &mut Option<Ledger>, model: &mut Model, op: &Op) {
    let current = ledger.as_ref().unwrap();
    match op {
        Op::Reserve(number) => {
            let outcome = current.reserve(key(*number), Details::default());
            match (outcome, model.owned.get(number)) {
                (Err(LedgerError::Exists { address, .. }), Some((owned, _))) => {
                    assert_eq!(address, *owned);
                }
                (Err(LedgerError::Full { .. }), None) => {
                    assert_eq!(model.free(), BTreeSet::new());
                }
                (Err(LedgerError::NoBlock), None) => assert_eq!(model.serving, []),
                (Ok(address), None) => {
                    assert!(model.free().contains(&address), "{address} was not free");
                    model.owned.insert(*number, (address, false));
                }
                (outcome, owned) => panic!("{outcome:?}, but the model has {owned:?}"),
            }
        }
        Op::Record(number) => {
            let outcome = current
                .record(&key(*number))
                .and_then(|recording| recording.written.wait());
            let reserved = matches!(model.owned.get(number), Some((_, false)));
            assert_eq!(outcome.is_ok(), reserved, "{outcome:?}");
            if reserved {
                model.recorded.insert(*number);
            }
        }
        Op::Activate(number) => {
            let outcome = activate(current, &key(*number));
            match (outcome, model.owned.get_mut(number)) {
                (Ok(attachment), Some((address, active @ false))) => {
                    assert_eq!(attachment.address, *address);
                    *active = true;
                    model.recorded.remove(number);
                }
                (Err(LedgerError::NotReserved { .. }), Some((_, true)))
                | (Err(LedgerError::NotFound { .. }), None) => {}
                (outcome, owned) => panic!("{outcome:?}, but the model has {owned:?}"),
            }
        }
        Op::Release(number) => {
            let released = current.release(&key(*number)).unwrap();
            assert_eq!(released.is_some(), model.release(*number));
        }
        Op::Gc(valid) => {
            let gone = current.gc(valid.iter().copied().map(key).collect()).unwrap();
            let gone: BTreeSet<usize> = gone.iter().map(|old| number_of(&old.key)).collect();
            let expected: BTreeSet<usize> = model
                .active()
                .into_keys()
                .filter(|number| !valid.contains(number))
                .collect();
            assert_eq!(gone, expected);
            for number in gone {
                model.release(number);
            }
        }
        Op::Wait(seconds) => {
            clock.advance(Duration::from_secs(*seconds));
            model.now += seconds;
        }
        Op::Blocks(which) => {
            let wanted: Vec<Block> = which.iter().map(|index| block(BLOCKS[*index])).collect();
            let change = current.set_blocks(wanted.clone(), vec![]).unwrap();
            for gone in change.removed {
                let used = |at: &Ipv4Addr| gone.contains(*at);
                assert!(!model.owned.values().any(|(at, _)| used(at)));
                model.released.retain(|at, since| {
                    assert!(!used(at) || model.now - *since >= COOLING.as_secs());
                    !used(at)
                });
            }
            model.serving = wanted;
        }
        Op::Restart => {
            drop(ledger.take());
            let (opened, recovery) = Ledger::open_on(disk, clock.clone()).unwrap();
            assert_eq!(recovery, Recovery::default());
            let recorded = std::mem::take(&mut model.recorded);
            model.owned.retain(|number, (_, active)| {
                *active |= recorded.contains(number);
                *active
            });
            *ledger = Some(opened);
        }
    }
    let owned: BTreeMap<usize, Ipv4Addr> = model
        .owned
        .iter()
        .map(|(number, (at, _))| (*number, *at))
        .collect();
    let ledger = ledger.as_ref().unwrap();
    assert_eq!(owners(ledger), owned);
    assert_eq!(ledger.stats().unwrap().free() as usize, model.free().len());
    for stats in ledger.stats().unwrap().blocks {
        assert_eq!(
            stats.free + stats.reserved + stats.active + stats.cooling + stats.quarantined,
            stats.block.size().addresses()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_address_has_two_owners_and_power_cuts_lose_nothing_answered(
        ops in vec(op(), 1..120),
        cuts in vec((any::<proptest::sample::Index>(), any::<u64>()), 6),
    ) {
        let disk = Disk::formatted();
        let before = disk.contents();
        let clock = TestClock::new("boot-1");
        let mut ledger = Some(Ledger::open_on(&disk, clock.clone()).unwrap().0);
        let mut model = Model::default();
        // What was known once each operation was answered, by the disk's step.
        let mut answered = vec![(disk.steps(), model.clone())];
        for op in &ops {
            step(&disk, &clock, &mut ledger, &mut model, op);
            answered.push((disk.steps(), model.clone()));
        }
        drop(ledger);
        for (at, seed) in cuts {
            let steps = at.index(disk.steps() + 1).max(answered[0].0);
            let mut bits = seed | 1;
            let cut = disk.cut(&before, steps, || {
                // xorshift64: any sector may or may not have made it.
                bits ^= bits << 13;
                bits ^= bits >> 7;
                bits ^= bits << 17;
                bits & 1 == 0
            });
            let (ledger, recovery) = Ledger::open_on(&cut, clock.clone()).unwrap();
            let known = owners(&ledger);
            prop_assert_eq!(recovery, Recovery::default());
            let last = answered.iter().rposition(|(by, _)| *by <= steps).unwrap();
            // The operation that was under way may have been done or not.
            let possible = &answered[last..(last + 2).min(answered.len())];
            prop_assert!(
                possible.iter().any(|(_, model)| known == model.recovered()),
                "after {steps} steps: {known:?}, possible {possible:?}"
            );
        }
    }

    #[test]
    fn a_damaged_file_is_refused_or_reads_as_it_was(
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut_short in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let disk = Disk::formatted();
        let clock = TestClock::new("boot-1");
        let (ledger, _) = Ledger::open_on(&disk, clock.clone()).unwrap();
        ledger.set_blocks(vec![block("10.244.0.0/26")], vec![]).unwrap();
        for number in 0..40 {
            ledger.reserve(key(number), Details::default()).unwrap();
            activate(&ledger, &key(number)).unwrap();
        }
        let intact = owners(&ledger);
        drop(ledger);
        let mut contents = disk.contents();
        for (at, bits) in damage {
            let at = at.index(contents.len());
            contents[at] ^= bits;
        }
        if let Some(at) = cut_short {
            contents.truncate(at.index(contents.len()));
        }
        if !contents.is_empty() {
            match Ledger::open_on(&Disk::with(contents), clock.clone()) {
                Ok((ledger, _)) => prop_assert_eq!(owners(&ledger), intact),
                Err(error) => prop_assert!(
                    matches!(error, LedgerError::Damaged { .. } | LedgerError::Io { .. } | LedgerError::Version { .. }),
                    "{:?}", error
                ),
            }
        }
    }
}

#[test]
fn a_disk_that_fails_costs_the_step_and_not_the_ledger() {
    let disk = Disk::formatted();
    let clock = TestClock::new("boot-1");
    let (ledger, _) = Ledger::open_on(&disk, clock.clone()).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/29")], vec![]).unwrap();
    ledger.reserve(key(0), Details::default()).unwrap();
    activate(&ledger, &key(0)).unwrap();

    let address = ledger.reserve(key(1), Details::default()).unwrap();
    let other = ledger.reserve(key(2), Details::default()).unwrap();
    disk.fail_next_sync();
    let error = activate(&ledger, &key(1)).unwrap_err();
    assert!(matches!(error, LedgerError::Write { .. }), "{error:?}");
    // Whether it reached the disk or not, it is one attachment with one address, and the other ADD goes on.
    assert_eq!(owners(&ledger).get(&1), Some(&address));
    let (held, entry) = ledger.get(&key(2)).unwrap().unwrap();
    assert!(held == other && matches!(entry, Entry::Reserved(_)), "{entry:?}");
    assert_eq!(activate(&ledger, &key(2)).unwrap().address, other);
    // The one that was never answered with is given back, and the other rests.
    for number in [1, 2] {
        disk.fail_next_sync();
        let _ = ledger.release(&key(number));
        ledger.release(&key(number)).unwrap();
    }
    assert_eq!(owners(&ledger).into_keys().collect::<Vec<_>>(), [0]);
    drop(ledger);
    let (ledger, recovery) = Ledger::open_on(&disk, clock.clone()).unwrap();
    assert_eq!(recovery, Recovery::default());
    let others: Vec<Ipv4Addr> = (3..9)
        .map(|number| ledger.reserve(key(number), Details::default()).unwrap())
        .collect();
    assert!(
        others.contains(&address) && !others.contains(&other),
        "{other} still cools"
    );
}

#[test]
fn what_a_full_disk_keeps_from_becoming_active_is_given_back_all_the_same() {
    let disk = Disk::formatted();
    let clock = TestClock::new("boot-1");
    let (ledger, _) = Ledger::open_on(&disk, clock).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/29")], vec![]).unwrap();
    // One of another caller shares the write, and stays in flight.
    ledger.reserve(key(99), Details::default()).unwrap();
    for number in 0..20 {
        ledger.reserve(key(number), Details::default()).unwrap();
        let before = disk.syncs();
        assert!(ledger.release(&key(number)).unwrap().is_some());
        assert_eq!(disk.syncs(), before, "a reservation is not written");
    }
    assert_eq!(ledger.stats().unwrap().free(), 7);
    for number in 0..7 {
        ledger.reserve(key(number), Details::default()).unwrap();
        disk.fail_next_sync();
        activate(&ledger, &key(number)).unwrap_err();
        ledger.release(&key(number)).unwrap();
    }
    assert_eq!(
        owners(&ledger).into_keys().collect::<Vec<_>>(),
        [99],
        "nothing else is held"
    );
    activate(&ledger, &key(99)).unwrap();
}

#[test]
fn an_add_costs_one_write() {
    let disk = Disk::formatted();
    let (ledger, _) = Ledger::open_on(&disk, TestClock::new("boot-1")).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/29")], vec![]).unwrap();
    let before = disk.syncs();
    ledger.reserve(key(0), Details::default()).unwrap();
    assert_eq!(disk.syncs(), before);
    activate(&ledger, &key(0)).unwrap();
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn a_reservation_that_an_earlier_version_wrote_is_undone_once_and_its_address_rests() {
    let disk = Disk::formatted();
    let clock = TestClock::new("boot-1");
    let (ledger, _) = Ledger::open_on(&disk, clock.clone()).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/30")], vec![]).unwrap();
    ledger.reserve(key(1), Details::default()).unwrap();
    let (address, entry) = ledger.get(&key(1)).unwrap().unwrap();
    drop(ledger);
    tamper(&disk, 1, &[(address, &serde_json::to_vec(&entry).unwrap())]);
    let (ledger, recovery) = Ledger::open_on(&disk, clock.clone()).unwrap();
    let undone: Vec<_> = recovery
        .undone
        .iter()
        .map(|old| (&old.key, old.address))
        .collect();
    assert_eq!(undone, [(&key(1), address)]);
    assert_eq!(ledger.get(&key(1)).unwrap(), None);
    assert_eq!(ledger.stats().unwrap().cooling(), 1);
    drop(ledger);
    assert_eq!(Ledger::open_on(&disk, clock).unwrap().1, Recovery::default());
}

#[test]
fn callers_that_wait_share_a_commit() {
    const CALLERS: usize = 250;
    let disk = Disk::formatted();
    let clock = TestClock::new("boot-1");
    let (ledger, _) = Ledger::open_on(&disk, clock.clone()).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/24")], vec![]).unwrap();
    for number in 0..CALLERS {
        ledger.reserve(key(number), Details::default()).unwrap();
    }
    let before = disk.syncs();
    disk.hold_syncs(true);
    let calling = AtomicUsize::new(0);
    let addresses: BTreeSet<Ipv4Addr> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|number| {
                let (ledger, calling) = (&ledger, &calling);
                scope.spawn(move || {
                    calling.fetch_add(1, Ordering::SeqCst);
                    activate(ledger, &key(number)).unwrap().address
                })
            })
            .collect();
        while calling.load(Ordering::SeqCst) < CALLERS {
            std::thread::yield_now();
        }
        disk.hold_syncs(false);
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), CALLERS);
    let syncs = disk.syncs() - before;
    assert!(syncs < CALLERS / 5, "{syncs} syncs for {CALLERS} callers");
}

/// Writes raw values where the ledger keeps its own.
fn tamper(disk: &Disk, format: u32, rows: &[(Ipv4Addr, &[u8])]) {
    let database = open_backend(Path::new("disk"), disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let meta = redb::TableDefinition::<&str, u32>::new("meta");
        let mut meta = transaction.open_table(meta).unwrap();
        meta.insert("format", format).unwrap();
        let addresses = redb::TableDefinition::<u32, &[u8]>::new("addresses");
        let mut addresses = transaction.open_table(addresses).unwrap();
        for (address, row) in rows {
            addresses.insert(address.to_bits(), *row).unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[test]
fn a_record_that_can_not_be_read_costs_its_address_and_no_other() {
    let disk = Disk::formatted();
    let clock = TestClock::new("boot-1");
    let (ledger, _) = Ledger::open_on(&disk, clock.clone()).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/30")], vec![]).unwrap();
    ledger.reserve(key(0), Details::default()).unwrap();
    activate(&ledger, &key(0)).unwrap();
    drop(ledger);
    tamper(&disk, 1, &[(Ipv4Addr::new(10, 244, 0, 1), b"{\"state\":\"act")]);
    let (ledger, recovery) = Ledger::open_on(&disk, clock.clone()).unwrap();
    let [(address, quarantined)] = recovery.quarantined.as_slice() else {
        panic!("{recovery:?}");
    };
    assert_eq!(*address, Ipv4Addr::new(10, 244, 0, 1));
    assert!(quarantined.reason.starts_with("its record can't be read"));
    let given: Vec<Ipv4Addr> = (1..3)
        .map(|number| ledger.reserve(key(number), Details::default()).unwrap())
        .collect();
    assert_eq!(given, [2, 3].map(|last| Ipv4Addr::new(10, 244, 0, last)));
}

#[test]
fn an_attachment_with_two_addresses_has_both_quarantined_and_the_rest_is_served() {
    let disk = Disk::formatted();
    let clock = TestClock::new("boot-1");
    let (ledger, _) = Ledger::open_on(&disk, clock.clone()).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/30")], vec![]).unwrap();
    ledger.reserve(key(0), Details::default()).unwrap();
    activate(&ledger, &key(0)).unwrap();
    let entry = ledger.get(&key(0)).unwrap().unwrap().1;
    drop(ledger);
    let row = serde_json::to_vec(&entry).unwrap();
    tamper(&disk, 1, &[(Ipv4Addr::new(10, 244, 0, 3), &row)]);
    for _ in 0..2 {
        let (ledger, recovery) = Ledger::open_on(&disk, clock.clone()).unwrap();
        let quarantined: Vec<_> = recovery
            .quarantined
            .iter()
            .map(|(address, quarantined)| (*address, quarantined.reason.as_str()))
            .collect();
        let reason = "attachment c0/eth0 claims both 10.244.0.0 and 10.244.0.3";
        assert_eq!(
            quarantined,
            [0, 3].map(|last| (Ipv4Addr::new(10, 244, 0, last), reason))
        );
        assert_eq!(ledger.stats().unwrap().free(), 2);
    }
}

#[test]
fn a_ledger_of_a_later_version_is_refused() {
    let disk = Disk::formatted();
    tamper(&disk, 2, &[]);
    let error = Ledger::open_on(&disk, TestClock::new("boot-1"))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "ledger disk has format 2, this version reads up to 1"
    );
}
