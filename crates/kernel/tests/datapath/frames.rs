//! Frames byte by byte, right and wrong ones.

use std::net::{Ipv4Addr, SocketAddrV4};

use weft_kernel::sockets::udp_packet;
use weft_model::Mac;

pub(crate) const OVERLAY_MAC: Mac = Mac([0x02, b'w', b'e', b'f', b't', 0]);
pub(crate) const OVERLAY_SOURCE_MAC: Mac = Mac([0x02, b'w', b'e', b'f', b't', 1]);
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;

const ETHERNET: usize = 14;
const UDP: u8 = 17;

/// An IPv4 packet in the making.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    /// Words of options; all of them NOP.
    pub(crate) options: u8,
    pub(crate) id: u16,
    /// Flags and fragment offset.
    pub(crate) fragment: u16,
    pub(crate) payload: Vec<u8>,
}

// === impl Ip ===

impl Ip {
    /// A UDP datagram of five bytes from port 1000 to port 2000.
    pub(crate) fn udp(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self::udp_ports(source, 1000, destination, 2000)
    }

    pub(crate) fn udp_ports(source: Ipv4Addr, from: u16, destination: Ipv4Addr, to: u16) -> Self {
        let (from, to) = (
            SocketAddrV4::new(source, from),
            SocketAddrV4::new(destination, to),
        );
        let packet = udp_packet(from, to, b"hello").unwrap();
        Self {
            source,
            destination,
            protocol: UDP,
            options: 0,
            id: 1,
            fragment: 0,
            payload: packet[20..].to_vec(),
        }
    }

    /// An ICMP message of the type, with the rest of its first eight bytes zero.
    pub(crate) fn icmp(source: Ipv4Addr, destination: Ipv4Addr, kind: u8) -> Self {
        Self::icmp_about(source, destination, kind, &[0; 28])
    }

    /// An ICMP error of the type, which quotes a packet.
    pub(crate) fn icmp_about(source: Ipv4Addr, destination: Ipv4Addr, kind: u8, quoted: &[u8]) -> Self {
        let payload = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], quoted].concat();
        Self {
            source,
            destination,
            protocol: 1,
            options: 0,
            id: 1,
            fragment: 0,
            payload,
        }
    }

    pub(crate) fn with_options(self, words: u8) -> Self {
        Self {
            options: words,
            ..self
        }
    }

    pub(crate) fn with_fragment(self, fragment: u16) -> Self {
        Self { fragment, ..self }
    }

    pub(crate) fn with_id(self, id: u16) -> Self {
        Self { id, ..self }
    }

    /// Pads the payload so that the packet is `len` bytes long.
    pub(crate) fn with_len(mut self, len: usize) -> Self {
        self.payload.resize(len - self.header_len(), 0);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let total = u16::try_from(self.header_len() + self.payload.len()).unwrap();
        let mut bytes = vec![0x45 + self.options, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.resize(self.header_len(), 1);
        let sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    fn header_len(&self) -> usize {
        20 + 4 * usize::from(self.options)
    }
}

pub(crate) fn ethernet(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [
        &destination.octets()[..],
        &source.octets(),
        &ethertype.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// The same frame between other Ethernet addresses.
pub(crate) fn readdressed(frame: &[u8], destination: Mac, source: Mac) -> Vec<u8> {
    [&destination.octets()[..], &source.octets(), &frame[12..]].concat()
}

pub(crate) fn arp(operation: u16, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let message = [
        &[0, 1, 8, 0, 6, 4][..],
        &operation.to_be_bytes(),
        &mac.octets(),
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    ];
    ethernet(Mac([0xff; 6]), mac, ARP, &message.concat())
}

/// What goes into a UDP datagram to a VXLAN port (RFC 7348 section 5).
pub(crate) fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
}

/// A frame as it crosses the overlay.
pub(crate) fn inner(packet: &Ip) -> Vec<u8> {
    ethernet(OVERLAY_MAC, OVERLAY_SOURCE_MAC, IPV4, &packet.bytes())
}

/// The IPv4 packet in a frame.
pub(crate) fn packet_of(frame: &[u8]) -> &[u8] {
    &frame[ETHERNET..]
}
