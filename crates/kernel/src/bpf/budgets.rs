//! What a packet may cost on the paths that most packets take: instructions of the program, and looks into maps that the
//! kernel has to search.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use weft_abi::{
    Address, BlockIndex, BlockKey, Config, Counter, Endpoint, Identity, Mac, Prefix, PrefixKind, names,
};
use zerocopy::IntoBytes;

use super::Program;
use super::machine::{Contents, Run, World, run};
use super::tests::instructions;

/// A path: what runs, on what, and what it may cost. Budgets are a tenth more than it costs as of this writing, since
/// compilers differ.
struct Path {
    name: &'static str,
    program: Program,
    world: World,
    /// The helper that sends the packet on its way, or none where it goes on to the stack.
    leaves_by: Option<&'static str>,
    /// Looks into hash tables and the trie; those into arrays are compiled to a few instructions.
    searches: &'static [(&'static str, usize)],
    instructions: usize,
}

const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 7);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 8);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 9);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const UPLINK: u32 = 2;
const OVERLAY: u32 = 3;
const POD_LINK: u32 = 10;
const NEIGHBOUR_LINK: u32 = 11;
const PORT: u16 = 8472;

const ARRAYS: [&str; 3] = [names::CONFIG, names::DROPS, names::FORWARDS];

fn mac(last: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, last])
}

fn v4(address: Ipv4Addr) -> Address {
    Address::v4(address.octets())
}

/// A TCP segment without payload.
fn segment(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([
        0x80, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 64, 0, 0, 0, 0,
    ]);
    packet
}

fn frame(destination: Mac, source: Mac, packet: &[u8]) -> Vec<u8> {
    [&destination.octets()[..], &source.octets(), &[8, 0], packet].concat()
}

/// A packet of the other node's, around that one.
fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let mut outer = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    outer.extend(PEER.octets());
    outer.extend(NODE.octets());
    outer.extend([0xc0, 1]);
    outer.extend(PORT.to_be_bytes());
    outer.extend([0, 0, 0, 0, 8, 0, 0, 0]);
    outer.extend(&Identity::POD.get().to_be_bytes()[1..]);
    outer.push(0);
    outer.extend(frame(mac(1), mac(2), inner));
    outer
}

fn world(frame: Vec<u8>, ifindex: u32, direct: bool) -> World {
    let config = Config {
        underlay: v4(NODE),
        overlay_ifindex: OVERLAY,
        pod_mtu: 1450,
        direct_ifindex: if direct { UPLINK } else { 0 },
        vxlan_port: PORT,
        reserved: 0,
        blocks: BlockIndex::new(24, [10, 244, 0, 0], 16),
    };
    let first = 0_u32.to_ne_bytes().to_vec();
    let counters = |count: usize| -> Contents {
        let keys = (0_u32..).take(count).map(|index| index.to_ne_bytes().to_vec());
        keys.map(|key| (key, Counter::default().as_bytes().to_vec()))
            .collect()
    };
    let prefixes = [
        (Ipv4Addr::new(10, 244, 0, 0), 16, PrefixKind::Pool, None),
        (Ipv4Addr::new(10, 244, 0, 0), 24, PrefixKind::LocalBlock, None),
        (
            Ipv4Addr::new(10, 244, 1, 0),
            24,
            PrefixKind::RemoteBlock,
            Some(PEER),
        ),
        (NODE, 32, PrefixKind::SelfNode, None),
        (PEER, 32, PrefixKind::RemoteNode, Some(PEER)),
    ];
    let mut blocks = Contents::new();
    let prefixes = prefixes.map(|(network, len, kind, underlay)| {
        let prefix = Prefix {
            underlay: underlay.map_or(Address::UNSPECIFIED, v4),
            next_hop: underlay.map_or([0; 4], |node| node.octets()),
            kind: kind as u16,
            mtu: 0,
        };
        if len == 24 {
            let key = BlockKey::new(network.octets(), 24);
            blocks.insert(key.as_bytes().to_vec(), prefix.as_bytes().to_vec());
        }
        let bits = Address::V4_PREFIX_BITS + len;
        let key = [bits.as_bytes(), v4(network).as_bytes()].concat();
        (key, prefix.as_bytes().to_vec())
    });
    let endpoints =
        [(POD, POD_LINK, 7), (NEIGHBOUR, NEIGHBOUR_LINK, 8)].map(|(address, ifindex, last)| Endpoint {
            address: v4(address),
            ifindex,
            identity: Identity::POD.get(),
            flags: 0,
            program_flags: 0,
            mac: mac(last),
            host_mac: mac(100 + last),
        });
    let by = |key: fn(&Endpoint) -> Vec<u8>| -> Contents {
        let entries = endpoints.iter();
        entries
            .map(|endpoint| (key(endpoint), endpoint.as_bytes().to_vec()))
            .collect()
    };
    World {
        frame,
        ifindex,
        tunnel: None,
        maps: BTreeMap::from([
            (
                names::CONFIG,
                BTreeMap::from([(first, config.as_bytes().to_vec())]),
            ),
            (names::PREFIXES, BTreeMap::from(prefixes)),
            (names::BLOCKS, blocks),
            (
                names::ENDPOINTS_BY_IFINDEX,
                by(|endpoint| endpoint.ifindex.to_ne_bytes().to_vec()),
            ),
            (
                names::ENDPOINTS_BY_ADDR,
                by(|endpoint| endpoint.address.as_bytes().to_vec()),
            ),
            (names::DROPS, counters(64)),
            (names::FORWARDS, counters(64)),
        ]),
    }
}

