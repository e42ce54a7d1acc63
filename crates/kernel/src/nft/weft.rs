//! Weft's table: what leaves the overlay gets the node's address.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::consts::{NF_IP_PRI_NAT_SRC, NF_IP_PRI_RAW};
use super::table::{Action, Base, Chain, ChainKind, Hook, Interface, Match, Rule, Ruleset, Table};
use crate::error::Result;

/// Name of Weft's table in the family `ip`.
pub const WEFT_TABLE: &str = "weft";

/// Links of Weft's are called so: `weft0` and the pods' veths.
const WEFT_LINKS: Interface = Interface::Prefix("weft");

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

const TO_TUNNEL_PORT: &str = "pod to tunnel port";

/// What Weft's table depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeftNft {
    /// All ranges that pods have addresses of.
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Ranges outside the overlay that are reached with the pod's own address.
    pub non_masquerade: Vec<Ipv4Net>,
    /// The ranges among those that this node's own pods have addresses of.
    pub blocks: Vec<Ipv4Net>,
    /// Addresses of this node.
    pub node_addrs: Vec<Ipv4Addr>,
    /// The link that carries the overlay's packets, where it is known.
    pub uplink: Option<String>,
    /// The overlay's device.
    pub overlay: String,
    /// Source ports of masqueraded TCP and UDP.
    pub port_range: RangeInclusive<u16>,
    /// The overlay's UDP port.
    pub vxlan_port: u16,
}

/// Weft's table as a batch.
///
/// - `postrouting`: a pod's connection that leaves by a link that is not
///   Weft's, to an address that is neither a pod's nor exempt, is masqueraded
///   (`outside`). A connection into the overlay whose source is neither this
///   node's nor a pod's of it, a NodePort client's or that of a pod of another
///   node, gets the overlay device's address, which is the node's (`overlay`):
///   the other end believes this node no other source, and has to answer by
///   this node.
/// - `guard`, after all NAT, drops two things. A pod's UDP to the overlay's
///   port: masqueraded, or as a reply translated back, it comes from a node,
///   whose packets other nodes believe. The pod's own program refuses this for
///   the nodes' addresses that it knows, but sees neither what NAT makes of
///   another destination nor a node's further addresses. That a pod sent it,
///   the connection tells, whatever its source is by now. And what still has a
///   pod's source and is not exempt (`untranslated`): what conntrack considers
///   invalid and so no NAT touches, such as a late TCP segment. It is one
///   chain because each costs every packet that the node forwards.
/// - `prerouting` and `output`: the overlay's outer packets aren't tracked.
///
/// # Errors
/// The name of a link is too long, or the range of ports empty.
pub fn weft_table(weft: &WeftNft) -> Result<Ruleset> {
    Table {
        name: WEFT_TABLE.to_owned(),
        comment: "made by the weft agent, replaced as a whole".to_owned(),
        chains: vec![
            guard(weft),
            untranslated(weft),
            postrouting(weft),
            outside(weft),
            overlay(weft),
            untracked("prerouting", Hook::Prerouting, weft, Match::Iif),
            untracked("output", Hook::Output, weft, Match::Oif),
        ],
    }
    .compile()
}

fn postrouting(weft: &WeftNft) -> Chain {
    let into_overlay = rule(
        [Match::Oif(Interface::Named(weft.overlay.clone()))],
        Action::Goto("overlay"),
    );
    let to_pod = rule([Match::Oif(WEFT_LINKS)], Action::Return);
    let from_pod = |net| rule([Match::Source(net)], Action::Goto("outside"));
    Chain {
        name: "postrouting",
        base: Some(Base {
            kind: ChainKind::Nat,
            hook: Hook::Postrouting,
            priority: NF_IP_PRI_NAT_SRC,
        }),
        rules: [into_overlay, to_pod]
            .into_iter()
            .chain(Ipv4Net::aggregate(&weft.pod_cidrs).into_iter().map(from_pod))
            .collect(),
    }
}

/// From a pod, out of a link that is not Weft's.
fn outside(weft: &WeftNft) -> Chain {
    let direct = [weft.pod_cidrs.as_slice(), &weft.non_masquerade].concat();
    let direct = Ipv4Net::aggregate(&direct)
        .into_iter()
        .map(|net| rule([Match::Destination(net)], Action::Return));
    let with_port = |protocol| {
        let ports = Some(weft.port_range.clone());
        rule([Match::Protocol(protocol)], Action::Masquerade(ports)).counted("pod to outside")
    };
    let without = rule([], Action::Masquerade(None)).counted("pod to outside");
    Chain {
        name: "outside",
        base: None,
        rules: direct.chain([with_port(TCP), with_port(UDP), without]).collect(),
    }
}

