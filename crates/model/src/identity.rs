use std::fmt;

/// A security identity: 23 bits, because it travels in the VXLAN header's
/// 24-bit VNI beside one flag (RFC 7348 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(u32);

// === impl Identity ===

impl Identity {
    /// How many bits the header has for an identity.
    pub const BITS: u32 = 23;
    /// The highest identity.
    pub const MAX: Self = Self((1 << Self::BITS) - 1);

    /// `None` above 23 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The number, 0 to 2²³ − 1, in host byte order.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_fits_the_header() {
        assert_eq!(Identity::new(0x7f_ffff), Some(Identity::MAX));
        assert_eq!(Identity::new(0x80_0000), None);
    }
}
