use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use tempfile::TempDir;

use super::*;
use crate::clock::{BootId, Moment};

/// A clock that moves when it is told to.
pub(super) struct TestClock(Mutex<Moment>);

impl TestClock {
    pub(super) fn new(boot: &str) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Moment {
            boot: BootId::new(boot),
            since_boot_ms: 1_000,
        })))
    }

    pub(super) fn advance(&self, time: Duration) {
        self.0.lock().unwrap().since_boot_ms += u64::try_from(time.as_millis()).unwrap();
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        self.0.lock().unwrap().clone()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
    }
}

struct Fixture {
    directory: TempDir,
    clock: Arc<TestClock>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            directory: TempDir::new().unwrap(),
            clock: TestClock::new("boot-1"),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ledger.redb")
    }

    fn open(&self) -> (Ledger, Recovery) {
        Ledger::open(&self.path(), self.clock.clone()).unwrap()
    }

    fn with_block(&self, cidr: &str) -> Ledger {
        let ledger = self.open().0;
        ledger.set_blocks(vec![block(cidr)], vec![]).unwrap();
        ledger
    }

    fn refused(&self) -> LedgerError {
        Ledger::open(&self.path(), self.clock.clone())
            .map(|_| ())
            .unwrap_err()
    }
}

/// The end of an ADD.
pub(super) fn activate(ledger: &Ledger, key: &AttachmentKey) -> Result<Attachment, LedgerError> {
    ledger.record(key)?.activate()
}

pub(super) fn block(cidr: &str) -> Block {
    cidr.parse().unwrap()
}

pub(super) fn key(number: usize) -> AttachmentKey {
    AttachmentKey::new(format!("c{number}"), "eth0").unwrap()
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, last)
}

fn details() -> Details {
    Details {
        network: "weft".to_owned(),
        pod: PodRef {
            namespace: Some("shop".to_owned()),
            name: Some("cart-0".to_owned()),
            uid: None,
        },
        netns: NetnsId { dev: 4, ino: 77 },
        netns_path: None,
        host_if_name: "weft0123456789".to_owned(),
    }
}

fn add(ledger: &Ledger, number: usize) -> Ipv4Addr {
    let address = ledger.reserve(key(number), details()).unwrap();
    activate(ledger, &key(number)).unwrap();
    address
}

#[test]
fn every_address_of_a_block_serves_a_pod_the_first_and_the_last_one_too() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/28");
    let given: Vec<Ipv4Addr> = (0..16).map(|number| add(&ledger, number)).collect();
    assert_eq!(given, (0..16).map(address).collect::<Vec<_>>());
    assert!(matches!(
        ledger.reserve(key(16), details()),
        Err(LedgerError::Full {
            capacity: 16,
            blocks: 1,
            used: 16,
            cooling: 0,
            quarantined: 0,
            next_free: None,
        })
    ));
}

#[test]
fn a_reservation_given_back_leaves_no_trace() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/30");
    for _ in 0..10 {
        assert_eq!(ledger.reserve(key(0), details()).unwrap(), address(0));
        let released = ledger.release(&key(0)).unwrap().unwrap();
        assert_eq!((released.key, released.address), (key(0), address(0)));
    }
    assert_eq!(ledger.release(&key(0)).unwrap(), None);
    assert_eq!(ledger.list().unwrap(), vec![]);
    assert_eq!(add(&ledger, 0), address(0));
    assert_eq!(ledger.stats().unwrap().used(), 1);
}

#[test]
fn a_released_address_rests_and_the_longest_rested_is_given_first() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/30");
    for number in 0..4 {
        add(&ledger, number);
    }
    ledger.release(&key(2)).unwrap();
    fixture.clock.advance(Duration::from_secs(10));
    ledger.release(&key(0)).unwrap();
    fixture.clock.advance(Duration::from_secs(119));
    let error = ledger.reserve(key(10), details()).unwrap_err();
    assert_eq!(
        weft_model::UserError::from(error).to_string(),
        "error[WEFT-1302]: no pod address is free: of 4 in 1 block(s) 2 are in use, 2 cooling and 0 quarantined; the next one is free in 2 s\n  \
         next: kubectl get nodenetworks,podpools"
    );
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(add(&ledger, 10), address(2));
    assert!(matches!(
        ledger.reserve(key(11), details()),
        Err(LedgerError::Full { cooling: 1, .. })
    ));
    fixture.clock.advance(Duration::from_secs(10));
    assert_eq!(add(&ledger, 11), address(0));
}

