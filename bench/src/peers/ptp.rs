//! The reference plugin ptp with routes from node to node, masqueraded by nftables: no encapsulation.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{Attach, Nodes, fresh, write_conf};
use crate::competitor::masquerade;
use crate::left::Books;
use crate::modules;
use crate::netns::Underlay;

const SLOT: u8 = 3;

pub(super) fn start(cache: &Path, out: &Path, underlay: &Underlay) -> Result<Nodes> {
    let plugins = modules::PLUGINS.programs(cache)?;
    let dir = out.join("ptp");
    fresh(&dir)?;
    let address = |node: u8| Ipv4Addr::new(172, 30, 0, 10 * SLOT + node);
    let subnet = |node: u8| format!("10.245.{}.0/23", 2 * node);
    let mut attach = Vec::new();
    let nodes = [
        underlay.routed_node("t1", address(1))?,
        underlay.routed_node("t2", address(2))?,
    ];
    for (this, node) in (1..).zip(&nodes) {
        let other = 3 - this;
        node.ip(&[format!("route add {} via {}", subnet(other), address(other))])?;
        masquerade(node, "10.245.0.0/16")?;
        let conf = dir.join(format!("{this}.conflist"));
        write_conf(
            &conf,
            "ptp",
            &json!({
                "type": "ptp",
                "mtu": Underlay::MTU,
                "ipam": {
                    "type": "host-local",
                    "dataDir": dir.join(format!("addresses-{this}")),
                    "ranges": [[{"subnet": subnet(this)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }),
        )?;
        attach.push(Attach {
            node: node.place(),
            conf,
            plugins: plugins.clone(),
            books: Books::Files(dir.join(format!("addresses-{this}/ptp"))),
        });
    }
    Ok(Nodes {
        name: "ptp-routes",
        about: format!(
            "ptp + host-local {}, routes between the nodes",
            modules::PLUGINS.version
        ),
        nodes,
        attach: super::two(attach)?,
        slot: SLOT.into(),
        agents: Vec::new(),
        kept: Vec::new(),
    })
}
