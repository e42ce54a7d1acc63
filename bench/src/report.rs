//! Samples as tables for people; the JSON beside them is for programs.

use serde::Serialize;

use crate::agents::{Change, Idle, Starts};
use crate::attaching::{self, Attaching};
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
    /// Each plugin in each round.
    pub(crate) cni: Vec<Latency>,
    /// Peers' agents.
    pub(crate) agents: Vec<Idle>,
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
    /// Nodes of the clusters in which Weft's agents know many.
    pub(crate) known_nodes: Option<u32>,
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
    /// The agent with nothing to do.
    pub(crate) idle: Vec<Idle>,
    /// How long it took to be ready.
    pub(crate) starts: Vec<Starts>,
    /// The agent while other nodes change.
    pub(crate) change: Option<Change>,
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
        out += &attaching::table(&self.cni);
        out += &self.left();
        if let Some(weft) = &self.weft {
            out += &format!(
                "\n**Weft**: {} pods of one Deployment on one node running after {:.1} s; agent {:.1} MiB resident with them; \
                 weft-cni {:.2} MB, {}\n",
                weft.pods,
                weft.pods_up_seconds,
                mib(weft.agent_rss_bytes),
                weft.plugin_bytes as f64 / 1e6,
                if weft.plugin_static {
                    "static"
                } else {
                    "dynamically linked"
                },
            );
        }
        out += &self.agents();
        for reason in &self.skipped {
            out += &format!("\nskipped: {reason}\n");
        }
        out
    }

    fn table(&self, scenario: Scenario) -> String {
        let names = self.meta.competitors.iter().map(|(name, _)| name.as_str());
        let names: Vec<&str> = names
            .filter(|name| {
                let mut samples = self.samples.iter();
                samples.any(|sample| sample.scenario == scenario && sample.competitor == *name)
            })
            .collect();
        let mut out = String::new();
        for figure in &FIGURES {
            let values = |name: &str| figure.values(&self.samples, scenario, name);
            let cells: Vec<String> = names
                .iter()
                .map(|name| match scenario.base(name) {
                    (same, base) if (same, base) == (scenario, *name) => cell(&values(name), None, verdict),
                    (other, base) => {
                        let base = figure.values(&self.samples, other, base);
                        // That a ratio is next to 1 is what is to be known of it: with its range.
                        let told = if other == scenario { verdict } else { ranged };
                        cell(&values(name), Some(&base), told)
                    }
                })
                .collect();
            if cells.iter().any(|cell| cell != NOTHING) {
                out += &format!("| {}, {} | {} |\n", figure.title, figure.unit, cells.join(" | "));
            }
        }
        match out.is_empty() {
            true => out,
            false => format!(
                "\n**{}**{}\n\n| | {} |\n|---|{}\n{out}",
                scenario.title(),
                match self.meta.known_nodes {
                    Some(known) if scenario == Scenario::Crowded => format!(
                        ": figures with {known} known nodes; ×: ratios to the same with 2, smallest to largest behind it, a \
                         fifth of the rounds left out at either end"
                    ),
                    _ => String::new(),
                },
                names.join(" | "),
                "---|".repeat(names.len())
            ),
        }
    }

    /// What ADDs and DELs leave.
    fn left(&self) -> String {
        let rows: String = Attaching::all(&self.cni)
            .iter()
            .filter_map(Attaching::last)
            .map(|plugin| {
                let left = plugin.left;
                format!(
                    "| {} | {} | {} | {} | {} | {} |\n",
                    plugin.name, left.interfaces, left.addresses, left.routes, left.nft_lines, left.booked
                )
            })
            .collect();
        match rows.is_empty() {
            true => rows,
            false => format!(
                "\n**left on the node when all pods were detached**\n\n\
                 | plugin | interfaces | addresses | routes | lines of nftables | pods in its books |\n|---|---|---|---|---|---|\n{rows}"
            ),
        }
    }

    /// What agents take.
    fn agents(&self) -> String {
        let idle = self.weft.iter().flat_map(|weft| &weft.idle).chain(&self.agents);
        let rows: String = idle
            .map(|idle| {
                let ours = self.weft.iter().filter(|_| idle.agent.starts_with(WEFT));
                let ready = ours
                    .flat_map(|weft| &weft.starts)
                    .find(|starts| (starts.pods, starts.nodes) == (idle.pods, idle.nodes))
                    .and_then(|starts| {
                        let (least, most) = stats::spread(&starts.ready_ms)?;
                        let median = stats::median(&starts.ready_ms)?;
                        Some(format!(
                            "{} ({} to {})",
                            number(median),
                            number(least),
                            number(most)
                        ))
                    });
                format!(
                    "| {} | {} | {} | {:.3} | {:.1} | {} |\n",
                    idle.agent,
                    idle.pods,
                    idle.nodes,
                    idle.cpu_share * 100.0,
                    mib(idle.rss_bytes),
                    ready.as_deref().unwrap_or(NOTHING),
                )
            })
            .collect();
        let mut out = match rows.is_empty() {
            true => rows,
            false => format!(
                "\n**agents**\n\n| agent | pods on the node | nodes | idle, % of one CPU | resident, MiB | start to ready, ms |\n\
                 |---|---|---|---|---|---|\n{rows}"
            ),
        };
        if let Some(change) = self.weft.as_ref().and_then(|weft| weft.change.as_ref()) {
            let per_change = change.cpu_share * change.seconds / f64::from(change.changes);
            out += &format!(
                "\nWhile {} of {} nodes got another address, {} a second, and until it had carried out the last, {:.1} s in \
                 all, Weft's agent with {} pods took {:.1} % of one CPU, \
                 {:.2} ms a change, and {:.1} MiB.\n",
                change.changes,
                change.nodes,
                change.per_second,
                change.seconds,
                change.pods,
                change.cpu_share * 100.0,
                per_change * 1e3,
                mib(change.rss_bytes),
            );
        }
        out
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
        for scenario in Scenario::ALL
            .into_iter()
            .filter(|scenario| *scenario != Scenario::Crowded)
        {
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
pub(crate) const NOTHING: &str = "–";
/// In a table, where the spread hides a ratio.
const HIDDEN: &str = "?";

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub(crate) fn cell(
    values: &[Option<f64>],
    base: Option<&Vec<Option<f64>>>,
    told: fn(Ratio) -> String,
) -> String {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let (Some(median), Some((least, most))) = (stats::median(&known), stats::spread(&known)) else {
        return NOTHING.into();
    };
    let mut text = format!("{} ({} to {})", number(median), number(least), number(most));
    if let Some(ratio) = base.and_then(|base| Ratio::of(values, base)) {
        text += &format!(" **{}**", told(ratio));
    }
    let failed = values.len() - known.len();
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    text
}

pub(crate) fn verdict(ratio: Ratio) -> String {
    match ratio.verdict() {
        Verdict::Told(median) => format!("×{median:.2}"),
        Verdict::Alike => "≈".into(),
        Verdict::Hidden => HIDDEN.into(),
    }
}

/// The ratio, whatever may be said of it, with its range.
fn ranged(ratio: Ratio) -> String {
    format!("×{:.2} ({:.2} to {:.2})", ratio.median, ratio.least, ratio.most)
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
        assert_eq!(
            cell(&values, Some(&base), verdict),
            "30.0 (15.0 to 60.0) **×1.50**"
        );
        let close = [Some(10.2), Some(19.9), Some(40.5)];
        assert_eq!(cell(&close, Some(&base), verdict), "19.9 (10.2 to 40.5) **≈**");
        assert_eq!(
            cell(&[Some(5.0), Some(20.0), Some(60.0)], Some(&base), verdict),
            "20.0 (5.00 to 60.0) **?**"
        );
        assert_eq!(
            cell(&close, Some(&base), ranged),
            "19.9 (10.2 to 40.5) **×1.01 (0.99 to 1.02)**"
        );
    }

    #[test]
    fn a_failed_run_is_said_and_takes_no_part() {
        let base = vec![Some(10.0); 4];
        assert_eq!(
            cell(&[Some(20.0), None, Some(20.0), Some(20.0)], Some(&base), verdict),
            "20.0 (20.0 to 20.0) **×2.00**, 1 failed"
        );
        assert_eq!(cell(&[None], None, verdict), "–");
    }
}
