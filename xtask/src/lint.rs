//! The part `lint` of the test suite: what can be judged without running Weft.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::term::{self, Mark};
use crate::test::{Skip, Tally};
use crate::{exec, root};

/// Runs all checks; one that fails doesn't keep the others from running.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    for manifest in ["Cargo.toml", "datapath/Cargo.toml", "fuzz/Cargo.toml"] {
        if root().join(manifest).exists() {
            let fmt = ["fmt", "--all", "--manifest-path", manifest, "--check"];
            tally.check(&format!("format {manifest}"), exec::cargo().args(fmt))?;
            let deny = [
                "deny",
                "--manifest-path",
                manifest,
                "check",
                "bans",
                "licenses",
                "sources",
            ];
            tally.check(&format!("dependencies {manifest}"), exec::cargo().args(deny))?;
        }
    }
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    tally.check("clippy", exec::cargo().args(clippy))?;
    let doc = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ];
    tally.check(
        "documentation",
        exec::cargo().env("RUSTDOCFLAGS", "-D warnings").args(doc),
    )?;
    tally.advisories()?;
    tally.links()?;
    Ok(tally)
}

impl Tally {
    fn check(&mut self, name: &str, command: &mut Command) -> Result<()> {
        term::command(&exec::line(command));
        let success = exec::status(command)?.success();
        self.record(name, success);
        Ok(())
    }

    fn record(&mut self, name: &str, success: bool) {
        *(if success {
            &mut self.passed
        } else {
            &mut self.failed
        }) += 1;
        term::item(
            if success { Mark::Good } else { Mark::Bad },
            name,
            if success { "clean" } else { "failed" },
        );
    }

    /// Known vulnerabilities. The database has to be fetched: no network is no finding.
    fn advisories(&mut self) -> Result<()> {
        let mut command = exec::cargo();
        command.args(["deny", "check", "advisories"]);
        term::command(&exec::line(&command));
        let output = exec::output(&mut command)?;
        let text = String::from_utf8_lossy(&output.stderr);
        let unreachable = !output.status.success()
            && [
                "failed to fetch advisory database",
                "failed to load advisory database",
            ]
            .iter()
            .any(|sign| text.contains(sign));
        if unreachable {
            let reason = "the advisory database can't be fetched from here".to_owned();
            term::item(Mark::Note, "advisories", format!("skipped: {reason}"));
            self.skipped.push(Skip {
                count: 1,
                name: "advisories".into(),
                reason,
            });
        } else {
            if !output.status.success() {
                term::line(&text);
            }
            self.record("advisories", output.status.success());
        }
        Ok(())
    }

    /// Relative links in the project's texts lead to files that exist.
    fn links(&mut self) -> Result<()> {
        let mut broken = Vec::new();
        for file in texts()? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            for target in relative_links(&text) {
                let path = target.split('#').next().unwrap_or(target);
                if !path.is_empty() && !file.parent().is_some_and(|dir| dir.join(path).exists()) {
                    broken.push(format!("{}: {target}", file.display()));
                }
            }
        }
        broken
            .iter()
            .for_each(|line| term::line(&format!("      no such file: {line}")));
        self.record("links", broken.is_empty());
        Ok(())
    }
}

/// The Markdown files under version control, by git's own list.
fn texts() -> Result<Vec<PathBuf>> {
    let list = exec::read(exec::command("git").args(["ls-files", "--", "*.md"]))?;
    Ok(list
        .lines()
        .map(|line| root().join(Path::new(line)))
        .filter(|path| path.exists())
        .collect())
}

/// The targets of inline links and images, without those that name a scheme.
fn relative_links(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines()
        .filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fence && !fenced
        })
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split([')', ' ']).next())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_files_are_looked_at() {
        let text = "See [a](docs/a.md), [b](https://example.org/b.md) and ![c](c.svg \"title\").\n\
                    ```\n[not a link](gone.md)\n```\n[d](#part) [e](d.md#part)";
        assert_eq!(
            relative_links(text).collect::<Vec<_>>(),
            ["docs/a.md", "c.svg", "#part", "d.md#part"]
        );
    }
}
