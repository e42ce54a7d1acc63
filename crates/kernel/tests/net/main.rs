//! Tests that change the kernel, each in namespaces of its own, compared with what the usual tools show.
//! They need root; without it each says that it was skipped.

mod links;
mod loss;
mod netns;
mod nft;
mod support;
mod system;
