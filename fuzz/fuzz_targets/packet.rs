//! Packets, as the programs of the datapath read them, beside another implementation's reading.

#![no_main]

use etherparse::Ipv4HeaderSlice;
use libfuzzer_sys::fuzz_target;
use weft_abi::packet::{ARP_HALFWORDS, Arp, Fragment, IPV4_HALFWORDS, Ipv4, Quoted, Transport};
use weft_abi::tunnel::{Outer, TUNNELLED_HALFWORDS};
use weft_abi::{Address, Mac};

const LOCAL: [u8; 4] = [10, 224, 0, 4];
const VXLAN_PORT: u16 = 8472;

fuzz_target!(|data: &[u8]| {
    if let Some(frame) = halfwords::<IPV4_HALFWORDS>(data) {
        ipv4(&frame, data);
    }
    if let Some(mut frame) = halfwords::<ARP_HALFWORDS>(data)
        && let Some(arp) = Arp::parse(&frame)
    {
        let mac = Mac::new([2, 0, 0, 0, 0, 1]);
        Arp::answer(&mut frame, mac);
        let answer = Arp::parse(&frame).expect("an answer is ARP");
        assert_eq!(answer.sender, arp.target);
        assert_eq!(answer.target, arp.sender);
        assert_eq!(answer.sender_mac, mac);
    }
    if let Some((head, rest)) = data.split_first_chunk() {
        let _ = Quoted::parse(head);
        if let Some(bytes) = rest.first_chunk() {
            let _ = Transport::parse(head[0], bytes);
        }
    }
    if let Some(frame) = halfwords::<TUNNELLED_HALFWORDS>(data) {
        let local = Address::v4(LOCAL);
        if let Some((outer, inner)) = Outer::parse(&frame, local, VXLAN_PORT) {
            let header = Ipv4HeaderSlice::from_slice(&data[14..]).expect("a header that etherparse reads");
            assert!(!header.is_fragmenting_payload());
            assert_eq!(header.destination(), LOCAL);
            assert_eq!(outer.remote.as_v4(), Some(header.source()));
            assert_eq!(outer.vni.raw().to_be_bytes()[1..], data[46..49]);
            ipv4_is(&inner, &data[50..]);
        }
    }
});

fn ipv4(frame: &[u16; IPV4_HALFWORDS], data: &[u8]) {
    match Ipv4::parse(frame) {
        Some(read) => ipv4_is(&read, data),
        None => assert!(
            Ipv4HeaderSlice::from_slice(&data[14..]).is_err(),
            "refused a sound header"
        ),
    }
}

/// Compares with etherparse, which wants the options there, too.
fn ipv4_is(read: &Ipv4, frame: &[u8]) {
    let packet = &frame[14..];
    let Ok(header) = Ipv4HeaderSlice::from_slice(packet) else {
        assert!(
            packet.len() < usize::from(read.header_len),
            "etherparse refuses {read:?}"
        );
        return;
    };
    assert_eq!(read.source.as_v4(), Some(header.source()));
    assert_eq!(read.destination.as_v4(), Some(header.destination()));
    assert_eq!(usize::from(read.header_len), header.slice().len());
    assert_eq!(read.protocol, header.protocol().0);
    assert_eq!(read.identification, header.identification());
    let position = match (header.fragments_offset().value(), header.more_fragments()) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    assert_eq!(read.fragment, position);
}

/// The frame's first halfwords, in the order of the wire.
fn halfwords<const N: usize>(data: &[u8]) -> Option<[u16; N]> {
    let mut frame = [0; N];
    for (halfword, bytes) in frame.iter_mut().zip(data.get(..2 * N)?.chunks_exact(2)) {
        *halfword = u16::from_ne_bytes([bytes[0], bytes[1]]);
    }
    Some(frame)
}
