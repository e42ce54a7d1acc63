//! A virtual network on one machine: a namespace that is switch, router and everything beyond the router.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use weft_kernel::NetNs;
use weft_kernel::rtnl::{Address, LinkSpec, Route, RouteFilter, Rtnl};
use weft_kernel::sysctl;

use crate::state::{Cluster, PREFIX};

/// An address beyond the router (TEST-NET-2, RFC 5737). Nothing there has a route to pods.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The switch's bridge.
const BRIDGE: &str = "br0";

/// The first node's place in the subnet. Gateway is `.1`; control planes count down from `.240`; this machine is `.250`.
const FIRST_NODE: u32 = 10;
const LAST_NODE: u32 = 200;
const CONTROL_PLANES: std::ops::RangeInclusive<u32> = 201..=240;
const MACHINE: u32 = 250;

/// `RTPROT_STATIC` of include/uapi/linux/rtnetlink.h: as a machine's own configuration makes routes.
const RTPROT_STATIC: u8 = 4;

/// Name of a VNet's namespace.
pub fn netns_name(vnet: &str) -> String {
    format!("{PREFIX}{vnet}")
}

/// The router's address.
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    at(subnet, 1)
}

/// This machine's own address in the VNet, by which it reaches the API.
pub fn machine(subnet: Ipv4Net) -> Ipv4Addr {
    at(subnet, MACHINE)
}

/// A subnet for a new VNet: the first of 172.31.0.0/24, 172.31.1.0/24 … that no other VNet and no route of this machine
/// overlaps.
///
/// # Errors
/// There is none left.
pub fn free_subnet() -> Result<Ipv4Net> {
    let used: Vec<Ipv4Net> = Cluster::all().iter().map(|cluster| cluster.subnet).collect();
    let routes = Rtnl::open()?.routes(RouteFilter::default())?;
    let routed = |net: Ipv4Net| {
        routes.iter().any(|route| match route.dst {
            ipnet::IpNet::V4(dst) => dst.prefix_len() > 0 && (dst.contains(&net) || net.contains(&dst)),
            ipnet::IpNet::V6(_) => false,
        })
    };
    (0..=255)
        .map(|third| Ipv4Net::new_assert(Ipv4Addr::new(172, 31, third, 0), 24))
        .find(|net| !used.contains(net) && !routed(*net))
        .context("every subnet of 172.31.0.0/16 is in use on this machine")
}

/// The first address for a node that no cluster of the VNet has.
///
/// # Errors
/// There is none left.
pub fn free_node_address(vnet: &str, subnet: Ipv4Net) -> Result<Ipv4Addr> {
    let used: Vec<Ipv4Addr> = Cluster::all()
        .iter()
        .filter(|cluster| cluster.config.vnet == vnet)
        .flat_map(|cluster| cluster.nodes.iter().map(|node| node.address))
        .collect();
    (FIRST_NODE..=LAST_NODE)
        .map(|offset| at(subnet, offset))
        .find(|address| !used.contains(address))
        .with_context(|| format!("VNet {vnet} has no address left in {subnet}"))
}

/// The first address for a control plane that no cluster of the VNet has.
///
/// # Errors
/// There is none left.
pub fn free_api_address(vnet: &str, subnet: Ipv4Net) -> Result<Ipv4Addr> {
    let used: Vec<Ipv4Addr> = Cluster::all()
        .iter()
        .filter(|cluster| cluster.config.vnet == vnet)
        .map(|cluster| cluster.api_address)
        .collect();
    CONTROL_PLANES
        .rev()
        .map(|offset| at(subnet, offset))
        .find(|address| !used.contains(address))
        .with_context(|| format!("VNet {vnet} has no address left in {subnet}"))
}

