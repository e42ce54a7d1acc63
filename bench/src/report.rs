//! Samples as tables for people; the JSON beside them is for programs.

use serde::Serialize;

use crate::cni::Latency;
use crate::competitor::BASE;
use crate::datapath::{Sample, Scenario, Test};
use crate::stats;

/// All that a run found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) meta: Meta,
    pub(crate) samples: Vec<Sample>,
    pub(crate) cni: Vec<Latency>,
    pub(crate) weft: Option<Footprint>,
    /// What could not be measured here, and why.
    pub(crate) skipped: Vec<String>,
}

/// Under which circumstances it was found.
#[derive(Debug, Serialize)]
pub(crate) struct Meta {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// Whether request/response and datagrams ran under SCHED_FIFO.
    pub(crate) realtime: bool,
    /// One-minute load average before the first round and after the last.
    pub(crate) load: [f64; 2],
    pub(crate) competitors: Vec<(String, String)>,
}

/// What Weft itself takes.
#[derive(Debug, Serialize)]
pub(crate) struct Footprint {
    /// Size of the plugin, bytes.
    pub(crate) plugin_bytes: u64,
    /// Whether the plugin needs no dynamic linker.
    pub(crate) plugin_static: bool,
    /// Pods that were started at once on one node of a lab cluster.
    pub(crate) pods: usize,
    /// From the apply of their Deployment until all ran, seconds.
    pub(crate) pods_up_seconds: f64,
    /// Resident memory of the agent with that many pods, bytes.
    pub(crate) agent_rss_bytes: u64,
}

// === impl Report ===

impl Report {
    /// The tables, in Markdown.
    pub(crate) fn tables(&self) -> String {
        let mut out = format!(
            "Kernel {}, {} CPUs, {} rounds of {} s, {}, load {:.1} to {:.1}.\n\
             Median (smallest to largest); ×: median of the ratios to `{BASE}`, each formed inside a round.\n",
            self.meta.kernel,
            self.meta.cpus,
            self.meta.rounds,
            self.meta.seconds,
            if self.meta.realtime {
                "SCHED_FIFO"
            } else {
                "no real-time priority permitted"
            },
            self.meta.load[0],
            self.meta.load[1],
        );
        for (name, about) in &self.meta.competitors {
            out += &format!("- `{name}`: {about}\n");
        }
        for scenario in Scenario::ALL {
            out += &self.table(scenario);
        }
        if !self.cni.is_empty() {
            out += "\n**attaching a pod, ms: p50 / p99**\n\n\
                    | plugin | ADD | DEL | pods at once, namespaces included | failed |\n|---|---|---|---|---|\n";
            for plugin in &self.cni {
                out += &format!(
                    "| {} | {} | {} | {} in {:.1} s | {} |\n",
                    plugin.name, plugin.add, plugin.del, plugin.pods, plugin.fill_seconds, plugin.failed
                );
            }
        }
        if let Some(weft) = &self.weft {
            out += &format!(
                "\n**Weft**: {} pods of one Deployment on one node running after {:.1} s; agent {:.1} MiB resident with them; \
                 weft-cni {:.2} MB, {}\n",
                weft.pods,
                weft.pods_up_seconds,
                weft.agent_rss_bytes as f64 / f64::from(1 << 20),
                weft.plugin_bytes as f64 / 1e6,
                if weft.plugin_static {
                    "static"
                } else {
                    "dynamically linked"
                },
            );
        }
        for reason in &self.skipped {
            out += &format!("\nskipped: {reason}\n");
        }
        out
    }

    fn table(&self, scenario: Scenario) -> String {
        let names: Vec<&str> = self
            .meta
            .competitors
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| {
                self.samples
                    .iter()
                    .any(|s| s.scenario == scenario && s.competitor == *name)
            })
            .collect();
        if names.is_empty() {
            return String::new();
        }
        let mut out = format!(
            "\n**{}**\n\n| | {} |\n|---|{}\n",
            scenario.title(),
            names.join(" | "),
            "---|".repeat(names.len())
        );
        for test in Test::ALL {
            let base = self.values(scenario, test, BASE);
            let cells: Vec<String> = names
                .iter()
                .map(|name| {
                    cell(
                        &self.values(scenario, test, name),
                        (*name != BASE).then_some(&base),
                    )
                })
                .collect();
            if cells.iter().any(|cell| cell != "–") {
                out += &format!("| {}, {} | {} |\n", test.title(), test.unit(), cells.join(" | "));
            }
        }
        out
    }

    /// A competitor's figures, by round.
    fn values(&self, scenario: Scenario, test: Test, competitor: &str) -> Vec<Option<f64>> {
        self.samples
            .iter()
            .filter(|s| s.scenario == scenario && s.test == test && s.competitor == competitor)
            .map(|s| s.value)
            .collect()
    }
}

fn cell(values: &[Option<f64>], base: Option<&Vec<Option<f64>>>) -> String {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let (Some(median), Some((least, most))) = (stats::median(&known), stats::spread(&known)) else {
        return "–".into();
    };
    let mut text = format!("{} ({} to {})", figure(median), figure(least), figure(most));
    let ratios: Vec<f64> = base
        .into_iter()
        .flat_map(|base| values.iter().zip(base))
        .filter_map(|(a, b)| Some((*a)? / (*b)?))
        .collect();
    if let Some(ratio) = stats::median(&ratios) {
        text += &format!(" **×{ratio:.2}**");
    }
    let failed = values.len() - known.len();
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    text
}

/// Three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1e4 => format!("{:.0} k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_formed_inside_a_round() {
        let base = vec![Some(10.0), Some(20.0), Some(40.0)];
        let values = [Some(15.0), Some(30.0), Some(60.0)];
        assert_eq!(cell(&values, Some(&base)), "30.0 (15.0 to 60.0) **×1.50**");
    }

    #[test]
    fn a_failed_run_is_said_and_takes_no_part() {
        let base = vec![Some(10.0), Some(10.0)];
        assert_eq!(
            cell(&[Some(20.0), None], Some(&base)),
            "20.0 (20.0 to 20.0) **×2.00**, 1 failed"
        );
        assert_eq!(cell(&[None], None), "–");
    }
}
