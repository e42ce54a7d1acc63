//! Headers as the programs read them. Pure functions over arrays of fixed size: no bounds checks are left to panic.
//!
//! Frames are arrays of halfwords because that is the widest a load from a packet can be: an IP header starts two bytes
//! off a multiple of four. Bytes within a halfword are in the order of the wire.

use crate::{Address, FlowKey, FragmentKey, Mac};

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_LEN: u32 = 14;
/// Length of an IPv4 header without options, in bytes.
pub const IPV4_MIN_LEN: u32 = 20;
/// Halfwords of an Ethernet and an IPv4 header without options.
pub const IPV4_HALFWORDS: usize = 17;
/// Halfwords of an Ethernet header and an ARP message for IPv4 over Ethernet (RFC 826).
pub const ARP_HALFWORDS: usize = 21;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// ICMP (RFC 792).
pub const PROTOCOL_ICMP: u8 = 1;
/// TCP (RFC 9293).
pub const PROTOCOL_TCP: u8 = 6;
/// UDP (RFC 768).
pub const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_DCCP: u8 = 33;
const PROTOCOL_SCTP: u8 = 132;
const PROTOCOL_UDPLITE: u8 = 136;

/// Source port of a DHCP server (RFC 2131 section 4.1).
pub const DHCP_SERVER_PORT: u16 = 67;

/// What the programs need of an Ethernet and an IPv4 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4 {
    /// Source MAC address.
    pub source_mac: Mac,
    /// Source, v4-mapped.
    pub source: Address,
    /// Destination, v4-mapped.
    pub destination: Address,
    /// Type of service: differentiated services and congestion (RFC 2474, RFC 3168).
    pub service: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Length of the IPv4 header with options, 20 to 60 bytes.
    pub header_len: u8,
    /// Whether, and which, fragment this is.
    pub fragment: Fragment,
    /// Common to all fragments of a packet; host byte order.
    pub identification: u16,
}

/// The IPv4 header that an ICMP error quotes, of the packet that it is about (RFC 792).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted {
    /// Source, v4-mapped.
    pub source: Address,
    /// Destination, v4-mapped.
    pub destination: Address,
    /// IP protocol number.
    pub protocol: u8,
    /// Length of the quoted header with options, 20 to 60 bytes.
    pub header_len: u8,
}

/// Position in a fragmented packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The fragment with the transport header.
    First,
    /// A fragment without a transport header.
    Later,
}

/// What the first eight bytes after the IP header say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Ports, or twice the identifier of an ICMP query, or zeros for protocols without ports.
    Ports {
        /// Source port, host byte order.
        source: u16,
        /// Destination port, host byte order.
        destination: u16,
    },
    /// An ICMP error: it belongs to the flow of the packet that it quotes.
    IcmpError,
}

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// Request or reply.
    pub operation: ArpOperation,
    /// MAC address that the sender claims.
    pub sender_mac: Mac,
    /// Address that the sender claims.
    pub sender: Address,
    /// Address that is asked for.
    pub target: Address,
}

/// ARP operations that exist between hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArpOperation {
    /// Who has the target?
    Request,
    /// The sender has its address.
    Reply,
}

// === impl Ipv4 ===

impl Ipv4 {
    /// Reads the headers; `None` when the IPv4 header is wrong (version, header length).
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &[u16; IPV4_HALFWORDS]) -> Option<Self> {
        let [
            _,
            _,
            _,
            m0,
            m1,
            m2,
            _, // Ethernet: destination, source, type
            version_and_service,
            _,
            identification,
            fragment,
            lifetime_and_protocol,
            _, // IPv4
            s0,
            s1,
            d0,
            d1, // source, destination
        ] = *frame;
        let [version_and_len, service] = version_and_service.to_ne_bytes();
        let [_, protocol] = lifetime_and_protocol.to_ne_bytes();
        let words = version_and_len & 0x0f;
        if version_and_len >> 4 != 4 || words < 5 {
            return None;
        }
        Some(Self {
            source_mac: Mac::from_halfwords([m0, m1, m2]),
            source: Address::v4_halfwords(s0, s1),
            destination: Address::v4_halfwords(d0, d1),
            service,
            protocol,
            header_len: words * 4,
            fragment: Fragment::parse(u16::from_be(fragment)),
            identification: u16::from_be(identification),
        })
    }

    /// Source and destination, whatever else is in the headers.
    #[inline(always)]
    #[must_use]
    pub const fn ends(frame: &[u16; IPV4_HALFWORDS]) -> (Address, Address) {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, s0, s1, d0, d1] = *frame;
        (Address::v4_halfwords(s0, s1), Address::v4_halfwords(d0, d1))
    }

    /// Offset of the transport header from the start of the frame, in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn transport_offset(&self) -> u32 {
        ETHERNET_LEN + self.header_len as u32
    }

    /// Whether its transport understands marks of congestion (ECN-capable, RFC 3168 section 5).
    #[inline(always)]
    #[must_use]
    pub const fn is_congestion_capable(&self) -> bool {
        self.service & 0b11 != 0
    }

    /// The flow, given what the transport header says.
    #[inline(always)]
    #[must_use]
    pub const fn flow(&self, source_port: u16, destination_port: u16) -> FlowKey {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port,
            destination_port,
            protocol: self.protocol as u32,
        }
    }

    /// What this packet's fragments have in common.
    #[inline(always)]
    #[must_use]
    pub const fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.source,
            destination: self.destination,
            protocol: self.protocol as u32,
            identification: self.identification as u32,
        }
    }
}

// === impl Quoted ===

