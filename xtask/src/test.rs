//! `cargo xtask test`: the parts of the test suite, each of which runs alone too.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::term::{self, Mark};
use crate::{chart, exec, fuzz, host, invariants, junit, kube, lint, setup};

/// Arguments of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Parts to run [default: all, in this order; with --transport, those it concerns]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Only tests whose name contains this; the parts without tests are left out
    #[arg(short, long, value_name = "NAME")]
    filter: Option<String>,
    /// Run net, lab and faults wholly by this transport [default: by the one that agents choose, then a part of them by
    /// device]
    #[arg(long, value_enum)]
    transport: Option<Transport>,
}

/// How packets get to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Programs write and strip the outer headers: what agents choose
    Direct,
    /// By the VXLAN device: what agents choose where direct is impossible
    Device,
}

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Formatting, clippy, documentation, dependencies, links
    Lint,
    /// Everything that needs no privileges
    Unit,
    /// Inputs that a fuzzer makes up, ten seconds for each parser
    Fuzz,
    /// The Helm chart: what it renders, what it refuses
    Chart,
    /// Netlink, nftables and eBPF programs in namespaces of their own (root)
    Net,
    /// Whole clusters of namespaces, by the `weft` command (root)
    Lab,
    /// Faults injected into agent and plugin, an audit after each; prints the table of invariants (root)
    Faults,
    /// Real Kubernetes: what its API server admits, and what pods, nodes and Services reach on a cluster (root, Go)
    Kube,
}

/// Which of a part's tests run, and how.
#[derive(Debug, Clone, Copy, Default)]
struct Selection<'a> {
    /// What a test's name contains.
    filter: Option<&'a str>,
    /// A nextest expression that narrows the part.
    only: Option<&'a str>,
    /// What agents choose where absent.
    transport: Option<Transport>,
}

/// Tells tests, and `weft lab create`, how packets get to other nodes.
const TRANSPORT: &str = "WEFT_TRANSPORT";

/// How the tests of a part, or of the whole run, came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// What did not run, and why.
    pub(crate) skipped: Vec<Skip>,
}

/// Something that could not run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    /// How many tests this stands for.
    pub(crate) count: usize,
    pub(crate) name: String,
    pub(crate) reason: String,
}

// === impl Args ===

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let parts = args.parts()?;
    let scope = if parts.contains(&Part::Lint) {
        setup::Scope::Lint
    } else {
        setup::Scope::Test
    };
    setup::ensure(scope, false)?;

    let mut results: Vec<(Part, Tally, Duration)> = Vec::new();
    for part in parts {
        term::section(&format!("test {part}"));
        let started = Instant::now();
        let tally = part.run(args.selection())?;
        results.push((part, tally, started.elapsed()));
    }

    term::section("summary");
    let mut total = Tally::default();
    for (part, tally, took) in results {
        let mark = if tally.failed > 0 { Mark::Bad } else { Mark::Good };
        term::item(
            mark,
            &part.to_string(),
            format!("{tally} in {}", term::duration(took)),
        );
        for skip in &tally.skipped {
            let many = if skip.count == 1 {
                String::new()
            } else {
                format!(" ({} tests)", skip.count)
            };
            term::item(
                Mark::Note,
                "",
                format!("skipped {}{many}: {}", skip.name, skip.reason),
            );
        }
        total.add(tally);
    }
    term::line("");
    term::line(&total.to_string());
    if total.failed > 0 {
        bail!("{} of the tests failed", total.failed);
    }
    Ok(())
}

impl Args {
    /// # Errors
    /// A part was named to which the transport that was asked for is nothing.
    fn parts(&self) -> Result<Vec<Part>> {
        let concerned = |part: &Part| self.transport.is_none() || part.has_transport();
        if let Some(part) = self.parts.iter().find(|part| !concerned(part)) {
            bail!(
                "--transport concerns net, lab and faults, and {part} is none of them; next: leave out \
                 {part}, or --transport"
            );
        }
        if !self.parts.is_empty() {
            return Ok(self.parts.clone());
        }
        let has_tests = |part: &Part| self.filter.is_none() || *part != Part::Lint;
        Ok(Part::value_variants()
            .iter()
            .copied()
            .filter(|part| has_tests(part) && concerned(part))
            .collect())
    }

    fn selection(&self) -> Selection<'_> {
        Selection {
            filter: self.filter.as_deref(),
            only: None,
            transport: self.transport,
        }
    }
}

// === impl Transport ===

impl Transport {
    /// First what agents choose.
    pub(crate) const BOTH: [Self; 2] = [Self::Direct, Self::Device];

