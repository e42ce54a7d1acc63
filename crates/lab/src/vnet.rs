//! A virtual network on one machine: one namespace is its switch and router, one a host that is no node of any
//! cluster, one the internet beyond the router.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use weft_kernel::rtnl::{Address, LinkSpec, Route, Rtnl};
use weft_kernel::{NetNs, Result};
use weft_model::Mac;

use crate::machine::UPLINK;
use crate::state::RootLock;

/// The nodes' subnet of a virtual network.
///
/// As in Azure the first four addresses are the network's own: `.0` the network, `.1` the gateway, `.2` and `.3`
/// reserved; nodes begin at `.4`. From the other end: the broadcast address, the VNet host, then one API address
/// for each cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
pub struct Subnet(Ipv4Net);

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

/// The network beyond the VNet's router (TEST-NET-2, RFC 5737).
pub const INTERNET_NET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24);

/// The router's address on that network.
pub const INTERNET_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The host beyond the router.
pub const INTERNET_HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// Offset of the first node's address in the subnet.
const FIRST_NODE: u32 = 4;

/// Prefix of the names of all namespaces of virtual networks; no cluster's namespace has it.
pub const VNET_PREFIX: &str = "weftvnet-";

/// MTU of every link of a virtual network, in bytes.
pub const MTU: u32 = 1500;

/// The switch's bridge.
const BRIDGE: &str = "vnet";

/// The router's Ethernet address, the one that Azure's has. Left to itself a bridge takes the lowest of its ports',
/// and machines keep talking to an address that went with a node.
const GATEWAY_MAC: Mac = Mac([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]);

/// The bridge's alias once the network is complete.
const COMPLETE: &str = "weft lab vnet";

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

// === impl VnetNames ===

impl VnetNames {
    /// The names for that VNet.
    pub fn of(vnet: &str) -> Self {
        let name = |part: &str| format!("{VNET_PREFIX}{vnet}.{part}");
        Self {
            switch: name("switch"),
            host: name("host"),
            internet: name("internet"),
        }
    }

    /// The VNet that a namespace of this name belongs to.
    pub fn vnet_of(netns: &str) -> Option<&str> {
        netns.strip_prefix(VNET_PREFIX)?.split('.').next()
    }

    /// All of them.
    pub fn all(&self) -> [&str; 3] {
        [&self.switch, &self.host, &self.internet]
    }
}

/// Makes the namespaces of a virtual network, or leaves it as it is where it is complete.
///
/// # Errors
/// The kernel's refusal; what was made up to then is left for [`remove`].
pub fn ensure(lock: &RootLock, vnet: &str, subnet: Subnet) -> Result<()> {
    let names = VnetNames::of(vnet);
    if is_complete(&names) {
        return Ok(());
    }
    // Somebody was interrupted half-way. No node is attached yet, for that needs a complete network.
    remove(lock, vnet)?;

    let switch = NetNs::create_named(&names.switch)?;
    let mut rtnl = Rtnl::open_in(&switch)?;
    rtnl.set_up("lo", true)?;
    rtnl.create_bridge(&LinkSpec {
        mac: Some(GATEWAY_MAC),
        mtu: Some(MTU),
        up: true,
        ..LinkSpec::new(BRIDGE)
    })?;
    let bridge = rtnl.link_index(BRIDGE)?;
    let gateway = Ipv4Net::new_assert(subnet.gateway(), subnet.net().prefix_len());
    rtnl.add_address(&Address::new(bridge, gateway))?;
    set_sysctls(&switch, SWITCH_SYSCTLS)?;

    let host = NetNs::create_named(&names.host)?;
    plug(&mut rtnl, "host", &host, subnet, subnet.host())?;

    let internet = NetNs::create_named(&names.internet)?;
    rtnl.create_veth(
        &LinkSpec {
            mtu: Some(MTU),
            up: true,
            ..LinkSpec::new("internet")
        },
        &LinkSpec {
            mtu: Some(MTU),
            up: true,
            netns: Some(&internet),
            ..LinkSpec::new("eth0")
        },
    )?;
    let uplink = rtnl.link_index("internet")?;
    rtnl.add_address(&Address::new(
        uplink,
        Ipv4Net::new_assert(INTERNET_GATEWAY, INTERNET_NET.prefix_len()),
    ))?;
    let mut beyond = Rtnl::open_in(&internet)?;
    beyond.set_up("lo", true)?;
    let eth0 = beyond.link_index("eth0")?;
    beyond.add_address(&Address::new(
        eth0,
        Ipv4Net::new_assert(INTERNET_HOST, INTERNET_NET.prefix_len()),
    ))?;
    // The internet knows the VNet and nothing of pods: an answer to a pod's own address has nowhere to go.
    beyond.add_route(&configured(Route::via(subnet.net(), INTERNET_GATEWAY, eth0)))?;

    rtnl.set_alias(BRIDGE, COMPLETE)?;
    Ok(())
}

