//! Writes that go on beside other steps, and fail.

use std::collections::BTreeMap;

use super::crash_tests::owners;
use super::disk::Disk;
use super::tests::{TestClock, activate, block, key};
use super::*;

#[test]
fn nobody_waits_for_the_disk_but_those_who_changed_what_is_on_it() {
    let disk = Disk::formatted();
    let (ledger, _) = Ledger::open_on(&disk, TestClock::new("boot-1")).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/29")], vec![]).unwrap();
    let address = ledger.reserve(key(0), Details::default()).unwrap();
    let before = disk.syncs();
    disk.hold_syncs(true);
    let recording = ledger.record(&key(0)).unwrap();
    let (at, entry) = ledger.get(&key(0)).unwrap().unwrap();
    assert!(at == address && matches!(entry, Entry::Reserved(_)), "{entry:?}");
    let other = ledger.reserve(key(1), Details::default()).unwrap();
    ledger.release(&key(1)).unwrap();
    assert_eq!(ledger.reserve(key(2), Details::default()).unwrap(), other);
    assert_eq!(ledger.stats().unwrap().free(), 6);
    disk.hold_syncs(false);
    recording.activate().unwrap();
    let entry = ledger.get(&key(0)).unwrap().unwrap().1;
    assert!(matches!(entry, Entry::Active(_)), "{entry:?}");
    assert_eq!(
        disk.syncs(),
        before + 1,
        "no write but the one that was on its way"
    );
}

#[test]
fn an_address_that_is_recorded_and_taken_back_is_nobodys_until_the_disk_has_that() {
    let disk = Disk::formatted();
    let clock = TestClock::new("boot-1");
    let (ledger, _) = Ledger::open_on(&disk, clock.clone()).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/30")], vec![]).unwrap();
    let address = ledger.reserve(key(0), Details::default()).unwrap();
    ledger.record(&key(0)).unwrap().written.wait().unwrap();
    disk.hold_syncs(true);
    std::thread::scope(|scope| {
        let released = scope.spawn(|| ledger.release(&key(0)));
        while ledger.get(&key(0)).unwrap().is_some() {
            std::thread::yield_now();
        }
        // The fourth has only the one that is about to go.
        let others = [1, 2, 3, 4].map(|number| ledger.reserve(key(number), Details::default()));
        // A held disk would keep a test that fails from ending.
        disk.hold_syncs(false);
        released.join().unwrap().unwrap();
        let given: Vec<Ipv4Addr> = others[..3].iter().map(|given| *given.as_ref().unwrap()).collect();
        assert!(!given.contains(&address), "{given:?}");
        assert!(
            matches!(others[3], Err(LedgerError::Full { .. })),
            "{:?}",
            others[3]
        );
    });
    // No pod had it, so it does not rest.
    assert_eq!(ledger.reserve(key(4), Details::default()).unwrap(), address);
    drop(ledger);
    let (ledger, _) = Ledger::open_on(&disk, clock).unwrap();
    assert_eq!(owners(&ledger), BTreeMap::new());
}

#[test]
fn a_recorded_reservation_outlives_the_failed_write_of_another_and_is_written_once() {
    let disk = Disk::formatted();
    let (ledger, _) = Ledger::open_on(&disk, TestClock::new("boot-1")).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/29")], vec![]).unwrap();
    let address = ledger.reserve(key(0), Details::default()).unwrap();
    ledger.reserve(key(1), Details::default()).unwrap();
    let first = ledger.record(&key(0)).unwrap();
    let second = ledger.record(&key(0)).unwrap();
    second.written.wait().unwrap();
    disk.fail_next_sync();
    activate(&ledger, &key(1)).unwrap_err();
    let entry = ledger.get(&key(0)).unwrap().unwrap().1;
    assert!(matches!(entry, Entry::Reserved(_)), "{entry:?}");
    let before = disk.syncs();
    assert_eq!(first.activate().unwrap().address, address);
    assert_eq!(disk.syncs(), before);
    let third = ledger.record(&key(0)).unwrap_err();
    assert!(
        matches!(third, LedgerError::NotReserved { state: "active", .. }),
        "{third:?}"
    );
}

#[test]
fn what_was_released_meanwhile_is_not_taken_for_what_came_after_it() {
    let disk = Disk::formatted();
    let (ledger, _) = Ledger::open_on(&disk, TestClock::new("boot-1")).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/29")], vec![]).unwrap();
    ledger.reserve(key(0), Details::default()).unwrap();
    let recording = ledger.record(&key(0)).unwrap();
    ledger.release(&key(0)).unwrap();
    let address = ledger.reserve(key(0), Details::default()).unwrap();
    let before = disk.syncs();
    assert_eq!(recording.activate().unwrap().address, address);
    assert_eq!(disk.syncs(), before + 1, "the disk has the second one too");
}

#[test]
fn a_failed_write_is_told_to_all_that_built_on_it() {
    let disk = Disk::formatted();
    let (ledger, _) = Ledger::open_on(&disk, TestClock::new("boot-1")).unwrap();
    ledger.set_blocks(vec![block("10.244.0.0/29")], vec![]).unwrap();
    for number in 0..2 {
        ledger.reserve(key(number), Details::default()).unwrap();
    }
    disk.hold_syncs(true);
    let first = ledger.record(&key(0)).unwrap();
    // The first one's write begins without this one, or takes it along.
    let second = ledger.record(&key(1)).unwrap();
    disk.fail_next_sync();
    disk.hold_syncs(false);
    first.activate().unwrap_err();
    second.activate().unwrap_err();
    for number in 0..2 {
        ledger.release(&key(number)).unwrap();
    }
    assert_eq!(ledger.stats().unwrap().free(), 8);
}