/// Makes the VNet, where it does not exist.
///
/// # Errors
/// The kernel's refusal.
pub fn ensure(vnet: &str, subnet: Ipv4Net) -> Result<()> {
    let name = netns_name(vnet);
    if NetNs::named(&name).is_ok() {
        return Ok(());
    }
    let netns = NetNs::create_named(&name)?;
    let mut rtnl = Rtnl::open_in(&netns)?;
    rtnl.set_up("lo", true)?;
    let lo = rtnl.link_index("lo")?;
    rtnl.add_address(&Address::host(lo, OUTSIDE))?;
    rtnl.create_bridge(&LinkSpec {
        up: true,
        ..LinkSpec::new(BRIDGE)
    })?;
    let bridge = rtnl.link_index(BRIDGE)?;
    rtnl.add_address(&Address::new(
        bridge,
        Ipv4Net::new_assert(gateway(subnet), subnet.prefix_len()),
    ))?;
    sysctl::write(
        &netns,
        &[(sysctl::Key::new("net/ipv4/ip_forward")?, "1".to_owned())],
    )?;
    // Frames between nodes are the wire's business: no rule of this namespace looks into them.
    if let Ok(key) = sysctl::Key::new("net/bridge/bridge-nf-call-iptables") {
        let _ = sysctl::write(&netns, &[(key, "0".to_owned())]);
    }
    plug(vnet, subnet, &NetNs::current()?, &leg(subnet), machine(subnet))
}

/// Removes the VNet and with it this machine's link to it.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(vnet: &str, subnet: Option<Ipv4Net>) -> Result<()> {
    NetNs::delete_named(&netns_name(vnet))?;
    if let Some(subnet) = subnet {
        // It goes with its other end; at the latest now, for the next VNet may have the same subnet.
        Rtnl::open()?.delete_link(leg(subnet).as_str())?;
    }
    Ok(())
}

/// Connects a new namespace to the VNet as `eth0`, with a default route over the router.
///
/// # Errors
/// The name is taken, or the kernel's refusal.
pub fn connect(vnet: &str, subnet: Ipv4Net, netns_name: &str, address: Ipv4Addr) -> Result<NetNs> {
    let netns = NetNs::create_named(netns_name)?;
    Rtnl::open_in(&netns)?.set_up("lo", true)?;
    plug(vnet, subnet, &netns, "eth0", address)?;
    let mut rtnl = Rtnl::open_in(&netns)?;
    let eth0 = rtnl.link_index("eth0")?;
    let everywhere = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    rtnl.add_route(&configured(Route::via(everywhere, gateway(subnet), eth0)))?;
    sysctl::write(
        &netns,
        &[(sysctl::Key::new("net/ipv4/ip_forward")?, "1".to_owned())],
    )?;
    Ok(netns)
}

/// The route as a machine's own configuration would make it, none of an agent's.
pub fn configured(route: Route) -> Route {
    Route {
        protocol: RTPROT_STATIC,
        ..route
    }
}

fn plug(vnet: &str, subnet: Ipv4Net, machine: &NetNs, device: &str, address: Ipv4Addr) -> Result<()> {
    let switch = NetNs::named(&netns_name(vnet))?;
    let mut rtnl = Rtnl::open_in(&switch)?;
    let port = format!("p{}", u32::from(address) - u32::from(subnet.network()));
    // Of a machine that went, the kernel removes the link a moment later; its address is ours by now.
    rtnl.delete_link(port.as_str())?;
    rtnl.create_veth(
        &LinkSpec {
            up: true,
            ..LinkSpec::new(&port)
        },
        &LinkSpec {
            up: true,
            netns: Some(machine),
            ..LinkSpec::new(device)
        },
    )?;
    let bridge = rtnl.link_index(BRIDGE)?;
    rtnl.set_master(port.as_str(), Some(bridge))?;
    let mut inside = Rtnl::open_in(machine)?;
    let link = inside.link_index(device)?;
    inside.add_address(&Address::new(
        link,
        Ipv4Net::new_assert(address, subnet.prefix_len()),
    ))?;
    Ok(())
}

/// Name of this machine's link to the VNet of that subnet.
fn leg(subnet: Ipv4Net) -> String {
    format!("{PREFIX}{}", (u32::from(subnet.network()) >> 8) & 0xff)
}

fn at(subnet: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + offset)
}

/// The subnet of a VNet that exists, or one for a new VNet.
///
/// # Errors
/// A namespace of that name exists and no cluster in it is known: what to do.
pub fn subnet_of(vnet: &str) -> Result<Ipv4Net> {
    if let Some(cluster) = Cluster::all()
        .into_iter()
        .find(|cluster| cluster.config.vnet == vnet)
    {
        return Ok(cluster.subnet);
    }
    if NetNs::named(&netns_name(vnet)).is_ok() {
        bail!(
            "network namespace {} is there without a cluster\n  next: ip netns delete {0}",
            netns_name(vnet)
        );
    }
    free_subnet()
}
