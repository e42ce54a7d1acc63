use std::vec::Vec;

use super::*;

/// The first bytes of a frame, as a program gets them.
fn halfwords<const N: usize>(bytes: &[u8]) -> [u16; N] {
    let pairs: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
        .collect();
    *pairs.first_chunk().unwrap()
}

fn bytes(halfwords: &[u16]) -> Vec<u8> {
    halfwords
        .iter()
        .flat_map(|halfword| halfword.to_ne_bytes())
        .collect()
}

const FRAME: [u8; 34] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet
    0x45, 0xb9, 0, 33, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 10, 244, 0, 1, 10, 244, 1, 2, // IPv4
];

fn parsed(change: impl Fn(&mut [u8; 34])) -> Option<Ipv4> {
    let mut frame = FRAME;
    change(&mut frame);
    Ipv4::parse(&halfwords(&frame))
}

#[test]
fn an_ipv4_header_is_read_whole() {
    let expected = Ipv4 {
        source_mac: Mac::new([2, 0, 0, 0, 0, 2]),
        source: Address::v4([10, 244, 0, 1]),
        destination: Address::v4([10, 244, 1, 2]),
        service: 0xb9,
        protocol: PROTOCOL_UDP,
        header_len: 20,
        fragment: Fragment::Whole,
        identification: 0x1234,
    };
    assert_eq!(parsed(|_| {}), Some(expected));
    assert_eq!(
        parsed(|frame| frame[14] = 0x4f),
        Some(Ipv4 {
            header_len: 60,
            ..expected
        })
    );
    assert_eq!(
        Ipv4 {
            header_len: 60,
            ..expected
        }
        .transport_offset(),
        74
    );
}

#[test]
fn only_version_four_with_at_least_five_words_is_ipv4() {
    for version_and_len in 0..=u8::MAX {
        let right = version_and_len >> 4 == 4 && version_and_len & 0x0f >= 5;
        assert_eq!(
            parsed(|frame| frame[14] = version_and_len).is_some(),
            right,
            "{version_and_len:#x}"
        );
    }
}

#[test]
fn fragments_are_told_by_offset_and_more() {
    for (field, expected) in [
        (0x0000, Fragment::Whole),
        (0x4000, Fragment::Whole),
        (0x8000, Fragment::Whole),
        (0x2000, Fragment::First),
        (0x2001, Fragment::Later),
        (0x0001, Fragment::Later),
        (0x1fff, Fragment::Later),
        (0x5fff, Fragment::Later),
    ] {
        assert_eq!(Fragment::parse(field), expected, "{field:#06x}");
        let [high, low] = u16::to_be_bytes(field);
        let ip = parsed(|frame| (frame[20], frame[21]) = (high, low)).unwrap();
        assert_eq!(ip.fragment, expected, "{field:#06x}");
    }
}

#[test]
fn transport_headers_give_what_tells_flows_apart() {
    let ports = |source, destination| Transport::Ports { source, destination };
    for (protocol, first, expected) in [
        (PROTOCOL_TCP, [0x12, 0x34, 0, 80, 9, 9, 9, 9], ports(0x1234, 80)),
        (PROTOCOL_UDP, [0, 67, 0, 68, 0, 8, 0, 0], ports(67, 68)),
        (132, [0, 1, 0, 2, 0, 0, 0, 0], ports(1, 2)),
        (
            PROTOCOL_ICMP,
            [8, 0, 0, 0, 0xab, 0xcd, 0, 1],
            ports(0xabcd, 0xabcd),
        ),
        (
            PROTOCOL_ICMP,
            [0, 0, 0, 0, 0xab, 0xcd, 0, 1],
            ports(0xabcd, 0xabcd),
        ),
        (PROTOCOL_ICMP, [13, 0, 0, 0, 0, 7, 0, 1], ports(7, 7)),
        (PROTOCOL_ICMP, [9, 0, 0, 0, 0, 7, 0, 1], ports(0, 0)),
        (PROTOCOL_ICMP, [3, 4, 0, 0, 0, 0, 5, 0xaa], Transport::IcmpError),
        (PROTOCOL_ICMP, [11, 0, 0, 0, 0, 0, 0, 0], Transport::IcmpError),
        (47, [1, 2, 3, 4, 5, 6, 7, 8], ports(0, 0)),
    ] {
        assert_eq!(
            Transport::parse(protocol, &first),
            expected,
            "{protocol} {first:?}"
        );
    }
}

