//! Whether anybody else wrote to the maps or took a link away: the kernel sends no event for either.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::offset_of;
use std::os::fd::AsFd;

use aya::maps::{MapData, MapError};
use weft_abi::names;

use super::attach::pinned_program;
use super::pins::Pins;
use crate::error::{Cause, Context, Error, Result};
use crate::sys;

/// Maps that user space fills. Counters and flows change with every packet.
const MAPS: [&str; 6] = [
    names::CONFIG,
    names::PREFIXES,
    names::BLOCKS,
    names::NODES,
    names::ENDPOINTS_BY_IFINDEX,
    names::ENDPOINTS_BY_ADDR,
];

/// Entries of one system call.
const BATCH: u32 = 1024;

/// What the datapath's maps hold and which programs its links run, as numbers that stay the same as long as nothing
/// changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Print {
    /// Of the maps' entries, without the flags that programs set on endpoints.
    pub maps: u64,
    /// Of the pinned links.
    pub links: u64,
}

/// Takes fingerprints of a datapath.
#[derive(Debug)]
pub struct Fingerprint {
    pins: Pins,
    maps: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    name: &'static str,
    data: MapData,
    key_size: usize,
    value_size: usize,
    entries: u32,
}

// === impl Fingerprint ===

impl Fingerprint {
    pub(super) fn at(pins: Pins) -> Result<Self> {
        let open = |name| -> Result<Watched> {
            let path = pins.map(name);
            let watched = || -> std::result::Result<Watched, MapError> {
                let data = MapData::from_pin(&path)?;
                let info = data.info()?;
                Ok(Watched {
                    name,
                    key_size: info.key_size() as usize,
                    value_size: info.value_size() as usize,
                    entries: info.max_entries(),
                    data,
                })
            };
            watched().context("open eBPF map", path.display())
        };
        let maps = MAPS.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Self { pins, maps })
    }

    /// Takes one.
    ///
    /// # Errors
    /// The kernel refused to read a map or a link.
    pub fn read(&self) -> Result<Print> {
        let mut print = Print { maps: 0, links: 0 };
        for map in &self.maps {
            // In whatever order the kernel lists entries.
            print.maps ^= map.read()?;
        }
        for (ifindex, hook) in self.pins.links()? {
            let path = self.pins.link(ifindex, hook);
            // One that goes away meanwhile is missing the next time.
            if let Ok(program) = pinned_program(&path) {
                print.links ^= hash(&(ifindex, hook, program));
            }
        }
        Ok(print)
    }
}

// === impl Watched ===

impl Watched {
    fn read(&self) -> Result<u64> {
        const OPERATION: &str = "read eBPF map";
        let mut print = 0;
        let mut room = BATCH.min(self.entries.max(1));
        let mut position: Option<sys::BatchPosition> = None;
        loop {
            let mut keys = vec![0; self.key_size * room as usize];
            let mut values = vec![0; self.value_size * room as usize];
            let read = sys::bpf_lookup_batch(
                self.data.fd().as_fd(),
                position.as_ref(),
                &mut keys,
                &mut values,
                room,
            );
            let batch = match read {
                Ok(batch) => batch,
                // A bucket of a hash map has more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < self.entries => {
                    room = (room * 2).min(self.entries);
                    continue;
                }
                Err(error) => return Err(Error::new(OPERATION, self.name, Cause::Errno(error))),
            };
            let count = batch.count as usize;
            let entries = keys
                .chunks_exact(self.key_size)
                .zip(values.chunks_exact_mut(self.value_size));
            for (key, value) in entries.take(count) {
                self.forget_what_programs_write(value);
                print ^= hash(&(self.name, key, &*value));
            }
            match batch.next {
                Some(next) => position = Some(next),
                None => return Ok(print),
            }
        }
    }

    fn forget_what_programs_write(&self, value: &mut [u8]) {
        const FLAGS: usize = offset_of!(weft_abi::Endpoint, program_flags);
        const LEN: usize = size_of::<u32>();
        if matches!(self.name, names::ENDPOINTS_BY_ADDR | names::ENDPOINTS_BY_IFINDEX)
            && let Some(flags) = value.get_mut(FLAGS..FLAGS + LEN)
        {
            flags.fill(0);
        }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