#[test]
fn rest_and_order_outlive_a_restart() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/30");
    for number in 0..4 {
        add(&ledger, number);
    }
    for number in [3, 1, 0, 2] {
        ledger.release(&key(number)).unwrap();
    }
    drop(ledger);
    let (ledger, recovery) = fixture.open();
    assert_eq!(recovery, Recovery::default());
    assert!(matches!(
        ledger.reserve(key(10), details()),
        Err(LedgerError::Full { cooling: 4, .. })
    ));
    fixture.clock.advance(COOLING);
    let order: Vec<_> = (10..14).map(|number| add(&ledger, number)).collect();
    assert_eq!(order, [3, 1, 0, 2].map(address));
}

#[test]
fn after_a_reboot_rest_counts_from_the_boot() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/30");
    fixture.clock.advance(Duration::from_secs(100_000));
    for number in 0..4 {
        add(&ledger, number);
        ledger.release(&key(number)).unwrap();
    }
    drop(ledger);
    let rebooted = Fixture {
        clock: TestClock::new("boot-2"),
        ..fixture
    };
    let ledger = rebooted.open().0;
    assert!(matches!(
        ledger.reserve(key(10), details()),
        Err(LedgerError::Full { .. })
    ));
    rebooted.clock.advance(COOLING - Duration::from_secs(1));
    assert_eq!(add(&ledger, 10), address(0));
}

#[test]
fn an_attachment_has_one_address_and_the_error_names_it() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/28");
    add(&ledger, 1);
    let error = ledger.reserve(key(1), details()).unwrap_err();
    assert_eq!(error.to_string(), "attachment c1/eth0 exists: it has 10.244.0.0");
    let error = activate(&ledger, &key(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "attachment c1/eth0 can't become active: 10.244.0.0 is active"
    );
    let error = activate(&ledger, &key(2)).unwrap_err();
    assert_eq!(error.to_string(), "there is no attachment c2/eth0");
}

#[test]
fn a_late_or_repeated_del_never_frees_the_next_owners_address() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/30");
    for number in 0..4 {
        add(&ledger, number);
    }
    let released = ledger.release(&key(0)).unwrap().unwrap();
    assert_eq!((released.key, released.address), (key(0), address(0)));
    fixture.clock.advance(COOLING);
    assert_eq!(add(&ledger, 10), address(0));
    assert_eq!(ledger.release(&key(0)).unwrap(), None);
    let (owned, entry) = ledger.get(&key(10)).unwrap().unwrap();
    assert_eq!(owned, address(0));
    assert!(matches!(entry, Entry::Active(owner) if owner.key == key(10)));
}

#[test]
fn a_reservation_that_never_became_active_is_as_if_it_had_never_been() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/28");
    add(&ledger, 0);
    assert_eq!(ledger.reserve(key(1), details()).unwrap(), address(1));
    drop(ledger);
    let (ledger, recovery) = fixture.open();
    assert_eq!(recovery, Recovery::default());
    assert_eq!(ledger.get(&key(1)).unwrap(), None);
    assert_eq!(ledger.stats().unwrap().free(), 15);
    assert_eq!(add(&ledger, 2), address(1));
}

#[test]
fn attachments_of_another_boot_are_handed_back_and_kept_until_released() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/28");
    add(&ledger, 0);
    drop(ledger);
    let rebooted = Fixture {
        clock: TestClock::new("boot-2"),
        ..fixture
    };
    let (ledger, recovery) = rebooted.open();
    let keys: Vec<_> = recovery.other_boot.into_iter().map(|old| old.key).collect();
    assert_eq!(keys, [key(0)]);
    assert_eq!(add(&ledger, 1), address(1));
    ledger.release(&key(0)).unwrap();
    drop(ledger);
    assert_eq!(rebooted.open().1, Recovery::default());
}

#[test]
fn blocks_are_remembered_and_used_in_the_order_they_came() {
    let fixture = Fixture::new();
    let ledger = fixture.open().0;
    assert!(matches!(
        ledger.reserve(key(0), details()),
        Err(LedgerError::NoBlock)
    ));
    let blocks = vec![block("10.244.9.0/30"), block("10.244.0.0/30")];
    let change = ledger.set_blocks(blocks.clone(), vec![]).unwrap();
    assert_eq!(change.added, blocks);
    drop(ledger);
    let ledger = fixture.open().0;
    assert_eq!(ledger.blocks().unwrap(), blocks);
    for number in 0..4 {
        assert!(block("10.244.9.0/30").contains(add(&ledger, number)));
    }
    assert_eq!(add(&ledger, 4), address(0));
    assert_eq!(ledger.set_blocks(blocks, vec![]).unwrap(), BlockChange::default());
}

