//! Where the time of one request of the plugin goes, step by step.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::time::{Duration, Instant};

/// A part of an ADD or a DEL, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The plugin, from its start to its request: configuration, environment, the sandbox's namespace.
    Plugin,
    /// From there to the request read: connection, thread, decoding.
    Receive,
    /// Until no other request is at work on the same attachment, and no pass or GC under way; then, for an ADD with its
    /// address, until it is its turn to have an interface made.
    Wait,
    /// ADD: an address, by the ledger, which begins to write it.
    Reserve,
    /// ADD: the veth pair.
    Create,
    /// ADD: eBPF programs and the map's entry.
    Programs,
    /// ADD: address, routes and neighbour in the pod's namespace.
    Pod,
    /// ADD: the node's end up, its route and neighbour.
    Node,
    /// DEL: what the ledger and the kernel have of the attachment.
    Find,
    /// DEL: map entry and route removed, the interface left to the reaper.
    Cut,
    /// Until it is durable that the address is free or, for an ADD, that the attachment is made: what the write takes
    /// beyond the steps since it began.
    Record,
    /// ADD: the mark of an unfinished attachment taken off.
    Finish,
    /// What no other step names: the intent of a DEL, what fails, all of the other commands.
    Rest,
    /// The reply, written.
    Answer,
}

/// The steps of a request so far.
#[derive(Debug)]
pub struct Steps {
    last: Cell<Instant>,
    done: RefCell<Vec<(Step, Duration)>>,
}

// === impl Step ===

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Receive => "receive",
            Self::Wait => "wait",
            Self::Reserve => "reserve",
            Self::Create => "create",
            Self::Programs => "programs",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Find => "find",
            Self::Cut => "cut",
            Self::Record => "record",
            Self::Finish => "finish",
            Self::Rest => "rest",
            Self::Answer => "answer",
        }
    }
}

// === impl Steps ===

impl Steps {
    /// The first step begins now.
    pub fn begin() -> Self {
        Self {
            last: Cell::new(Instant::now()),
            done: RefCell::default(),
        }
    }

    /// A step ends now, and the next one begins.
    pub fn done(&self, step: Step) {
        let now = Instant::now();
        self.note(step, now.saturating_duration_since(self.last.replace(now)));
    }

    /// The step under way begins now.
    pub fn restart(&self) {
        self.last.set(Instant::now());
    }

    /// A step that was measured elsewhere. The one under way goes on.
    pub fn note(&self, step: Step, took: Duration) {
        self.done.borrow_mut().push((step, took));
    }

    /// All together.
    pub fn total(&self) -> Duration {
        self.done.borrow().iter().map(|(_, took)| *took).sum()
    }

    /// What was measured, in order. A step that was repeated is there as often.
    pub fn into_all(self) -> Vec<(Step, Duration)> {
        self.done.into_inner()
    }
}

/// In milliseconds: `plugin=0.41 receive=0.12 …`.
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (step, took)) in self.done.borrow().iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{}={:.2}", step.name(), took.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ends_where_the_next_begins_and_what_was_measured_elsewhere_takes_nothing_from_it() {
        let steps = Steps::begin();
        steps.note(Step::Plugin, Duration::from_micros(412));
        std::thread::sleep(Duration::from_millis(2));
        steps.done(Step::Receive);
        steps.done(Step::Wait);
        let text = steps.to_string();
        assert!(text.starts_with("plugin=0.41 receive="), "{text}");
        let total = steps.total();
        let all = steps.into_all();
        let names: Vec<_> = all.iter().map(|(step, _)| step.name()).collect();
        assert_eq!(names, ["plugin", "receive", "wait"]);
        assert!(all[1].1 >= Duration::from_millis(2), "{text}");
        assert!(all[2].1 < all[1].1, "{text}");
        assert_eq!(total, all.iter().map(|(_, took)| *took).sum::<Duration>());
    }
}
