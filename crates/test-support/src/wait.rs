//! Waiting with a deadline.

use std::{future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

/// The longest pause between two questions. One that takes seconds on a busy machine must be asked more than once.
const PAUSE: Duration = Duration::from_secs(3);

/// Between a question that took so long and the next one: an expensive one is asked less often, or the waiting itself slows
/// what is awaited.
pub fn pause_after(question: Duration) -> Duration {
    (4 * question).clamp(Duration::from_millis(10), PAUSE)
}

/// Asks again and again until there is an answer; panics at the deadline, and says who waited for what.
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
            // A question that is never answered must not be waited for without an end.
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
