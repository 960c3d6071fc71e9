//! Waiting with a deadline.

use std::{future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep};

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
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "waited {within:?} for {what} ({caller})"
            );
            // An expensive question is asked less often, or the waiting itself slows what is awaited.
            sleep((4 * asked.elapsed()).max(Duration::from_millis(10))).await;
        }
    }
}
