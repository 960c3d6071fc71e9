//! Exponential back-off with full jitter. No I/O.

use std::time::Duration;

use rand::{Rng, RngExt};

/// A uniform draw between zero and `initial` doubled for every failure after the first, at most `max`. Full jitter:
/// what failed together does not come back together.
pub fn delay(failures: u32, initial: Duration, max: Duration, rng: &mut impl Rng) -> Duration {
    ceiling(failures, initial, max).mul_f64(rng.random_range(0.0..=1.0))
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

    proptest! {
        #[test]
        fn a_delay_never_passes_the_maximum(failures: u32, initial_ms in 0..u64::MAX / 2, max_ms in 0..86_400_000u64) {
            let max = Duration::from_millis(max_ms);
            prop_assert!(delay(failures, Duration::from_millis(initial_ms), max, &mut rand::rng()) <= max);
        }
    }
}
