//! The pace of a command that changes many messages: at most so many in a second.

use std::time::Duration;

use tokio::time::Instant;

pub struct Pace<'a> {
    /// `None`: as fast as it goes.
    per_second: Option<f64>,
    began: Instant,
    done: i64,
    /// Is told after each step how many are done.
    told: &'a mut dyn FnMut(i64),
}

impl<'a> Pace<'a> {
    pub fn new(per_second: Option<f64>, told: &'a mut dyn FnMut(i64)) -> Self {
        Self {
            per_second,
            began: Instant::now(),
            done: 0,
            told,
        }
    }

    /// The size of a step: at most what a second may have.
    pub fn most(&self, step: i64) -> i64 {
        match self.per_second {
            Some(rate) => step.min((rate as i64).max(1)),
            None => step,
        }
    }

    /// Waits after a step until the next one may begin. Nothing may be locked meanwhile.
    pub async fn after(&mut self, messages: i64) {
        self.done += messages;
        (self.told)(self.done);
        if let Some(due) = self.due() {
            tokio::time::sleep_until(self.began + due).await;
        }
    }

    /// When the next step may begin, from the start.
    fn due(&self) -> Option<Duration> {
        let rate = self.per_second?;
        Duration::try_from_secs_f64(self.done as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_never_faster_than_its_rate() {
        let mut told = Vec::new();
        let mut hear = |done| told.push(done);
        let mut pace = Pace::new(Some(2.5), &mut hear);
        assert_eq!(pace.most(1000), 2);
        let began = Instant::now();
        for _ in 0..10 {
            pace.after(2).await;
        }
        assert_eq!(began.elapsed().as_secs(), 8);
        assert_eq!(told.last(), Some(&20));
        let mut hear = |_| {};
        assert_eq!(Pace::new(Some(0.001), &mut hear).most(1000), 1);
        assert_eq!(Pace::new(Some(1e6), &mut hear).most(1000), 1000);
        assert_eq!(Pace::new(None, &mut hear).due(), None);
    }
}
