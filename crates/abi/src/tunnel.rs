//! The headers that carry a frame between nodes: IPv4, UDP and VXLAN (RFC 7348 section 5), as programs read and write
//! them where the overlay device does not.

use crate::packet::{ETHERTYPE_IPV4, IPV4_HALFWORDS, Ipv4, PROTOCOL_UDP};
use crate::{Address, OVERLAY_MAC, OVERLAY_SOURCE_MAC, VXLAN_OVERHEAD, Vni};

/// Halfwords of a frame that carries another, up to the end of the inner IPv4 header without options.
pub const TUNNELLED_HALFWORDS: usize = OUTER_HALFWORDS + IPV4_HALFWORDS;
/// Halfwords of what is put between an Ethernet header and the IPv4 header behind it: [`VXLAN_OVERHEAD`] bytes.
pub const OUTER_HALFWORDS: usize = VXLAN_OVERHEAD as usize / 2;

/// Halfwords of a frame up to the protocol in its IPv4 header.
pub const PROTOCOL_HALFWORDS: usize = 12;

/// Time to live of outer headers.
pub const TUNNEL_TTL: u8 = 64;

/// Congestion experienced (RFC 3168 section 5), in the two low bits of the type of service.
const CONGESTION_EXPERIENCED: u8 = 0b11;
/// Version 4, header of five words.
const VERSION_AND_LEN: u8 = 0x45;
/// "Don't fragment", and nothing else: neither more fragments nor an offset.
const DONT_FRAGMENT: u16 = 0x4000;
/// The VNI is valid; every other flag is reserved.
const VXLAN_FLAGS: u16 = 0x0800;

/// What a frame that carries another says of its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// Outer source address.
    pub remote: Address,
    /// Identity of the inner packet's source.
    pub vni: Vni,
    /// Type of service of the outer header.
    pub service: u8,
}

/// What outer headers are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// IPv4 addresses of the sending node, as four bytes of network order.
    pub source: [u8; 4],
    /// The same of the receiving node.
    pub destination: [u8; 4],
    /// UDP port of the overlay, host byte order.
    pub port: u16,
    /// Hash of the inner flow: its packets keep their order, and different flows spread over paths and queues.
    pub flow_hash: u32,
    /// Length in bytes from the inner IP header on.
    pub inner_len: u32,
    /// Type of service of the inner packet: the underlay treats the packet alike, and may mark congestion on it.
    pub service: u8,
    /// Identity of the source.
    pub vni: Vni,
}

// === impl Outer ===

impl Outer {
    /// Reads a frame with the EtherType of IPv4. `None` unless it is for `local` and `port`, of the form that
    /// [`Envelope::headers`] has, with an IPv4 packet inside: whatever else a VXLAN device takes is left to it.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &[u16; TUNNELLED_HALFWORDS], local: Address, port: u16) -> Option<(Self, Ipv4)> {
        let [
            _,
            _,
            _,
            _,
            _,
            _,
            _, // Ethernet
            version_and_service,
            _,
            _,
            fragment,
            lifetime_and_protocol,
            _,
            s0,
            s1,
            d0,
            d1, // IPv4
            _,
            udp_port,
            _,
            udp_sum, // UDP
            flags,
            reserved,
            vni_high,
            vni_low, // VXLAN
            inner @ ..,
        ] = frame;
        let [version_and_len, service] = version_and_service.to_ne_bytes();
        let [_, protocol] = lifetime_and_protocol.to_ne_bytes();
        let ([v0, v1], [v2, vni_reserved]) = (vni_high.to_ne_bytes(), vni_low.to_ne_bytes());
        let ours = version_and_len == VERSION_AND_LEN
            && protocol == PROTOCOL_UDP
            && *udp_port == port.to_be()
            && u16::from_be(*fragment) & !DONT_FRAGMENT == 0
            // The device verifies a sum.
            && *udp_sum == 0
            && *flags == VXLAN_FLAGS.to_be()
            && *reserved == 0
            && vni_reserved == 0
            && inner[6] == ETHERTYPE_IPV4.to_be()
            && Address::v4_halfwords(*d0, *d1) == local;
        if !ours {
            return None;
        }
        let outer = Self {
            remote: Address::v4_halfwords(*s0, *s1),
            vni: Vni::from_raw(u32::from_be_bytes([0, v0, v1, v2])),
            service,
        };
        Some((outer, Ipv4::parse(inner)?))
    }

    /// Whether the underlay marked congestion on the packet.
    #[inline(always)]
    #[must_use]
    pub const fn is_congested(&self) -> bool {
        self.service & CONGESTION_EXPERIENCED == CONGESTION_EXPERIENCED
    }
}

