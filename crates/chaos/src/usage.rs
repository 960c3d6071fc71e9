//! What a process uses over time: memory, threads, file descriptors; and whether it uses more and more.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use test_support::probe;
use tokio::task::AbortHandle;

use crate::row::{Result, expect};

const EVERY: Duration = Duration::from_secs(1);
/// Beside the first half's most. Its largest backlog decides what a relay held, and the halves have different ones.
const MEMORY_SLACK_KIB: u64 = 16 * 1024;
const THREADS_SLACK: u64 = 4;
/// A reconnect holds the old socket and the new one for a moment.
const FILES_SLACK: u64 = 8;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub resident_kib: u64,
    pub threads: u64,
    pub files: u64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            resident_kib: probe::resident_kib(pid)?,
            threads: probe::threads(pid)?,
            files: u64::try_from(probe::descriptors(pid)?)?,
        })
    }

    fn most(self, other: Self) -> Self {
        Self {
            resident_kib: self.resident_kib.max(other.resident_kib),
            threads: self.threads.max(other.threads),
            files: self.files.max(other.files),
        }
    }
}

/// Looks at a process every second until it is dropped.
pub struct Watch {
    samples: Arc<Mutex<Vec<Usage>>>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    pub fn start(pid: u32) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&samples);
        let task = tokio::spawn(async move {
            let mut next = tokio::time::interval(EVERY);
            loop {
                next.tick().await;
                let Ok(usage) = Usage::of(pid) else { return };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(usage);
            }
        });
        Self {
            samples,
            task: task.abort_handle(),
        }
    }

    /// The most of either half of the time; an error when the second half needed more.
    pub fn flat(&self) -> Result<String> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let (early, late) = halves(&samples);
        expect(is_flat(early, late), || {
            format!(
                "the relay uses more and more: at most {early:?} in the first half, {late:?} in the second"
            )
        })?;
        Ok(format!(
            "the relay that was never killed used at most {early:?} in the first half of the time, {late:?} in the second"
        ))
    }
}

fn halves(samples: &[Usage]) -> (Usage, Usage) {
    let most = |half: &[Usage]| half.iter().copied().fold(Usage::default(), Usage::most);
    let (early, late) = samples.split_at(samples.len() / 2);
    (most(early), most(late))
}

fn is_flat(early: Usage, late: Usage) -> bool {
    late.resident_kib <= early.resident_kib + MEMORY_SLACK_KIB
        && late.threads <= early.threads + THREADS_SLACK
        && late.files <= early.files + FILES_SLACK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(mib: u64, files: u64) -> Usage {
        Usage {
            resident_kib: mib * 1024,
            threads: 5,
            files,
        }
    }

    #[test]
    fn a_backlog_in_either_half_is_no_growth_and_a_leak_is() {
        let flat = |samples: &[Usage]| {
            let (early, late) = halves(samples);
            is_flat(early, late)
        };
        let (idle, busy) = (usage(30, 20), usage(78, 28));
        assert!(flat(&[idle, busy, idle, busy]));
        assert!(flat(&[busy, idle, idle, idle]));
        assert!(!flat(&[idle, idle, idle, busy]));
        assert!(!flat(&[
            usage(30, 20),
            usage(30, 25),
            usage(30, 30),
            usage(30, 34)
        ]));
    }
}