/// Removes the namespaces of a virtual network and so everything in them. Returns whether any was there.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(_lock: &RootLock, vnet: &str) -> Result<bool> {
    let mut any = false;
    for name in VnetNames::of(vnet).all() {
        any |= NetNs::delete_named(name)?;
    }
    Ok(any)
}

/// Gives the virtual network one more address of its own, under which its switch answers: a cluster's API.
///
/// # Errors
/// The kernel's refusal.
pub fn add_api_address(vnet: &str, address: Ipv4Addr) -> Result<NetNs> {
    let switch = NetNs::named(&VnetNames::of(vnet).switch)?;
    let mut rtnl = Rtnl::open_in(&switch)?;
    let bridge = rtnl.link_index(BRIDGE)?;
    rtnl.replace_address(&Address::host(bridge, address))?;
    Ok(switch)
}

/// Takes such an address back, where the network still exists.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_api_address(vnet: &str, address: Ipv4Addr) -> Result<()> {
    let Ok(switch) = NetNs::named(&VnetNames::of(vnet).switch) else {
        return Ok(());
    };
    let mut rtnl = Rtnl::open_in(&switch)?;
    let bridge = rtnl.link_index(BRIDGE)?;
    rtnl.delete_address(&Address::host(bridge, address)).map(|_| ())
}

/// Connects a machine to the virtual network: its `eth0` is a veth whose other end, `port`, is a port of the
/// switch. Both ends are made where they belong.
///
/// # Errors
/// The kernel's refusal.
pub fn connect(vnet: &str, subnet: Subnet, machine: &NetNs, address: Ipv4Addr) -> Result<()> {
    let switch = NetNs::named(&VnetNames::of(vnet).switch)?;
    let mut rtnl = Rtnl::open_in(&switch)?;
    plug(&mut rtnl, &port_name(address), machine, subnet, address)
}

/// Gives a connected machine another address in the place of the one it has. It is cut off for a moment.
///
/// # Errors
/// The kernel's refusal.
pub fn readdress(
    vnet: &str,
    subnet: Subnet,
    machine: &NetNs,
    before: Ipv4Addr,
    after: Ipv4Addr,
) -> Result<()> {
    let switch = NetNs::named(&VnetNames::of(vnet).switch)?;
    let mut switch = Rtnl::open_in(&switch)?;
    let old = port_name(before);
    // A link that is up can't be renamed.
    switch.set_up(&*old, false)?;
    switch.rename(&*old, &port_name(after))?;
    let mut rtnl = Rtnl::open_in(machine)?;
    let uplink = rtnl.link_index(UPLINK)?;
    let address = |address| Address::new(uplink, Ipv4Net::new_assert(address, subnet.net().prefix_len()));
    rtnl.delete_address(&address(before))?;
    rtnl.set_mac(uplink, mac_of(after))?;
    configure(&mut rtnl, subnet, after)?;
    switch.set_up(&*port_name(after), true)?;
    Ok(())
}

/// Name of the switch's port for the machine of that address.
pub fn port_name(address: Ipv4Addr) -> String {
    format!("p{:08x}", u32::from(address))
}