// === impl Envelope ===

impl Envelope {
    /// The headers from the outer IPv4 header to the inner Ethernet header.
    ///
    /// Never to be fragmented. Without a UDP checksum: the inner packet has its own, and another would cost a pass over
    /// the payload. Lengths that sixteen bits don't hold are zero, as the kernel has it for super-packets.
    #[inline(always)]
    #[must_use]
    pub const fn headers(&self) -> [u16; OUTER_HALFWORDS] {
        const IPV4_LEN: u32 = 20;
        let [s0, s1, s2, s3] = self.source;
        let [d0, d1, d2, d3] = self.destination;
        let [_, v0, v1, v2] = self.vni.raw().to_be_bytes();
        let [om0, om1, om2] = OVERLAY_MAC.halfwords();
        let [os0, os1, os2] = OVERLAY_SOURCE_MAC.halfwords();
        let version_and_service = u16::from_ne_bytes([VERSION_AND_LEN, self.service]);
        let lifetime_and_protocol = u16::from_ne_bytes([TUNNEL_TTL, PROTOCOL_UDP]);
        let len = be_len(self.inner_len + VXLAN_OVERHEAD);
        let source = [u16::from_ne_bytes([s0, s1]), u16::from_ne_bytes([s2, s3])];
        let destination = [u16::from_ne_bytes([d0, d1]), u16::from_ne_bytes([d2, d3])];
        let sum = version_and_service as u32
            + len as u32
            + DONT_FRAGMENT.to_be() as u32
            + lifetime_and_protocol as u32
            + source[0] as u32
            + source[1] as u32
            + destination[0] as u32
            + destination[1] as u32;
        [
            version_and_service,
            len,
            0,
            DONT_FRAGMENT.to_be(),
            lifetime_and_protocol,
            folded(sum),
            source[0],
            source[1],
            destination[0],
            destination[1], // IPv4
            source_port(self.flow_hash).to_be(),
            self.port.to_be(),
            be_len(self.inner_len + VXLAN_OVERHEAD - IPV4_LEN),
            0, // UDP
            VXLAN_FLAGS.to_be(),
            0,
            u16::from_ne_bytes([v0, v1]),
            u16::from_ne_bytes([v2, 0]), // VXLAN
            om0,
            om1,
            om2,
            os0,
            os1,
            os2,
            ETHERTYPE_IPV4.to_be(), // Ethernet
        ]
    }
}

/// Whether a frame with the EtherType of IPv4 says that it carries UDP.
#[inline(always)]
#[must_use]
pub const fn carries_udp(frame: &[u16; PROTOCOL_HALFWORDS]) -> bool {
    let [_, _, _, _, _, _, _, _, _, _, _, lifetime_and_protocol] = frame;
    let [_, protocol] = lifetime_and_protocol.to_ne_bytes();
    protocol == PROTOCOL_UDP
}

/// Source port of a flow, 49152 to 65535 (RFC 7348 section 5).
#[inline(always)]
const fn source_port(flow_hash: u32) -> u16 {
    0xc000 | (flow_hash ^ (flow_hash >> 16)) as u16 & 0x3fff
}

#[inline(always)]
const fn be_len(len: u32) -> u16 {
    if len > u16::MAX as u32 {
        0
    } else {
        (len as u16).to_be()
    }
}

/// The Internet checksum (RFC 1071) of halfwords added up; the same in either byte order.
#[inline(always)]
const fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
