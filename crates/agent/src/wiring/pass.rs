//! The node's side of all attachments, compared with the ledger and put right.

use super::reaper::{is_doomed, is_unfinished};
use super::{Attachment, LOOSE, POD_PROGRAMS, Wiring, WiringError, attached_by, host_mtu};
use crate::node::lock;
use crate::pass::Pass;
use crate::probe;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use weft_kernel::bpf::{self, Endpoint, Program};
use weft_kernel::rtnl::{Link, Neighbour, Route, RouteFilter, Rtnl};
use weft_kernel::sysctl::Key;
use weft_model::AttachmentKey;
use weft_model::audit::{FindingKind, Remedy};

/// What the kernel holds of all pods, read once for a pass.
struct Held {
    routes: BTreeSet<Route>,
    neighbours: BTreeSet<Neighbour>,
    /// By interface index.
    rp_filters: BTreeMap<u32, u32>,
    programs: BTreeSet<bpf::Attachment>,
}

// === impl Wiring ===

impl Wiring {
    pub(super) fn compare(
        &self,
        attachments: &[Attachment],
        mtu: u32,
        pass: &mut Pass,
    ) -> Result<(), WiringError> {
        let mut node = Rtnl::open()?;
        let reaping = self.reaper.is_busy();
        let (doomed, links): (Vec<Link>, Vec<Link>) = node.links()?.into_iter().partition(is_doomed);
        let (unfinished, links): (Vec<Link>, Vec<Link>) = links.into_iter().partition(is_unfinished);
        let links: BTreeMap<AttachmentKey, Link> = links
            .into_iter()
            .filter_map(|link| Some((attached_by(&link)?, link)))
            .collect();
        let live: Vec<(&Attachment, &Link)> = attachments
            .iter()
            .filter_map(|held| Some((held, links.get(&held.key)?)))
            .collect();
        let endpoints: BTreeMap<IpAddr, Endpoint> = live
            .iter()
            .map(|(held, link)| (held.ip(), held.endpoint(link.index)))
            .collect();
        let owners: BTreeMap<IpAddr, String> = live
            .iter()
            .map(|(held, _)| (held.ip(), held.key.to_string()))
            .collect();
        let owner = |address: &IpAddr| owners.get(address).cloned().unwrap_or_else(|| "nobody".into());
        pass.table(
            "ENDPOINTS",
            owner,
            &mut lock(&self.datapath).endpoints(),
            &endpoints,
        )?;
        if pass.is_of_maps_only() {
            return Ok(());
        }
        // A removal takes longer than this list does: one that is under way shows before or behind it.
        let left = !reaping && !self.reaper.is_busy();
        for link in doomed.iter().filter(|_| left) {
            let what = format!("interface {} of a pod that is gone is there still", link.name);
            if pass.differs(FindingKind::Link, "nobody", what) {
                self.reaper.wake();
            }
        }
        // No ADD is under way while there is a pass.
        for link in unfinished {
            let what = format!(
                "interface {} of an ADD that never ended is there still",
                link.name
            );
            if pass.differs(FindingKind::Link, "nobody", what) {
                self.reaper.doom(&mut node, link.index)?;
            }
        }
        // At the first pass the programs may be those of an earlier agent, to be replaced by this one's.
        let adopted = self.adopted.load(Ordering::Relaxed);
        let held = Held {
            routes: node.routes(RouteFilter::own())?.into_iter().collect(),
            neighbours: node.neighbours(None)?.into_iter().collect(),
            rp_filters: node.rp_filters()?,
            programs: if adopted || !pass.mends() {
                lock(&self.datapath).attached()?
            } else {
                BTreeSet::new()
            },
        };
        let mut failed = None;
        for (attachment, link) in &live {
            match self.compare_one(&mut node, attachment, link, mtu, &held, pass) {
                Ok(()) => {}
                // The pod went away meanwhile.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::error!(%attachment, %error, "cannot put a pod's part of the network right");
                    failed = Some(error);
                }
            }
        }
        let known: BTreeSet<&AttachmentKey> = attachments.iter().map(|held| &held.key).collect();
        for (key, link) in &links {
            if !known.contains(key) && key.container_id() != probe::CONTAINER {
                pass.note(
                    FindingKind::Attachment,
                    &key.to_string(),
                    format!("interface {} belongs to no attachment of the ledger", link.name),
                    Remedy::Person("it goes with its network namespace: recreate the pod".into()),
                );
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        if pass.mends() {
            self.adopted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn compare_one(
        &self,
        node: &mut Rtnl,
        attachment: &Attachment,
        link: &Link,
        mtu: u32,
        held: &Held,
        pass: &mut Pass,
    ) -> Result<(), weft_kernel::Error> {
        let Link { index, name, .. } = link;
        let owner = attachment.key.to_string();
        let missing: Vec<&str> = POD_PROGRAMS
            .into_iter()
            .filter(|&program| {
                !held.programs.contains(&bpf::Attachment {
                    ifindex: *index,
                    program,
                })
            })
            .map(Program::name)
            .collect();
        if !missing.is_empty()
            && pass.differs(
                FindingKind::Program,
                &owner,
                format!("{} not attached to {name}", missing.join(" and ")),
            )
        {
            lock(&self.datapath).attach_pod(*index, name)?;
        }
        let mac = attachment.host_mac();
        if link.mac != Some(mac)
            && pass.differs(
                FindingKind::Link,
                &owner,
                format!("{name} has another Ethernet address than {mac}"),
            )
        {
            node.set_mac(*index, mac)?;
        }
        if link.mtu != host_mtu(mtu)
            && pass.differs(
                FindingKind::Link,
                &owner,
                format!("MTU of {name} is {} and should be {}", link.mtu, host_mtu(mtu)),
            )
        {
            node.set_mtu(*index, host_mtu(mtu))?;
        }
        if held.rp_filters.get(index).map(u32::to_string).as_deref() != Some(LOOSE) {
            pass.sysctl(&owner, &Key::ipv4_conf(name, "rp_filter")?, LOOSE)?;
        }
        if !link.up && pass.differs(FindingKind::Link, &owner, format!("interface {name} is down")) {
            node.set_up(*index, true)?;
        }
        let neighbour = attachment.host_neighbour(*index);
        if !held.neighbours.contains(&neighbour)
            && pass.differs(
                FindingKind::Neighbour,
                &owner,
                format!(
                    "permanent neighbour {} of {name} is missing or changed",
                    attachment.address
                ),
            )
        {
            node.replace_neighbour(&neighbour)?;
        }
        let route = attachment.host_route(*index, mtu);
        if !held.routes.contains(&route)
            && pass.differs(
                FindingKind::Route,
                &owner,
                format!("route {}/32 dev {name} is missing or changed", attachment.address),
            )
        {
            node.replace_route(&route)?;
        }
        for other in held
            .routes
            .iter()
            .filter(|other| other.oif == Some(*index) && **other != route && other.key() != route.key())
        {
            if pass.differs(
                FindingKind::Route,
                &owner,
                format!("route {} dev {name} belongs to nobody", other.dst),
            ) {
                node.delete_route(other)?;
            }
        }
        Ok(())
    }
}
