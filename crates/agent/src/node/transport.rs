//! How packets get to other nodes: what was asked for, and what this node can do.

use super::paths::Way;
use super::{NodeNet, OVERLAY};
use std::fmt;
use std::net::Ipv4Addr;
use weft_kernel::bpf::Transport;
use weft_kernel::ipsec::{Ipsec, Policies};
use weft_kernel::rtnl::Link;
use weft_model::{TransportChoice, UserError, codes};

/// How packets get to other nodes, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub transport: Transport,
    /// What was asked for.
    pub choice: TransportChoice,
    /// What keeps packets from going past the device; only looked for where that was asked for.
    pub obstacle: Option<Obstacle>,
}

/// Why packets can't go past the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The uplink's packets have no Ethernet headers.
    NoEthernet { uplink: String },
    /// The uplink is a tunnel itself: tunnels in tunnels are left to the kernel's own device.
    Tunnel { uplink: String, kind: String },
    /// Packets that programs send and take would meet no policy: they would leave in clear, and be taken in clear.
    Ipsec(Policies),
    /// Whether there are policies can't be told.
    IpsecUnknown { why: String },
    /// Programs send by one interface.
    OtherLink { peer: Ipv4Addr, uplink: String },
}

/// Kinds of links with Ethernet headers that are tunnels over the network below (`IFLA_INFO_KIND`).
const TUNNELS: [&str; 7] = [
    "vxlan",
    "geneve",
    "gretap",
    "erspan",
    "ip6gretap",
    "ip6erspan",
    "l2tpeth",
];

// === impl NodeNet ===

impl NodeNet {
    /// What the node does about what was asked for. That the kernel has the helpers that `direct` needs is certain: the
    /// programs would not be loaded otherwise.
    pub(super) fn select(&mut self, uplink: &Link, ways: &[Way]) -> Selection {
        let choice = self.settings.transport;
        let obstacle = match choice {
            TransportChoice::Device => None,
            TransportChoice::Auto | TransportChoice::Direct => self.obstacle(uplink, ways),
        };
        let transport = if choice == TransportChoice::Device || obstacle.is_some() {
            Transport::Device
        } else {
            Transport::Direct(uplink.index)
        };
        Selection {
            transport,
            choice,
            obstacle,
        }
    }

    fn obstacle(&mut self, uplink: &Link, ways: &[Way]) -> Option<Obstacle> {
        if let Some(obstacle) = Obstacle::of_uplink(uplink) {
            return Some(obstacle);
        }
        match self.policies() {
            Ok(policies) if policies == Policies::default() => {}
            Ok(policies) => return Some(Obstacle::Ipsec(policies)),
            Err(error) => {
                return Some(Obstacle::IpsecUnknown {
                    why: error.to_string(),
                });
            }
        }
        let elsewhere = ways.iter().find(|way| way.link != uplink.index)?;
        Some(Obstacle::OtherLink {
            peer: elsewhere.peer,
            uplink: uplink.name.clone(),
        })
    }

    fn policies(&mut self) -> Result<Policies, weft_kernel::Error> {
        let ipsec = match &mut self.ipsec {
            Some(ipsec) => ipsec,
            closed => closed.insert(Ipsec::open()?),
        };
        ipsec.policies()
    }
}

// === impl Selection ===

impl Selection {
    /// The transport's name in status and metrics.
    pub fn name(&self) -> &'static str {
        match self.transport {
            Transport::Device => "device",
            Transport::Direct(_) => "direct",
        }
    }

    /// Why, as a condition has it: a word and a sentence.
    pub fn why(&self) -> (&'static str, String) {
        match (self.choice, &self.obstacle) {
            (TransportChoice::Device, _) => ("Requested", "the agent was told --transport device".to_owned()),
            (_, None) => (
                "Possible",
                "programs write and strip outer headers: nothing on the node is in the way".to_owned(),
            ),
            (TransportChoice::Auto, Some(obstacle)) => {
                (obstacle.reason(), format!("{OVERLAY} does: {obstacle}"))
            }
            (TransportChoice::Direct, Some(obstacle)) => {
                let error = obstacle.refusal();
                (
                    obstacle.reason(),
                    format!("{}: {}", error.code(), error.message()),
                )
            }
        }
    }

    /// What was asked for and is not done.
    pub fn refusal(&self) -> Option<UserError> {
        self.obstacle
            .as_ref()
            .filter(|_| self.choice == TransportChoice::Direct)
            .map(Obstacle::refusal)
    }
}

