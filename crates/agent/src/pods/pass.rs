//! The pods' part of a pass: what the ledger says of attachments, against the kernel.

use super::{Attachment, Pods};
use crate::pass::{Extent, Pass};
use crate::steps::Steps;
use crate::wiring::PodKernel;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use weft_ipam::ledger::{self, Details, Entry};
use weft_kernel::NetNs;
use weft_kernel::rtnl::Link;
use weft_model::audit::{Finding, FindingKind, Held, Remedy};
use weft_model::{AttachmentKey, UserError, codes};

/// How long a namespace has to be gone before its attachment is given up without a DEL. A runtime that removes a
/// sandbox sends DEL before or right after it removes the namespace.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// What has become of an attachment's network namespace.
enum Namespace {
    Lives(NetNs),
    Gone,
    /// The agent can't see where runtimes keep their namespaces.
    Unseen,
}

// === impl Pods ===

impl<K: PodKernel> Pods<K> {
    /// Puts the kernel's side of all attachments right, with no request under way. Returns what had to be.
    ///
    /// # Errors
    /// [`codes::RECONCILE`], also where one attachment of many is not right: its pod is cut off.
    pub fn repair(&self, mtu: u32) -> Result<Vec<Finding>, UserError> {
        self.repair_at(mtu, Instant::now())
    }

    /// The same for the maps alone.
    ///
    /// # Errors
    /// As for [`repair`](Self::repair).
    pub fn repair_maps(&self, mtu: u32) -> Result<Vec<Finding>, UserError> {
        let mut pass = Pass::mending().within(Extent::Maps);
        self.pass(mtu, Instant::now(), &mut pass)?;
        Ok(pass.into_findings())
    }

    pub(super) fn repair_at(&self, mtu: u32, now: Instant) -> Result<Vec<Finding>, UserError> {
        let mut pass = Pass::mending();
        let adopted = self.adopted.load(Ordering::Relaxed);
        self.pass(mtu, now, &mut pass)?;
        self.adopted.store(true, Ordering::Relaxed);
        // At the first pass the differences are what an agent that ended left behind, or changed since.
        Ok(if adopted { pass.into_findings() } else { Vec::new() })
    }

    /// How the kernel's side of all attachments differs from the ledger, and what the ledger keeps from everybody.
    /// Changes nothing.
    ///
    /// # Errors
    /// As for [`repair`](Self::repair).
    pub fn audit(&self, mtu: u32) -> Result<Vec<Finding>, UserError> {
        let mut pass = Pass::looking();
        self.pass(mtu, Instant::now(), &mut pass)?;
        Ok(pass.into_findings())
    }

    /// Interfaces whose addresses the ledger has released. Opening the ledger undoes what never became active; an agent
    /// that died right behind that, or could not take it out of the kernel, leaves them. One that the ledger never knew is
    /// a running pod's whose ledger was lost, and stays.
    fn released(&self, entries: &[(Ipv4Addr, Entry)], attached: &BTreeSet<AttachmentKey>, pass: &mut Pass) {
        let owners: BTreeSet<_> = entries
            .iter()
            .filter_map(|(_, entry)| entry.owner())
            .map(|owner| &owner.key)
            .collect();
        for key in attached.iter().filter(|key| !owners.contains(key)) {
            let Some(address) = entries.iter().find_map(|(address, entry)| match entry {
                Entry::Released(released) => (released.last.as_ref()?.key == *key).then_some(*address),
                _ => None,
            }) else {
                continue;
            };
            let what = format!("its interface is there still, though {address} was given back");
            if pass.differs(FindingKind::Link, &key.to_string(), what) {
                let attachment = Attachment {
                    key: key.clone(),
                    address,
                };
                if let Err(error) = self.kernel.detach(&attachment) {
                    tracing::error!(%attachment, %error, "cannot remove an interface whose address was given back");
                }
            }
        }
    }

