//! Real Kubernetes clusters in namespaces of one machine, to test and develop Weft with.

#![forbid(unsafe_code)]

pub mod image;
pub mod oci;
