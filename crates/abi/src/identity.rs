use core::fmt;

/// Who a packet comes from, as policy sees it: 23 bits, numbered by the operator from [`Identity::FIRST_DYNAMIC`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity(u32);

/// A number that does not fit the 23 bits of an [`Identity`], or is the reserved zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdentityOutOfRange(pub u32);

/// The 24-bit VXLAN network identifier of a packet on the overlay.
///
/// | bit | meaning |
/// |---|---|
/// | 23 | the source is isolated on egress |
/// | 22–0 | [`Identity`] of the source |
///
/// The identity is in the low bits, so that a packet dump shows it as the VNI of an ordinary pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vni(u32);

// === impl Identity ===

impl Identity {
    /// A node's own stack.
    pub const HOST: Self = Self(1);
    /// A pod whose labels have no identity (yet).
    pub const POD: Self = Self(2);
    /// Smaller numbers are fixed by this crate.
    pub const FIRST_DYNAMIC: u32 = 256;
    /// The largest identity.
    pub const MAX: u32 = (1 << 23) - 1;

    /// # Errors
    /// Zero and numbers above [`Identity::MAX`] are no identities.
    pub const fn new(number: u32) -> Result<Self, IdentityOutOfRange> {
        if number == 0 || number > Self::MAX {
            Err(IdentityOutOfRange(number))
        } else {
            Ok(Self(number))
        }
    }

    /// The number, 1 to [`Identity::MAX`].
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

// === impl IdentityOutOfRange ===

impl fmt::Display for IdentityOutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identity {} is not between 1 and {}", self.0, Identity::MAX)
    }
}

impl core::error::Error for IdentityOutOfRange {}

// === impl Vni ===

impl Vni {
    const EGRESS_ISOLATED: u32 = 1 << 23;

    /// The VNI under which a packet of `identity` crosses the overlay.
    #[inline(always)]
    #[must_use]
    pub const fn of(identity: Identity) -> Self {
        Self(identity.0)
    }

    /// From the raw number in a map or on the wire; bits above 23 are ignored.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw & 0x00ff_ffff)
    }

    /// The number on the wire, 24 bits.
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The same VNI with the flag that the source is isolated on egress.
    #[inline(always)]
    #[must_use]
    pub const fn egress_isolated(self) -> Self {
        Self(self.0 | Self::EGRESS_ISOLATED)
    }

    /// Whether the source is isolated on egress.
    #[inline(always)]
    #[must_use]
    pub const fn is_egress_isolated(self) -> bool {
        self.0 & Self::EGRESS_ISOLATED != 0
    }

    /// Whether this is a packet of a node's own stack.
    #[inline(always)]
    #[must_use]
    pub const fn is_host(self) -> bool {
        self.0 & Identity::MAX == Identity::HOST.0
    }

    /// Identity of the source, or `None` for the reserved zero, which no node sends.
    #[inline(always)]
    #[must_use]
    pub const fn identity(self) -> Option<Identity> {
        match self.0 & Identity::MAX {
            0 => None,
            number => Some(Identity(number)),
        }
    }
}
