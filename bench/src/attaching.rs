//! ADD and DEL in tables and bars: plugins beside each other, round by round.

use crate::cni::{Latency, Times};
use crate::plugins;
use crate::report::{NOTHING, cell, number, verdict};
use crate::stats;

/// What one plugin took in all rounds.
#[derive(Debug)]
pub(crate) struct Attaching<'a> {
    pub(crate) name: &'a str,
    /// Its rounds, in order; the last one fills the node.
    rounds: Vec<&'a Latency>,
}

/// The calls of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
}

// === impl Attaching ===

impl<'a> Attaching<'a> {
    /// Every plugin, in the order in which they first came.
    pub(crate) fn all(cni: &'a [Latency]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for latency in cni {
            match all.iter_mut().find(|one| one.name == latency.name) {
                Some(one) => one.rounds.push(latency),
                None => all.push(Self {
                    name: &latency.name,
                    rounds: vec![latency],
                }),
            }
        }
        all
    }

    /// The round that filled the node.
    pub(crate) fn last(&self) -> Option<&'a Latency> {
        self.rounds.last().copied()
    }

    /// The median of the rounds' medians, ms.
    pub(crate) fn median(&self, calls: usize, verb: Verb) -> Option<f64> {
        let medians: Vec<f64> = self.medians(calls, verb).into_iter().flatten().collect();
        stats::median(&medians)
    }

    fn times(&self, calls: usize, verb: Verb) -> Vec<Option<Times>> {
        let of = |latency: &Latency| {
            let (add, del) = match calls {
                1 => (latency.add, latency.del),
                _ => latency
                    .at_once
                    .iter()
                    .find(|times| times.calls == calls)
                    .map(|times| (times.add, times.del))?,
            };
            Some(if verb == Verb::Add { add } else { del })
        };
        self.rounds.iter().map(|latency| of(latency)).collect()
    }

    fn medians(&self, calls: usize, verb: Verb) -> Vec<Option<f64>> {
        let p50 = |times: Option<Times>| times.map(|times| times.p50_ms);
        self.times(calls, verb).into_iter().map(p50).collect()
    }

    fn cell(&self, base: Option<&Self>, calls: usize, verb: Verb) -> String {
        let medians = self.medians(calls, verb);
        let base = base.map(|base| base.medians(calls, verb));
        let tails = self.times(calls, verb).into_iter().flatten();
        let tails: Vec<f64> = tails.map(|times| times.p99_ms).collect();
        match stats::median(&tails) {
            Some(tail) => format!("{} / {}", cell(&medians, base.as_ref(), verdict), number(tail)),
            None => NOTHING.into(),
        }
    }
}

/// How many calls at the same time were measured, one by one first.
pub(crate) fn counts(cni: &[Latency]) -> Vec<usize> {
    let at_once = cni.iter().flat_map(|latency| &latency.at_once);
    let mut counts: Vec<usize> = at_once.map(|times| times.calls).chain([1]).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// The table, in Markdown.
pub(crate) fn table(cni: &[Latency]) -> String {
    let all = Attaching::all(cni);
    if all.is_empty() {
        return String::new();
    }
    let counts = counts(cni);
    let base = all.iter().find(|one| one.name.starts_with(plugins::NAME));
    let heads: String = counts
        .iter()
        .map(|&calls| match calls {
            1 => " ADD | DEL |".to_owned(),
            calls => format!(" ADD, {calls} at a time | DEL, {calls} at a time |"),
        })
        .collect();
    let mut out = format!(
        "\n**attaching a pod, ms: p50 (smallest to largest) and its ratio to {} / p99**\n\n\
         | plugin |{heads} pods, namespaces included | failed |\n|{}\n",
        plugins::NAME,
        "---|".repeat(3 + 2 * counts.len())
    );
    for one in &all {
        let base = base.filter(|base| base.name != one.name);
        let times: String = counts
            .iter()
            .flat_map(|&calls| [Verb::Add, Verb::Del].map(|verb| one.cell(base, calls, verb)))
            .map(|cell| format!(" {cell} |"))
            .collect();
        let filled = one.last().map_or_else(String::new, |last| {
            format!("{} in {:.1} s", last.pods, last.fill_seconds)
        });
        let failed: usize = one.rounds.iter().map(|round| round.failed).sum();
        out += &format!("| {} |{times} {filled} | {failed} |\n", one.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::AtOnce;
    use crate::left::Left;

    fn round(name: &str, add: f64) -> Latency {
        let times = |p50_ms| Times {
            p50_ms,
            p99_ms: 4.0 * p50_ms,
        };
        Latency {
            name: name.into(),
            add: times(add),
            del: times(2.0 * add),
            at_once: vec![AtOnce {
                calls: 16,
                add: times(10.0 * add),
                del: times(10.0 * add),
            }],
            pods: 5,
            fill_seconds: add,
            failed: 1,
            first_failure: None,
            left: Left::default(),
        }
    }

    #[test]
    fn a_plugin_is_compared_with_the_reference_plugins_of_the_same_round() {
        let base = format!("{} v1", plugins::NAME);
        let rounds: Vec<Latency> = [(10.0, 2.0), (20.0, 4.0), (30.0, 6.0)]
            .into_iter()
            .flat_map(|(theirs, ours)| [round(&base, theirs), round("weft", ours)])
            .collect();
        let all = Attaching::all(&rounds);
        assert_eq!(
            all.iter().map(|one| one.name).collect::<Vec<_>>(),
            [&base, "weft"]
        );
        assert_eq!(all[1].median(16, Verb::Add), Some(40.0));
        assert_eq!(
            all[1].cell(Some(&all[0]), 1, Verb::Add),
            "4.00 (2.00 to 6.00) **×0.20** / 16.0"
        );
        let row = table(&rounds).lines().last().unwrap().to_owned();
        assert!(row.starts_with("| weft | 4.00"), "{row}");
        assert!(row.ends_with("| 5 in 6.0 s | 3 |"), "{row}");
        assert_eq!(table(&[]), "");
    }
}