#[test]
fn a_block_leaves_only_when_nothing_of_it_is_in_use_or_cooling() {
    let fixture = Fixture::new();
    let (old, new) = (block("10.244.0.0/30"), block("10.244.1.0/30"));
    let ledger = fixture.with_block("10.244.0.0/30");
    add(&ledger, 0);
    let change = BlockChange {
        added: vec![new],
        removed: vec![],
        lingering: vec![old],
    };
    assert_eq!(ledger.set_blocks(vec![new], vec![]).unwrap(), change);
    assert_eq!(ledger.blocks().unwrap(), [new]);
    assert!(new.contains(add(&ledger, 1)));
    let still = BlockChange {
        lingering: vec![old],
        ..BlockChange::default()
    };
    ledger.release(&key(0)).unwrap();
    assert_eq!(ledger.set_blocks(vec![new], vec![]).unwrap(), still);
    drop(ledger);
    let ledger = fixture.open().0;
    assert_eq!(ledger.stats().unwrap().blocks.len(), 2);
    fixture.clock.advance(COOLING);
    let gone = BlockChange {
        removed: vec![old],
        ..BlockChange::default()
    };
    assert_eq!(ledger.set_blocks(vec![new], vec![]).unwrap(), gone);
    assert_eq!(ledger.list().unwrap().len(), 1);
}

#[test]
fn a_retiring_block_serves_its_pods_and_no_new_ones_and_is_not_counted_as_room() {
    let fixture = Fixture::new();
    let (old, new) = (block("10.244.0.0/30"), block("10.244.1.0/30"));
    let ledger = fixture.with_block("10.244.0.0/30");
    add(&ledger, 0);
    let change = ledger.set_blocks(vec![], vec![old]).unwrap();
    assert_eq!(change, BlockChange::default());
    assert!(matches!(
        ledger.reserve(key(1), details()),
        Err(LedgerError::NoBlock)
    ));
    let stats = ledger.stats().unwrap();
    assert_eq!((stats.capacity(), stats.wanted_blocks(None)), (0, 1));
    assert_eq!((stats.blocks[0].retiring, stats.blocks[0].active), (true, 1));

    ledger.set_blocks(vec![new], vec![old]).unwrap();
    assert!(new.contains(add(&ledger, 1)));
    drop(ledger);
    let ledger = fixture.open().0;
    assert!(new.contains(add(&ledger, 2)));

    // Granted on, its address rests and then serves again, and the block is still the node's when it is empty.
    ledger.release(&key(0)).unwrap();
    fixture.clock.advance(COOLING);
    ledger.set_blocks(vec![new], vec![old]).unwrap();
    assert_eq!(ledger.stats().unwrap().blocks.len(), 2);
    let change = ledger.set_blocks(vec![new, old], vec![]).unwrap();
    assert_eq!(change.added, [old]);
    for number in 3..8 {
        add(&ledger, number);
    }
    assert_eq!(ledger.stats().unwrap().used(), 7);
}

#[test]
fn a_block_that_comes_back_keeps_what_is_known_of_its_addresses() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/30");
    add(&ledger, 0);
    add(&ledger, 1);
    ledger.release(&key(1)).unwrap();
    ledger.set_blocks(vec![], vec![]).unwrap();
    assert!(matches!(
        ledger.reserve(key(2), details()),
        Err(LedgerError::NoBlock)
    ));
    ledger.set_blocks(vec![block("10.244.0.0/30")], vec![]).unwrap();
    assert_eq!(add(&ledger, 2), address(2));
    assert_eq!(add(&ledger, 3), address(3));
    assert!(ledger.reserve(key(4), details()).is_err());
}

#[test]
fn blocks_that_share_addresses_are_refused() {
    let fixture = Fixture::new();
    let ledger = fixture.open().0;
    let error = ledger
        .set_blocks(vec![block("10.244.0.0/24"), block("10.244.0.64/26")], vec![])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "blocks 10.244.0.0/24 and 10.244.0.64/26 share addresses"
    );
    ledger.set_blocks(vec![block("10.244.0.0/28")], vec![]).unwrap();
    add(&ledger, 0);
    let error = ledger
        .set_blocks(vec![block("10.244.0.0/27")], vec![])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "blocks 10.244.0.0/28 and 10.244.0.0/27 share addresses"
    );
    assert_eq!(ledger.blocks().unwrap(), [block("10.244.0.0/28")]);
}

