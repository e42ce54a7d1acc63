//! The only door to the kernel: namespaces, netlink, nftables, sysctl and eBPF.
//!
//! Everything here is blocking and short; asynchronous callers use a blocking
//! task. Sockets belong to the namespace they were opened in, wherever they are
//! used, so that one `Rtnl` or `Nft` per namespace replaces switching threads.

pub mod bpf;
pub mod conntrack;
mod error;
pub mod ipsec;
pub mod mount;
mod netlink;
pub mod netns;
pub mod nft;
pub mod process;
pub mod rtnl;
pub mod sockets;
mod sys;
pub mod sysctl;
pub mod target;
mod wire;

pub use error::{Cause, Error, Result};
pub use netns::NetNs;
