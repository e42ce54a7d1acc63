//! `weft-cni`, called by a container runtime for each sandbox (CNI specification 1.1).
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use weft_cni::plugin::{self, Stdin};

fn main() -> ExitCode {
    plugin::install_panic_hook();
    let outcome = plugin::run(|name| std::env::var_os(name), Stdin::new());

    let mut stderr = io::stderr();
    for note in &outcome.notes {
        // Nobody may be reading; standard output is what counts.
        let _ = writeln!(stderr, "{note}");
    }
    let heard = outcome.answer.as_ref().map_or(Ok(()), plugin::answer_once);
    if let Err(error) = outcome.log.map_or(Ok(()), plugin::Entry::write) {
        let _ = writeln!(stderr, "write the log file: {error}");
    }
    if outcome.success && heard.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