// === impl Obstacle ===

impl Obstacle {
    /// What is wrong with the uplink itself. VLANs, bonds, bridges and the like have Ethernet headers as hardware does.
    fn of_uplink(link: &Link) -> Option<Self> {
        let uplink = || link.name.clone();
        if !link.ethernet || link.noarp {
            return Some(Self::NoEthernet { uplink: uplink() });
        }
        let kind = link.kind.as_ref()?;
        TUNNELS.contains(&kind.as_str()).then(|| Self::Tunnel {
            uplink: uplink(),
            kind: kind.clone(),
        })
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoEthernet { .. } => "UplinkWithoutEthernet",
            Self::Tunnel { .. } => "UplinkIsTunnel",
            Self::Ipsec(_) => "IPsecPolicies",
            Self::IpsecUnknown { .. } => "IPsecUnknown",
            Self::OtherLink { .. } => "SeveralUplinks",
        }
    }

    fn refusal(&self) -> UserError {
        let next = match self {
            Self::NoEthernet { .. } | Self::Tunnel { .. } => {
                "name another interface with --uplink".to_owned()
            }
            Self::Ipsec(_) => "ip xfrm policy".to_owned(),
            Self::IpsecUnknown { .. } => "modprobe xfrm_user".to_owned(),
            Self::OtherLink { peer, .. } => format!("ip route get {peer}"),
        };
        let message = format!("--transport direct is impossible, {OVERLAY} does it: {self}");
        UserError::new(codes::DIRECT_IMPOSSIBLE, message, next)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEthernet { uplink } => write!(f, "uplink {uplink} has no Ethernet headers"),
            Self::Tunnel { uplink, kind } => write!(f, "uplink {uplink} is a tunnel ({kind})"),
            Self::Ipsec(Policies {
                count,
                blocks_others: false,
            }) => write!(f, "the node has IPsec policies ({count})"),
            Self::Ipsec(Policies {
                count: _,
                blocks_others: true,
            }) => f.write_str("the node's IPsec drops what no policy speaks of"),
            Self::IpsecUnknown { why } => write!(f, "the kernel does not tell its IPsec policies: {why}"),
            Self::OtherLink { peer, uplink } => {
                write!(
                    f,
                    "packets to node {peer} leave by another interface than {uplink}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use weft_kernel::NetNs;
    use weft_kernel::rtnl::Rtnl;

    #[test]
    fn uplinks_that_are_tunnels_or_have_no_ethernet_headers_are_told_from_vlans_and_bonds() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making network namespaces needs root");
            return;
        }
        let netns = NetNs::create().unwrap();
        let unfit = |make: &str, name: &str| {
            let made = netns.run(|| Command::new("ip").args(make.split(' ')).status().unwrap());
            if !made.unwrap().success() {
                eprintln!("skipped: this kernel makes no {name}");
                return None;
            }
            let link = Rtnl::open_in(&netns).unwrap().get_link(name).unwrap();
            Some(Obstacle::of_uplink(&link).map(|obstacle| obstacle.reason()))
        };
        assert_eq!(unfit("link set lo up", "lo"), Some(Some("UplinkWithoutEthernet")));
        assert_eq!(unfit("link add ve0 type veth peer name ve1", "ve0"), Some(None));
        let vxlan = "link add vx0 type vxlan id 1 dstport 4789 remote 192.0.2.1";
        assert_eq!(unfit(vxlan, "vx0"), Some(Some("UplinkIsTunnel")));
        // What the kernels of test machines need not have.
        for (make, name, expected) in [
            ("link add bond0 type bond", "bond0", None),
            ("link add link ve0 name ve0.5 type vlan id 5", "ve0.5", None),
            ("link add br0 type bridge", "br0", None),
            (
                "link add wg0 type wireguard",
                "wg0",
                Some("UplinkWithoutEthernet"),
            ),
            (
                "tunnel add t0 mode ipip remote 192.0.2.1",
                "t0",
                Some("UplinkWithoutEthernet"),
            ),
        ] {
            if let Some(found) = unfit(make, name) {
                assert_eq!(found, expected, "{name}");
            }
        }
    }
}
