//! Running other programs, with errors that name the command line.

use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A command that starts in the root of the workspace.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(crate::root());
    command
}

/// The cargo of the toolchain that runs this task, free of what that cargo set for it.
///
/// `cargo xtask` runs with `CARGO_*` variables of its own crate; build scripts of a nested cargo must not see them.
pub(crate) fn cargo() -> Command {
    let mut command = command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_CRATE_NAME"
        {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end with the terminal's streams; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs to the end with the terminal's streams.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start `{}`", line(command)))
}

/// Runs to the end and returns what was written, whatever the exit status.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{}`", line(command)))
}

/// Standard output without the last line end; an exit status other than 0 is an error that carries standard error.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}: {}",
            line(command),
            output.status,
            stderr.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// The command line as a shell would take it.
pub(crate) fn line(command: &Command) -> String {
    let env = command
        .get_envs()
        .filter(|(name, _)| *name != "PATH")
        .filter_map(|(name, value)| {
            Some(format!(
                "{}={}",
                name.to_string_lossy(),
                quote(&value?.to_string_lossy())
            ))
        });
    let program = command.get_program().to_string_lossy();
    let program = quote(program.rsplit('/').next().unwrap_or(&program));
    let root = format!("{}/", crate::root().display());
    let args = command
        .get_args()
        .map(|arg| quote(&arg.to_string_lossy().replace(&root, "")));
    env.chain([program]).chain(args).collect::<Vec<_>>().join(" ")
}

/// `word` in single quotes where a shell would read it as something else.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::root().join("target"), |dir| crate::root().join(dir))
}
