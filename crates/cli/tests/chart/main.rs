//! The Helm chart: what it renders, and what it refuses.

mod kustomize;
mod refused;
mod rendered;
mod support;