    /// Whether one of the pods' interfaces of these names is not as it should be, or is gone.
    ///
    /// # Errors
    /// The ledger or the kernel can't be read.
    pub fn differ(
        &self,
        names: &BTreeSet<&str>,
        mtu: u32,
        mut link: impl FnMut(&str) -> Result<Option<Link>, weft_kernel::Error>,
    ) -> Result<bool, UserError> {
        let unreadable = |error: &dyn std::fmt::Display| {
            UserError::new(codes::RECONCILE, error.to_string(), "see the agent's log")
        };
        for (address, entry) in self.ledger.list().map_err(|error| unreadable(&error))? {
            let Entry::Active(owner) = entry else { continue };
            let attachment = Attachment {
                key: owner.key,
                address,
            };
            let name = attachment.host_name();
            if !names.contains(name.as_str()) {
                continue;
            }
            let found = link(&name).map_err(|error| unreadable(&error))?;
            if found.is_none_or(|link| attachment.differs(&link, mtu)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Who has which address.
    ///
    /// # Errors
    /// The ledger can't be read.
    pub fn held(&self) -> Result<Vec<Held>, UserError> {
        let held = |(address, entry): (_, Entry)| {
            let owner = entry.owner()?;
            Some(Held {
                address,
                attachment: owner.key.clone(),
                pod: pod_of(owner),
            })
        };
        Ok(self.ledger.list()?.into_iter().filter_map(held).collect())
    }

    fn pass(&self, mtu: u32, now: Instant, pass: &mut Pass) -> Result<(), UserError> {
        let _alone = self.exclusive.write().unwrap_or_else(PoisonError::into_inner);
        let wrong = |message| UserError::new(codes::RECONCILE, message, "see the agent's log");
        let entries = self.ledger.list().map_err(|error| {
            wrong(format!(
                "cannot compare the pods' interfaces with the ledger: {error}"
            ))
        })?;
        let attached = if pass.is_of_maps_only() {
            None
        } else {
            let attached = self
                .kernel
                .attached()
                .map_err(|error| wrong(format!("cannot list the pods' interfaces: {error}")))?;
            Some(BTreeSet::from_iter(attached))
        };
        if let Some(attached) = &attached {
            self.released(&entries, attached, pass);
        }
        let mut attachments = Vec::new();
        for (address, entry) in &entries {
            match entry {
                Entry::Reserved(owner) | Entry::Active(owner) => attachments.push(Attachment {
                    key: owner.key.clone(),
                    address: *address,
                }),
                Entry::Quarantined(quarantined) => pass.note(
                    FindingKind::Quarantine,
                    &quarantined.owner.as_ref().map_or("nobody".into(), named),
                    format!("nobody gets {address}: {}", quarantined.reason),
                    Remedy::Person("recreate the pods that claim it, then restart the agent".into()),
                ),
                Entry::Released(_) => {}
            }
        }
        let wired = self.kernel.pass(&attachments, mtu, pass).map_err(|error| {
            wrong(format!(
                "cannot put the interface of a running pod right: {error}"
            ))
        });
        let lost = attached.map_or(Ok(()), |there| self.lost(&entries, &there, mtu, now, pass));
        let names: BTreeMap<String, String> = entries
            .iter()
            .filter_map(|(_, entry)| entry.owner())
            .map(|owner| (owner.key.to_string(), named(owner)))
            .collect();
        pass.rename_owners(&names);
        wired.and(lost.map_err(wrong))
    }

    /// Attachments whose interface is gone. The namespace takes it along when it ends; one that lives gets a new one.
    fn lost(
        &self,
        entries: &[(Ipv4Addr, Entry)],
        there: &BTreeSet<AttachmentKey>,
        mtu: u32,
        now: Instant,
        pass: &mut Pass,
    ) -> Result<(), String> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|key, _| !there.contains(key));
        let mut failed = Ok(());
        for (address, entry) in entries {
            let Entry::Active(owner) = entry else { continue };
            let key = &owner.key;
            if there.contains(key) {
                continue;
            }
            let id = key.to_string();
            match namespace_of(&owner.details) {
                Namespace::Lives(netns) => {
                    gone.remove(key);
                    let what = format!("its interface in the node and in the pod is gone, {address} with it");
                    if pass.differs(FindingKind::Link, &id, what) {
                        let attachment = Attachment {
                            key: key.clone(),
                            address: *address,
                        };
                        let made = self.kernel.attach(&attachment, &netns, mtu, &Steps::begin());
                        if let Err(error) = made.and_then(|()| self.kernel.finish(&attachment)) {
                            failed = Err(format!("cannot make the interface of {id} anew: {error}"));
                        }
                    }
                }
                Namespace::Gone => {
                    let since = *gone.entry(key.clone()).or_insert(now);
                    let what = format!("its namespace is gone and no DEL came; {address} is still its own");
                    if now.saturating_duration_since(since) < GRACE {
                        pass.note(FindingKind::Attachment, &id, what, Remedy::Agent);
                    } else if pass.differs(FindingKind::Attachment, &id, what) {
                        match self.del_held(key, &Steps::begin()) {
                            Ok(()) => _ = gone.remove(key),
                            Err(failure) => failed = Err(failure.msg),
                        }
                    }
                }
                Namespace::Unseen => pass.note(
                    FindingKind::Attachment,
                    &id,
                    format!(
                        "its interface is gone; {address} stays its own until the runtime says DEL or GC"
                    ),
                    Remedy::Person("recreate the pod".into()),
                ),
            }
        }
        failed
    }
}

/// The attachment by the pod it belongs to, where the runtime named it.
fn named(owner: &ledger::Attachment) -> String {
    pod_of(owner).map_or_else(|| owner.key.to_string(), |pod| format!("pod {pod}"))
}

fn pod_of(owner: &ledger::Attachment) -> Option<String> {
    let pod = &owner.details.pod;
    Some(format!("{}/{}", pod.namespace.as_ref()?, pod.name.as_ref()?))
}

/// Looks where the runtime said at ADD that the namespace is. Its identity is what counts: a path can be somebody
/// else's by now.
fn namespace_of(details: &Details) -> Namespace {
    let Some(path) = details.netns_path.as_deref() else {
        return Namespace::Unseen;
    };
    match NetNs::open(path) {
        Ok(netns) if (netns.id().dev, netns.id().ino) == (details.netns.dev, details.netns.ino) => {
            Namespace::Lives(netns)
        }
        Ok(_) => Namespace::Gone,
        Err(error) if error.is_not_found() && path.parent().is_some_and(Path::is_dir) => Namespace::Gone,
        Err(_) => Namespace::Unseen,
    }
}