/// Into the overlay.
fn overlay(weft: &WeftNft) -> Chain {
    let known: Vec<Ipv4Net> = weft
        .node_addrs
        .iter()
        .copied()
        .map(Ipv4Net::from)
        .chain(weft.blocks.iter().copied())
        .collect();
    let known = Ipv4Net::aggregate(&known)
        .into_iter()
        .map(|net| rule([Match::Source(net)], Action::Return));
    let stranger = rule([], Action::Masquerade(None)).counted("stranger to remote pod");
    Chain {
        name: "overlay",
        base: None,
        rules: known.chain([stranger]).collect(),
    }
}

fn guard(weft: &WeftNft) -> Chain {
    let pods = Ipv4Net::aggregate(&weft.pod_cidrs);
    let fence = pods.iter().flat_map(|net| {
        [Match::Beginner(*net), Match::Answerer(*net)].map(|pod| {
            let [udp, port] = to_tunnel_port(weft);
            rule([udp, port, Match::OifNot(WEFT_LINKS), pod], Action::Drop).counted(TO_TUNNEL_PORT)
        })
    });
    let from_pod = pods.iter().map(|net| {
        rule(
            [Match::Source(*net), Match::OifNot(WEFT_LINKS)],
            Action::Goto("untranslated"),
        )
    });
    Chain {
        name: "guard",
        base: Some(Base {
            kind: ChainKind::Filter,
            hook: Hook::Postrouting,
            priority: NF_IP_PRI_NAT_SRC + 10,
        }),
        rules: fence.chain(from_pod).collect(),
    }
}

/// Still with a pod's source, out of a link that is not Weft's.
fn untranslated(weft: &WeftNft) -> Chain {
    let fence = rule(to_tunnel_port(weft), Action::Drop).counted(TO_TUNNEL_PORT);
    let exempt = Ipv4Net::aggregate(&weft.non_masquerade)
        .into_iter()
        .map(|net| rule([Match::Destination(net)], Action::Return));
    let other = rule([], Action::Drop).counted("pod source not translated");
    Chain {
        name: "untranslated",
        base: None,
        rules: [fence].into_iter().chain(exempt).chain([other]).collect(),
    }
}

fn to_tunnel_port(weft: &WeftNft) -> [Match; 2] {
    [Match::Protocol(UDP), Match::DestinationPort(weft.vxlan_port)]
}

fn untracked(name: &'static str, hook: Hook, weft: &WeftNft, link: fn(Interface) -> Match) -> Chain {
    let uplink = weft.uplink.clone().map(|uplink| link(Interface::Named(uplink)));
    let outer = uplink
        .into_iter()
        .chain([Match::Protocol(UDP), Match::DestinationPort(weft.vxlan_port)]);
    Chain {
        name,
        base: Some(Base {
            kind: ChainKind::Filter,
            hook,
            priority: NF_IP_PRI_RAW,
        }),
        rules: vec![rule(outer, Action::Notrack)],
    }
}

fn rule(when: impl IntoIterator<Item = Match>, then: Action) -> Rule {
    Rule {
        comment: "",
        when: when.into_iter().collect(),
        counted: false,
        then,
    }
}

// === impl Rule ===

impl Rule {
    fn counted(self, comment: &'static str) -> Self {
        Self {
            comment,
            counted: true,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ports_that_the_kernel_would_misunderstand_are_refused() {
        let weft = WeftNft {
            pod_cidrs: Vec::new(),
            non_masquerade: Vec::new(),
            blocks: Vec::new(),
            node_addrs: Vec::new(),
            uplink: None,
            overlay: "weft0".to_owned(),
            port_range: 32768..=65535,
            vxlan_port: 8472,
        };
        assert!(weft_table(&weft).is_ok());
        for wrong in [
            WeftNft {
                overlay: "sixteen-letters-".to_owned(),
                ..weft.clone()
            },
            WeftNft {
                overlay: String::new(),
                ..weft.clone()
            },
            WeftNft {
                uplink: Some(String::new()),
                ..weft.clone()
            },
            WeftNft {
                port_range: RangeInclusive::new(2, 1),
                ..weft.clone()
            },
            WeftNft {
                port_range: 0..=10,
                ..weft.clone()
            },
        ] {
            assert!(weft_table(&wrong).is_err(), "{wrong:?}");
        }
    }
}
