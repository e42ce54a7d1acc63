//! Becoming another program in a namespace of a lab.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;

use weft_lab::exec;
use weft_model::{UserError, codes};

/// Replaces this process by the command, so that signals and exit code are the command's own. Returns the exit
/// code of a shell where the command can't be run.
pub(crate) fn replace_with(netns: &str, argv: &[String]) -> Result<u8, UserError> {
    let error = exec::command(netns, argv)?.exec();
    let program = argv.first().map(String::as_str).unwrap_or_default();
    let next = if error.kind() == ErrorKind::NotFound {
        format!("install {program} on this machine: lab pods have no images")
    } else {
        "check the command".to_owned()
    };
    crate::out::error(&UserError::new(
        codes::UNREADABLE_FILE,
        format!("can't run {program:?}: {error}"),
        next,
    ));
    // POSIX.1-2017, 2.8.2 of the shell language: not found, and found but not executable.
    Ok(if error.kind() == ErrorKind::NotFound {
        127
    } else {
        126
    })
}
