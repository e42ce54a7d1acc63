//! What an agent's eBPF maps hold of other nodes, beside what the operator published.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData};
use ipnet::Ipv4Net;
use kube::api::ListParams;
use kube::{Api, Client};
use weft_abi::{ABI_VERSION, BlockKey, Endpoint, Prefix, PrefixKind, names};
use weft_api::{NodeNetwork, NodeSlice};

/// The blocks of every node, by its address: what the maps of every agent have to hold.
pub(crate) type Blocks = BTreeMap<Ipv4Addr, Vec<Ipv4Net>>;

/// The pinned maps of a node.
pub(crate) struct Maps {
    nodes: HashMap<MapData, [u8; 16], u32>,
    prefixes: LpmTrie<MapData, [u8; 16], [u8; size_of::<Prefix>()]>,
    blocks: HashMap<MapData, [u8; size_of::<BlockKey>()], [u8; size_of::<Prefix>()]>,
    pods: HashMap<MapData, [u8; 16], [u8; size_of::<Endpoint>()]>,
}

// === impl Maps ===

impl Maps {
    /// Those below the `--pin-dir` of an agent.
    pub(crate) fn open(pins: &Path) -> Result<Self> {
        let pins = pins.join(format!("v{ABI_VERSION}")).join("maps");
        let open = |name: &str| MapData::from_pin(pins.join(name));
        Ok(Self {
            nodes: Map::HashMap(open(names::NODES)?).try_into()?,
            prefixes: Map::LpmTrie(open(names::PREFIXES)?).try_into()?,
            blocks: Map::HashMap(open(names::BLOCKS)?).try_into()?,
            pods: Map::HashMap(open(names::ENDPOINTS_BY_ADDR)?).try_into()?,
        })
    }

    /// How many pods of this node are known.
    pub(crate) fn pods(&self) -> Result<usize> {
        let addresses: Vec<_> = self.pods.keys().collect::<Result<_, _>>()?;
        Ok(addresses.len())
    }

    /// Whether a node is known.
    pub(crate) fn has_node(&self, address: Ipv4Addr) -> Result<bool> {
        match self.nodes.get(&mapped(address), 0) {
            Ok(_) => Ok(true),
            Err(aya::maps::MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// That the maps hold exactly what they should.
    pub(crate) fn verify(&self, own: Ipv4Addr, blocks: &Blocks) -> Result<()> {
        let wanted: BTreeSet<[u8; 16]> = blocks.keys().filter(|a| **a != own).map(|a| mapped(*a)).collect();
        let nodes: BTreeSet<[u8; 16]> = self.nodes.keys().collect::<Result<_, _>>()?;
        if nodes != wanted {
            bail!(
                "{} nodes instead of {}: {} missing, {} too many",
                nodes.len(),
                wanted.len(),
                wanted.difference(&nodes).count(),
                nodes.difference(&wanted).count()
            );
        }
        // Programs find blocks as long as the node's own by one look.
        let indexed = blocks.get(&own).and_then(|blocks| blocks.first());
        for (address, blocks) in blocks.iter().filter(|(address, _)| **address != own) {
            for block in blocks {
                let key = Key::new(96 + u32::from(block.prefix_len()), mapped(block.addr()));
                let found = self.prefixes.get(&key, 0).context("look up a block")?;
                let underlay = found.get(offset_of!(Prefix, underlay)..).unwrap_or_default();
                let kind = found.get(offset_of!(Prefix, kind)..).unwrap_or_default();
                let wanted = (PrefixKind::RemoteBlock as u16).to_ne_bytes();
                if !underlay.starts_with(&mapped(*address)) || !kind.starts_with(&wanted) {
                    bail!("block {block} of node {address} has {found:?}");
                }
                let BlockKey { network, mask } = BlockKey::new(block.addr().octets(), block.prefix_len());
                let [[a, b, c, d], [e, f, g, h]] = [network, mask].map(u32::to_ne_bytes);
                if indexed.is_some_and(|own| own.prefix_len() == block.prefix_len())
                    && !matches!(self.blocks.get(&[a, b, c, d, e, f, g, h], 0), Ok(held) if held == found)
                {
                    bail!("block {block} of node {address} is not found by one look");
                }
            }
        }
        Ok(())
    }
}

/// Every node's blocks, as the operator wrote them down for it.
///
/// # Errors
/// Two nodes share addresses, or a node is not in exactly one slice with just these blocks.
pub(crate) async fn published(client: &Client) -> Result<Blocks> {
    let everything = ListParams::default();
    let networks = Api::<NodeNetwork>::all(client.clone())
        .list(&everything)
        .await?
        .items;
    let slices = Api::<NodeSlice>::all(client.clone())
        .list(&everything)
        .await?
        .items;
    let mut granted: BTreeMap<String, Vec<Ipv4Net>> = BTreeMap::new();
    let mut owners: BTreeMap<Ipv4Net, String> = BTreeMap::new();
    for network in networks {
        let name = network.metadata.name.unwrap_or_default();
        for block in network.spec.blocks {
            let block: Ipv4Net = block.cidr.parse()?;
            let near = owners
                .range(..=block)
                .next_back()
                .into_iter()
                .chain(owners.range(block..).next());
            for (other, owner) in near {
                if other.contains(&block) || block.contains(other) {
                    bail!("nodes {name} and {owner} share addresses: {block} and {other}");
                }
            }
            owners.insert(block, name.clone());
            granted.entry(name.clone()).or_default().push(block);
        }
    }
    let mut blocks = Blocks::new();
    for entry in slices.into_iter().flat_map(|slice| slice.spec.nodes) {
        let listed: Vec<Ipv4Net> = entry
            .blocks
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()?;
        if granted.get(&entry.name) != Some(&listed) {
            bail!(
                "node {} has {:?} but is listed with {listed:?}",
                entry.name,
                granted.get(&entry.name)
            );
        }
        let address = entry
            .addresses
            .first()
            .context("a node without address")?
            .parse()?;
        if blocks.insert(address, listed).is_some() {
            bail!("node {} is listed twice", entry.name);
        }
    }
    Ok(blocks)
}

fn mapped(address: Ipv4Addr) -> [u8; 16] {
    address.to_ipv6_mapped().octets()
}
