use std::collections::BTreeSet;
use std::vec::Vec;

use zerocopy::IntoBytes;

use super::*;

#[test]
fn addresses_are_sixteen_bytes_of_network_order() {
    let v4 = Address::v4([10, 244, 1, 2]);
    let octets = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 1, 2];
    assert_eq!((v4.as_bytes(), v4.octets()), (&octets[..], octets));
    assert_eq!(Address::from_octets(octets), v4);
    assert_eq!(v4.as_v4(), Some([10, 244, 1, 2]));
    let v6 = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, 1, 2];
    assert_eq!(Address::from_octets(v6).as_v4(), None);
    assert_eq!(Address::UNSPECIFIED.as_v4(), None);
}

#[test]
fn loopback_addresses_are_those_of_net_127() {
    for (octets, loopback) in [
        ([127, 0, 0, 1], true),
        ([127, 255, 255, 255], true),
        ([126, 255, 255, 255], false),
        ([128, 0, 0, 0], false),
        ([10, 0, 0, 127], false),
    ] {
        assert_eq!(Address::v4(octets).is_v4_loopback(), loopback, "{octets:?}");
    }
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    assert!(!Address::from_octets(v6).is_v4_loopback());
}

#[test]
fn mac_addresses_keep_their_order() {
    let mac = Mac::new([1, 2, 3, 4, 5, 6]);
    assert_eq!(
        (mac.as_bytes(), mac.octets()),
        (&[1, 2, 3, 4, 5, 6][..], [1, 2, 3, 4, 5, 6])
    );
    assert_eq!(Mac::from_halfwords(mac.halfwords()), mac);
    for at in 0..6 {
        let mut other = mac.octets();
        other[at] ^= 0x80;
        assert_ne!(Mac::new(other), mac);
    }
}

/// Sizes and offsets are what maps that are pinned already hold: a change here needs another [`ABI_VERSION`].
#[test]
fn layouts_are_those_of_this_abi_version() {
    use core::mem::{offset_of, size_of};
    assert_eq!(ABI_VERSION, 4);
    assert_eq!(
        [
            size_of::<Config>(),
            size_of::<PrefixKey>(),
            size_of::<BlockKey>(),
            size_of::<Prefix>(),
            size_of::<Endpoint>(),
            size_of::<FlowKey>(),
            size_of::<FragmentKey>()
        ],
        [44, 20, 8, 24, 44, 40, 40]
    );
    assert_eq!(
        [
            offset_of!(Endpoint, ifindex),
            offset_of!(Endpoint, identity),
            offset_of!(Endpoint, program_flags),
            offset_of!(Endpoint, mac),
            offset_of!(Endpoint, host_mac),
        ],
        [16, 20, 28, 32, 38]
    );
    assert_eq!(
        [
            offset_of!(Config, overlay_ifindex),
            offset_of!(Config, vxlan_port),
            offset_of!(Config, blocks),
        ],
        [16, 28, 32]
    );
}

#[test]
fn an_address_is_looked_for_in_the_block_that_may_hold_it() {
    let index = BlockIndex::new(24, [10, 244, 0, 0], 16);
    let key = |address| index.key(Address::v4(address)).and_then(BlockKey::parts);
    assert_eq!(key([10, 244, 7, 9]), Some(([10, 244, 7, 0], 24)));
    assert_eq!(key([10, 244, 255, 255]), Some(([10, 244, 255, 0], 24)));
    for outside in [[10, 243, 255, 255], [10, 245, 0, 0], [192, 0, 2, 1], [0, 0, 0, 0]] {
        assert_eq!(key(outside), None, "{outside:?}");
    }
    assert_eq!(index.key(Address::from_octets([0xfd; 16])), None);
    assert_eq!(
        index.key(Address::v4([10, 244, 7, 9])),
        Some(BlockKey::new([10, 244, 7, 200], 24))
    );
    for len in 0..=32 {
        let whole = BlockIndex::new(len, [0; 4], 0);
        let key = whole.key(Address::v4([203, 0, 113, 77])).unwrap();
        assert_eq!(
            (key, key.parts().unwrap().1),
            (BlockKey::new([203, 0, 113, 77], len), len)
        );
    }
    let holes = BlockKey {
        network: 0,
        mask: u32::from_ne_bytes([255, 0, 255, 0]),
    };
    assert_eq!(holes.parts(), None);
}

