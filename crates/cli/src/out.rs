//! The one place that prints.
//!
//! What was asked for goes to standard output; steps, notes and errors go to standard error. A reader that closes
//! the pipe early is no error.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{Attribute, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use weft_model::{UserError, codes};

use crate::args::Output;

/// Columns below which a table is not broken to fit the terminal.
const NARROWEST: u16 = 40;

static NO_COLOR: AtomicBool = AtomicBool::new(false);

/// How a word is coloured, where colours are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tone {
    Good,
    Bad,
    Warn,
    Faint,
    Strong,
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Option<Tone>,
}

// === impl Cell ===

impl Cell {
    /// A cell in a colour.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone: Some(tone),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            tone: None,
        }
    }
}

impl From<Cell> for comfy_table::Cell {
    fn from(cell: Cell) -> Self {
        let shown = comfy_table::Cell::new(cell.text);
        if !color_on(&io::stdout()) {
            return shown;
        }
        match cell.tone {
            None => shown,
            Some(Tone::Good) => shown.fg(Color::DarkGreen),
            Some(Tone::Bad) => shown.fg(Color::DarkRed).add_attribute(Attribute::Bold),
            Some(Tone::Warn) => shown.fg(Color::DarkYellow),
            Some(Tone::Faint) => shown.add_attribute(Attribute::Dim),
            Some(Tone::Strong) => shown.add_attribute(Attribute::Bold),
        }
    }
}

/// Decides once whether colours may be used.
pub(crate) fn set_no_color(flag: bool) {
    let wished = flag || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    NO_COLOR.store(wished, Ordering::Relaxed);
}

/// A line on standard output.
pub(crate) fn line(text: impl AsRef<str>) {
    write(&mut io::stdout().lock(), text.as_ref(), "\n");
}

/// Text for reading, broken into lines of at most 80 characters.
pub(crate) fn paragraph(text: &str) {
    let mut current = String::new();
    for word in text.split_whitespace() {
        if !current.is_empty() && current.chars().count() + 1 + word.chars().count() > 80 {
            line(&current);
            current.clear();
        }
        if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    line(current);
}

/// Text on standard output as it is.
pub(crate) fn raw(text: &[u8]) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text).and_then(|()| stdout.flush());
}

/// A line on standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    write(&mut io::stderr().lock(), text.as_ref(), "\n");
}

/// An error: what, and what to do next.
pub(crate) fn error(error: &UserError) {
    let text = error.to_string();
    let shown = match text.split_once(':') {
        Some((head, tail)) if color_on(&io::stderr()) => format!("{}:{tail}", paint(head, Tone::Bad)),
        _ => text,
    };
    note(shown);
}

/// A value for programs.
pub(crate) fn document(value: &impl Serialize, output: Output) -> Result<(), UserError> {
    let fail = |error: &dyn std::fmt::Display| {
        UserError::new(
            codes::OUT_OF_RANGE,
            format!("can't print the answer: {error}"),
            "use -o table",
        )
    };
    match output {
        Output::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|error| fail(&error))?;
            line(text.trim_end());
        }
        _ => line(serde_json::to_string_pretty(value).map_err(|error| fail(&error))?),
    }
    Ok(())
}

/// A table whose cells may be coloured; as broad as it needs to be where the output is no terminal.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<Cell>>) {
    table_lines(header, rows).iter().for_each(line);
}

/// The lines of a table as [`table`] prints it.
pub(crate) fn table_lines(header: &[&str], rows: Vec<Vec<Cell>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // A terminal that does not know its width says 0.
    let arrangement = if table.width().is_some_and(|width| width >= NARROWEST) {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    };
    table.set_content_arrangement(arrangement);
    table.set_header(header.iter().map(|cell| cell.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|text| text.trim_end().to_owned()).collect()
}

/// The text in the tone's colour, if standard output is a terminal that wants colours.
pub(crate) fn tone(text: &str, tone: Tone) -> String {
    if color_on(&io::stdout()) {
        paint(text, tone)
    } else {
        text.to_owned()
    }
}

/// The same for standard error.
pub(crate) fn tone_err(text: &str, tone: Tone) -> String {
    if color_on(&io::stderr()) {
        paint(text, tone)
    } else {
        text.to_owned()
    }
}

/// The sign before a line: `✓` and `✗` where the locale can show them.
pub(crate) fn mark(good: bool) -> &'static str {
    match (good, ascii_only()) {
        (true, false) => "✓",
        (false, false) => "✗",
        (true, true) => "ok",
        (false, true) => "FAIL",
    }
}

/// Whether steps may be drawn over one another.
pub(crate) fn live() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn ascii_only() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    matches!(locale.as_deref(), Some("C" | "POSIX"))
}

fn color_on(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && !NO_COLOR.load(Ordering::Relaxed)
}

fn paint(text: &str, tone: Tone) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Bad => "1;31",
        Tone::Warn => "33",
        Tone::Faint => "2",
        Tone::Strong => "1",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Whoever read the output may have gone. What was asked for is carried out all the same.
fn write(to: &mut impl Write, text: &str, end: &str) {
    let _ = to
        .write_all(text.as_bytes())
        .and_then(|()| to.write_all(end.as_bytes()));
}
