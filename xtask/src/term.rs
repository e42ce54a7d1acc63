//! What the commands print. The only module that writes to the terminal; a closed pipe is not an error.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

/// Terminal styles, empty where the output is no terminal or `NO_COLOR` is set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) bold: &'static str,

    pub(crate) green: &'static str,
    pub(crate) yellow: &'static str,
    pub(crate) red: &'static str,
    pub(crate) reset: &'static str,
}

/// The styles in force.
pub(crate) fn style() -> &'static Style {
    static STYLE: OnceLock<Style> = OnceLock::new();
    STYLE.get_or_init(|| {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if plain || !std::io::stdout().is_terminal() {
            Style {
                bold: "",

                green: "",
                yellow: "",
                red: "",
                reset: "",
            }
        } else {
            Style {
                bold: "\x1b[1m",
                green: "\x1b[32m",
                yellow: "\x1b[33m",
                red: "\x1b[31m",
                reset: "\x1b[0m",
            }
        }
    })
}

/// Prints one line.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more, as in `cargo xtask help | head -1`.
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Prints the title of a section.
pub(crate) fn section(title: &str) {
    let s = style();
    line(&format!("\n{}== {title}{}", s.bold, s.reset));
}

/// Prints a command before it runs, in the form in which it can be pasted.
pub(crate) fn command(text: &str) {
    let s = style();
    line(&format!("{}$ {text}{}", s.bold, s.reset));
}

/// Prints one thing that was looked for: a mark, its name, what was found.
pub(crate) fn item(mark: Mark, name: &str, detail: impl Display) {
    let s = style();
    let (sign, colour) = match mark {
        Mark::Good => ("ok", s.green),
        Mark::Note => ("--", s.yellow),
        Mark::Bad => ("!!", s.red),
    };
    line(&format!("{colour}{sign:>4}{}  {name:<24} {detail}", s.reset));
}

/// The verdict of an [`item`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Good,
    Note,
    Bad,
}

/// Prints an error with its causes to standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let s = style();
    let _ = writeln!(std::io::stderr(), "{}error{}: {error:#}", s.red, s.reset);
}

/// A duration as people read it: `340 ms`, `4.2 s`, `3 min 20 s`.
pub(crate) fn duration(d: Duration) -> String {
    let seconds = d.as_secs_f64();
    if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {} s", d.as_secs() / 60, d.as_secs() % 60)
    }
}
