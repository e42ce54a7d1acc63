//! `weft lab check`.

use weft_lab::check::{self, Selection};
use weft_model::checks::{Checked, Report, Verdict};
use weft_model::{UserError, codes};

use super::signals::Interruption;
use crate::args::Output;
use crate::out::{self, Tone};
use crate::{DEGRADED, OK, runtime};

/// Runs the connectivity suite, or lists it.
pub(crate) fn run(name: &str, selection: &Selection, list: bool, output: Output) -> Result<u8, UserError> {
    if list {
        let rows = check::catalogue()
            .into_iter()
            .map(|(name, description)| vec![name.into(), description.into()])
            .collect();
        out::table(&["check", "what has to hold"], rows);
        return Ok(OK);
    }
    let document = matches!(output, Output::Json | Output::Yaml);
    let report = runtime()?.block_on(async {
        let mut interruption = Interruption::watch()?;
        let on_result = |result: &Checked| {
            if !document {
                show(result, output);
            }
        };
        let outcome = tokio::select! {
            biased;
            by = interruption.comes() => Err(UserError::new(
                codes::INTERRUPTED,
                format!("interrupted by {by}; the probe pods have been removed"),
                format!("weft lab check {name}"),
            )),
            outcome = check::run(name, selection, on_result) => outcome,
        };
        if outcome.is_err() && !selection.keep {
            // What made the checks fail may well stand in the way of this too; the first error is the one to show.
            let _ = check::clean_up(name).await;
        }
        outcome
    })?;
    if document {
        out::document(&report, output)?;
    } else {
        verdict(&report.report);
    }
    Ok(if report.report.ok { OK } else { DEGRADED })
}

fn show(result: &Checked, output: Output) {
    let (mark, tone) = match result.verdict {
        Verdict::Passed => (out::mark(true), Tone::Good),
        Verdict::Failed => (out::mark(false), Tone::Bad),
        Verdict::Skipped => ("-", Tone::Faint),
    };
    out::line(format!(
        "{} {:<30} {}",
        out::tone(mark, tone),
        result.name,
        result.value
    ));
    if result.verdict == Verdict::Failed || output == Output::Wide {
        out::line(format!("    {}", out::tone(result.description, Tone::Faint)));
    }
}

fn verdict(report: &Report) {
    let skipped = if report.skipped > 0 {
        format!(", {} skipped", report.skipped)
    } else {
        String::new()
    };
    out::line("");
    out::line(format!(
        "{} {} of {} checks passed{skipped} in {:.1} s",
        out::tone(
            out::mark(report.ok),
            if report.ok { Tone::Good } else { Tone::Bad }
        ),
        report.passed,
        report.passed + report.failed,
        report.duration_ms as f64 / 1000.0,
    ));
    if report.ok {
        out::line(format!("  next: weft lab apply {} -f examples/", report.cluster));
    } else {
        out::line(format!("  next: weft lab status {}", report.cluster));
    }
}
