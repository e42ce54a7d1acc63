//! Tests of the eBPF datapath: programs run by the kernel on built packets, and packets between namespaces.
//! They need root; without it each says that it was skipped.

mod delivery;
mod direct;
mod frames;
mod lifecycle;
mod mtu;
mod nat;
mod overlay;
mod programs;
mod stack_flows;
mod support;
