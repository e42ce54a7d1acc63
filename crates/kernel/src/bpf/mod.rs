//! The eBPF datapath: loading, pinning and attaching its programs, and its maps in the verbs of the domain.
//!
//! Everything is pinned below `<pin-dir>/v<ABI_VERSION>/`:
//!
//! ```text
//! maps/PREFIXES, …        state that survives the agent
//! links/7-ingress, …      attachments (TCX): <ifindex>-<hook>
//! ```
//!
//! Programs therefore run on while no agent does. A new agent loads its own programs over the same maps and swaps them
//! in, one attachment at a time, without a packet seeing none.

mod attach;
mod batch;
mod cause;
mod convert;
mod counters;
mod filter;
mod fingerprint;
mod interface;
mod pins;
mod tables;
mod takeover;
mod test_run;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use weft_abi::names;
pub use weft_abi::{ABI_VERSION, DropReason, ForwardPath, Identity};

use crate::error::{Context, Error, Result};

pub use attach::{AttachMode, Attachment, Hook};
use convert::Raw;
pub use counters::{Count, Counters};
pub use fingerprint::{Changed, Fingerprint, Writes};
use pins::Pins;
pub use tables::{
    BlockIndex, Blocks, Endpoint, Endpoints, NodeConfig, Nodes, PrefixTarget, Prefixes, Transport,
};
pub use test_run::{Outcome, Packet};

/// The object that datapath/ builds.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-datapath.o"));

/// How to load the datapath of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory on a BPF file system, `/sys/fs/bpf/weft` by default; made if it isn't there.
    pub pin_dir: PathBuf,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Notes of flows that the node's stack carries: as many of TCP, and as many of all others, 65 536 by default.
    /// Counts for maps not pinned yet.
    pub stack_flows: Option<u32>,
    /// Version that the pins go by, [`ABI_VERSION`] by default. Tests take another in the place of a build that has it.
    pub version: u32,
}

/// The datapath of the network namespace that it is used in.
pub struct Datapath {
    pins: Pins,
    attach: AttachMode,
    ebpf: Ebpf,
    config: aya::maps::Array<MapData, Raw<weft_abi::Config>>,
    prefixes: LpmTrie<MapData, Raw<weft_abi::Address>, Raw<weft_abi::Prefix>>,
    blocks: HashMap<MapData, Raw<weft_abi::BlockKey>, Raw<weft_abi::Prefix>>,
    endpoints_by_ifindex: HashMap<MapData, u32, Raw<weft_abi::Endpoint>>,
    endpoints_by_addr: HashMap<MapData, Raw<weft_abi::Address>, Raw<weft_abi::Endpoint>>,
    nodes: HashMap<MapData, Raw<weft_abi::Address>, u32>,
    counters: Counters,
    /// How often user space wrote.
    writes: Writes,
}

/// The programs, by the place they are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// Ingress of a pod's host-side veth.
    FromPod,
    /// Egress of a pod's host-side veth.
    ToPod,
    /// Ingress of the overlay device.
    FromOverlay,
    /// Egress of the overlay device.
    ToOverlay,
    /// Ingress of the uplink.
    FromUplink,
    /// Egress of the uplink.
    ToUplink,
}

// === impl Options ===

impl Options {
    /// The defaults, pinned below `pin_dir`.
    pub fn new(pin_dir: impl Into<PathBuf>) -> Self {
        Self {
            pin_dir: pin_dir.into(),
            attach: AttachMode::Auto,
            stack_flows: None,
            version: ABI_VERSION,
        }
    }
}

// === impl Datapath ===

