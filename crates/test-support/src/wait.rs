//! Waits with a deadline.

use std::{future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

/// Time limit for a wait that should take a moment, long enough for a slow machine. Where a test waits for many things, this is
/// the longest time without progress.
pub const SOON: Duration = Duration::from_secs(180);

/// The longest pause between two questions. A question that takes seconds on a busy machine must still be asked more than once.
const PAUSE: Duration = Duration::from_secs(3);

/// The pause after a question that took this long. An expensive question is asked less often, because the waiting itself would
/// slow the awaited work.
pub fn pause_after(question: Duration) -> Duration {
    (4 * question).clamp(Duration::from_millis(10), PAUSE)
}

/// Asks again and again until there is an answer. At the deadline it panics, and names the caller and the awaited event.
#[track_caller]
pub fn eventually<T, F>(what: &str, within: Duration, ask: F) -> impl Future<Output = T> + use<T, F>
where
    F: AsyncFn() -> Option<T>,
{
    let caller = Location::caller();
    let what = what.to_owned();
    async move {
        let deadline = Instant::now() + within;
        loop {
            let asked = Instant::now();
            // Bound a question that never gets an answer.
            if let Ok(Some(answer)) = timeout_at(deadline, ask()).await {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "waited {within:?} for {what} ({caller})"
            );
            sleep(pause_after(asked.elapsed())).await;
        }
    }
}

/// Waits until nothing is missing. The machine may be slow: the deadline starts again whenever fewer things are missing than ever
/// before.
#[track_caller]
pub fn nearer<F: AsyncFn() -> Option<i64>>(
    what: &str,
    missing: F,
) -> impl Future<Output = ()> + use<F> {
    let caller = Location::caller();
    let what = what.to_owned();
    async move {
        let mut least = i64::MAX;
        let mut deadline = Instant::now() + SOON;
        loop {
            let asked = Instant::now();
            // Bound a question that never gets an answer.
            match timeout_at(deadline, missing()).await {
                Ok(Some(0)) => return,
                Ok(Some(left)) if left < least => {
                    least = left;
                    deadline = Instant::now() + SOON;
                }
                _ => {}
            }
            assert!(
                Instant::now() < deadline,
                "waited {SOON:?} for {what}, and {least} were missing all the time ({caller})"
            );
            sleep(pause_after(asked.elapsed())).await;
        }
    }
}
