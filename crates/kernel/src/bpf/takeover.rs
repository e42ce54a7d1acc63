//! What an upgrade to another ABI version keeps: which flows the node's stack carries. Programs learn that from packets,
//! and a reply that comes before they have learnt it anew would reach its pod untranslated and end the connection.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::sys::SyscallError;
use weft_abi::{Address, Endpoint, FLOWS_SINCE, FlowKey, names};

use super::Datapath;
use super::convert::Raw;
use super::pins::Pins;
use crate::error::{Context, Result};

/// `BPF_NOEXIST` of include/uapi/linux/bpf.h.
const NOEXIST: u64 = 1;

type Notes = HashMap<MapData, Raw<FlowKey>, u32>;
type ByAddress = HashMap<MapData, Raw<Address>, Raw<Endpoint>>;

// === impl Datapath ===

impl Datapath {
    /// Takes over from the newest of the earlier versions that write down what this one does, if there is one. What a
    /// later version wrote, which is gone back from, nobody knows here.
    pub(super) fn inherit(&mut self) -> Result<()> {
        let readable = FLOWS_SINCE..self.pins.number();
        let others = self.pins.other_versions()?.into_iter();
        let newest = others
            .filter(|other| readable.contains(&other.number()))
            .max_by_key(Pins::number);
        newest.map_or(Ok(()), |other| self.inherit_from(&other))
    }

    fn inherit_from(&mut self, other: &Pins) -> Result<()> {
        for name in [names::STACK_FLOWS, names::STACK_FLOWS_TCP] {
            let (Some(from), Some(mut to)) = (notes(&other.map(name))?, notes(&self.pins.map(name))?) else {
                continue;
            };
            for entry in &from {
                let (flow, value) = entry.context("read eBPF map", name)?;
                added(to.insert(flow, value, NOEXIST)).context("write eBPF map", name)?;
            }
        }
        let path = other.map(names::ENDPOINTS_BY_ADDR);
        let Some(endpoints): Option<ByAddress> = open(&path, Map::HashMap)? else {
            return Ok(());
        };
        for entry in &endpoints {
            let (_, Raw(endpoint)) = entry.context("read eBPF map", path.display())?;
            if endpoint.has_stack_flows() {
                self.flag_stack_flows(&endpoint)?;
            }
        }
        Ok(())
    }
}

fn notes(path: &Path) -> Result<Option<Notes>> {
    open(path, Map::LruHashMap)
}

/// The map pinned at `path`, if there is one.
fn open<M: TryFrom<Map, Error = MapError>>(path: &Path, kind: fn(MapData) -> Map) -> Result<Option<M>> {
    if !path.exists() {
        return Ok(None);
    }
    let opened = MapData::from_pin(path).and_then(|data| M::try_from(kind(data)));
    opened.map(Some).context("open eBPF map", path.display())
}

/// What is noted already is no error.
fn added(outcome: std::result::Result<(), MapError>) -> std::result::Result<(), MapError> {
    match outcome {
        Err(MapError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::EEXIST) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}
