//! One pass of the reconciler over a part of the kernel: it either only looks, or puts right what it finds.
//!
//! An audit is a pass that looks, so that it can't disagree with the repair about what is right.

use std::collections::BTreeMap;
use std::fmt::Debug;
use weft_kernel::sysctl::{self, Key};
use weft_kernel::target::{self, Target, compare};
use weft_model::audit::{Finding, FindingKind, Remedy};

/// Entries of a map that a finding names one by one; more are counted.
const NAMED: usize = 3;

/// What a pass found, and whether it changes anything.
#[derive(Debug)]
pub struct Pass {
    mends: bool,
    extent: Extent,
    findings: Vec<Finding>,
}

/// How much a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    All,
    /// The eBPF maps, whose changes no event tells of.
    Maps,
}

// === impl Pass ===

impl Pass {
    /// Puts right what it finds.
    pub fn mending() -> Self {
        Self {
            mends: true,
            extent: Extent::All,
            findings: Vec::new(),
        }
    }

    /// Changes nothing.
    pub fn looking() -> Self {
        Self {
            mends: false,
            extent: Extent::All,
            findings: Vec::new(),
        }
    }

    /// Looks at no more than this.
    pub fn within(self, extent: Extent) -> Self {
        Self { extent, ..self }
    }

    pub fn is_of_maps_only(&self) -> bool {
        self.extent == Extent::Maps
    }

    /// Notes a difference that the agent puts right; returns whether that is to be done now.
    pub fn differs(&mut self, kind: FindingKind, owner: &str, what: impl Into<String>) -> bool {
        self.findings.push(Finding {
            kind,
            what: what.into(),
            owner: owner.into(),
            remedy: Remedy::Agent,
        });
        self.mends
    }

    /// Notes a difference that this pass can't put right, for whoever only looks.
    pub fn note(&mut self, kind: FindingKind, owner: &str, what: impl Into<String>, remedy: Remedy) {
        if !self.mends {
            self.findings.push(Finding {
                kind,
                what: what.into(),
                owner: owner.into(),
                remedy,
            });
        }
    }

    /// Compares a map with what it should hold.
    ///
    /// # Errors
    /// The kernel's refusal; the findings up to there are noted.
    pub fn table<T: Target>(
        &mut self,
        name: &str,
        owner: impl Fn(&T::Key) -> String,
        map: &mut T,
        desired: &BTreeMap<T::Key, T::Value>,
    ) -> Result<(), weft_kernel::Error> {
        let found = compare(map, desired)?;
        for (keys, what) in [
            (&found.missing, "lacks"),
            (&found.changed, "has another entry than it should for"),
            (&found.extra, "has an entry that belongs to nobody for"),
        ] {
            let Some(first) = keys.first() else { continue };
            let named: Vec<String> = keys.iter().take(NAMED).map(|key| format!("{key:?}")).collect();
            let more = match keys.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            self.differs(
                FindingKind::Map,
                &owner(first),
                format!("map {name} {what} {}{more}", named.join(", ")),
            );
        }
        if self.mends && !found.is_empty() {
            let outcome = target::reconcile(map, desired)?;
            if let Some((_, error)) = outcome.failed.into_iter().next() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Puts names that people know in the place of owners.
    pub fn rename_owners(&mut self, names: &BTreeMap<String, String>) {
        for finding in &mut self.findings {
            if let Some(name) = names.get(&finding.owner) {
                finding.owner.clone_from(name);
            }
        }
    }

    /// Compares a parameter of the calling thread's namespace with what it should be. A kernel that does not have it is
    /// fine.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn sysctl(&mut self, owner: &str, key: &Key, wanted: &str) -> Result<(), weft_kernel::Error> {
        let held = match sysctl::read_current(key) {
            Err(error) if error.is_not_found() => return Ok(()),
            held => held?,
        };
        if held != wanted
            && self.differs(
                FindingKind::Sysctl,
                owner,
                format!("{key} is {held} and should be {wanted}"),
            )
        {
            sysctl::write_current(&[(key.clone(), wanted.to_owned())])?;
        }
        Ok(())
    }

    /// Whether this pass changes anything.
    pub fn mends(&self) -> bool {
        self.mends
    }

    /// What was found; in a mending pass, what was put right.
    pub fn into_findings(self) -> Vec<Finding> {
        self.findings
    }
}