#[test]
fn fragments_of_a_packet_share_a_key() {
    let key = FragmentKey {
        source: Address::v4([10, 244, 0, 1]),
        destination: Address::v4([10, 244, 1, 2]),
        protocol: u32::from(PROTOCOL_UDP),
        identification: 0x1234,
    };
    for field in [0x20, 0x00] {
        let fragment = parsed(|frame| (frame[20], frame[21]) = (field, 1)).unwrap();
        assert_eq!(fragment.fragment_key(), key);
    }
    assert_ne!(parsed(|frame| frame[19] = 0x35).unwrap().fragment_key(), key);
}

#[test]
fn a_quoted_header_tells_the_flow_it_is_of() {
    let header: [u8; 20] = *FRAME[14..].first_chunk().unwrap();
    let with = |at: usize, byte| {
        let mut header = header;
        header[at] = byte;
        Quoted::parse(&header)
    };
    let quoted = Quoted {
        source: Address::v4([10, 244, 0, 1]),
        destination: Address::v4([10, 244, 1, 2]),
        protocol: PROTOCOL_UDP,
        header_len: 20,
    };
    assert_eq!(Quoted::parse(&header), Some(quoted));
    assert_eq!(quoted.flow(1000, 53), parsed(|_| {}).unwrap().flow(1000, 53));
    let with_options = Quoted {
        header_len: 60,
        ..quoted
    };
    assert_eq!(with(0, 0x4f), Some(with_options));
    for (at, byte) in [(0, 0x55), (0, 0x44), (7, 1), (6, 0x1f)] {
        assert_eq!(with(at, byte), None, "byte {at}");
    }
    assert_eq!(with(6, 0x20), Some(quoted), "a first fragment has ports");
}

#[test]
fn a_flow_and_its_other_direction_are_each_others_reverse() {
    let ip = parsed(|_| {}).unwrap();
    let flow = ip.flow(1000, 53);
    let back = Ipv4 {
        source: ip.destination,
        destination: ip.source,
        ..ip
    }
    .flow(53, 1000);
    assert_eq!(flow.reversed(), back);
    assert_eq!(flow.reversed().reversed(), flow);
}

#[test]
fn an_arp_request_is_turned_into_the_reply() {
    let request = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 2, 0x08, 0x06, // Ethernet
        0, 1, 8, 0, 6, 4, 0, 1, // formats, request
        2, 0, 0, 0, 0, 2, 10, 244, 0, 1, // sender
        0, 0, 0, 0, 0, 0, 169, 254, 1, 1, // target
    ];
    let mut frame = halfwords(&request);
    let (pod, gateway) = (Mac::new([2, 0, 0, 0, 0, 2]), Mac::new([2, 0, 0, 0, 0, 9]));
    let asked = Arp {
        operation: ArpOperation::Request,
        sender_mac: pod,
        sender: Address::v4([10, 244, 0, 1]),
        target: Address::v4(crate::GATEWAY),
    };
    assert_eq!(Arp::parse(&frame), Some(asked));
    Arp::answer(&mut frame, gateway);
    let reply = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 9, 0x08, 0x06, // Ethernet
        0, 1, 8, 0, 6, 4, 0, 2, // formats, reply
        2, 0, 0, 0, 0, 9, 169, 254, 1, 1, // sender
        2, 0, 0, 0, 0, 2, 10, 244, 0, 1, // target
    ];
    assert_eq!(bytes(&frame), reply);
    let answered = Arp {
        operation: ArpOperation::Reply,
        sender_mac: gateway,
        sender: Address::v4(crate::GATEWAY),
        target: Address::v4([10, 244, 0, 1]),
    };
    assert_eq!(Arp::parse(&frame), Some(answered));
    for (at, byte) in [(15, 6), (17, 1), (18, 8), (19, 16), (21, 3)] {
        let mut other = request;
        other[at] = byte;
        assert_eq!(Arp::parse(&halfwords(&other)), None, "byte {at}");
    }
}

#[test]
fn the_length_on_the_wire_is_a_segments() {
    assert_eq!(wire_len(1464, 0, 20, 0), 1450);
    assert_eq!(wire_len(10, 0, 20, 0), 0);
    assert_eq!(wire_len(65_000, 1410, 20, 20), 1450);
    assert_eq!(wire_len(65_000, 1398, 20, 32), 1450);
}
