//! What must hold whatever dies, whenever: faults injected into a real agent and plugin, an audit after each.
//!
//! Each test adds what it counted to the table of invariants that `cargo xtask test faults` prints.

mod bed;
mod delete;
mod invariants;
mod lost;
#[path = "../../../kernel/tests/owned/mod.rs"]
mod owned;
mod repair;
mod restart;
#[path = "../lab/support.rs"]
#[expect(dead_code, reason = "the lab's tests use more of it")]
mod support;
mod sweep;
mod syscalls;
mod traffic;
mod walk;
