//! The ledger's file, damaged: served from, or refused with a reason. Whatever it holds, no two attachments get one
//! address.

#![no_main]

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use redb::{Builder, TableDefinition};
use weft_ipam::SystemClock;
use weft_ipam::ledger::{Details, Ledger, disk::Disk};
use weft_model::AttachmentKey;

const BLOCKS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("blocks");
const ADDRESSES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("addresses");

#[derive(Arbitrary, Debug)]
enum Damage {
    /// Bytes of the file, each at its place modulo the file's length.
    File { at: Vec<(u32, u8)>, cut: Option<u32> },
    /// Records that no ledger has written: by the last bits of the address, and blocks.
    Records {
        addresses: Vec<(u8, Vec<u8>)>,
        blocks: Vec<(u32, Vec<u8>)>,
    },
}

/// 10.244.0.0
const FIRST: u32 = 0x0af4_0000;

fuzz_target!(|damage: Damage| {
    let whole = whole();
    let disk = match damage {
        Damage::File { at, cut } => {
            let mut image = whole.clone();
            for (place, byte) in at {
                let place = place as usize % image.len();
                image[place] = byte;
            }
            if let Some(cut) = cut {
                image.truncate(cut as usize % image.len());
            }
            Disk::with(image)
        }
        Damage::Records { addresses, blocks } => {
            let disk = Disk::with(whole.clone());
            let database = Builder::new()
                .create_with_backend(disk.clone())
                .expect("a sound file");
            let transaction = database.begin_write().expect("a transaction");
            {
                let mut table = transaction.open_table(ADDRESSES).expect("the table");
                for (last, record) in &addresses {
                    table
                        .insert(FIRST | u32::from(*last), record.as_slice())
                        .expect("memory does not fail");
                }
                let mut table = transaction.open_table(BLOCKS).expect("the table");
                for (position, record) in &blocks {
                    table
                        .insert(position, record.as_slice())
                        .expect("memory does not fail");
                }
            }
            transaction.commit().expect("memory does not fail");
            drop(database);
            disk
        }
    };
    let Ok((ledger, _)) = Ledger::open_on(&disk, Arc::new(clock())) else {
        return;
    };
    let mut owners = HashMap::new();
    let Ok(entries) = ledger.list() else {
        return;
    };
    for (address, entry) in entries {
        if let Some(owner) = entry.owner() {
            let before = owners.insert(address, owner.key.clone());
            assert!(before.is_none(), "{address} has two owners");
        }
    }
    for number in 0..4 {
        let key = AttachmentKey::new(format!("new-{number}"), "eth0").expect("a key");
        let Ok(address) = ledger.reserve(key.clone(), Details::default()) else {
            continue;
        };
        let before = owners.insert(address, key.clone());
        assert!(
            before.is_none() || before == Some(key),
            "{address} is {before:?}'s"
        );
    }
});

/// A ledger with a block and attachments in several states.
fn whole() -> &'static Vec<u8> {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let disk = Disk::formatted();
        let (ledger, _) = Ledger::open_on(&disk, Arc::new(clock())).expect("an empty ledger");
        let block = "10.244.0.0/26".parse().expect("a block");
        ledger.set_blocks(vec![block], Vec::new()).expect("a block");
        for number in 0..6 {
            let key = AttachmentKey::new(format!("old-{number}"), "eth0").expect("a key");
            let address = ledger
                .reserve(key.clone(), Details::default())
                .expect("an address");
            if number > 0 {
                let recording = ledger.record(&key).expect("a reservation");
                recording.activate().expect("an attachment");
            }
            if number == 1 {
                ledger.release(&key).expect("an attachment");
            }
            if number == 2 {
                ledger.quarantine(address, "two claims").expect("an address");
            }
        }
        drop(ledger);
        disk.contents()
    })
}

fn clock() -> SystemClock {
    SystemClock::read(SystemClock::BOOT_ID.as_ref()).expect("a boot id")
}
