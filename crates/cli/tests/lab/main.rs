//! The `weft` command from outside: what it makes, what it says, and that it leaves nothing behind.
//!
//! Most of it needs root; without it each test says that it was skipped.

mod bad_input;
mod inspect;
mod left;
mod lifecycle;
#[path = "../../../kernel/tests/owned/mod.rs"]
mod owned;
mod support;
mod transport;
mod vnet;
