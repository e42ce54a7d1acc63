//! The write of an ADD goes on while its interface is made.

use super::*;
use weft_ipam::ledger::disk::Disk;

/// A node whose disk tests can hold and break.
struct Overlap {
    bed: Bed,
    disk: Disk,
}

impl Overlap {
    fn new() -> Self {
        let disk = Disk::formatted();
        let clock = SystemClock::read(SystemClock::BOOT_ID.as_ref()).unwrap();
        let ledger = Ledger::open_on(&disk, Arc::new(clock)).unwrap().0;
        let bed = Bed::with_ledger(ledger, tempfile::tempdir().unwrap());
        bed.pods
            .set_blocks(&["10.244.0.0/30".parse().unwrap()], &[], None);
        Self { bed, disk }
    }

    /// Has the interface come only when so many writes have reached the disk that were not there yet, with nobody
    /// waiting longer than a test may.
    fn attach_after_writes(&self, writes: usize) {
        let (disk, seen) = (self.disk.clone(), self.disk.syncs());
        *self.bed.kernel.0.before_attach.lock().unwrap() = Some(Box::new(move || {
            let started = Instant::now();
            while disk.syncs() < seen + writes && started.elapsed() < Duration::from_secs(20) {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(
                disk.syncs(),
                seen + writes,
                "the write does not wait for the interface"
            );
        }));
    }

    /// What an agent finds that starts now.
    fn next(&self) -> (Vec<String>, u32) {
        let clock = SystemClock::read(SystemClock::BOOT_ID.as_ref()).unwrap();
        let copy = Disk::with(self.disk.contents());
        let ledger = Ledger::open_on(&copy, Arc::new(clock)).unwrap().0;
        let owners = ledger.list().unwrap();
        let owners = owners.iter().filter_map(|(_, entry)| entry.owner());
        let owners = owners.map(|owner| owner.key.to_string()).collect();
        (owners, ledger.stats().unwrap().free())
    }
}

#[test]
fn an_add_is_written_while_its_interface_is_made_and_once() {
    let node = Overlap::new();
    node.attach_after_writes(1);
    let before = node.disk.syncs();
    node.bed.address("a");
    assert_eq!(node.disk.syncs(), before + 1);
    assert_eq!(node.next(), (vec!["a/eth0".into()], 3));
}

#[test]
fn an_add_is_not_answered_before_the_disk_has_it() {
    let node = Overlap::new();
    node.disk.hold_syncs(true);
    thread::scope(|scope| {
        let adding = scope.spawn(|| node.bed.address("a"));
        while node.bed.kernel.wired().is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        // Another one goes on as far.
        let other = scope.spawn(|| node.bed.address("b"));
        while node.bed.kernel.wired().len() < 2 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!adding.is_finished() && !other.is_finished());
        assert_eq!(node.bed.kernel.finished(), 0);
        node.disk.hold_syncs(false);
        adding.join().unwrap();
        other.join().unwrap();
    });
    assert_eq!(node.bed.kernel.finished(), 2);
}

#[test]
fn an_interface_that_fails_after_the_write_takes_its_record_and_no_address_along() {
    let node = Overlap::new();
    node.bed.kernel.0.attach_fails.store(true, Ordering::Relaxed);
    for id in ["a", "b", "c", "d", "e", "f"] {
        node.attach_after_writes(1);
        assert_eq!(code_and_words(node.bed.add(id)).0, code::TRY_AGAIN);
        assert_eq!(node.next(), (vec![], 4), "{id}");
    }
    assert_eq!(node.bed.used(), 0);
}

#[test]
fn a_write_that_fails_takes_the_interface_along() {
    let node = Overlap::new();
    node.disk.fail_next_sync();
    assert_eq!(code_and_words(node.bed.add("a")).0, code::IO);
    assert_eq!((node.bed.kernel.wired(), node.bed.used()), (vec![], 0));
    assert_eq!(node.next(), (vec![], 4));
    node.bed.address("a");
}

#[test]
fn an_address_whose_record_cannot_be_taken_back_is_nobody_elses_until_its_del() {
    let node = Overlap::new();
    node.bed.kernel.0.attach_fails.store(true, Ordering::Relaxed);
    let disk = node.disk.clone();
    node.attach_after_writes(1);
    let written = node.bed.kernel.0.before_attach.lock().unwrap().take().unwrap();
    *node.bed.kernel.0.before_attach.lock().unwrap() = Some(Box::new(move || {
        written();
        disk.fail_next_sync();
    }));
    assert_eq!(code_and_words(node.bed.add("a")).0, code::TRY_AGAIN);
    *node.bed.kernel.0.before_attach.lock().unwrap() = None;
    node.bed.kernel.0.attach_fails.store(false, Ordering::Relaxed);
    // Whether the disk has the record or not, what is in memory is the same, and DEL ends it.
    assert_eq!(usize::try_from(node.bed.used()).unwrap(), node.next().0.len());
    assert_eq!(node.bed.del("a"), Reply::Done);
    assert_eq!((node.bed.used(), node.next().0), (0, vec![]));
}
