//! Blocks for nodes, addresses for pods, and the node's ledger.
//!
//! Two allocators, one above the other: [`blocks`] gives runs of addresses to
//! nodes and is the operator's; [`ledger`] gives the addresses of a node's
//! blocks to its pods and is the agent's. Neither touches the kernel's network
//! state, and neither asks the other anything: a node that holds a block can
//! serve pods with the API server and the operator gone.
#![forbid(unsafe_code)]

pub mod blocks;
pub mod clock;
pub mod ledger;

pub use blocks::{BlockAllocator, Exhausted, PoolConfig, PoolUsage};
pub use clock::{BootId, Clock, Moment, SystemClock};
pub use ledger::{Ledger, LedgerError, Recovery};
