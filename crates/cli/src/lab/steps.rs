//! Steps of long actions, live: drawn over one another on a terminal, one line each elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use weft_lab::control::{Event, Step};

use crate::out;

/// Shows the steps of one action.
#[derive(Debug)]
pub(crate) struct Steps {
    current: Option<(String, ProgressBar)>,
}

// === impl Steps ===

impl Steps {
    pub(crate) fn new() -> Self {
        Self { current: None }
    }

    /// Shows what an event tells.
    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::Step(step) => self.step(step),
            Event::Note { text } => {
                self.end();
                out::note(text);
            }
            Event::Done { .. } | Event::Failed(_) => self.end(),
        }
    }

    /// Leaves the terminal as it was.
    pub(crate) fn end(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, step: &Step) {
        if let Some(done) = step.done_ms {
            self.end();
            out::note(format!(
                "{} {:<16} {} {}",
                out::tone_err(out::mark(true), out::Tone::Good),
                step.what,
                step.detail,
                out::tone_err(
                    &format!("({:.2} s)", Duration::from_millis(done).as_secs_f64()),
                    out::Tone::Faint
                ),
            ));
            return;
        }
        if !out::live() {
            return;
        }
        if self.current.as_ref().is_none_or(|(what, _)| *what != step.what) {
            self.end();
            self.current = Some((step.what.clone(), bar(step)));
        }
        if let Some((_, bar)) = &self.current {
            if let Some((done, total)) = fraction(&step.detail) {
                bar.set_length(total);
                bar.set_position(done);
            }
            bar.set_message(format!("{:<16} {}", step.what, step.detail));
        }
    }
}

fn bar(step: &Step) -> ProgressBar {
    let template = if fraction(&step.detail).is_some() {
        "{spinner} {msg} {bar:30}"
    } else {
        "{spinner} {msg}"
    };
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// `1/2` as numbers.
fn fraction(detail: &str) -> Option<(u64, u64)> {
    let (done, total) = detail.split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?))
}
