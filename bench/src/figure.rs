//! The figures that tests give, and when a ratio of two of them means something.

use crate::datapath::{Sample, Scenario, Test};
use crate::stats;

/// One row of a table.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) test: Test,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    /// Its name in the client's answer.
    pub(crate) field: &'static str,
    pub(crate) better: Better,
}

/// In which direction a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

/// How a competitor compares with another, by the ratios that were formed inside the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    /// Smallest and largest, a fifth of the rounds left out at either end.
    pub(crate) least: f64,
    pub(crate) most: f64,
    rounds: usize,
}

/// What may be said of a ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    /// It lies further from 1 than its rounds lie from each other.
    Told(f64),
    /// It does not, but all rounds lie within a tenth of 1.
    Alike,
    /// The spread hides it.
    Hidden,
}

pub(crate) const FIGURES: [Figure; 13] = {
    use Better::{Less, More};
    [
        Figure {
            test: Test::TcpRr,
            title: "TCP 1 byte request/response, one CPU, p50",
            unit: "µs",
            field: "p50_us",
            better: Less,
        },
        Figure {
            test: Test::TcpRrTwoCpus,
            title: "TCP 1 byte request/response, two CPUs, p50",
            unit: "µs",
            field: "p50_us",
            better: Less,
        },
        Figure {
            test: Test::TcpRrTwoCpus,
            title: "– its p99",
            unit: "µs",
            field: "p99_us",
            better: Less,
        },
        Figure {
            test: Test::TcpCrr,
            title: "TCP connect, request, close, two CPUs",
            unit: "connections/s",
            field: "per_s",
            better: More,
        },
        Figure {
            test: Test::TcpCrr,
            title: "– its CPU time",
            unit: "µs/connection",
            field: "cpu_us",
            better: Less,
        },
        Figure {
            test: Test::UdpPps,
            title: "UDP 64 bytes, arrived",
            unit: "packets/s",
            field: "arrived_per_s",
            better: More,
        },
        Figure {
            test: Test::UdpPps,
            title: "– its CPU time",
            unit: "µs/packet",
            field: "cpu_us",
            better: Less,
        },
        Figure {
            test: Test::Stream,
            title: "TCP stream, packets at MTU size",
            unit: "Gbit/s",
            field: "gbit_per_s",
            better: More,
        },
        Figure {
            test: Test::Stream,
            title: "– its CPU time",
            unit: "s/GB",
            field: "cpu_s_per_gb",
            better: Less,
        },
        Figure {
            test: Test::FourStreams,
            title: "four TCP streams, packets at MTU size",
            unit: "Gbit/s",
            field: "gbit_per_s",
            better: More,
        },
        Figure {
            test: Test::FourStreams,
            title: "– its CPU time",
            unit: "s/GB",
            field: "cpu_s_per_gb",
            better: Less,
        },
        Figure {
            test: Test::MergedStream,
            title: "TCP stream, merged on arrival",
            unit: "Gbit/s",
            field: "gbit_per_s",
            better: More,
        },
        Figure {
            test: Test::MergedStream,
            title: "– its CPU time",
            unit: "s/GB",
            field: "cpu_s_per_gb",
            better: Less,
        },
    ]
};

/// Fewer rounds show no spread.
const ROUNDS: usize = 3;

// === impl Figure ===

impl Figure {
    /// A competitor's figures, by round; absent where a run failed.
    pub(crate) fn values(
        &self,
        samples: &[Sample],
        scenario: Scenario,
        competitor: &str,
    ) -> Vec<Option<f64>> {
        samples
            .iter()
            .filter(|s| s.scenario == scenario && s.test == self.test && s.competitor == competitor)
            .map(|s| s.detail[self.field].as_f64())
            .collect()
    }
}

// === impl Ratio ===

impl Ratio {
    /// Of figures to those of the same round.
    pub(crate) fn of(values: &[Option<f64>], base: &[Option<f64>]) -> Option<Self> {
        let ratios: Vec<f64> = values
            .iter()
            .zip(base)
            .filter_map(|(a, b)| Some((*a)? / (*b)?))
            .collect();
        let (least, most) = stats::spread_of_most(&ratios)?;
        Some(Self {
            median: stats::median(&ratios)?,
            least,
            most,
            rounds: ratios.len(),
        })
    }

    pub(crate) fn verdict(self) -> Verdict {
        let known = self.rounds >= ROUNDS;
        if known && self.most - self.least <= (self.median - 1.0).abs() {
            Verdict::Told(self.median)
        } else if known && self.least >= 0.9 && self.most <= 1.1 {
            Verdict::Alike
        } else {
            Verdict::Hidden
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ratios: &[f64]) -> Verdict {
        let values: Vec<_> = ratios.iter().map(|ratio| Some(ratio * 7.0)).collect();
        Ratio::of(&values, &vec![Some(7.0); ratios.len()])
            .unwrap()
            .verdict()
    }

    #[test]
    fn ratios_are_formed_inside_a_round() {
        let base = [Some(10.0), Some(20.0), Some(40.0), None];
        let values = [Some(15.0), Some(30.0), Some(60.0), Some(1.0)];
        let ratio = Ratio::of(&values, &base).unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (1.5, 1.5, 1.5));
        assert_eq!(Ratio::of(&[None], &[Some(1.0)]), None);
    }

    #[test]
    fn a_ratio_is_told_where_its_spread_does_not_hide_it() {
        assert_eq!(verdict(&[2.0, 1.5, 2.5]), Verdict::Told(2.0));
        assert_eq!(verdict(&[2.0, 1.4, 2.5]), Verdict::Hidden);
        assert_eq!(verdict(&[0.5, 0.4, 0.6]), Verdict::Told(0.5));
        assert_eq!(verdict(&[1.02, 0.98, 1.05]), Verdict::Alike);
        assert_eq!(verdict(&[1.02, 0.80, 1.05]), Verdict::Hidden);
    }

    #[test]
    fn few_rounds_tell_nothing() {
        assert_eq!(verdict(&[2.0, 2.0]), Verdict::Hidden);
    }

    #[test]
    fn one_odd_round_in_five_does_not_hide_a_ratio() {
        assert_eq!(verdict(&[2.0, 2.0, 2.1, 2.0, 9.0]), Verdict::Told(2.0));
        assert_eq!(verdict(&[2.0, 2.0, 9.0, 2.0, 9.0]), Verdict::Hidden);
    }
}
