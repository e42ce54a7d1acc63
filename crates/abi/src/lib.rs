//! What the eBPF programs and user space share: map keys and values, drop reasons, packet headers, the ABI version.
//!
//! Everything here is plain data without implicit padding (`zerocopy::IntoBytes` proves it), so that a value written
//! by one side is what the other side reads. The functions are pure, so that the same code runs in the kernel and in
//! host tests.

#![no_std]
#![forbid(unsafe_code)]

mod address;
mod counters;
mod identity;
mod maps;
pub mod packet;
pub mod tunnel;

pub use address::{Address, Mac};
pub use counters::{Counter, DropReason, ForwardPath};
pub use identity::{Identity, IdentityOutOfRange, Vni};
pub use maps::{
    BlockIndex, BlockKey, Config, Endpoint, FlowKey, FragmentKey, Prefix, PrefixKey, PrefixKind, names,
};

/// Version of everything in this crate that both sides must agree on. Pins live under a directory named after it, so a
/// node never mixes programs of one layout with maps of another. Raise it with every change of a layout or a meaning.
pub const ABI_VERSION: u32 = 4;

/// The oldest version whose [`Endpoint`] and [`FlowKey`] are laid out as this one's: an upgrade from it, or from one
/// between, keeps what programs know of flows that the node's stack carries.
pub const FLOWS_SINCE: u32 = 2;

/// The gateway that every pod's default route points at. No device owns it; `from_pod` answers ARP for it.
pub const GATEWAY: [u8; 4] = [169, 254, 1, 1];

/// MAC address of every node's `weft0`, and thus the destination of every inner frame on the overlay.
/// Locally administered, `02` followed by "weft" in ASCII.
pub const OVERLAY_MAC: Mac = Mac::new([0x02, b'w', b'e', b'f', b't', 0x00]);

/// Source MAC of every inner frame on the overlay. Must differ from [`OVERLAY_MAC`]: the kernel takes a received frame
/// with the device's own source address for a loop and drops it (`vxlan_set_mac`, drivers/net/vxlan/vxlan_core.c).
pub const OVERLAY_SOURCE_MAC: Mac = Mac::new([0x02, b'w', b'e', b'f', b't', 0x01]);

/// Bytes that VXLAN over IPv4 adds: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5).
pub const VXLAN_OVERHEAD: u32 = 50;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;
