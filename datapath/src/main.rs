//! Weft's eBPF programs: tc classifiers for pod interfaces, the overlay device and the uplink.
//!
//! Each program is a `try_*` function that returns what to do or why to drop; [`verdict::finish`] counts it and turns it
//! into the number the kernel wants. `unsafe` is confined to [`skb`] and [`tables`].

#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod overlay;
mod pod;
mod skb;
mod stack;
mod tables;
mod transport;
mod uplink;
mod verdict;

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{skb::Skb, verdict::finish};

/// Ingress of a pod's host-side veth: everything the pod sends.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let result = pod::try_from_pod(&mut skb);
    finish(&skb, result)
}

/// Egress of a pod's host-side veth: what reaches the pod from the node's stack.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let result = pod::try_to_pod(&mut skb);
    finish(&skb, result)
}

/// Egress of `weft0`: packets that `from_pod` sent there, and what the node's stack routes into the overlay.
#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let result = overlay::try_to_overlay(&mut skb);
    finish(&skb, result)
}

/// Ingress of `weft0`: packets from other nodes, decapsulated.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let result = overlay::try_from_overlay(&mut skb);
    finish(&skb, result)
}

/// Egress of the uplink: nothing leaves with a pod's source address.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let result = uplink::try_to_uplink(&skb);
    finish(&skb, result)
}

/// Ingress of the uplink: nothing reaches a pod's address outside the overlay.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let result = uplink::try_from_uplink(&mut skb);
    finish(&skb, result)
}

/// Apache-2.0 or GPL-2.0; inside the kernel it is the latter, as its helpers require.
#[expect(
    unsafe_code,
    reason = "the loader finds the licence by the name of its section"
)]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