#[test]
fn garbage_collection_ends_what_is_not_valid_and_spares_an_add_under_way() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/28");
    for number in 0..3 {
        add(&ledger, number);
    }
    ledger.reserve(key(3), details()).unwrap();
    let gone = ledger.gc(HashSet::from([key(1)])).unwrap();
    let keys: Vec<_> = gone.into_iter().map(|gone| gone.key).collect();
    assert_eq!(keys, [key(0), key(2)]);
    let stats = ledger.stats().unwrap();
    assert_eq!((stats.used(), stats.cooling()), (2, 2));
}

#[test]
fn a_quarantined_address_goes_to_nobody_until_it_is_pardoned() {
    let fixture = Fixture::new();
    let ledger = fixture.with_block("10.244.0.0/30");
    add(&ledger, 0);
    ledger.quarantine(address(0), "a stranger answers").unwrap();
    ledger.quarantine(address(1), "a stranger answers").unwrap();
    assert_eq!(add(&ledger, 2), address(2));
    assert_eq!(add(&ledger, 3), address(3));
    assert!(matches!(
        ledger.reserve(key(4), details()),
        Err(LedgerError::Full {
            used: 2,
            quarantined: 2,
            ..
        })
    ));
    assert_eq!(ledger.release(&key(0)).unwrap().unwrap().address, address(0));
    fixture.clock.advance(COOLING);
    drop(ledger);
    let (ledger, recovery) = fixture.open();
    let quarantined: Vec<_> = recovery.quarantined.iter().map(|(at, _)| *at).collect();
    assert_eq!(quarantined, [address(0), address(1)]);
    assert!(ledger.reserve(key(4), details()).is_err());
    assert!(ledger.pardon(address(0)).unwrap());
    assert!(!ledger.pardon(address(2)).unwrap());
    assert!(ledger.reserve(key(4), details()).is_err());
    fixture.clock.advance(COOLING);
    assert_eq!(add(&ledger, 4), address(0));
    assert!(matches!(
        ledger.quarantine(Ipv4Addr::new(10, 1, 1, 1), "x"),
        Err(LedgerError::ForeignAddress { .. })
    ));
}

#[test]
fn the_next_block_is_asked_for_before_the_last_is_full() {
    let fixture = Fixture::new();
    let ledger = fixture.open().0;
    let wanted = |max_pods| ledger.stats().unwrap().wanted_blocks(max_pods);
    assert_eq!(wanted(None), 1);
    let blocks = ["10.244.0.0/26", "10.244.0.64/26"].map(block);
    ledger.set_blocks(blocks[..1].to_vec(), vec![]).unwrap();
    for number in 0..48 {
        add(&ledger, number);
        assert_eq!(wanted(None), 1, "after {}", number + 1);
    }
    add(&ledger, 48);
    assert_eq!(wanted(None), 2);
    assert_eq!(wanted(Some(64)), 1);
    assert_eq!(wanted(Some(65)), 2);
    ledger.release(&key(0)).unwrap();
    assert_eq!(wanted(None), 2, "a cooling address is not free");
    ledger.set_blocks(blocks.to_vec(), vec![]).unwrap();
    assert_eq!(wanted(None), 2);
}

#[test]
fn two_hundred_and_fifty_pods_take_four_small_blocks_and_no_fifth() {
    let fixture = Fixture::new();
    let ledger = fixture.open().0;
    let mut held = vec![block("10.244.0.0/26")];
    ledger.set_blocks(held.clone(), vec![]).unwrap();
    for number in 0..250 {
        add(&ledger, number);
        let wanted = ledger.stats().unwrap().wanted_blocks(Some(250));
        while held.len() < wanted as usize {
            let next = u32::from(held.last().unwrap().last()) + 1;
            held.push(Block::containing(next.into(), held[0].size()));
            ledger.set_blocks(held.clone(), vec![]).unwrap();
        }
    }
    assert_eq!(held.len(), 4);
}

