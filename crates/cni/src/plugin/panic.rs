//! A runtime gets one JSON object whatever happens, also from a plugin with a defect.

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use weft_model::{UserError, codes};

use crate::spec::{Failure, Version, code};

static ANSWERED: AtomicBool = AtomicBool::new(false);

/// Writes the one JSON object of this process to standard output. Later calls
/// write nothing.
///
/// # Errors
/// If nobody reads it.
pub fn answer_once(answer: &Value) -> io::Result<()> {
    if ANSWERED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let mut line = answer.to_string();
    line.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()
}

/// From now on a panic on any thread ends the process with a CNI error object.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let failure = defect(info);
        let _ = writeln!(io::stderr(), "{failure}");
        let _ = answer_once(&failure.to_json(Version::LATEST));
        end();
    }));
}

#[expect(
    clippy::disallowed_methods,
    reason = "a release build aborts on panic, which no runtime could tell from a kill; nothing here needs a destructor"
)]
fn end() -> ! {
    process::exit(1)
}

fn defect(info: &PanicHookInfo<'_>) -> Failure {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let next = "report it with this text; the runtime tries again by itself";
    Failure::new(
        code::INTERNAL,
        &UserError::new(
            codes::CNI_DEFECT,
            format!("defect in weft-cni at {place}: {message}"),
            next,
        ),
    )
}