impl Datapath {
    /// Loads the programs over the maps pinned below `options.pin_dir`, or over new ones that it pins there.
    ///
    /// Attachments that another agent left stay as they are until `attach_*` puts this one's programs in; behind those
    /// of another ABI version, which decide until [`remove_other_versions`](Self::remove_other_versions).
    ///
    /// # Errors
    /// The directory is not on a BPF file system, privileges are missing, or the kernel lacks something the programs
    /// need; the verifier's words are in the error then.
    pub fn load(options: &Options) -> Result<Self> {
        const OPERATION: &str = "load eBPF programs";
        let pins = Pins::open(&options.pin_dir, options.version)?;
        let mut loader = EbpfLoader::new();
        let paths = names::ALL.map(|name| (name, pins.map(name)));
        for (name, path) in paths {
            loader.map_pin_path(name, path);
        }
        if let Some(entries) = options.stack_flows {
            loader.map_max_entries(names::STACK_FLOWS, entries);
            loader.map_max_entries(names::STACK_FLOWS_TCP, entries);
        }
        let mut ebpf = loader
            .load(OBJECT)
            .context(OPERATION, options.pin_dir.display())?;
        for program in Program::ALL {
            classifier(&mut ebpf, program)
                .and_then(|loaded| Ok(loaded.load()?))
                .context(OPERATION, program.name())?;
        }
        let mut datapath = Self {
            attach: options.attach.on_this_kernel(),
            config: typed(&mut ebpf, names::CONFIG)?,
            prefixes: typed(&mut ebpf, names::PREFIXES)?,
            blocks: typed(&mut ebpf, names::BLOCKS)?,
            endpoints_by_ifindex: typed(&mut ebpf, names::ENDPOINTS_BY_IFINDEX)?,
            endpoints_by_addr: typed(&mut ebpf, names::ENDPOINTS_BY_ADDR)?,
            nodes: typed(&mut ebpf, names::NODES)?,
            counters: Counters::new(
                typed(&mut ebpf, names::DROPS)?,
                typed(&mut ebpf, names::FORWARDS)?,
            ),
            pins,
            ebpf,
            writes: Writes::default(),
        };
        datapath.inherit()?;
        Ok(datapath)
    }

    /// How often this handle has written to maps.
    pub fn writes(&self) -> Writes {
        self.writes
    }

    /// Packets and bytes dropped, by reason, summed over the CPUs since the maps were made.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, Count>> {
        self.counters.drops()
    }

    /// Packets and bytes let through, by path, summed over the CPUs since the maps were made.
    ///
    /// # Errors
    /// The kernel refused to read the map.
    pub fn forwards(&self) -> Result<BTreeMap<ForwardPath, Count>> {
        self.counters.forwards()
    }

    /// Removes what other ABI versions pinned, and with it their attachments, after a last look at what their programs
    /// have learnt of flows. To be called when everything is attached, so that no interface is ever without programs.
    /// Returns how many versions there were.
    ///
    /// # Errors
    /// A pin could not be read or removed.
    pub fn remove_other_versions(&mut self) -> Result<usize> {
        self.inherit()?;
        let others = self.pins.other_versions()?;
        for other in &others {
            other.remove_version()?;
        }
        Ok(others.len())
    }

    /// The counters, for another thread to read.
    ///
    /// # Errors
    /// The kernel refused to open the maps.
    pub fn counters(&self) -> Result<Counters> {
        Counters::at(&self.pins)
    }

    /// Takes fingerprints in another thread.
    ///
    /// # Errors
    /// The kernel refused to open the maps.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        Fingerprint::at(self.pins.clone())
    }

    /// Removes all attachments and pins of this version, and the pin directory if that leaves it empty.
    ///
    /// # Errors
    /// A pin could not be removed; the others are.
    pub fn remove(mut self) -> Result<()> {
        if self.attach != AttachMode::Tcx {
            self.detach_all_filters()?;
        }
        self.pins.remove()
    }

    /// Removes everything that an agent of any version attached and pinned, without loading anything.
    ///
    /// # Errors
    /// The kernel refused to tell what is attached, or something could not be removed.
    pub fn remove_all(pin_dir: &Path) -> Result<()> {
        attach::remove_all_filters()?;
        Pins::at(pin_dir, ABI_VERSION).remove_all()
    }

    fn program(&mut self, program: Program) -> Result<&mut SchedClassifier> {
        classifier(&mut self.ebpf, program).context("find eBPF program", program.name())
    }
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath")
            .field("pins", &self.pins)
            .field("attach", &self.attach)
            .finish_non_exhaustive()
    }
}

// === impl Program ===

impl Program {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromOverlay,
        Self::ToOverlay,
        Self::FromUplink,
        Self::ToUplink,
    ];

    /// Name in the object, and in the kernel's lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromOverlay => "from_overlay",
            Self::ToOverlay => "to_overlay",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
        }
    }

    /// The hook that it is made for.
    pub const fn hook(self) -> Hook {
        match self {
            Self::FromPod | Self::FromOverlay | Self::FromUplink => Hook::Ingress,
            Self::ToPod | Self::ToOverlay | Self::ToUplink => Hook::Egress,
        }
    }

    fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|program| program.name() == name)
    }
}

fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, cause::AyaError> {
    let found = ebpf.program_mut(program.name()).ok_or(cause::AyaError::Missing)?;
    Ok(found.try_into()?)
}

fn typed<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| Error::new("open eBPF map", name, cause::missing()))?;
    M::try_from(map).context("open eBPF map", name)
}

#[cfg(test)]
mod budgets;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;
