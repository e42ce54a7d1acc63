//! Order statistics.

/// The value below which the share `q` of the samples lies; sorts them.
pub(crate) fn quantile(samples: &mut [f64], q: f64) -> Option<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    let last = samples.len().checked_sub(1)?;
    samples.get((last as f64 * q).round() as usize).copied()
}

/// The middle value; the mean of the two in the middle where their number is even.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 {
        upper
    } else {
        (sorted[middle - 1] + upper) / 2.0
    })
}

/// Smallest and largest.
pub(crate) fn spread(samples: &[f64]) -> Option<(f64, f64)> {
    let least = samples.iter().copied().min_by(f64::total_cmp)?;
    let most = samples.iter().copied().max_by(f64::total_cmp)?;
    Some((least, most))
}

/// Smallest and largest, a fifth of the samples left out at either end.
pub(crate) fn spread_of_most(samples: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let odd = sorted.len() / 5;
    spread(&sorted[odd..sorted.len() - odd])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn quantiles_are_samples() {
        let mut samples: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut samples, 0.5), Some(51.0));
        assert_eq!(quantile(&mut samples, 0.99), Some(100.0));
        assert_eq!(quantile(&mut samples, 1.0), Some(101.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn the_spread_is_from_smallest_to_largest() {
        assert_eq!(spread(&[2.0, 7.0, 1.0]), Some((1.0, 7.0)));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread_of_most(&[9.0, 2.0, 3.0, 1.0]), Some((1.0, 9.0)));
        assert_eq!(spread_of_most(&[9.0, 2.0, 3.0, 1.0, 4.0]), Some((2.0, 4.0)));
        assert_eq!(spread_of_most(&[]), None);
    }
}
