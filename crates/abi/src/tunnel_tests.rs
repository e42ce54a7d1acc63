use std::vec::Vec;

use super::*;
use crate::packet::Fragment;

const LOCAL: Address = Address::v4([172, 31, 0, 2]);
const PORT: u16 = 8472;
const ENVELOPE: Envelope = Envelope {
    source: [172, 31, 0, 1],
    destination: [172, 31, 0, 2],
    port: PORT,
    flow_hash: 0x1234_5678,
    inner_len: 33,
    service: 0xb8,
    vni: Vni::from_raw(0x80_1234),
};

fn bytes(headers: &[u16]) -> Vec<u8> {
    headers
        .iter()
        .flat_map(|halfword| halfword.to_ne_bytes())
        .collect()
}

/// An Ethernet header, the headers and the beginning of an IPv4 packet.
fn frame(change: impl Fn(&mut [u8])) -> [u16; TUNNELLED_HALFWORDS] {
    let inner = [
        0x45, 2, 0, 33, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 10, 244, 0, 1, 10, 244, 1, 2,
    ];
    let mut frame = [&[2; 12][..], &[8, 0], &bytes(&ENVELOPE.headers()), &inner].concat();
    change(&mut frame);
    let halfwords: Vec<u16> = frame
        .chunks_exact(2)
        .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
        .collect();
    halfwords.try_into().unwrap()
}

#[test]
fn headers_are_those_of_the_standards() {
    let headers = bytes(&ENVELOPE.headers());
    // 45b8 + 0053 + 4000 + 4011 + ac1f + 0001 + ac1f + 0002 = 2 1e5d; 1e5f inverted is e1a0.
    let ipv4 = [
        0x45, 0xb8, 0, 83, 0, 0, 0x40, 0, 64, 17, 0xe1, 0xa0, 172, 31, 0, 1, 172, 31, 0, 2,
    ];
    assert_eq!(headers[..20], ipv4);
    let port = 0xc000 | (0x1234 ^ 0x5678) & 0x3fff_u16;
    assert_eq!(headers[20..22], port.to_be_bytes());
    assert_eq!(headers[22..28], [0x21, 0x18, 0, 63, 0, 0]);
    assert_eq!(headers[28..36], [8, 0, 0, 0, 0x80, 0x12, 0x34, 0]);
    assert_eq!(headers[36..42], OVERLAY_MAC.octets());
    assert_eq!(headers[42..48], OVERLAY_SOURCE_MAC.octets());
    assert_eq!(headers[48..], [8, 0]);
}

#[test]
fn a_length_that_does_not_fit_is_zero() {
    let lens = |inner_len| {
        let headers = Envelope {
            inner_len,
            ..ENVELOPE
        }
        .headers();
        (u16::from_be(headers[1]), u16::from_be(headers[12]))
    };
    assert_eq!(lens(65_485), (65_535, 65_515));
    assert_eq!(lens(65_486), (0, 65_516));
    assert_eq!(lens(65_506), (0, 0));
}

#[test]
fn what_is_written_is_read() {
    let (outer, inner) = Outer::parse(&frame(|_| {}), LOCAL, PORT).unwrap();
    assert_eq!(
        outer,
        Outer {
            remote: Address::v4([172, 31, 0, 1]),
            vni: ENVELOPE.vni,
            service: 0xb8
        }
    );
    assert_eq!(
        (inner.source, inner.destination, inner.fragment, inner.service),
        (
            Address::v4([10, 244, 0, 1]),
            Address::v4([10, 244, 1, 2]),
            Fragment::Whole,
            2
        )
    );
}

#[test]
fn whatever_is_different_is_left_to_the_device() {
    for (row, at, value) in [
        ("IP options", 14, 0x46),
        ("more fragments", 20, 0x20),
        ("a later fragment", 21, 1),
        ("TCP", 23, 6),
        ("to another host", 33, 3),
        ("to another port", 37, 0),
        ("a UDP checksum", 40, 1),
        ("no VNI", 42, 0),
        ("a reserved flag", 43, 4),
        ("a reserved byte", 45, 1),
        ("a reserved byte behind the VNI", 49, 1),
        ("IPv6 inside", 62, 0x86),
        ("a wrong inner header", 64, 0x44),
    ] {
        assert_eq!(
            Outer::parse(&frame(|frame| frame[at] = value), LOCAL, PORT),
            None,
            "{row}"
        );
    }
    let without_df = frame(|frame| frame[20] = 0);
    assert!(Outer::parse(&without_df, LOCAL, PORT).is_some());
}

#[test]
fn frames_that_carry_udp_are_told_from_others() {
    for (protocol, udp) in [(17, true), (6, false), (1, false), (0, false)] {
        let frame = frame(|frame| frame[23] = protocol);
        let beginning = frame.first_chunk().unwrap();
        assert_eq!(carries_udp(beginning), udp, "{protocol}");
    }
}

#[test]
fn congestion_is_both_bits() {
    for (service, congested) in [(0, false), (1, false), (2, false), (3, true), (0xbb, true)] {
        let (outer, _) = Outer::parse(&frame(|frame| frame[15] = service), LOCAL, PORT).unwrap();
        assert_eq!(outer.is_congested(), congested, "{service}");
    }
}
