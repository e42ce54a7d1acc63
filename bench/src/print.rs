//! The only module that writes to the terminal. A closed pipe is not an error.

use std::io::Write;

/// Prints one line to standard output: results.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more.
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Prints one line to standard error: progress.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints an error with its causes to standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
}
