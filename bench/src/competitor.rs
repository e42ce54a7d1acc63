//! What is measured side by side: ways to connect two pods on one node and on two.
//!
//! Each competitor has two nodes of its own on one underlay, and all are up at once.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::{self, Namespace, OUTSIDE, Place, Underlay};

/// Two ends that can talk.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    pub(crate) client: Place,
    pub(crate) server: Place,
    /// The server's address, as the client sees it.
    pub(crate) address: Ipv4Addr,
}

/// A node's link towards the others, by both its ends.
#[derive(Debug, Clone)]
pub(crate) struct Uplink {
    /// The node's end, then the switch's port.
    pub(crate) ends: [End; 2],
}

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) at: Place,
    pub(crate) link: String,
}

/// A way to connect pods, set up and ready.
#[derive(Debug)]
pub(crate) struct Competitor {
    pub(crate) name: &'static str,
    pub(crate) about: String,
    /// Between two nodes.
    pub(crate) cross: Path,
    /// On one node.
    pub(crate) same: Path,
    /// To a host that is no node and knows no pods.
    pub(crate) outside: Path,
    /// Between two nodes of a cluster of its own with thousands.
    pub(crate) crowded: Option<Path>,
    pub(crate) uplinks: Vec<Uplink>,
    /// Lives as long as the paths are used, and ends in this order.
    #[expect(dead_code, reason = "ends when it is dropped")]
    pub(crate) kept: Vec<Box<dyn std::fmt::Debug>>,
}

/// Every ratio is to this one's figure in the same round.
pub(crate) const BASE: &str = "node";
/// What the names of Weft's competitors start with.
pub(crate) const WEFT: &str = "weft";
/// The bridge with the kernel's VXLAN device, as flannel sets it up.
pub(crate) const BRIDGE: &str = "bridge-vxlan";

/// VXLAN takes 14 + 8 + 8 + 20 bytes of each packet.
const OVERLAY_MTU: u32 = Underlay::MTU - 50;

/// No overlay: the nodes themselves; on one node, two namespaces and one bare veth pair.
pub(crate) fn node(underlay: &Underlay) -> Result<Competitor> {
    let addresses = [Ipv4Addr::new(172, 30, 0, 11), Ipv4Addr::new(172, 30, 0, 12)];
    let first = underlay.routed_node("n1", addresses[0])?;
    let second = underlay.routed_node("n2", addresses[1])?;

    let a = Namespace::create("veth1")?;
    let b = Namespace::create("veth2")?;
    a.ip(&[
        format!(
            "link add eth0 mtu {OVERLAY_MTU} type veth peer name eth0 mtu {OVERLAY_MTU} netns {}",
            b.name()
        ),
        "link set eth0 up".into(),
        "addr add 10.99.0.1/24 dev eth0".into(),
    ])?;
    b.ip(&["link set eth0 up", "addr add 10.99.0.2/24 dev eth0"])?;

    Ok(Competitor {
        name: BASE,
        about: "node to node without overlay; on one node a bare veth pair".into(),
        cross: Path {
            client: first.place(),
            server: second.place(),
            address: addresses[1],
        },
        same: Path {
            client: a.place(),
            server: b.place(),
            address: Ipv4Addr::new(10, 99, 0, 2),
        },
        outside: outside(underlay, first.place())?,
        crowded: None,
        uplinks: underlay.uplinks([&first, &second])?,
        kept: vec![Box::new([first, second, a, b])],
    })
}