fn paths() -> Vec<Path> {
    let from_pod = |to| frame(mac(107), mac(7), &segment(POD, to));
    let arriving = frame(mac(1), mac(2), &segment(REMOTE, POD));
    let on_wire = frame(mac(50), mac(51), &tunnelled(&segment(REMOTE, POD)));
    let leaving = frame(mac(51), mac(50), &segment(NODE, PEER));
    vec![
        Path {
            name: "pod to pod of the node",
            program: Program::FromPod,
            world: world(from_pod(NEIGHBOUR), POD_LINK, true),
            leaves_by: Some("redirect_peer"),
            searches: &[
                (names::BLOCKS, 1),
                (names::ENDPOINTS_BY_ADDR, 1),
                (names::ENDPOINTS_BY_IFINDEX, 1),
            ],
            instructions: 245,
        },
        Path {
            name: "pod to another node, direct",
            program: Program::FromPod,
            world: world(from_pod(REMOTE), POD_LINK, true),
            leaves_by: Some("redirect_neigh"),
            searches: &[(names::BLOCKS, 1), (names::ENDPOINTS_BY_IFINDEX, 1)],
            instructions: 425,
        },
        Path {
            name: "pod to another node, device",
            program: Program::FromPod,
            world: world(from_pod(REMOTE), POD_LINK, false),
            leaves_by: Some("redirect"),
            searches: &[(names::BLOCKS, 1), (names::ENDPOINTS_BY_IFINDEX, 1)],
            instructions: 325,
        },
        Path {
            name: "pod to outside",
            program: Program::FromPod,
            world: world(from_pod(OUTSIDE), POD_LINK, true),
            leaves_by: None,
            searches: &[(names::ENDPOINTS_BY_IFINDEX, 1), (names::PREFIXES, 1)],
            instructions: 195,
        },
        Path {
            name: "another node to pod, direct",
            program: Program::FromUplink,
            world: world(on_wire.clone(), UPLINK, true),
            leaves_by: Some("redirect_peer"),
            searches: &[(names::BLOCKS, 1), (names::ENDPOINTS_BY_ADDR, 1)],
            instructions: 285,
        },
        Path {
            name: "another node to pod, device, at the uplink",
            program: Program::FromUplink,
            world: world(on_wire, UPLINK, false),
            leaves_by: None,
            searches: &[],
            instructions: 64,
        },
        Path {
            name: "another node to pod, device, at the device",
            program: Program::FromOverlay,
            world: World {
                tunnel: Some((PEER.octets(), Identity::POD.get())),
                ..world(arriving, OVERLAY, false)
            },
            leaves_by: Some("redirect_peer"),
            searches: &[(names::BLOCKS, 1), (names::ENDPOINTS_BY_ADDR, 1)],
            instructions: 178,
        },
        Path {
            name: "the node's own to another node",
            program: Program::ToUplink,
            world: world(leaving.clone(), UPLINK, true),
            leaves_by: None,
            searches: &[],
            instructions: 69,
        },
        Path {
            name: "another node's to the node itself",
            program: Program::FromUplink,
            world: world(frame(mac(50), mac(51), &segment(PEER, NODE)), UPLINK, true),
            leaves_by: None,
            searches: &[],
            instructions: 77,
        },
    ]
}

/// Instructions of whole programs, with the same tenth.
const SIZES: [(Program, usize); 6] = [
    (Program::FromPod, 1540),
    (Program::ToPod, 365),
    (Program::FromOverlay, 880),
    (Program::ToOverlay, 530),
    (Program::FromUplink, 1090),
    (Program::ToUplink, 200),
];

#[test]
fn no_program_is_larger_than_its_budget() {
    let mut over = Vec::new();
    for (program, budget) in SIZES {
        let size = instructions(program).len();
        println!("{}: {size} instructions", program.name());
        if size > budget {
            over.push(format!(
                "{}: {size} instructions, {} more than the budget of {budget}",
                program.name(),
                size - budget
            ));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

fn searches(run: &Run) -> Vec<(&str, usize)> {
    let all = run.lookups.iter().map(|(name, count)| (name.as_str(), *count));
    all.filter(|(name, _)| !ARRAYS.contains(name)).collect()
}

#[test]
fn no_path_costs_more_than_its_budget() {
    const SENDERS: [&str; 3] = ["redirect", "redirect_neigh", "redirect_peer"];
    let mut over = Vec::new();
    for path in paths() {
        let run = run(path.program, path.world);
        println!(
            "{}: {} instructions, {:?}, {:?}",
            path.name, run.instructions, run.lookups, run.helpers
        );
        let sender = run
            .helpers
            .iter()
            .copied()
            .find(|helper| SENDERS.contains(helper));
        assert_eq!(sender, path.leaves_by, "{}: {run:?}", path.name);
        assert_ne!(run.action, 2, "{} drops: {run:?}", path.name);
        if run.instructions > path.instructions {
            over.push(format!(
                "{}: {} instructions, {} more than the budget of {}",
                path.name,
                run.instructions,
                run.instructions - path.instructions,
                path.instructions
            ));
        }
        if searches(&run) != path.searches {
            over.push(format!(
                "{}: looks into {:?}, and should into {:?}",
                path.name,
                searches(&run),
                path.searches
            ));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}
