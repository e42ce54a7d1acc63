//! `weft-cni`, called by a container runtime for each sandbox (CNI specification 1.1).
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use weft_cni::install::LOOPBACK;
use weft_cni::plugin::{self, Stdin};

fn main() -> ExitCode {
    plugin::install_panic_hook();
    let lookup = |name: &str| std::env::var_os(name);
    let outcome = if is_called(LOOPBACK) {
        plugin::run_loopback(lookup, Stdin::new())
    } else {
        plugin::run(lookup, Stdin::new())
    };

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

/// Whether this program was started under that file name.
fn is_called(name: &str) -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|path| Path::new(&path).file_name() == Some(OsStr::new(name)))
}
