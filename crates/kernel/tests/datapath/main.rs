//! Tests of the eBPF datapath: programs run by the kernel on built packets, and packets between namespaces.
//! They need root; without it each says that it was skipped.

mod bench;
mod delivery;
mod direct;
mod echo;
mod fingerprint;
mod frames;
mod lifecycle;
mod mtu;
#[path = "../namespaces/mod.rs"]
mod namespaces;
mod nat;
mod overlay;
#[path = "../owned/mod.rs"]
mod owned;
mod programs;
mod stack_flows;
mod support;