    /// As agents name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Device => "device",
        }
    }
}

// === impl Part ===

impl Part {
    /// Whether its tests send packets to other nodes, or run agents that could.
    const fn has_transport(self) -> bool {
        matches!(self, Self::Net | Self::Lab | Self::Faults)
    }

    fn run(self, selection: Selection<'_>) -> Result<Tally> {
        let filter = selection.filter;
        match self {
            Self::Lint => lint::run(),
            Self::Unit => {
                let mut tally = self.nextest(selection)?;
                if filter.is_none() {
                    tally.add(doc_tests()?);
                }
                Ok(tally)
            }
            Self::Fuzz => {
                setup::cargo_fuzz()?;
                fuzz::run(filter)
            }
            Self::Chart => {
                // Tests that miss it skip themselves.
                chart::helm()?;
                self.nextest(selection)
            }
            Self::Net | Self::Lab => self.by_transports(selection),
            Self::Faults => {
                setup::strace()?;
                invariants::forget()?;
                let tally = self.by_transports(selection)?;
                invariants::print()?;
                Ok(tally)
            }
            Self::Kube => self.kube(selection),
        }
    }

    /// All tests by the transport that was asked for; else by the one that agents choose, then those that are about
    /// packets by the other.
    fn by_transports(self, selection: Selection<'_>) -> Result<Tally> {
        let mut tally = self.nextest(selection)?;
        if selection.transport.is_some() {
            return Ok(tally);
        }
        let again = match self {
            Self::Net => "binary(datapath)",
            // Not what chooses its transport itself, nor what makes no cluster.
            Self::Lab => "package(weft) & not test(/^(transport|bad_input|left)::/)",
            _ => "test(/^(repair|restart|walk)::/) | test(killed_at_work)",
        };
        tally.add(self.nextest(Selection {
            only: Some(again),
            transport: Some(Transport::Device),
            ..selection
        })?);
        Ok(tally)
    }

    /// Builds Kubernetes first: the tests skip themselves without it.
    fn kube(self, selection: Selection<'_>) -> Result<Tally> {
        let test = kube::Test::select(selection.filter)?;
        let reason = match host::lacks_privileges() {
            Some(reason) => Some(format!("{reason}; next: {}", host::as_root("test kube"))),
            None => kube::Test::lacks()?,
        };
        if let Some(reason) = reason {
            let count = self.count(selection)? + test.count();
            return Ok(self.skipped(count, reason));
        }
        let mut tally = self.nextest(selection)?;
        tally.add(test.run()?);
        Ok(tally)
    }

    fn skipped(self, count: usize, reason: String) -> Tally {
        let skip = Skip {
            count,
            name: format!("part {self}"),
            reason,
        };
        Tally {
            skipped: vec![skip],
            ..Tally::default()
        }
    }

    /// The nextest expression that selects the part. A test that needs root is told by the name of its file:
    /// `tests/net*`, `tests/datapath*`, `tests/lab*` and `tests/faults*`; those of the chart are in `tests/chart`, and those that
    /// start a real API server in `tests/admission*.rs`.
    fn expression(self, filter: Option<&str>) -> String {
        let part = match self {
            Self::Net => "(kind(test) & binary(/^(net|datapath)/))",
            Self::Lab => "(kind(test) & binary(/^lab/))",
            Self::Faults => "(kind(test) & binary(/^faults/))",
            Self::Chart => "(kind(test) & binary(/^chart/))",
            Self::Kube => "(kind(test) & binary(/^admission/))",
            Self::Unit | Self::Lint | Self::Fuzz => {
                "not (kind(test) & binary(/^(net|datapath|lab|faults|chart|admission)/))"
            }
        };
        filter.map_or_else(|| part.to_owned(), |name| format!("{part} & test(~{name})"))
    }

