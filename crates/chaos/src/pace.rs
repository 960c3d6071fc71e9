//! How slow the machine is. The bounds of the rows are those of a machine at rest: while it is busy they are as much longer
//! as everything else takes longer, so that no row fails by load alone. At rest nothing is allowed on top.

use std::{
    cell::RefCell,
    collections::VecDeque,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A small work, from start to end: a program that does nothing. The processor, the scheduler and the memory have a part in
/// it, and the profile of our build has none. At rest it takes one to three milliseconds.
const AT_REST: Duration = Duration::from_millis(4);
const PAUSE: Duration = Duration::from_millis(250);
/// Measurements that are kept: an hour of them.
const KEPT: usize = 14_400;

/// When each was taken, and how long the work took.
static MEASURED: Mutex<VecDeque<(Instant, Duration)>> = Mutex::new(VecDeque::new());

tokio::task_local! {
    /// Bounds of this row that had to be longer.
    static LENGTHENED: RefCell<Vec<String>>;
}

/// Measures until the process ends.
pub fn watch() {
    std::thread::spawn(|| {
        while let Some(took) = measured() {
            let mut kept = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back((Instant::now(), took));
            drop(kept);
            std::thread::sleep(PAUSE);
        }
    });
}

fn measured() -> Option<Duration> {
    let began = Instant::now();
    let mut work = Command::new("true");
    let ended = work.stdin(Stdio::null()).stdout(Stdio::null()).status();
    ended.is_ok().then(|| began.elapsed())
}

/// How many times as long as at rest everything takes since then; 1 at least.
pub fn slowness(since: Instant) -> f64 {
    let measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    let of_it = measured.iter().rev().take_while(|(at, _)| *at >= since);
    let mut took: Vec<Duration> = of_it.map(|(_, took)| *took).collect();
    if took.is_empty() {
        // Shorter than a pause.
        took.extend(measured.back().map(|(_, took)| *took));
    }
    mean(&took).div_duration_f64(AT_REST).max(1.0)
}

fn mean(took: &[Duration]) -> Duration {
    let all: Duration = took.iter().sum();
    all / u32::try_from(took.len()).unwrap_or(u32::MAX).max(1)
}

/// What runs a row; returns also what is to be said of its bounds.
pub async fn row<T>(work: impl Future<Output = T>) -> (T, Vec<String>) {
    let all = async {
        let ended = work.await;
        (ended, LENGTHENED.with(RefCell::take))
    };
    LENGTHENED.scope(RefCell::default(), all).await
}

/// Only the slowness of the machine kept a row within its bound: it is said beside the row.
pub fn lengthened(took: Duration, bound: Duration, slowness: f64) {
    let note = format!(
        "{took:.1?} instead of {bound:?}, on a machine {slowness:.1} times as slow as at rest"
    );
    // Outside of a row nobody reads it.
    let _ = LENGTHENED.try_with(|notes| notes.borrow_mut().push(note));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_never_faster_than_at_rest() {
        assert!(slowness(Instant::now()) >= 1.0);
        assert!(measured().is_some());
    }

    #[test]
    fn the_mean_counts() {
        assert_eq!(mean(&[]), Duration::ZERO);
        let took = [AT_REST, AT_REST * 5];
        assert_eq!(mean(&took), AT_REST * 3);
    }
}
