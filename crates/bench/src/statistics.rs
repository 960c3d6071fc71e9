//! What several runs come to.

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of one number of several runs.
pub fn median_of<T>(runs: &[T], pick: impl Fn(&T) -> f64) -> f64 {
    median(runs.iter().map(pick).collect())
}

/// `p` between 0 and 1.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values
        .get((last * p).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}
