use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray};
use weft_abi::{ABI_VERSION, Counter, DropReason, ForwardPath, names};

use super::convert::Raw;
use super::pins::Pins;
use crate::error::{Context, Result};

/// What a counter stood at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// Packets; a super-packet (GSO) counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// The counters of a node's datapath, for reading.
pub struct Counters {
    drops: PerCpuArray<MapData, Raw<Counter>>,
    forwards: PerCpuArray<MapData, Raw<Counter>>,
}

// === impl Counters ===

impl Counters {
    pub(super) fn new(
        drops: PerCpuArray<MapData, Raw<Counter>>,
        forwards: PerCpuArray<MapData, Raw<Counter>>,
    ) -> Self {
        Self { drops, forwards }
    }

    /// The counters pinned below `pin_dir`, without loading a program: for whoever only looks.
    ///
    /// # Errors
    /// No datapath of this version is pinned there (`ENOENT`), or privileges are missing.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        Self::at(&Pins::at(pin_dir, ABI_VERSION))
    }

    pub(super) fn at(pins: &Pins) -> Result<Self> {
        let open = |name| -> Result<PerCpuArray<MapData, Raw<Counter>>> {
            let path = pins.map(name);
            let data = MapData::from_pin(&path).context("open eBPF map", path.display())?;
            Map::PerCpuArray(data)
                .try_into()
                .context("open eBPF map", path.display())
        };
        Ok(Self {
            drops: open(names::DROPS)?,
            forwards: open(names::FORWARDS)?,
        })
    }

    /// Packets and bytes dropped, by reason; every reason is there.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, Count>> {
        read(&self.drops, names::DROPS, &DropReason::ALL, DropReason::index)
    }

    /// Packets and bytes let through, by path; every path is there.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn forwards(&self) -> Result<BTreeMap<ForwardPath, Count>> {
        read(
            &self.forwards,
            names::FORWARDS,
            &ForwardPath::ALL,
            ForwardPath::index,
        )
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

fn read<K: Ord + Copy>(
    map: &PerCpuArray<MapData, Raw<Counter>>,
    name: &str,
    keys: &[K],
    index: fn(K) -> u32,
) -> Result<BTreeMap<K, Count>> {
    keys.iter()
        .map(|&key| {
            let cpus = map.get(&index(key), 0).context("read eBPF map", name)?;
            let sum = cpus.iter().fold(Count::default(), |sum, Raw(cpu)| Count {
                packets: sum.packets.wrapping_add(cpu.packets),
                bytes: sum.bytes.wrapping_add(cpu.bytes),
            });
            Ok((key, sum))
        })
        .collect()
}
