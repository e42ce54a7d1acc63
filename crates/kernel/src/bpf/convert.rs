//! Between the types of the standard library and those in the maps.
#![allow(
    unsafe_code,
    reason = "aya wants its marker on every type that it copies to the kernel"
)]

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_abi::{Address, PrefixKey};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A value as it is in a map.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: aya copies the bytes of the value to the kernel and back. `IntoBytes` says that there is no padding among
// them, `FromBytes` that any bytes are a value, and `repr(transparent)` that the wrapper adds nothing.
unsafe impl<T: IntoBytes + FromBytes + Immutable + Copy + 'static> aya::Pod for Raw<T> {}

pub(super) fn to_abi(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::v4(v4.octets()),
        IpAddr::V6(v6) => Address::from_octets(v6.octets()),
    }
}

pub(super) fn from_abi(address: Address) -> IpAddr {
    match address.as_v4() {
        Some(v4) => IpAddr::from(v4),
        None => IpAddr::V6(Ipv6Addr::from(address.octets())),
    }
}

pub(super) fn prefix_to_abi(net: IpNet) -> PrefixKey {
    let len = u32::from(net.prefix_len());
    let bits = match net {
        IpNet::V4(_) => Address::V4_PREFIX_BITS + len,
        IpNet::V6(_) => len,
    };
    PrefixKey {
        bits,
        network: to_abi(net.network()),
    }
}

/// `None` for a key that no prefix has: longer than an address.
pub(super) fn prefix_from_abi(key: PrefixKey) -> Option<IpNet> {
    let len = u8::try_from(key.bits).ok()?;
    match (
        from_abi(key.network),
        key.bits.checked_sub(Address::V4_PREFIX_BITS),
    ) {
        (IpAddr::V4(v4), Some(bits)) => Ipv4Net::new(v4, u8::try_from(bits).ok()?).ok().map(IpNet::V4),
        (IpAddr::V4(v4), None) => Ipv6Net::new(v4.to_ipv6_mapped(), len).ok().map(IpNet::V6),
        (IpAddr::V6(v6), _) => Ipv6Net::new(v6, len).ok().map(IpNet::V6),
    }
}
