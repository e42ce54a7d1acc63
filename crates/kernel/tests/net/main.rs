//! Tests that change the kernel, each in namespaces of its own, compared with what the usual tools show.
//! They need root; without it each says that it was skipped.

mod left;
mod links;
mod loss;
#[path = "../namespaces/mod.rs"]
mod namespaces;
mod netns;
mod nft;
mod nft_table;
#[path = "../owned/mod.rs"]
mod owned;
mod system;
