//! The maps of other nodes, brought from one wish to the next without being read.

use crate::desired::{Desired, Prefix};
use crate::node::{Paths, target};
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use weft_kernel::bpf::Datapath;
use weft_kernel::target::Target;

/// Applies what tells `desired` from `done`, which the maps hold. What is new is in place before what is old goes.
///
/// # Errors
/// The kernel's refusal. What was done stays.
pub fn update(
    datapath: &mut Datapath,
    done: &Desired,
    desired: &Desired,
    paths: &Paths,
) -> Result<(), weft_kernel::Error> {
    let changed: Vec<(&Ipv4Net, &Prefix)> = desired
        .prefixes
        .iter()
        .filter(|(net, prefix)| done.prefixes.get(*net) != Some(*prefix))
        .collect();
    let gone: Vec<&Ipv4Net> = done
        .prefixes
        .keys()
        .filter(|net| !desired.prefixes.contains_key(*net))
        .collect();
    let mut prefixes = datapath.prefixes();
    for (net, prefix) in &changed {
        prefixes.apply(&(**net).into(), &target(**prefix, paths))?;
    }
    // A longer prefix decides whether the block around it is found by one look.
    let touched: BTreeSet<Ipv4Net> = changed
        .iter()
        .map(|(net, _)| *net)
        .chain(gone.iter().copied())
        .filter_map(|net| desired.block_around(net))
        .collect();
    let mut blocks = datapath.blocks();
    for block in &touched {
        match (done.indexed(block), desired.indexed(block)) {
            (before, Some(now)) if before != Some(now) => blocks.apply(block, &target(now, paths))?,
            (Some(_), None) => blocks.remove(block)?,
            _ => {}
        }
    }
    let mut prefixes = datapath.prefixes();
    for net in gone {
        prefixes.remove(&(*net).into())?;
    }
    let mut nodes = datapath.nodes();
    for address in desired.nodes.difference(&done.nodes) {
        nodes.apply(&(*address).into(), &())?;
    }
    for address in done.nodes.difference(&desired.nodes) {
        nodes.remove(&(*address).into())?;
    }
    Ok(())
}
