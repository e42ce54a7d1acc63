use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;
use aya::util::KernelVersion;

use super::cause::AyaError;
use super::filter::Filters;
use super::pins::remove_file;
use super::{Datapath, Program, filter, interface};
use crate::error::{Cause, Context, Error, Result};

/// First kernel with TCX links (commit e420bed02507).
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

/// What [`Datapath::attached`] does, for errors.
const LIST: &str = "list eBPF programs of interface";

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Where each is best: TCX for the overlay and the uplink, which others may have programs on, too; filters of a
    /// clsact qdisc for pods' interfaces, where TCX waits for two RCU grace periods under the RTNL lock, about 25 ms of
    /// every ADD (`tcx_entry_sync`, include/net/tcx.h). Clsact everywhere on kernels without TCX (before 6.6).
    Auto,
    /// TCX everywhere: links that are pinned and replaced atomically.
    Tcx,
    /// Filters of a clsact qdisc everywhere.
    Clsact,
}

/// Which way packets go at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// From the wire, or from the pod, into the node.
    Ingress,
    /// Out of the node.
    Egress,
}

/// A program of ours that runs at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// Interface index.
    pub ifindex: u32,
    /// The program; its hook follows from it.
    pub program: Program,
}

// === impl AttachMode ===

impl AttachMode {
    /// The mode that this kernel can do.
    pub(super) fn on_this_kernel(self) -> Self {
        match self {
            Self::Auto if KernelVersion::current().is_ok_and(|version| version >= TCX_SINCE) => Self::Auto,
            Self::Auto => Self::Clsact,
            chosen => chosen,
        }
    }

    fn tcx_for(self, program: Program) -> bool {
        match self {
            Self::Auto => !matches!(program, Program::FromPod | Program::ToPod),
            Self::Tcx => true,
            Self::Clsact => false,
        }
    }
}

// === impl Hook ===

impl Hook {
    const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

// === impl Datapath ===

impl Datapath {
    /// Puts the pod programs on the host side of a pod's veth pair. Idempotent: where an older agent's programs are,
    /// these take their place between two packets.
    ///
    /// # Errors
    /// `name` is not the interface with the index (`ENODEV`), or the kernel refused.
    pub fn attach_pod(&mut self, ifindex: u32, name: &str) -> Result<()> {
        self.attach_all(ifindex, name, [Program::FromPod, Program::ToPod])
    }

    /// The same for the overlay device.
    ///
    /// # Errors
    /// As for [`attach_pod`](Self::attach_pod).
    pub fn attach_overlay(&mut self, ifindex: u32, name: &str) -> Result<()> {
        self.attach_all(ifindex, name, [Program::FromOverlay, Program::ToOverlay])
    }

    /// The same for the uplink.
    ///
    /// # Errors
    /// As for [`attach_pod`](Self::attach_pod).
    pub fn attach_uplink(&mut self, ifindex: u32, name: &str) -> Result<()> {
        self.attach_all(ifindex, name, [Program::FromUplink, Program::ToUplink])
    }

    /// Takes our programs off an interface, or away what is left of them when the interface is gone.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn detach(&mut self, ifindex: u32) -> Result<()> {
        for hook in Hook::ALL {
            if self.attach != AttachMode::Tcx {
                filter::remove(ifindex, hook).context("detach eBPF program from interface", ifindex)?;
            }
            remove_file(&self.pins.link(ifindex, hook))?;
        }
        Ok(())
    }

