//! Maps, read many entries by one system call (hash maps since Linux 5.6, tries since 5.13).

use std::io;
use std::os::fd::AsFd;

use aya::maps::MapData;
use zerocopy::FromBytes;

use crate::error::{Cause, Error, Result};
use crate::sys::{self, BatchPosition};

const OPERATION: &str = "read eBPF map";

/// Entries of one system call where nobody wants fewer.
const ROOM: u32 = 1024;

/// Entries as they are in a map, one behind the other.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
    /// Where to go on; `None` at the end of the map.
    pub(super) next: Option<BatchPosition>,
}

/// A map of which every entry has one key and one value of these sizes, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) key: usize,
    pub(super) value: usize,
}

// === impl Shape ===

impl Shape {
    /// The next entries, `room` of them unless the map ends. Of a hash map never a part of a bucket: a few less, or, where
    /// one bucket alone has more, that one.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub(super) fn chunk(self, data: &MapData, from: Option<&BatchPosition>, mut room: u32) -> Result<Chunk> {
        loop {
            let mut keys = vec![0; self.key * room as usize];
            let mut values = vec![0; self.value * room as usize];
            let read = sys::bpf_lookup_batch(data.fd().as_fd(), from, &mut keys, &mut values, room);
            match read {
                Ok(batch) => {
                    keys.truncate(self.key * batch.count as usize);
                    values.truncate(self.value * batch.count as usize);
                    return Ok(Chunk {
                        keys,
                        values,
                        next: batch.next,
                    });
                }
                // Entries went while the kernel read them.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    let more = room.checked_mul(2);
                    room = more.ok_or_else(|| Error::new(OPERATION, self.name, Cause::Errno(error)))?;
                }
                Err(error) => return Err(Error::new(OPERATION, self.name, Cause::Errno(error))),
            }
        }
    }
}

/// All entries of a map that is not per CPU, in the kernel's order. One that changes meanwhile may be missing.
///
/// # Errors
/// The kernel refused to read the map.
pub(super) fn entries<K: FromBytes, V: FromBytes>(name: &'static str, data: &MapData) -> Result<Vec<(K, V)>> {
    let shape = Shape {
        name,
        key: size_of::<K>(),
        value: size_of::<V>(),
    };
    let mut entries = Vec::new();
    let mut from = None;
    loop {
        let chunk = shape.chunk(data, from.as_ref(), ROOM)?;
        let keys = chunk.keys.chunks_exact(shape.key);
        for (key, value) in keys.zip(chunk.values.chunks_exact(shape.value)) {
            let entry = K::read_from_bytes(key).ok().zip(V::read_from_bytes(value).ok());
            entries.push(
                entry.ok_or_else(|| {
                    Error::new(OPERATION, name, Cause::Malformed("an entry of another size"))
                })?,
            );
        }
        match chunk.next {
            Some(next) => from = Some(next),
            None => return Ok(entries),
        }
    }
}
