//! How many new messages a claim reads of each lane that it holds. No I/O.
//!
//! **Why.** Keys do not fall into lanes evenly. Were lanes read alike, the fuller ones would stay behind the others, further
//! and further for as long as a backlog lasts: their messages get older than all others. And a page of the table has
//! messages of several lanes: it would be read, and its changes logged, for each of them at another time, when it has left
//! memory in between (docs/internals/experiments.md). So a lane that is behind the others of its claim in position reads more.

/// Positions that are one part more. Twice `low_water::STRIDE`, by which a mark may be late, and about as far as a claim of
/// 500 messages takes each of fifteen lanes.
const STEP: i64 = 2048;
/// Parts of a lane that is neither behind nor ahead.
const EVEN: i64 = 16;
/// A lane that is far behind has no more than that, and one that is far ahead no less than half: a hot key must not take all
/// from the others. And while marks stand still, because a transaction that has written stays open, what they tell is old.
const MOST: i64 = 2 * EVEN;
const LEAST: i64 = EVEN / 2;

/// New messages to read of each lane, at least one, in the order of their marks: `messages` in all, and what rounding up
/// adds.
pub fn shares(marks: &[i64], messages: usize) -> Vec<usize> {
    let mut sorted = marks.to_vec();
    sorted.sort_unstable();
    let Some(middle) = sorted.get(sorted.len() / 2) else {
        return Vec::new();
    };
    let parts = |mark: &i64| {
        let behind = middle.saturating_sub(*mark) / STEP;
        behind.clamp(LEAST - EVEN, MOST - EVEN) + EVEN
    };
    let parts: Vec<usize> = marks.iter().map(|mark| parts(mark) as usize).collect();
    let all: usize = parts.iter().sum();
    let share = |parts: &usize| (messages * parts).div_ceil(all).max(1);
    parts.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_side_by_side_share_alike_and_nobody_goes_without() {
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
    fn one_behind_reads_more_one_ahead_less_and_both_within_bounds() {
        let at = |parts: i64| 10_000_000 + parts * STEP;
        assert_eq!(shares(&[at(0), at(-8), at(4)], 520), [160, 240, 120]);
        assert_eq!(shares(&[at(0), at(-99), at(99)], 350), [100, 200, 50]);
        assert_eq!(shares(&[i64::MIN, 0, i64::MAX], 350), [200, 100, 50]);
    }
}
