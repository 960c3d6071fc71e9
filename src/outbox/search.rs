//! Where to look for a message of which the id is known and the position is not: there is no index on `message_id`. Most ids
//! carry the time when they were made, and positions grow with time. No I/O.

use std::time::{Duration, SystemTime};

use uuid::Uuid;

/// Positions from `first` to `last`, both included. Positions are counted over all lanes together, so a window's width bounds
/// the rows in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub first: i64,
    pub last: i64,
}

impl Window {
    pub fn is_empty(self) -> bool {
        self.first > self.last
    }

    fn within(self, other: Self) -> Self {
        Self {
            first: self.first.max(other.first),
            last: self.last.min(other.last),
        }
    }
}

/// The last second of the year 9999. Clocks beyond are no clocks.
const LAST_SECOND: u64 = 253_402_300_799;

/// The time in an id of version 1, 6 or 7.
pub fn time_in(id: Uuid) -> Option<SystemTime> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    (seconds <= LAST_SECOND).then(|| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
}

/// How far the search goes from the position at the id's time, in positions on each side: most ids are as exact as the
/// database's clock, and a producer's clock may be minutes off.
const REACH: [i64; 4] = [500, 4_000, 32_000, 256_000];

/// Whether the position at a time is known less exactly than the nearest window reads.
pub fn has_gap(position: Window) -> bool {
    position.last.saturating_sub(position.first) > REACH[0]
}

/// Most positions that one statement reads.
const PIECE: i64 = 64_000;

/// The windows around a position in the order of the search, the nearest first; none reads what another one has read.
pub fn around(at: i64, ends: Window) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut inner: Option<Window> = None;
    for reach in REACH {
        let outer = Window {
            first: at.saturating_sub(reach),
            last: at.saturating_add(reach),
        };
        match inner {
            None => windows.push(outer.within(ends)),
            Some(inner) => {
                let (mut before, mut after) = (inner.first, inner.last);
                while before > outer.first || after < outer.last {
                    if before > outer.first {
                        let first = outer.first.max(before.saturating_sub(PIECE));
                        let last = before - 1;
                        windows.push(Window { first, last }.within(ends));
                        before = first;
                    }
                    if after < outer.last {
                        let last = outer.last.min(after.saturating_add(PIECE));
                        let first = after + 1;
                        windows.push(Window { first, last }.within(ends));
                        after = last;
                    }
                }
            }
        }
        inner = Some(outer);
    }
    windows.retain(|window| !window.is_empty());
    windows
}

/// Positions that one statement of a long search reads.
const WIDTH: i64 = 32_000;

/// A long search: the windows of a large one, the newest first.
#[derive(Debug)]
pub struct Backwards {
    first: i64,
    /// The last position that was not read; `None`: all were.
    last: Option<i64>,
}

impl Backwards {
    pub fn new(all: Window) -> Self {
        Self {
            first: all.first,
            last: Some(all.last),
        }
    }

    pub fn last(&self) -> Option<i64> {
        self.last.filter(|last| *last >= self.first)
    }

    pub fn next(&mut self) -> Option<Window> {
        let last = self.last()?;
        let first = self.first.max(last.saturating_sub(WIDTH - 1));
        self.last = first.checked_sub(1);
        Some(Window { first, last })
    }