/// A bridge per node for its pods and a VXLAN device with static entries for the other, masqueraded by nftables.
pub(crate) fn bridge(underlay: &Underlay) -> Result<Competitor> {
    let mac = |node: usize| format!("02:00:00:00:01:0{node}");
    let node_address = |node: usize| Ipv4Addr::new(172, 30, 0, 20 + node as u8);
    let nodes = [
        underlay.routed_node("f1", node_address(1))?,
        underlay.routed_node("f2", node_address(2))?,
    ];
    for (this, node) in (1..).zip(&nodes) {
        let other = 3 - this;
        node.ip(&[
            format!(
                "link add flannel.1 mtu {OVERLAY_MTU} address {} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning",
                mac(this),
                node_address(this)
            ),
            "link set flannel.1 up".into(),
            format!("addr add 10.60.{this}.0/32 dev flannel.1"),
            format!("neigh add 10.60.{other}.0 lladdr {} dev flannel.1 nud permanent", mac(other)),
            format!("route add 10.60.{other}.0/24 via 10.60.{other}.0 dev flannel.1 onlink"),
            "link add cni0 type bridge".into(),
            format!("link set cni0 mtu {OVERLAY_MTU} up"),
            format!("addr add 10.60.{this}.1/24 dev cni0"),
        ])?;
        node.bridge(&format!(
            "fdb append {} dev flannel.1 dst {}",
            mac(other),
            node_address(other)
        ))?;
        masquerade(node, "10.60.0.0/16")?;
    }
    let client = bridge_pod(&nodes[0], 1, 2)?;
    let neighbour = bridge_pod(&nodes[0], 1, 3)?;
    let remote = bridge_pod(&nodes[1], 2, 2)?;

    let [first, second] = nodes;
    Ok(Competitor {
        name: BRIDGE,
        about: "bridge and kernel VXLAN device as flannel sets them up, masqueraded by nftables".into(),
        cross: Path {
            client: client.place(),
            server: remote.place(),
            address: Ipv4Addr::new(10, 60, 2, 2),
        },
        same: Path {
            client: client.place(),
            server: neighbour.place(),
            address: Ipv4Addr::new(10, 60, 1, 3),
        },
        outside: outside(underlay, client.place())?,
        crowded: None,
        uplinks: underlay.uplinks([&first, &second])?,
        kept: vec![Box::new([first, second, client, neighbour, remote])],
    })
}

/// What leaves the pods' network goes with the node's address.
pub(crate) fn masquerade(node: &Namespace, pods: &str) -> Result<()> {
    node.nft(&format!(
        "table ip bench {{
           chain postrouting {{ type nat hook postrouting priority srcnat;
             ip saddr {pods} ip daddr != {pods} masquerade fully-random
           }}
         }}"
    ))
}

fn bridge_pod(node: &Namespace, subnet: usize, host: usize) -> Result<Namespace> {
    let pod = Namespace::create(&format!("p{subnet}{host}"))?;
    let name = format!("veth{host}");
    pod.ip(&[
        format!(
            "link add eth0 mtu {OVERLAY_MTU} type veth peer name {name} mtu {OVERLAY_MTU} netns {}",
            node.name()
        ),
        "link set eth0 up".into(),
        format!("addr add 10.60.{subnet}.{host}/24 dev eth0"),
    ])?;
    node.ip(&[format!("link set {name} master cni0 up")])?;
    pod.ip(&[format!("route add default via 10.60.{subnet}.1")])?;
    Ok(pod)
}

pub(crate) fn outside(underlay: &Underlay, client: Place) -> Result<Path> {
    Ok(Path {
        client,
        server: underlay.outside()?,
        address: OUTSIDE,
    })
}

// === impl Uplink ===

impl Uplink {
    /// The uplink called `link` of a node whose other end is in `switch`.
    pub(crate) fn find(node: Place, link: &str, switch: Place) -> Result<Self> {
        let own = links(&node, &["dev", link])?;
        let peer = own[0]["link_index"].as_u64();
        let ports = links(&switch, &[])?;
        let port = ports
            .as_array()
            .into_iter()
            .flatten()
            .find(|port| peer.is_some() && port["ifindex"].as_u64() == peer)
            .and_then(|port| port["ifname"].as_str())
            .with_context(|| format!("the uplink {link} ends at no port of its switch"))?
            .to_owned();
        let link = link.to_owned();
        Ok(Self {
            ends: [
                End { at: node, link },
                End {
                    at: switch,
                    link: port,
                },
            ],
        })
    }
}

/// What `ip` says of the links that `which` selects.
fn links(at: &Place, which: &[&str]) -> Result<Value> {
    let mut command = at.command("ip");
    command.args(["-json", "link", "show"]).args(which);
    serde_json::from_str(&netns::read(&mut command)?).context("parse the output of ip")
}