    /// What runs, as the kernel tells: a pin alone proves nothing. Interfaces of the calling thread's network namespace
    /// only, which must be the one that the programs were attached in.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn attached(&mut self) -> Result<BTreeSet<Attachment>> {
        let mut found = BTreeSet::new();
        let mut add = |ifindex, program: Option<Program>| {
            found.extend(program.map(|program| Attachment { ifindex, program }));
        };
        if self.attach != AttachMode::Clsact {
            for (ifindex, hook) in self.pins.links()? {
                add(ifindex, self.link_program(ifindex, hook)?);
            }
        }
        if self.attach != AttachMode::Tcx {
            let mut filters = Filters::open().context(LIST, "all")?;
            for ifindex in filters.interfaces().context(LIST, "all")? {
                for hook in Hook::ALL {
                    add(ifindex, filters.program(ifindex, hook).context(LIST, ifindex)?);
                }
            }
        }
        Ok(found)
    }

    /// The same for one interface, without looking at others. Empty if there is no such interface.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn attached_to(&self, ifindex: u32) -> Result<BTreeSet<Program>> {
        let mut found = BTreeSet::new();
        for hook in Hook::ALL {
            if self.attach != AttachMode::Clsact && self.pins.link(ifindex, hook).exists() {
                found.extend(self.link_program(ifindex, hook)?);
            }
        }
        if self.attach != AttachMode::Tcx {
            let mut filters = Filters::open().context(LIST, ifindex)?;
            for hook in Hook::ALL {
                found.extend(filters.program(ifindex, hook).context(LIST, ifindex)?);
            }
        }
        Ok(found)
    }

    /// Which of our programs runs by the pinned link of a hook.
    fn link_program(&self, ifindex: u32, hook: Hook) -> Result<Option<Program>> {
        let Some(name) = interface::name(ifindex).context(LIST, ifindex)? else {
            return Ok(None);
        };
        let (_, programs) = SchedClassifier::query_tcx(&name, hook.attach_type()).context(LIST, &name)?;
        let pinned = pinned_program(&self.pins.link(ifindex, hook)).context(LIST, &name)?;
        Ok(programs
            .iter()
            .filter(|program| program.id() == pinned)
            .find_map(|program| Program::by_name(program.name_as_str()?)))
    }

    pub(super) fn detach_all_filters(&mut self) -> Result<()> {
        for Attachment { ifindex, .. } in self.attached()? {
            self.detach(ifindex)?;
        }
        Ok(())
    }

    fn attach_all(&mut self, ifindex: u32, name: &str, programs: [Program; 2]) -> Result<()> {
        const OPERATION: &str = "attach eBPF program to interface";
        if interface::index(name).context(OPERATION, name)? != Some(ifindex) {
            let gone = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(Error::new(
                OPERATION,
                format_args!("{name} ({ifindex})"),
                Cause::Errno(gone),
            ));
        }
        for program in programs {
            let pin = self.pins.link(ifindex, program.hook());
            let tcx = self.attach.tcx_for(program);
            let classifier = self.program(program)?;
            let attached = if tcx {
                attach_link(classifier, name, program.hook(), &pin).map_err(Cause::from)
            } else {
                attach_filter(classifier, ifindex, program)
            };
            attached.context(OPERATION, format_args!("{name} ({})", program.name()))?;
        }
        Ok(())
    }
}

/// Takes our filters off all interfaces.
pub(super) fn remove_all_filters() -> Result<()> {
    let mut filters = Filters::open().context(LIST, "all")?;
    for ifindex in filters.interfaces().context(LIST, "all")? {
        for hook in Hook::ALL {
            if filters.program(ifindex, hook).context(LIST, ifindex)?.is_some() {
                filter::remove(ifindex, hook).context("detach eBPF program from interface", ifindex)?;
            }
        }
    }
    Ok(())
}

fn attach_link(program: &mut SchedClassifier, name: &str, hook: Hook, pin: &Path) -> Result<(), AyaError> {
    match update_link(program, pin) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        // The interface that this was the link of is gone, and its index came round again.
        Err(error) if has_errno(&error, libc::ENOLINK) => std::fs::remove_file(pin)?,
        Err(error) => return Err(error),
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(name, hook.attach_type(), options)?;
    take_fd(program, id)?.pin(pin)?;
    Ok(())
}

/// Swaps the program of a pinned link. `false` if there is none.
fn update_link(program: &mut SchedClassifier, pin: &Path) -> Result<bool, AyaError> {
    let pinned = match PinnedLink::from_pin(pin) {
        Ok(pinned) => FdLink::from(pinned),
        Err(LinkError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let id = program.attach_to_link(pinned.try_into()?)?;
    take_fd(program, id)?;
    Ok(true)
}

/// Takes a link out of aya's hands, which would detach it together with the program.
fn take_fd(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<FdLink, AyaError> {
    Ok(program.take_link(id)?.try_into()?)
}

fn attach_filter(program: &mut SchedClassifier, ifindex: u32, kind: Program) -> Result<(), Cause> {
    let fd = program.fd()?;
    filter::set(ifindex, kind.hook(), kind.name(), fd.as_fd())
}

pub(super) fn pinned_program(pin: &Path) -> Result<u32, LinkError> {
    Ok(FdLink::from(PinnedLink::from_pin(pin)?).info()?.program_id())
}

fn has_errno(error: &AyaError, errno: i32) -> bool {
    matches!(error, AyaError::Program(ProgramError::SyscallError(failed))
        if failed.io_error.raw_os_error() == Some(errno))
}