    fn nextest(self, selection: Selection<'_>) -> Result<Tally> {
        if !matches!(self, Self::Unit | Self::Chart)
            && let Some(reason) = host::lacks_privileges()
        {
            let how = selection
                .transport
                .map(|transport| format!(" --transport {}", transport.name()));
            let next = host::as_root(&format!("test {self}{}", how.unwrap_or_default()));
            let count = self.count(selection)?;
            return Ok(self.skipped(count, format!("{reason}; next: {next}")));
        }
        // Cluster tests start programs of other packages, which nextest would not build.
        if !exec::status(exec::cargo().args(["build", "--workspace", "--bins", "--locked"]))?.success() {
            return Ok(Tally {
                failed: 1,
                ..Tally::default()
            });
        }
        let report = report_path();
        if report.exists() {
            std::fs::remove_file(&report).with_context(|| format!("remove {}", report.display()))?;
        }
        let mut command = self.command("run", selection);
        if let Some(transport) = selection.transport {
            let which = if selection.only.is_some() {
                "some again"
            } else {
                "all"
            };
            term::item(Mark::Note, which, format!("by --transport {}", transport.name()));
        }
        // What the caller's environment says is not what was asked for.
        command.env(TRANSPORT, selection.transport.map_or("auto", Transport::name));
        let status = exec::status(command.args(["--no-fail-fast", "--no-tests", "pass"]))?;
        let Ok(text) = std::fs::read_to_string(&report) else {
            // No test was selected, or the tests did not build.
            return Ok(Tally {
                failed: usize::from(!status.success()),
                ..Tally::default()
            });
        };
        let tally = junit::tally(&text);
        if !status.success() && tally.failed == 0 {
            bail!(
                "`{}` ended with {status}, yet its report shows no failed test",
                exec::line(&command)
            );
        }
        Ok(tally)
    }

    /// How many tests the part has.
    fn count(self, selection: Selection<'_>) -> Result<usize> {
        let text = exec::read(self.command("list", selection).args(["--message-format", "json"]))?;
        let list: serde_json::Value = serde_json::from_str(&text).context("parse the list of tests")?;
        let suites = list["rust-suites"]
            .as_object()
            .context("list of tests without suites")?;
        let cases = suites
            .values()
            .filter_map(|suite| suite["testcases"].as_object())
            .flat_map(|cases| cases.values());
        Ok(cases
            .filter(|case| case["filter-match"]["status"] == "matches")
            .count())
    }

    fn command(self, verb: &str, selection: Selection<'_>) -> Command {
        let mut expression = self.expression(selection.filter);
        if let Some(only) = selection.only {
            expression = format!("{expression} & ({only})");
        }
        let mut command = exec::cargo();
        command
            .env("PATH", host::path_with_tools())
            .env(invariants::VARIABLE, invariants::path())
            .args(["nextest", verb, "--workspace", "--locked", "-E", &expression]);
        command
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Where the profile of `.config/nextest.toml` writes its report.
fn report_path() -> PathBuf {
    // nextest's store is in the workspace, wherever CARGO_TARGET_DIR is.
    crate::root().join("target/nextest/default/junit.xml")
}

/// Examples in doc comments, which nextest doesn't run.
fn doc_tests() -> Result<Tally> {
    let output =
        exec::output(exec::cargo().args(["test", "--doc", "--workspace", "--locked", "--no-fail-fast"]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = |line: &str, word: &str| -> usize {
        line.split(['.', ';'])
            .find_map(|field| field.trim().strip_suffix(word)?.trim().parse().ok())
            .unwrap_or(0)
    };
    let mut tally = Tally::default();
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        tally.passed += count(line, "passed");
        tally.failed += count(line, "failed");
    }
    if !output.status.success() {
        term::line(&text);
        term::line(&String::from_utf8_lossy(&output.stderr));
        tally.failed = tally.failed.max(1);
    }
    Ok(tally)
}

// === impl Tally ===

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped: usize = self.skipped.iter().map(|skip| skip.count).sum();
        write!(
            f,
            "{} passed, {} failed, {skipped} skipped",
            self.passed, self.failed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(args: &Args) -> Result<Vec<Part>, String> {
        args.parts().map_err(|error| error.to_string())
    }

    #[test]
    fn a_transport_selects_the_parts_that_have_one_and_refuses_others() {
        let by_device = |parts: &[Part]| Args {
            parts: parts.to_vec(),
            transport: Some(Transport::Device),
            ..Args::default()
        };
        assert_eq!(
            parts(&by_device(&[])),
            Ok(vec![Part::Net, Part::Lab, Part::Faults])
        );
        assert_eq!(parts(&by_device(&[Part::Lab])), Ok(vec![Part::Lab]));
        let refused = parts(&by_device(&[Part::Lab, Part::Unit])).unwrap_err();
        assert!(refused.starts_with("--transport concerns net, lab and faults, and unit is none"));
    }

    #[test]
    fn without_parts_all_run_but_those_without_names_where_a_name_is_given() {
        assert_eq!(parts(&Args::default()), Ok(Part::value_variants().to_vec()));
        let filtered = Args {
            filter: Some("packet".to_owned()),
            ..Args::default()
        };
        assert_eq!(parts(&filtered), Ok(Part::value_variants()[1..].to_vec()));
    }
}
