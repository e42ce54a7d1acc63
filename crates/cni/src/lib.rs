//! The CNI plugin `weft-cni` and its protocol with the agent.
//!
//! The plugin translates: environment and JSON of the [CNI specification] on one
//! side, one request to the agent's unix socket on the other. It touches neither
//! the kernel's network nor any other host; the pod's namespace goes to the agent
//! as a file descriptor. The agent uses [`protocol`] to serve it and [`intent`]
//! to make good for what was deleted while it was away. [`install`] puts plugin and
//! configuration where a runtime finds them.
//!
//! [CNI specification]: https://github.com/containernetworking/cni/blob/main/SPEC.md
#![forbid(unsafe_code)]

pub mod env;
pub mod install;
pub mod intent;
pub mod plugin;
pub mod protocol;
pub mod spec;
