//! Exponential back-off with full jitter. No I/O.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Maximum number of attempts of a message, and the wait between attempts.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    pub max_attempts: u32,
    pub backoff_initial: Duration,
    pub backoff_max: Duration,
}

/// A uniform draw between zero and a ceiling: `initial`, doubled for every failure after the first, at most `max`. Full
/// jitter spreads the retries of messages that failed together.
pub fn delay(failures: u32, initial: Duration, max: Duration, rng: &mut impl Rng) -> Duration {
    part(ceiling(failures, initial, max), rng.random_range(0.0..=1.0))
}

/// An f64 has 53 bits of precision. It rounds a longer duration, and `Duration::MAX` rounds up to a value that no
/// `Duration` holds.
fn part(of: Duration, part: f64) -> Duration {
    Duration::try_from_secs_f64(of.as_secs_f64() * part).map_or(of, |part| part.min(of))
}

fn ceiling(failures: u32, initial: Duration, max: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    initial.checked_mul(1 << doublings).unwrap_or(max).min(max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let at = |failures| {
            ceiling(failures, Duration::from_secs(1), Duration::from_secs(300)).as_secs()
        };
        assert_eq!(
            [0, 1, 2, 3, 9, 10, 1000, u32::MAX].map(at),
            [1, 1, 2, 4, 256, 300, 300, 300]
        );
        assert_eq!(ceiling(9, Duration::MAX, Duration::MAX), Duration::MAX);
    }

    #[test]
    fn the_jitter_is_full() {
        let mut rng = rand::rng();
        let draws: Vec<f64> = (0..2000)
            .map(|_| {
                delay(
                    4,
                    Duration::from_secs(1),
                    Duration::from_secs(300),
                    &mut rng,
                )
                .as_secs_f64()
            })
            .collect();
        assert!(
            draws.iter().any(|d| *d < 0.8) && draws.iter().any(|d| *d > 7.2),
            "spread over 0 to 8 s"
        );
    }

    #[test]
    fn the_largest_duration_does_not_overflow() {
        assert_eq!(part(Duration::MAX, 1.0), Duration::MAX);
        assert_eq!(part(Duration::MAX, 0.0), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_delay_never_passes_the_maximum_and_no_number_of_failures_overflows(
            failures: u32, initial: Duration, max: Duration,
        ) {
            prop_assert!(delay(failures, initial, max, &mut rand::rng()) <= max);
            prop_assert!(part(ceiling(failures, initial, max), 1.0) <= max);
        }

        #[test]
        fn more_failures_never_have_a_lower_ceiling(failures: u32, initial: Duration, max: Duration) {
            prop_assert!(ceiling(failures, initial, max) <= ceiling(failures.saturating_add(1), initial, max));
        }
    }
}