impl Quoted {
    /// Where the quoted header begins, in bytes from the start of the ICMP header.
    pub const OFFSET: u32 = 8;

    /// Reads the quoted header; `None` when it is wrong or of a fragment without a transport header.
    #[inline(always)]
    #[must_use]
    pub const fn parse(header: &[u8; IPV4_MIN_LEN as usize]) -> Option<Self> {
        let [
            version_and_len,
            _,
            _,
            _,
            _,
            _,
            f0,
            f1,
            _,
            protocol,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ] = *header;
        let words = version_and_len & 0x0f;
        if version_and_len >> 4 != 4 || words < 5 {
            return None;
        }
        if let Fragment::Later = Fragment::parse(u16::from_be_bytes([f0, f1])) {
            return None;
        }
        Some(Self {
            source: Address::v4([s0, s1, s2, s3]),
            destination: Address::v4([d0, d1, d2, d3]),
            protocol,
            header_len: words * 4,
        })
    }

    /// The flow, given what the quoted transport header says.
    #[inline(always)]
    #[must_use]
    pub const fn flow(&self, source_port: u16, destination_port: u16) -> FlowKey {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port,
            destination_port,
            protocol: self.protocol as u32,
        }
    }
}

// === impl Fragment ===

impl Fragment {
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;

    /// From the flags-and-offset field, host byte order (RFC 791 section 3.1).
    #[inline(always)]
    #[must_use]
    pub const fn parse(field: u16) -> Self {
        if field & Self::OFFSET != 0 {
            Self::Later
        } else if field & Self::MORE != 0 {
            Self::First
        } else {
            Self::Whole
        }
    }
}

// === impl Transport ===

impl Transport {
    /// Reads the first eight bytes of the transport header of `protocol`.
    #[inline(always)]
    #[must_use]
    pub const fn parse(protocol: u8, bytes: &[u8; 8]) -> Self {
        let [b0, b1, b2, b3, b4, b5, ..] = *bytes;
        let (source, destination) = match protocol {
            PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_UDPLITE | PROTOCOL_SCTP | PROTOCOL_DCCP => {
                (u16::from_be_bytes([b0, b1]), u16::from_be_bytes([b2, b3]))
            }
            PROTOCOL_ICMP => match b0 {
                // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
                3 | 4 | 5 | 11 | 12 => return Self::IcmpError,
                // Echo, timestamp, information and address mask queries and their replies have an identifier.
                0 | 8 | 13..=18 => {
                    let identifier = u16::from_be_bytes([b4, b5]);
                    (identifier, identifier)
                }
                _ => (0, 0),
            },
            _ => (0, 0),
        };
        Self::Ports { source, destination }
    }
}

// === impl Arp ===

impl Arp {
    /// Formats and lengths of ARP for IPv4 over Ethernet.
    const IPV4_OVER_ETHERNET: [u16; 3] = [1_u16.to_be(), ETHERTYPE_IPV4.to_be(), 0x0604_u16.to_be()];
    const REQUEST: u16 = 1_u16.to_be();
    const REPLY: u16 = 2_u16.to_be();

    /// Reads a frame; `None` when it is not ARP for IPv4 over Ethernet or neither request nor reply.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &[u16; ARP_HALFWORDS]) -> Option<Self> {
        let [
            _,
            _,
            _,
            _,
            _,
            _,
            _, // Ethernet
            hardware,
            protocol,
            lengths,
            operation, //
            m0,
            m1,
            m2,
            s0,
            s1, // sender
            _,
            _,
            _,
            t0,
            t1, // target
        ] = *frame;
        let [a, b, c] = Self::IPV4_OVER_ETHERNET;
        if hardware != a || protocol != b || lengths != c {
            return None;
        }
        let operation = match operation {
            Self::REQUEST => ArpOperation::Request,
            Self::REPLY => ArpOperation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: Mac::from_halfwords([m0, m1, m2]),
            sender: Address::v4_halfwords(s0, s1),
            target: Address::v4_halfwords(t0, t1),
        })
    }

    /// Turns the frame of a request into the reply that `mac` has the target.
    #[inline(always)]
    pub fn answer(frame: &mut [u16; ARP_HALFWORDS], mac: Mac) {
        let [m0, m1, m2] = mac.halfwords();
        let [
            d0,
            d1,
            d2,
            s0,
            s1,
            s2,
            _, // Ethernet
            _,
            _,
            _,
            operation, //
            sm0,
            sm1,
            sm2,
            sa0,
            sa1, // sender
            tm0,
            tm1,
            tm2,
            ta0,
            ta1, // target
        ] = frame;
        (*d0, *d1, *d2) = (*sm0, *sm1, *sm2);
        (*s0, *s1, *s2) = (m0, m1, m2);
        *operation = Self::REPLY;
        (*tm0, *tm1, *tm2) = (*sm0, *sm1, *sm2);
        (*sm0, *sm1, *sm2) = (m0, m1, m2);
        ((*sa0, *sa1), (*ta0, *ta1)) = ((*ta0, *ta1), (*sa0, *sa1));
    }
}

/// Length in bytes of the longest IP packet that a frame becomes on the wire.
///
/// `frame_len` counts from the Ethernet header; `gso_size` is the payload of one segment, 0 when the frame is no
/// super-packet; `transport_len` is the length of the transport header that every segment repeats.
#[inline(always)]
#[must_use]
pub const fn wire_len(frame_len: u32, gso_size: u32, header_len: u8, transport_len: u32) -> u32 {
    if gso_size == 0 {
        frame_len.saturating_sub(ETHERNET_LEN)
    } else {
        header_len as u32 + transport_len + gso_size
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
