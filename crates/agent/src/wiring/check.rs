//! CHECK: one attachment, compared with what ADD makes of it on the node and in the pod.

use super::{Attachment, Difference, GATEWAY, POD_PROGRAMS, Wiring, WiringError, host_mtu, owned};
use crate::node::lock;
use std::fmt;
use weft_kernel::NetNs;
use weft_kernel::rtnl::{RouteFilter, Rtnl};

#[derive(Default)]
struct Differences(Vec<Difference>);

// === impl Wiring ===

impl Wiring {
    /// How the attachment differs from what ADD makes, on the node and in the pod.
    pub(super) fn differences(
        &self,
        attachment: &Attachment,
        netns: &NetNs,
        mtu: u32,
    ) -> Result<Vec<Difference>, WiringError> {
        let mut found = Differences::default();
        let name = attachment.host_name();
        let mut node = Rtnl::open()?;
        match node.link(&name)? {
            None => found.add(format!("interface {name} is missing on the node")),
            Some(link) => {
                owned(&link, attachment)?;
                found.unless(link.up, || format!("interface {name} is down"));
                found.equal(&format!("MTU of {name}"), link.mtu, host_mtu(mtu));
                let routes = node.routes(RouteFilter {
                    oif: Some(link.index),
                    ..RouteFilter::default()
                })?;
                found.unless(routes.contains(&attachment.host_route(link.index, mtu)), || {
                    format!(
                        "route {}/32 dev {name} is missing on the node",
                        attachment.address
                    )
                });
                let neighbours = node.neighbours(Some(link.index))?;
                found.unless(
                    neighbours.contains(&attachment.host_neighbour(link.index)),
                    || {
                        format!(
                            "permanent neighbour {} of {name} is missing on the node",
                            attachment.address
                        )
                    },
                );
                let mut datapath = lock(&self.datapath);
                let endpoint = datapath.endpoints().get(&attachment.ip())?;
                found.unless(endpoint == Some(attachment.endpoint(link.index)), || {
                    format!(
                        "the datapath has another entry for {} than it should, or none",
                        attachment.address
                    )
                });
                let attached = datapath.attached_to(link.index)?;
                for program in POD_PROGRAMS {
                    found.unless(attached.contains(&program), || {
                        format!("program {} is not attached to {name}", program.name())
                    });
                }
            }
        }
        let in_pod = netns.run(|| inside(attachment, mtu))??;
        found.0.extend(in_pod.0);
        Ok(found.0)
    }
}

// === impl Differences ===

impl Differences {
    fn add(&mut self, what: String) {
        self.0.push(Difference(what));
    }

    fn unless(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.add(what());
        }
    }

    fn equal<T: PartialEq + fmt::Display + Copy>(&mut self, what: &str, is: T, should: T) {
        if is != should {
            self.add(format!("{what} is {is} and should be {should}"));
        }
    }
}

// === private ===

/// The pod's side of CHECK; runs in the pod's namespace.
fn inside(attachment: &Attachment, mtu: u32) -> Result<Differences, weft_kernel::Error> {
    let mut found = Differences::default();
    let name = attachment.pod_name();
    let mut pod = Rtnl::open()?;
    let Some(link) = pod.link(name)? else {
        found.add(format!("interface {name} is missing in the pod"));
        return Ok(found);
    };
    found.unless(link.up, || format!("interface {name} is down in the pod"));
    found.unless(link.mac == Some(attachment.pod_mac()), || {
        format!(
            "{name} in the pod has another MAC address than {}",
            attachment.pod_mac()
        )
    });
    // A plugin later in the chain may have lowered the MTU on purpose; a higher one breaks large packets.
    found.unless(link.mtu <= mtu, || {
        format!("MTU of {name} in the pod is {} and should be {mtu}", link.mtu)
    });
    let addresses = pod.addresses(Some(link.index))?;
    found.unless(
        addresses.iter().any(|held| held.net.addr() == attachment.ip()),
        || format!("{name} in the pod does not have {}", attachment.address),
    );
    let routes = pod.routes(RouteFilter {
        oif: Some(link.index),
        ..RouteFilter::default()
    })?;
    for route in Attachment::pod_routes(link.index) {
        let there = routes
            .iter()
            .any(|held| (held.dst, held.gateway) == (route.dst, route.gateway));
        found.unless(there, || match route.gateway {
            Some(gateway) => format!("default route via {gateway} dev {name} is missing in the pod"),
            None => format!("route {} dev {name} is missing in the pod", route.dst),
        });
    }
    let neighbours = pod.neighbours(Some(link.index))?;
    found.unless(neighbours.contains(&attachment.pod_neighbour(link.index)), || {
        format!("permanent neighbour {GATEWAY} of {name} is missing in the pod")
    });
    Ok(found)
}
