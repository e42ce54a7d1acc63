//! Addresses, blocks, pools, nodes and endpoints: types without I/O.
//!
//! A value of one of these types is right by construction: [`Block`] has no
//! host bits and a length Weft can serve, [`AttachmentKey`] obeys the CNI
//! specification, [`Identity`] fits the 23 bits the overlay header has for it.
#![forbid(unsafe_code)]

mod attachment;
pub mod audit;
pub mod checks;
mod cidr;
pub mod error;
mod identity;
mod mac;
mod node;
mod peer;
mod transport;

pub use attachment::{AttachmentKey, AttachmentKeyError};
pub use cidr::{Block, BlockError, BlockSize, CidrError, Overlap, PodCidr, first_overlap, parse_cidr};
pub use error::{Code, UserError, codes};
pub use identity::Identity;
pub use mac::{Mac, MacError};
pub use node::{NodeName, NodeNameError, NodeUid, NodeUidError};
pub use peer::{Node, Routing};
pub use transport::{TransportChoice, UnknownTransport};
