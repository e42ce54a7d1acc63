use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IP address in 16 bytes of network order; IPv4 is v4-mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
///
/// Held as four words so that programs compare and copy words instead of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Address {
    /// Each word's bytes in memory are in network order; the words have no meaning as numbers.
    words: [u32; 4],
}

/// An Ethernet address. Held as halfwords, so that programs copy and compare those instead of bytes.
#[derive(Clone, Copy, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Mac {
    /// Bytes in memory are in the order of the wire; the halfwords have no meaning as numbers.
    halfwords: [u16; 3],
}

// === impl Address ===

impl Address {
    /// All zero: "no address", for fields that have none.
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// Bits of prefix that every IPv4 prefix has in front of its own length.
    pub const V4_PREFIX_BITS: u32 = 96;

    const V4_MARK: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// From the four bytes of an IPv4 address as they are on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self {
            words: [0, 0, Self::V4_MARK, u32::from_ne_bytes(octets)],
        }
    }

    /// Whether this is a loopback address of IPv4, 127.0.0.0/8 (RFC 1122 section 3.2.1.3).
    #[inline(always)]
    #[must_use]
    pub const fn is_v4_loopback(self) -> bool {
        let [high, low, mark, v4] = self.words;
        let [first, ..] = v4.to_ne_bytes();
        high == 0 && low == 0 && mark == Self::V4_MARK && first == 127
    }

    /// From the two halfwords of an IPv4 address in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn v4_halfwords(first: u16, second: u16) -> Self {
        let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
        Self::v4([a, b, c, d])
    }

    /// From 16 bytes in network order.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            words: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// The 16 bytes in network order.
    #[must_use]
    pub fn octets(self) -> [u8; 16] {
        zerocopy::transmute!(self)
    }

    /// The word that holds the four bytes of a v4-mapped address, or `None` for any other.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn as_v4_word(self) -> Option<u32> {
        match self.words {
            [0, 0, Self::V4_MARK, last] => Some(last),
            _ => None,
        }
    }

    /// The four bytes of a v4-mapped address, or `None` for any other.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(self) -> Option<[u8; 4]> {
        match self.as_v4_word() {
            Some(word) => Some(word.to_ne_bytes()),
            None => None,
        }
    }
}

// === impl Mac ===

impl Mac {
    /// From the six bytes as they are on the wire.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = octets;
        Self {
            halfwords: [
                u16::from_ne_bytes([a, b]),
                u16::from_ne_bytes([c, d]),
                u16::from_ne_bytes([e, f]),
            ],
        }
    }

    /// The six bytes as they are on the wire.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        zerocopy::transmute!(self)
    }

    /// From three halfwords of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_halfwords(halfwords: [u16; 3]) -> Self {
        Self { halfwords }
    }

    /// As three halfwords of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn halfwords(self) -> [u16; 3] {
        self.halfwords
    }
}

impl PartialEq for Mac {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c], [d, e, f]) = (self.halfwords, other.halfwords);
        a == d && b == e && c == f
    }
}