#[test]
fn no_index_looks_for_no_address_that_is_one() {
    for address in [[10, 244, 0, 1], [255, 255, 255, 255], [0, 0, 0, 1]] {
        assert_eq!(BlockIndex::NONE.key(Address::v4(address)), None, "{address:?}");
    }
    // As long as nobody wrote a configuration there is no entry that could be found.
    let unset = BlockIndex::default().key(Address::v4([10, 244, 0, 1]));
    assert_eq!(unset, Some(BlockKey::new([0; 4], 0)));
}

#[test]
fn every_counter_has_a_place_a_name_and_a_sentence_of_its_own() {
    fn check(all: &[(u32, &'static str, &'static str)]) {
        let names: BTreeSet<_> = all.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names.len(), all.len());
        for (position, (index, name, sentence)) in all.iter().enumerate() {
            assert_eq!(*index as usize, position);
            assert!(
                name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(char::is_alphanumeric)
            );
            assert!(sentence.ends_with('.'), "{name}");
        }
    }
    check(&DropReason::ALL.map(|reason| (reason.index(), reason.name(), reason.sentence())));
    check(&ForwardPath::ALL.map(|path| (path.index(), path.name(), path.sentence())));
}

#[test]
fn identities_fill_23_bits_and_the_flag_the_24th() {
    let largest = Identity::new(Identity::MAX).unwrap();
    assert_eq!(Identity::new(0), Err(IdentityOutOfRange(0)));
    assert_eq!(
        Identity::new(Identity::MAX + 1),
        Err(IdentityOutOfRange(Identity::MAX + 1))
    );
    let plain = Vni::of(largest);
    assert_eq!((plain.raw(), plain.is_egress_isolated()), (0x7f_ffff, false));
    let isolated = plain.egress_isolated();
    assert_eq!((isolated.raw(), isolated.is_egress_isolated()), (0xff_ffff, true));
    assert_eq!(
        (isolated.identity(), plain.identity()),
        (Some(largest), Some(largest))
    );
    assert_eq!(Vni::from_raw(0xab00_0000).identity(), None);
    assert!(Vni::of(Identity::HOST).egress_isolated().is_host());
    assert!(!Vni::of(Identity::POD).is_host());
}

#[test]
fn kinds_of_prefixes_read_back() {
    let kinds: Vec<_> = (0..10).filter_map(PrefixKind::from_raw).collect();
    assert_eq!(
        kinds.iter().map(|kind| *kind as u32).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6]
    );
    let pods: Vec<_> = kinds.iter().copied().filter(|kind| kind.is_pod()).collect();
    assert_eq!(
        pods,
        [PrefixKind::LocalBlock, PrefixKind::RemoteBlock, PrefixKind::Pool]
    );
    let past_the_stack: Vec<_> = kinds
        .iter()
        .copied()
        .filter(|kind| kind.bypasses_stack())
        .collect();
    assert_eq!(
        past_the_stack,
        [
            PrefixKind::LocalBlock,
            PrefixKind::RemoteBlock,
            PrefixKind::RemoteNode
        ]
    );
}

#[test]
fn frames_on_the_overlay_never_look_like_the_devices_own() {
    assert_ne!(OVERLAY_MAC, OVERLAY_SOURCE_MAC);
    for mac in [OVERLAY_MAC, OVERLAY_SOURCE_MAC] {
        assert_eq!(mac.octets()[0] & 0b11, 0b10, "locally administered, unicast");
    }
}
