//! How many new messages a claim reads of each lane that it holds.
//!
//! **Why.** Keys do not fall into lanes evenly. If a claim read the same number of messages from every lane, the fuller
//! lanes would lag, further and further for as long as a backlog lasts: their messages would become older than all others.
//! And a page of the table has messages of several lanes: PostgreSQL would read it, and log its changes, for each of these
//! lanes at another time, after the page has left memory (docs/internals/experiments.md). So lanes that lag behind get a
//! larger share.

use super::tuning::Tuning;

/// New messages to read of each lane, at least one, in the order of `marks`. Their sum is `messages`, and what rounding up
/// adds.
pub fn shares(tuning: &Tuning, marks: &[i64], messages: usize) -> Vec<usize> {
    let mut sorted = marks.to_vec();
    sorted.sort_unstable();
    let Some(middle) = sorted.get(sorted.len() / 2) else {
        return Vec::new();
    };
    let parts = |mark: &i64| {
        let lag = middle.saturating_sub(*mark) / tuning.share_step_positions;
        let (fewest, most) = (tuning.share_fewest_parts, tuning.share_most_parts);
        tuning.share_parts.saturating_add(lag).clamp(fewest, most)
    };
    let parts: Vec<usize> = marks.iter().map(|mark| parts(mark) as usize).collect();
    let all: usize = parts.iter().sum();
    let share = |parts: &usize| (messages * parts).div_ceil(all).max(1);
    parts.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(marks: &[i64], messages: usize) -> Vec<usize> {
        super::shares(&Tuning::MEASURED, marks, messages)
    }

    #[test]
    fn level_lanes_share_alike_and_no_lane_gets_nothing() {
        assert_eq!(shares(&[700; 4], 500), [125; 4]);
        assert_eq!(
            shares(&[700, 0, 1400, 2047], 500),
            [125; 4],
            "marks are no finer"
        );
        assert_eq!(shares(&[0], 500), [500]);
        assert_eq!(shares(&[0, 100, 1_000_000], 1), [1; 3]);
        assert_eq!(shares(&[0; 3], 0), [1; 3]);
        assert_eq!(shares(&[], 500), [0; 0]);
    }

    #[test]
    fn a_lane_that_lags_reads_more_and_one_that_leads_less_within_bounds() {
        let at = |parts: i64| 10_000_000 + parts * Tuning::MEASURED.share_step_positions;
        assert_eq!(shares(&[at(0), at(-8), at(4)], 520), [160, 240, 120]);
        assert_eq!(shares(&[at(0), at(-99), at(99)], 350), [100, 200, 50]);
        assert_eq!(shares(&[i64::MIN, 0, i64::MAX], 350), [200, 100, 50]);
    }
}