#[test]
fn a_new_ledger_is_for_its_owner_only() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("state").join("ledger.redb");
    Ledger::open(&path, TestClock::new("boot-1")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let parent = fs::metadata(path.parent().unwrap()).unwrap();
    assert_eq!(parent.mode() & 0o7777, 0o700);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_ledger_is_open_once() {
    let fixture = Fixture::new();
    let _first = fixture.open();
    let error = fixture.refused();
    assert!(matches!(error, LedgerError::InUse { .. }), "{error:?}");
}

#[test]
fn a_file_that_can_not_be_trusted_is_refused_untouched() {
    let fixture = Fixture::new();
    let elsewhere = fixture.directory.path().join("elsewhere");
    drop(Ledger::open(&elsewhere, fixture.clock.clone()).unwrap());

    symlink(&elsewhere, fixture.path()).unwrap();
    let error = fixture.refused().to_string();
    assert!(error.contains("is a symbolic link"), "{error}");
    fs::remove_file(fixture.path()).unwrap();

    fs::create_dir(fixture.path()).unwrap();
    assert!(matches!(fixture.refused(), LedgerError::Io { .. }));
    fs::remove_dir(fixture.path()).unwrap();

    fs::rename(&elsewhere, fixture.path()).unwrap();
    fs::set_permissions(fixture.path(), fs::Permissions::from_mode(0o620)).unwrap();
    let error = fixture.refused().to_string();
    assert!(error.contains("mode 0620 lets others write to it"), "{error}");
}

#[test]
fn an_empty_or_foreign_file_is_a_damaged_ledger_and_never_a_new_one() {
    let fixture = Fixture::new();
    for contents in [&b""[..], b"{}", &[0; 8192]] {
        fs::write(fixture.path(), contents).unwrap();
        fs::set_permissions(fixture.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let error = fixture.refused();
        assert!(matches!(error, LedgerError::Damaged { .. }), "{error:?}");
        assert_eq!(
            weft_model::UserError::from(error).code(),
            weft_model::codes::LEDGER_CORRUPT
        );
        assert_eq!(fs::read(fixture.path()).unwrap(), contents);
    }
}

#[test]
fn a_damaged_ledger_is_kept_and_made_anew_from_what_is_attached() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ledger.redb");
    let clock = TestClock::new("boot-1");
    let block: Block = "10.244.0.0/29".parse().unwrap();
    let found = |id: &str, address: &str| Found {
        key: AttachmentKey::new(id, "eth0").unwrap(),
        address: address.parse().unwrap(),
        host_if_name: format!("weft{id}"),
    };
    for (round, damage) in [&b""[..], b"garbage, which no ledger begins with"]
        .into_iter()
        .enumerate()
    {
        std::fs::write(&path, damage).unwrap();
        std::fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let refused = Ledger::open(&path, clock.clone()).unwrap_err();
        assert!(matches!(refused, LedgerError::Damaged { .. }), "{refused}");
        let aside = Ledger::rebuild(
            &path,
            clock.clone(),
            vec![block],
            vec![],
            vec![
                found("a", "10.244.0.1"),
                found("b", "10.244.0.2"),
                found("c", "10.244.0.2"),
                found("a", "10.244.0.3"),
            ],
        )
        .unwrap();
        assert_eq!(aside, dir.path().join(format!("ledger.damaged-{}", round + 1)));
        assert_eq!(std::fs::read(&aside).unwrap(), damage);

        let (ledger, recovery) = Ledger::open(&path, clock.clone()).unwrap();
        let quarantined: Vec<_> = recovery
            .quarantined
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        assert_eq!(quarantined, ["10.244.0.2", "10.244.0.3"]);
        assert_eq!(recovery.undone, []);
        let (address, entry) = ledger
            .get(&AttachmentKey::new("a", "eth0").unwrap())
            .unwrap()
            .unwrap();
        assert_eq!(address.to_string(), "10.244.0.1");
        assert_eq!(entry.owner().unwrap().details.host_if_name, "wefta");
        // Any of the others may have been somebody's a moment ago.
        let stats = &ledger.stats().unwrap().blocks[0];
        assert_eq!(
            (stats.active, stats.quarantined, stats.cooling, stats.free),
            (1, 2, 5, 0)
        );
        let next = AttachmentKey::new("d", "eth0").unwrap();
        let full = ledger.reserve(next.clone(), Details::default()).unwrap_err();
        assert!(matches!(full, LedgerError::Full { .. }), "{full}");
        clock.advance(COOLING);
        assert_eq!(
            ledger.reserve(next, Details::default()).unwrap().to_string(),
            "10.244.0.0"
        );
    }
}
