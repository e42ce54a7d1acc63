//! The table of invariants: what the tests of part `faults` counted.
//!
//! A test appends an object a line to the file named by [`VARIABLE`]:
//! `{"invariant": "…", "checked": 1, "violated": 0, "tookMs": null}`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{exec, term};

/// Tells tests where to count.
pub(crate) const VARIABLE: &str = "WEFT_INVARIANTS";

/// What was counted of one invariant.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    checked: u64,
    violated: u64,
    worst_ms: Option<u64>,
}

pub(crate) fn path() -> PathBuf {
    exec::target_dir().join("invariants.jsonl")
}

/// Forgets the counts of an earlier run.
pub(crate) fn forget() -> Result<()> {
    let path = path();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Prints the table, if anything was counted.
pub(crate) fn print() -> Result<()> {
    let Ok(text) = std::fs::read_to_string(path()) else {
        return Ok(());
    };
    term::section("invariants");
    for line in table(&counts(&text)?) {
        term::line(&line);
    }
    Ok(())
}

fn counts(text: &str) -> Result<BTreeMap<String, Count>> {
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for line in text.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("read the count {line:?}"))?;
        let name = value["invariant"].as_str().context("a count of nothing")?;
        let count = counts.entry(name.to_owned()).or_default();
        count.checked += value["checked"].as_u64().unwrap_or(0);
        count.violated += value["violated"].as_u64().unwrap_or(0);
        count.worst_ms = count.worst_ms.max(value["tookMs"].as_u64());
    }
    Ok(counts)
}

/// As Markdown, to be copied to where it is published.
fn table(counts: &BTreeMap<String, Count>) -> Vec<String> {
    const NAME: &str = "invariant";
    let names = counts.keys().map(String::as_str).chain([NAME]);
    let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
    let row = |name: &str, cells: [&str; 3]| {
        let [checked, violated, worst] = cells;
        format!("| {name:<width$} | {checked:>7} | {violated:>8} | {worst:>9} |")
    };
    let mut lines = vec![
        row(NAME, ["checked", "violated", "worst"]),
        format!("|-{}-|--------:|---------:|----------:|", "-".repeat(width)),
    ];
    lines.extend(counts.iter().map(|(name, count)| {
        let worst = count
            .worst_ms
            .map_or_else(String::new, |worst| format!("{worst} ms"));
        row(
            name,
            [&count.checked.to_string(), &count.violated.to_string(), &worst],
        )
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_one_invariant_add_up_and_the_worst_time_stays() {
        let text = r#"{"invariant": "DEL", "checked": 2, "violated": 0, "tookMs": 7}
{"invariant": "leaks", "checked": 1, "violated": 1, "tookMs": null}
{"invariant": "DEL", "checked": 1, "violated": 0, "tookMs": 3}
"#;
        assert_eq!(
            table(&counts(text).unwrap()),
            [
                "| invariant | checked | violated |     worst |",
                "|-----------|--------:|---------:|----------:|",
                "| DEL       |       3 |        0 |      7 ms |",
                "| leaks     |       1 |        1 |           |",
            ]
        );
    }

    #[test]
    fn what_is_no_count_is_an_error() {
        assert!(counts("{}").is_err());
        assert!(counts("not JSON").is_err());
    }
}
