//! What several runs come to.

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One number of several runs.
pub fn each<T>(runs: &[T], pick: impl Fn(&T) -> f64) -> Vec<f64> {
    runs.iter().map(pick).collect()
}

pub fn median_of<T>(runs: &[T], pick: impl Fn(&T) -> f64) -> f64 {
    median(&each(runs, pick))
}

/// `p` between 0 and 1.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values
        .get((last * p).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}
