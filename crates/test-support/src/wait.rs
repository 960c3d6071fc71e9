//! Waits with a deadline.

use std::{future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

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
