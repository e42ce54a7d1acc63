//! A virtual network on one machine: one namespace is its switch and router, one a host that is no node of any
//! cluster, one the internet beyond the router.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The nodes' subnet of a virtual network.
///
/// As in Azure the first four addresses are the network's own: `.0` the network, `.1` the gateway, `.2` and `.3`
/// reserved; nodes begin at `.4`. From the other end: the broadcast address, the VNet host, then one API address
/// for each cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
pub struct Subnet(Ipv4Net);

/// The network beyond the VNet's router (TEST-NET-2, RFC 5737).
pub const INTERNET_NET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24);

/// The router's address on that network.
pub const INTERNET_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The host beyond the router.
pub const INTERNET_HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// Offset of the first node's address in the subnet.
const FIRST_NODE: u32 = 4;

/// Addresses at the upper end of a subnet that are kept for cluster APIs.
const API_ADDRESSES: u32 = 16;

// === impl Subnet ===

impl Subnet {
    /// A subnet of /8 to /26 of unicast addresses.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the range.
    pub fn new(net: Ipv4Net) -> Result<Self, String> {
        if !(8..=26).contains(&net.prefix_len()) {
            return Err(format!(
                "VNet subnet {net}: the prefix length has to be /8 to /26"
            ));
        }
        let first = net.network();
        if first.is_loopback() || first.is_link_local() || first.is_multicast() || first.octets()[0] == 0 {
            return Err(format!(
                "VNet subnet {net} holds addresses that no machine can have"
            ));
        }
        Ok(Self(net))
    }

    /// The range.
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// The address of the router.
    pub fn gateway(self) -> Ipv4Addr {
        self.at(1)
    }

    /// The address of the host that is no node, "the VM next door".
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.broadcast()) - 1)
    }

    /// Addresses for cluster APIs, in the order in which they are given out.
    pub fn api_addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let host = u32::from(self.host());
        (1..=API_ADDRESSES).map(move |offset| Ipv4Addr::from(host - offset))
    }

    /// Addresses for nodes, in the order in which they are given out.
    pub fn node_addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (0..self.node_room()).map(move |index| self.at(FIRST_NODE + index))
    }

    /// How many nodes have room in the subnet.
    pub fn node_room(self) -> u32 {
        u32::from(self.host()) - API_ADDRESSES - u32::from(self.at(FIRST_NODE))
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + offset)
    }
}

impl TryFrom<Ipv4Net> for Subnet {
    type Error = String;

    fn try_from(net: Ipv4Net) -> Result<Self, String> {
        Self::new(net)
    }
}

impl From<Subnet> for Ipv4Net {
    fn from(subnet: Subnet) -> Ipv4Net {
        subnet.0
    }
}

/// Names of the namespaces of the virtual network `vnet`. A cluster's namespaces never have this prefix.
#[derive(Clone, Debug)]
pub struct VnetNames {
    /// The switch and router.
    pub switch: String,
    /// The host that is no node.
    pub host: String,
    /// The network beyond the router.
    pub internet: String,
}

// === impl VnetNames ===

impl VnetNames {
    /// The names for that VNet.
    pub fn of(vnet: &str) -> Self {
        let name = |part: &str| format!("weftvnet-{vnet}.{part}");
        Self {
            switch: name("switch"),
            host: name("host"),
            internet: name("internet"),
        }
    }

    /// All of them.
    pub fn all(&self) -> [&str; 3] {
        [&self.switch, &self.host, &self.internet]
    }
}
