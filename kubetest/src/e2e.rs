//! Runs upstream's end-to-end suite, which decides what conformance is, and tells how each spec came out.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::cache::Cache;
use crate::e2e::report::{Outcome, Report};
use crate::progress::Progress;
use crate::state::{Cluster, Config};

/// Specs that want the cluster for themselves, or break nodes.
const ALONE: &str = r"\[Serial\]|\[Disruptive\]";

/// What needs more than a network: features that are off by default or belong to clouds, and specs that upstream does
/// not run for every change either.
const SPECIAL: &str = r"\[Feature:|\[Slow\]|\[Flaky\]";

/// Arguments of `cargo xtask kube e2e`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `conformance`: sig-network's part of conformance; `network`: all of sig-network that needs no special cluster;
    /// or a regular expression over the names of specs
    #[arg(default_value = "conformance")]
    specs: String,
    /// Name of the cluster
    #[arg(long, default_value = "dev")]
    name: String,
    /// How many specs run at a time; most of them wait most of the time
    #[arg(long, default_value_t = 4)]
    procs: usize,
    /// Where to put the log and the report [default: target/e2e/NAME]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Write the result into this document, in place of the one of the same specs, proxy and transport
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

// === impl Args ===

impl Args {
    /// Runs the specs and returns the table of results, and whether none failed.
    ///
    /// # Errors
    /// There is no such cluster, the suite was not built, or it ended without a report.
    pub fn run(&self) -> Result<(String, bool)> {
        let cluster = Cluster::load(&self.name)?;
        let cache = Cache::open(&cluster.config.cache)?;
        for program in ["e2e.test", "ginkgo"] {
            if !cache.program(program).exists() {
                bail!(
                    "{} has no {program}\n  next: cargo xtask kube build",
                    cache.bin().display()
                );
            }
        }
        let default = || Path::new("target/e2e").join(&self.name);
        let output = self.output.clone().unwrap_or_else(default);
        fs::create_dir_all(&output).with_context(|| format!("create {}", output.display()))?;
        let output = fs::canonicalize(&output).with_context(|| format!("find {}", output.display()))?;
        let file = output.join("report.json");
        if file.exists() {
            fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }

        let progress = Progress::start();
        let log = output.join("log");
        let ended = self
            .command(&cluster, &cache, &output, &log)?
            .status()
            .context("start ginkgo")?;
        if !file.exists() {
            bail!(
                "the suite ended with {ended} and no report\n  next: less {}",
                log.display()
            );
        }
        let report = Report::read(&file)?;
        if report.ran().count() == 0 {
            bail!("no spec has a name like {}", self.specs);
        }
        if !ended.success()
            && !report
                .ran()
                .any(|spec| matches!(spec.outcome, Outcome::Failed(_)))
        {
            bail!(
                "the suite ended with {ended}, and its report shows no failed spec\n  next: less {}",
                log.display()
            );
        }
        progress.say(&format!("log and report are in {}", output.display()));
        if let Some(document) = &self.record {
            self.record(document, &cluster, &report)?;
        }
        Ok((report.table(), report.count().failed == 0))
    }

    fn command(&self, cluster: &Cluster, cache: &Cache, output: &Path, log: &Path) -> Result<Command> {
        let (focus, skip) = match self.specs.as_str() {
            "conformance" => (r"\[sig-network\].*\[Conformance\]", ALONE.to_owned()),
            "network" => (r"\[sig-network\]", format!("{ALONE}|{SPECIAL}")),
            regex => (regex, String::new()),
        };
        let creating = || format!("create {}", log.display());
        let log = fs::File::create(log).with_context(creating)?;
        let mut command = Command::new(cache.program("ginkgo"));
        command
            .arg(format!("--procs={}", self.procs))
            .args(["--no-color", "--timeout=3h", "--json-report=report.json"])
            .arg(format!("--output-dir={}", output.display()))
            .arg(cache.program("e2e.test"))
            .arg("--")
            .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
            // Specs that need several nodes ask this flag, not the cluster.
            .arg(format!("--num-nodes={}", cluster.nodes.len()))
            .args([
                "--provider=skeleton",
                "--dump-logs-on-failure=false",
                "--disable-log-dump=true",
            ])
            .arg(format!("--ginkgo.focus={focus}"));
        if !skip.is_empty() {
            command.arg(format!("--ginkgo.skip={skip}"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(cache.bin()).chain(std::env::split_paths(&path));
        command
            // Some specs call kubectl.
            .env("PATH", std::env::join_paths(path).context("PATH")?)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().with_context(creating)?)
            .stderr(log);
        Ok(command)
    }

    /// Puts the result between the marks of its section, which is added at the end if there is none.
    fn record(&self, document: &Path, cluster: &Cluster, report: &Report) -> Result<()> {
        let Config { proxy, transport, .. } = &cluster.config;
        let proxy = format!("{proxy:?}").to_lowercase();
        let key = format!("{} {proxy} {transport}", self.specs);
        let text = fs::read_to_string(document).with_context(|| format!("read {}", document.display()))?;
        let versions: Vec<_> = build::versions()?
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        let section = format!(
            "## {} with kube-proxy in {proxy} mode, transport {transport}\n\nOn {} nodes, {}.\n\n{}",
            self.specs,
            cluster.nodes.len(),
            versions.join(", "),
            report.markdown()
        );
        let text = replace_section(&text, &key, &section);
        fs::write(document, text).with_context(|| format!("write {}", document.display()))
    }
}

fn replace_section(text: &str, key: &str, section: &str) -> String {
    let (begin, end) = (format!("<!-- begin {key} -->"), format!("<!-- end {key} -->"));
    let section = format!("{begin}\n{section}\n{end}");
    let found = text.find(&begin).zip(text.find(&end));
    match found {
        Some((from, to)) => format!("{}{section}{}", &text[..from], &text[to + end.len()..]),
        None => format!("{}\n\n{section}\n", text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_takes_the_place_of_the_one_before() {
        let first = replace_section("# Conformance\n", "network nftables", "1 failed");
        let other = replace_section(&first, "network iptables", "2 failed");
        let again = replace_section(&other, "network nftables", "none failed");
        assert_eq!(
            again,
            "# Conformance\n\n<!-- begin network nftables -->\nnone failed\n<!-- end network nftables -->\n\n\
             <!-- begin network iptables -->\n2 failed\n<!-- end network iptables -->\n"
        );
    }
}
