//! Samples as tables for people; the JSON beside them is for programs.

use serde::Serialize;

use crate::cni::Latency;
use crate::competitor::{BASE, WEFT};
use crate::datapath::{Noise, Sample, Scenario};
use crate::figure::{FIGURES, Ratio, Verdict};
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
    pub(crate) noise: Option<Noise>,
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
             Median (smallest to largest). ×: median of the ratios to `{BASE}`, each formed inside a round; ≈: all within a tenth of 1; \
             ?: the ratios spread further than their median is away from 1.\n",
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
        if let Some(noise) = &self.meta.noise {
            out += &format!(
                "Before the first round, all competitors up and idle: {:.1} % of the CPUs busy; five short runs of `{BASE}`'s \
                 one-CPU round trips differed by {:.1} %.\n",
                noise.busy_share * 100.0,
                (noise.base_spread - 1.0) * 100.0
            );
        }
        for (name, about) in &self.meta.competitors {
            out += &format!("- `{name}`: {about}\n");
        }
        for scenario in Scenario::ALL {
            out += &self.table(scenario);
        }
        for (name, _) in &self.meta.competitors {
            if name.starts_with(WEFT) {
                out += &self.beside(name);
            }
        }
        if !self.cni.is_empty() {
            let mut counts: Vec<usize> = self
                .cni
                .iter()
                .flat_map(|l| &l.at_once)
                .map(|a| a.calls)
                .collect();
            counts.sort_unstable();
            counts.dedup();
            let heads: String = counts
                .iter()
                .map(|calls| format!(" ADD, {calls} at a time | DEL, {calls} at a time |"))
                .collect();
            out += &format!(
                "\n**attaching a pod, ms: p50 / p99**\n\n\
                 | plugin | ADD | DEL |{heads} pods, namespaces included | failed |\n|{}\n",
                "---|".repeat(5 + 2 * counts.len())
            );
            for plugin in &self.cni {
                let beside: String = counts
                    .iter()
                    .map(|calls| match plugin.at_once.iter().find(|a| a.calls == *calls) {
                        Some(times) => format!(" {} | {} |", times.add, times.del),
                        None => format!(" {NOTHING} | {NOTHING} |"),
                    })
                    .collect();
                out += &format!(
                    "| {} | {} | {} |{beside} {} in {:.1} s | {} |\n",
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
            .collect();
        let mut out = String::new();
        for figure in &FIGURES {
            let values = |name: &str| figure.values(&self.samples, scenario, name);
            let base = values(BASE);
            let cells: Vec<String> = names
                .iter()
                .map(|name| cell(&values(name), (*name != BASE).then_some(&base)))
                .collect();
            if cells.iter().any(|cell| cell != NOTHING) {
                out += &format!("| {}, {} | {} |\n", figure.title, figure.unit, cells.join(" | "));
            }
        }
        match out.is_empty() {
            true => out,
            false => format!(
                "\n**{}**\n\n| | {} |\n|---|{}\n{out}",
                scenario.title(),
                names.join(" | "),
                "---|".repeat(names.len())
            ),
        }
    }

    /// One of Weft's transports beside each of the others.
    fn beside(&self, weft: &str) -> String {
        let others: Vec<&str> = self
            .meta
            .competitors
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| *name != weft)
            .collect();
        let mut out = String::new();
        for scenario in Scenario::ALL {
            let mut last = "";
            for figure in &FIGURES {
                let of = |name: &str| figure.values(&self.samples, scenario, name);
                let ours = of(weft);
                let cells: Vec<String> = others
                    .iter()
                    .map(|other| Ratio::of(&ours, &of(other)).map_or(NOTHING.into(), verdict))
                    .collect();
                if cells.iter().any(|cell| cell != NOTHING && cell != HIDDEN) {
                    let scenario = if last == scenario.title() {
                        ""
                    } else {
                        scenario.title()
                    };
                    out += &format!(
                        "| {scenario} | {}, {} | {} |\n",
                        figure.title,
                        figure.unit,
                        cells.join(" | ")
                    );
                }
                last = scenario.title();
            }
        }
        match out.is_empty() {
            true => out,
            false => format!(
                "\n**`{weft}`: its figures as multiples of the others'**\n\n| | | {} |\n|---|---|{}\n{out}",
                others.join(" | "),
                "---|".repeat(others.len())
            ),
        }
    }
}

/// In a table, where nothing was measured.
const NOTHING: &str = "–";
/// In a table, where the spread hides a ratio.
const HIDDEN: &str = "?";

fn cell(values: &[Option<f64>], base: Option<&Vec<Option<f64>>>) -> String {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let (Some(median), Some((least, most))) = (stats::median(&known), stats::spread(&known)) else {
        return NOTHING.into();
    };
    let mut text = format!("{} ({} to {})", number(median), number(least), number(most));
    if let Some(ratio) = base.and_then(|base| Ratio::of(values, base)) {
        text += &format!(" **{}**", verdict(ratio));
    }
    let failed = values.len() - known.len();
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    text
}

fn verdict(ratio: Ratio) -> String {
    match ratio.verdict() {
        Verdict::Told(median) => format!("×{median:.2}"),
        Verdict::Alike => "≈".into(),
        Verdict::Hidden => HIDDEN.into(),
    }
}

/// Three significant digits.
pub(crate) fn number(value: f64) -> String {
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
    fn a_cell_shows_median_spread_and_ratio() {
        let base = vec![Some(10.0), Some(20.0), Some(40.0)];
        let values = [Some(15.0), Some(30.0), Some(60.0)];
        assert_eq!(cell(&values, Some(&base)), "30.0 (15.0 to 60.0) **×1.50**");
        let close = [Some(10.2), Some(19.9), Some(40.5)];
        assert_eq!(cell(&close, Some(&base)), "19.9 (10.2 to 40.5) **≈**");
        assert_eq!(
            cell(&[Some(5.0), Some(20.0), Some(60.0)], Some(&base)),
            "20.0 (5.00 to 60.0) **?**"
        );
    }

    #[test]
    fn a_failed_run_is_said_and_takes_no_part() {
        let base = vec![Some(10.0); 4];
        assert_eq!(
            cell(&[Some(20.0), None, Some(20.0), Some(20.0)], Some(&base)),
            "20.0 (20.0 to 20.0) **×2.00**, 1 failed"
        );
        assert_eq!(cell(&[None], None), "–");
    }
}