    /// Positions have gaps, where retention or a sequence that was set has made them. `last`: the next position with a message.
    pub fn skip_to(&mut self, last: Option<i64>) {
        self.last = last;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All positions that `around` covers.
    fn reach(at: i64, ends: Window) -> Window {
        let reach = REACH[REACH.len() - 1];
        Window {
            first: at.saturating_sub(reach),
            last: at.saturating_add(reach),
        }
        .within(ends)
    }

    #[test]
    fn an_id_of_version_7_carries_its_time_and_a_random_one_none() {
        let id: Uuid = "0190163d-8694-739b-aea5-966c26f8ad91".parse().unwrap();
        let at = time_in(id)
            .unwrap()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_eq!(at.as_millis(), 0x0190_163d_8694);
        let one: Uuid = "a6b0b8f0-7c3d-11ee-b962-0242ac120002".parse().unwrap();
        let six: Uuid = "1ee7c3da-6b0b-68f0-b962-0242ac120002".parse().unwrap();
        assert!(time_in(one).is_some());
        assert_eq!(time_in(one), time_in(six));
        for none in [
            "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            // Version 7, of the year 10889; and version 1, of the year 1582.
            "ffffffff-ffff-7fff-bfff-ffffffffffff",
            "00000000-0000-1000-8000-000000000000",
        ] {
            assert_eq!(time_in(none.parse().unwrap()), None, "{none}");
        }
    }

    #[test]
    fn the_search_begins_at_the_position_and_stays_in_the_table() {
        let windows = around(
            1_000_000,
            Window {
                first: 1,
                last: 10_000_000,
            },
        );
        assert_eq!(
            windows[0],
            Window {
                first: 999_500,
                last: 1_000_500
            }
        );
        assert_eq!(
            windows[1],
            Window {
                first: 996_000,
                last: 999_499
            }
        );
        assert_eq!(
            windows[2],
            Window {
                first: 1_000_501,
                last: 1_004_000
            }
        );
        let windows = around(11, Window { first: 1, last: 10 });
        assert_eq!(windows, [Window { first: 1, last: 10 }]);
        assert_eq!(around(5, Window { first: 6, last: 5 }), []);
    }

    #[test]
    fn a_long_search_ends_at_any_position_and_skips_gaps() {
        let all = |first, last| Backwards::new(Window { first, last });
        assert_eq!(all(1, 0).next(), None);
        let mut few = all(-5, 31_996);
        assert_eq!(
            few.next(),
            Some(Window {
                first: -3,
                last: 31_996
            })
        );
        assert_eq!(
            few.next(),
            Some(Window {
                first: -5,
                last: -4
            })
        );
        assert_eq!(few.next(), None);
        let mut most = all(i64::MIN, i64::MAX);
        let window = most.next().unwrap();
        assert_eq!((window.first, window.last), (i64::MAX - 31_999, i64::MAX));
        most.skip_to(Some(i64::MIN));
        let window = most.next().unwrap();
        assert_eq!((window.first, window.last), (i64::MIN, i64::MIN));
        assert_eq!(most.next(), None);
        let mut gap = all(10, 1_000_000);
        gap.skip_to(Some(9));
        assert_eq!(gap.next(), None);
        gap.skip_to(None);
        assert_eq!(gap.next(), None);
    }

    #[test]
    fn a_search_around_an_extreme_position_reads_each_position_once() {
        for at in [i64::MIN, i64::MIN + 700, i64::MAX - 700, i64::MAX] {
            let ends = Window {
                first: i64::MIN,
                last: i64::MAX,
            };
            let mut windows = around(at, ends);
            windows.sort_by_key(|w| w.first);
            assert_eq!(windows[0].first, at.saturating_sub(256_000));
            assert_eq!(windows[windows.len() - 1].last, at.saturating_add(256_000));
            assert!(
                windows
                    .windows(2)
                    .all(|pair| pair[0].last + 1 == pair[1].first)
            );
        }
    }

    proptest! {
        #[test]
        fn every_position_within_reach_is_read_once(
            at in 0_i64..2_000_000, first in 0_i64..2_000_000, length in 0_i64..2_000_000
        ) {
            let ends = Window { first, last: first + length };
            let mut windows = around(at, ends);
            prop_assert!(windows.len() <= 16);
            prop_assert!(windows.iter().all(|w| w.last - w.first < PIECE));
            windows.sort_by_key(|w| w.first);
            let all = reach(at, ends);
            if all.is_empty() {
                prop_assert!(windows.is_empty());
            } else {
                prop_assert_eq!(windows[0].first, all.first);
                prop_assert_eq!(windows[windows.len() - 1].last, all.last);
                prop_assert!(windows.windows(2).all(|pair| pair[0].last + 1 == pair[1].first));
            }
        }
    }
}
