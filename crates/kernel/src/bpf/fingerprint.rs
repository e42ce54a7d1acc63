//! Whether anybody else wrote to the maps or took a link away: the kernel sends no event for either.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::{offset_of, replace, take};

use aya::maps::{MapData, MapError};
use weft_abi::names;

use super::attach::pinned_program;
use super::batch::{Chunk, Shape};
use super::pins::Pins;
use crate::error::{Context, Result};
use crate::sys::BatchPosition;

/// Maps that user space fills. Counters and flows change with every packet.
const MAPS: [&str; 6] = [
    names::CONFIG,
    names::PREFIXES,
    names::BLOCKS,
    names::NODES,
    names::ENDPOINTS_BY_IFINDEX,
    names::ENDPOINTS_BY_ADDR,
];

/// Entries of a map that one look reads; more than a node has pods. An entry of a trie takes the kernel 0.35 µs, one of a
/// hash map a third of that.
const PART: u32 = 256;

/// How often a handle has written to maps. What changes while it stands still was somebody else's doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// To those of endpoints.
    pub endpoints: u64,
    /// To the others.
    pub others: u64,
}

/// What a look found to have changed since the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The entries of maps that the handle did not write to, but for the flags that programs set on endpoints.
    pub maps: bool,
    /// The entries of maps that it did write to, whoever else did.
    pub written: bool,
    /// Which programs the pinned links run.
    pub links: bool,
}

/// Looks for changes of a datapath, a part of each map at a time.
#[derive(Debug)]
pub struct Fingerprint {
    pins: Pins,
    maps: Vec<Watched>,
    /// Of the pinned links; `None` before the first look.
    links: Option<u64>,
    /// What was found and not told yet: another map could not be read.
    found: Changed,
    /// At the last look; `None` where it did not read all that it should have.
    writes: Option<Writes>,
}

#[derive(Debug)]
struct Watched {
    shape: Shape,
    data: MapData,
    /// From the beginning to the end of the map; empty before the first look.
    parts: Vec<Part>,
    /// Whose turn is next.
    turn: usize,
}

/// A part of a map as it was found last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    from: Option<BatchPosition>,
    print: u64,
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
                    shape: Shape {
                        name,
                        key: info.key_size() as usize,
                        value: info.value_size() as usize,
                    },
                    data,
                    parts: Vec::new(),
                    turn: 0,
                })
            };
            watched().context("open eBPF map", path.display())
        };
        let maps = MAPS.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Self {
            pins,
            maps,
            links: None,
            found: Changed::default(),
            writes: None,
        })
    }

    /// Looks at the links, at all entries of maps that the handle has written to since the last look, and at the next 256
    /// of each other one, so that a change of those is found when its part has its turn. The first look finds nothing to
    /// have changed. `writes` are those of the handle, which must write nothing meanwhile.
    ///
    /// # Errors
    /// The kernel refused to read a map or a link; what was found in others is told the next time.
    pub fn look(&mut self, writes: Writes) -> Result<Changed> {
        let before = self.writes.take();
        for map in &mut self.maps {
            let count = |writes: Writes| match map.is_of_endpoints() {
                true => writes.endpoints,
                false => writes.others,
            };
            let written = before.map(count) != Some(count(writes));
            let changed = map.look(written)?;
            self.found.written |= changed && written;
            self.found.maps |= changed && !written;
        }
        let mut links = 0;
        for (ifindex, hook) in self.pins.links()? {
            let path = self.pins.link(ifindex, hook);
            // One that goes away meanwhile is missing the next time. In whatever order the directory lists them.
            if let Ok(program) = pinned_program(&path) {
                links ^= hash(&(ifindex, hook, program));
            }
        }
        let before = self.links.replace(links);
        self.found.links |= before.is_some_and(|before| before != links);
        self.writes = Some(writes);
        Ok(take(&mut self.found))
    }
}

// === impl Watched ===

impl Watched {
    fn look(&mut self, all: bool) -> Result<bool> {
        if let Some(part) = self.parts.get(self.turn).filter(|_| !all) {
            let chunk = self.shape.chunk(&self.data, part.from.as_ref(), PART)?;
            if self.print(chunk) == part.print {
                self.turn = (self.turn + 1) % self.parts.len();
                return Ok(false);
            }
        }
        let now = self.read()?;
        let before = replace(&mut self.parts, now);
        self.turn = 0;
        Ok(!before.is_empty() && before != self.parts)
    }

    /// All parts.
    fn read(&self) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut from = None;
        loop {
            let mut chunk = self.shape.chunk(&self.data, from.as_ref(), PART)?;
            let next = chunk.next.take();
            parts.push(Part {
                from,
                print: self.print(chunk),
            });
            match next {
                Some(next) => from = Some(next),
                None => return Ok(parts),
            }
        }
    }

    fn is_of_endpoints(&self) -> bool {
        matches!(
            self.shape.name,
            names::ENDPOINTS_BY_ADDR | names::ENDPOINTS_BY_IFINDEX
        )
    }

    fn print(&self, mut chunk: Chunk) -> u64 {
        if self.is_of_endpoints() {
            let endpoints = chunk.values.chunks_exact_mut(self.shape.value);
            endpoints.for_each(forget_what_programs_write);
        }
        hash(&(chunk.keys, chunk.values))
    }
}

fn forget_what_programs_write(endpoint: &mut [u8]) {
    const FLAGS: usize = offset_of!(weft_abi::Endpoint, program_flags);
    const LEN: usize = size_of::<u32>();
    if let Some(flags) = endpoint.get_mut(FLAGS..FLAGS + LEN) {
        flags.fill(0);
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
