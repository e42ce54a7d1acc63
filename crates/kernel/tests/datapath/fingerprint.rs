//! Changes that no event tells of are found, however large the maps are, and nothing else is.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use weft_kernel::bpf::{Changed, Datapath, Endpoint, Fingerprint, Options, PrefixTarget, Writes};
use weft_kernel::target::Target;
use weft_model::Mac;

use crate::needs_root;
use crate::support::Bpffs;

/// Nodes, each with an entry in both maps: nearly eight parts of 256.
const NODES: u32 = 2000;
const PARTS: usize = 8;

const MAPS: Changed = Changed {
    maps: true,
    written: false,
    links: false,
};
const WRITTEN: Changed = Changed {
    maps: false,
    written: true,
    links: false,
};
/// As if whoever writes were another: his count stands still.
const STILL: Writes = Writes {
    endpoints: 0,
    others: 0,
};

/// What somebody does to the entries of the node with this number.
type Change<'a> = &'a dyn Fn(&mut Datapath, u32);

fn node(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + number)
}

fn block(number: u32) -> IpNet {
    let first = u32::from(Ipv4Addr::new(10, 64, 0, 0)) + (number << 8);
    Ipv4Net::new(first.into(), 24).unwrap().into()
}

fn behind(underlay: Ipv4Addr) -> PrefixTarget {
    PrefixTarget::RemoteBlock {
        underlay: underlay.into(),
        mtu: None,
        next_hop: None,
    }
}

fn fill(datapath: &mut Datapath) {
    for number in 0..NODES {
        datapath
            .prefixes()
            .apply(&block(number), &behind(node(number)))
            .unwrap();
        datapath.nodes().apply(&node(number).into(), &()).unwrap();
    }
}

/// Looks until something is found; no more than each part has had its turn.
fn found(fingerprint: &mut Fingerprint) -> Changed {
    (0..PARTS)
        .map(|_| fingerprint.look(STILL).unwrap())
        .find(|found| *found != Changed::default())
        .unwrap_or_default()
}

#[test]
fn each_change_is_found_once_when_its_part_has_its_turn() {
    needs_root!();
    let bpffs = Bpffs::new();
    let mut datapath = Datapath::load(&Options::new(bpffs.path.join("pins"))).unwrap();
    fill(&mut datapath);
    let mut fingerprint = datapath.fingerprint().unwrap();
    assert_eq!(fingerprint.look(STILL).unwrap(), Changed::default(), "the first");
    assert_eq!(found(&mut fingerprint), Changed::default());

    let stranger = |number| IpAddr::from(node(NODES + number));
    let changes: [(&str, Change<'_>); 5] = [
        ("another value", &|datapath, number| {
            let wrong = behind(node(number + 1));
            datapath.prefixes().apply(&block(number), &wrong).unwrap();
        }),
        ("no block", &|datapath, number| {
            datapath.prefixes().remove(&block(number)).unwrap();
        }),
        ("no node", &|datapath, number| {
            datapath.nodes().remove(&node(number).into()).unwrap();
        }),
        ("one node too many", &|datapath, number| {
            datapath.nodes().apply(&stranger(number), &()).unwrap();
        }),
        ("it goes again", &|datapath, number| {
            datapath.nodes().remove(&stranger(number)).unwrap();
        }),
    ];
    for (what, change) in changes {
        // In the first, a middle and the last part.
        for number in [0, NODES / 2, NODES - 1] {
            change(&mut datapath, number);
            assert_eq!(found(&mut fingerprint), MAPS, "{what}: {number}");
            assert_eq!(found(&mut fingerprint), Changed::default(), "{what}: {number}");
        }
    }

    // What the handle writes itself is found at once, and told apart; what it writes and was there already is no change.
    fill(&mut datapath);
    assert_eq!(fingerprint.look(datapath.writes()).unwrap(), WRITTEN);
    fill(&mut datapath);
    assert_eq!(fingerprint.look(datapath.writes()).unwrap(), Changed::default());
    let endpoint = Endpoint::new(7, Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let pod: IpAddr = Ipv4Addr::new(10, 244, 0, 1).into();
    datapath.endpoints().apply(&pod, &endpoint).unwrap();
    assert_eq!(fingerprint.look(datapath.writes()).unwrap(), WRITTEN);
    let before = datapath.writes();
    datapath.endpoints().remove(&pod).unwrap();
    assert_eq!(fingerprint.look(before).unwrap(), MAPS);
    let held = datapath.prefixes().list().unwrap();
    assert_eq!(held.len(), NODES as usize);
    assert!((0..NODES).all(|number| held[&block(number)] == behind(node(number))));
    assert_eq!(datapath.nodes().list().unwrap().len(), NODES as usize);
}