/// What is written under `/proc/sys/net` of a machine. Settings the kernel does not have are left out.
pub(crate) fn set_sysctls(netns: &NetNs, settings: &[(&str, &str)]) -> Result<()> {
    netns.run(|| {
        for (name, value) in settings {
            match fs::write(format!("/proc/sys/net/{name}"), value) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(name, value, %error, "can't set a sysctl");
                }
                _ => {}
            }
        }
    })
}

/// The switch forwards frames as a wire would, without a look into them, and packets as a router.
const SWITCH_SYSCTLS: &[(&str, &str)] = &[
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

fn plug(switch: &mut Rtnl, port: &str, machine: &NetNs, subnet: Subnet, address: Ipv4Addr) -> Result<()> {
    // Of a machine that went, the kernel removes the link a moment later; its address is ours by now.
    switch.delete_link(port)?;
    switch.create_veth(
        &LinkSpec {
            mtu: Some(MTU),
            up: true,
            ..LinkSpec::new(port)
        },
        &LinkSpec {
            mtu: Some(MTU),
            up: true,
            netns: Some(machine),
            mac: Some(mac_of(address)),
            ..LinkSpec::new(UPLINK)
        },
    )?;
    let bridge = switch.link_index(BRIDGE)?;
    switch.set_master(port, Some(bridge))?;
    let mut rtnl = Rtnl::open_in(machine)?;
    rtnl.set_up("lo", true)?;
    configure(&mut rtnl, subnet, address)
}

/// A machine's Ethernet address. Whoever has an address next is reached at once, also by those who spoke to the machine
/// before it: a cloud's network answers ARP with one address for all.
fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x4e, a, b, c, d])
}

/// Gives a machine's uplink an address, and the route to everywhere.
fn configure(rtnl: &mut Rtnl, subnet: Subnet, address: Ipv4Addr) -> Result<()> {
    let uplink = rtnl.link_index(UPLINK)?;
    rtnl.add_address(&Address::new(
        uplink,
        Ipv4Net::new_assert(address, subnet.net().prefix_len()),
    ))?;
    let everywhere = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    rtnl.replace_route(&configured(Route::via(everywhere, subnet.gateway(), uplink)))
}

/// The route as a machine's own configuration would make it, none of the agent's.
fn configured(route: Route) -> Route {
    /// `RTPROT_STATIC` of include/uapi/linux/rtnetlink.h.
    const STATIC: u8 = 4;
    Route {
        protocol: STATIC,
        ..route
    }
}

fn is_complete(names: &VnetNames) -> bool {
    let alias = || {
        let switch = NetNs::named(&names.switch)?;
        Rtnl::open_in(&switch)?.get_link(BRIDGE)
    };
    alias().is_ok_and(|bridge| bridge.alias.as_deref() == Some(COMPLETE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_divided_as_azure_does_it() {
        let subnet = Subnet::new("10.224.0.0/24".parse().unwrap()).unwrap();
        assert_eq!(subnet.gateway().to_string(), "10.224.0.1");
        assert_eq!(subnet.host().to_string(), "10.224.0.254");
        let apis: Vec<_> = subnet.api_addresses().collect();
        assert_eq!((apis[0].to_string(), apis.len()), ("10.224.0.253".to_owned(), 16));
        let nodes: Vec<_> = subnet.node_addresses().collect();
        assert_eq!(nodes.first().unwrap().to_string(), "10.224.0.4");
        assert_eq!(u32::try_from(nodes.len()).unwrap(), subnet.node_room());
        assert!(
            nodes
                .iter()
                .all(|node| !apis.contains(node) && *node != subnet.host())
        );
    }

    #[test]
    fn no_cluster_has_a_namespace_of_a_vnet() {
        let names = VnetNames::of("blue");
        assert_eq!(
            names.all(),
            [
                "weftvnet-blue.switch",
                "weftvnet-blue.host",
                "weftvnet-blue.internet"
            ]
        );
        assert_eq!(VnetNames::vnet_of(&names.internet), Some("blue"));
        assert_eq!(VnetNames::vnet_of("weft-vnet.node-1"), None);
        assert!(!names.switch.starts_with(&crate::node::netns_prefix("vnet-blue")));
    }
}
