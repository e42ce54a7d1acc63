//! The part `fuzz` of the test suite: each target of `fuzz/` goes through its kept corpus and then on from there for a
//! bounded time.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::term::{self, Mark};
use crate::test::Tally;
use crate::{exec, root};

/// Seconds that each target goes on, unless the variable [`SECONDS`] says otherwise.
const DEFAULT_SECONDS: u32 = 10;

/// Overrides [`DEFAULT_SECONDS`].
const SECONDS: &str = "WEFT_FUZZ_SECONDS";

/// Longest input in bytes. What is parsed here is short, and a longer one only makes each try slower.
const MAX_LEN: u32 = 4096;

/// Names of the targets that contain `filter`, or of all.
pub(crate) fn targets(filter: Option<&str>) -> Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let path: PathBuf = entry.context("read the fuzz targets")?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str())
            && filter.is_none_or(|text| name.contains(text))
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Runs the targets one after the other.
pub(crate) fn run(filter: Option<&str>) -> Result<Tally> {
    let seconds = match std::env::var(SECONDS) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{SECONDS} is {text:?} and not a number of seconds"))?,
        Err(_) => DEFAULT_SECONDS,
    };
    let targets = targets(filter)?;
    // Before any runs, so that what doesn't build is said at once.
    if !targets.is_empty() && !exec::status(cargo_fuzz("build").args(FLAGS))?.success() {
        return Ok(Tally {
            failed: 1,
            ..Tally::default()
        });
    }
    let mut tally = Tally::default();
    for target in targets {
        let dir = root().join("target/fuzz").join(&target);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let mut command = cargo_fuzz("run");
        command
            .args(FLAGS)
            .arg(&target)
            // libFuzzer adds what it finds to the first; the kept one is changed by hand only.
            .arg(dir)
            .arg(root().join("fuzz/corpus").join(&target))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_LEN}"))
            .args(["-print_final_stats=1", "-verbosity=0"]);
        let output = exec::output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let tries = said
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
            .map_or("none", str::trim);
        if output.status.success() {
            tally.passed += 1;
            term::item(Mark::Good, &target, format!("{tries} inputs"));
        } else {
            tally.failed += 1;
            term::item(Mark::Bad, &target, format!("{tries} inputs; {}", output.status));
            term::line(&said);
        }
    }
    Ok(tally)
}

/// Coverage of its own, no address sanitizer: the code has no `unsafe`, and a sanitizer needs a nightly compiler.
const FLAGS: [&str; 3] = ["--sanitizer=none", "--fuzz-dir=fuzz", "--release"];

fn cargo_fuzz(verb: &str) -> std::process::Command {
    let mut command = exec::cargo();
    command.args(["fuzz", verb]);
    command
}
