//! Retention: deletes sent messages, lane by lane, beside the relay's work.

use std::time::Duration;

use outbox_core::{message::Lane, scheduling::LANES};
use tokio::time::Instant;

use super::context::Context;
use crate::{
    config::Retention,
    outbox::{
        OutboxError,
        retention::{self, Reach},
        session::Session,
    },
    telemetry::metrics,
};

/// How often pruning starts again with the first row: it passes over dead and waiting rows, which may be sent meanwhile.
const RESTART_EVERY: Duration = Duration::from_secs(3600);
/// While workers have lanes, a pause lasts twice as long as the step before it, so pruning uses a third of a core.
const BESIDE_WORK: u32 = 2;
/// While workers drain a backlog, pruning uses an eighth of a core: the backlog is more urgent than the old rows, whose number
/// does not grow meanwhile.
const BESIDE_BACKLOG: u32 = 7;
/// After this many refusals pruning fails at once: every lane would be refused, each perhaps after a time-out.
const REFUSALS: usize = 3;

pub struct Pruning {
    cursors: [i64; LANES],
    began: Instant,
    /// The lane of the next step.
    lane: usize,
    /// A lane of this round has more rows to delete.
    more: bool,
    /// Lanes that the server refused to prune; the others go on without them.
    refused: [bool; LANES],
    /// The first of these refusals.
    refusal: Option<OutboxError>,
    /// A refusal was logged, and no round without one has ended since.
    told: bool,
}

impl Pruning {
    pub fn new() -> Self {
        Self {
            cursors: [retention::FIRST; LANES],
            began: Instant::now(),
            lane: 0,
            more: false,
            refused: [false; LANES],
            refusal: None,
            told: false,
        }
    }

    /// From the first row again, also in lanes that were refused.
    fn restart(&mut self) {
        *self = Self {
            told: self.told,
            ..Self::new()
        };
    }

    /// While other lanes have rows to delete, the job does not fail, and nothing else tells of the refusal.
    fn tell(&mut self, source: &str, lane: Lane, error: &OutboxError) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(source, lane, error = %error, "sent messages of a lane cannot be deleted; other lanes go on");
        }
    }

    /// One bounded step in one lane; the lanes take turns. Returns when the next step is due. A row that cannot be deleted must
    /// not keep the rows of other lanes: a refusal is logged at once, and fails the job when the others have nothing left to
    /// delete.
    pub async fn step(
        &mut self,
        session: &Session,
        retention: &Retention,
        context: &Context,
    ) -> Result<Instant, OutboxError> {
        if self.lane == 0 {
            self.more = false;
            if self.began.elapsed() >= RESTART_EVERY {
                self.restart();
            }
        }
        let asked = Instant::now();
        let number = self.lane;
        self.lane = (self.lane + 1) % LANES;
        if !self.refused[number] {
            let (lane, rows) = (number as Lane, retention.step_rows);
            let cursor = self.cursors[number];
            match retention::prune_step(session, lane, cursor, rows, retention.sent, Reach::Young)
                .await
            {
                Ok(step) => {
                    self.cursors[number] = step.cursor;
                    self.more |= step.more;
                    if step.stranded {
                        context.hints.alarm();
                    }
                    metrics::pruned(context.health.source(), step.deleted);
                }
                Err(error) if error.is_statement_refused() => {
                    self.tell(context.health.source(), lane, &error);
                    self.refused[number] = true;
                    self.refusal.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        let refusals = self.refused.iter().filter(|refused| **refused).count();
        let done = self.lane == 0 && !self.more;
        if (done || refusals >= REFUSALS)
            && let Some(error) = self.refusal.take()
        {
            // All are tried again, after the job's back-off.
            self.refused = [false; LANES];
            return Err(error);
        }
        if self.lane == 0 && refusals == 0 {
            self.told = false;
        }
        let now = Instant::now();
        if done {
            return Ok(now + retention.interval);
        }
        let lanes = &context.lanes;
        Ok(now + pause(now - asked, lanes.any_taken(), lanes.has_backlog()))
    }
}

/// The pause after a step that took so long.
fn pause(took: Duration, worked: bool, backlog: bool) -> Duration {
    match (worked, backlog) {
        // The server has nothing else to do. While the broker is away, nobody drains the backlog either.
        (false, _) => Duration::ZERO,
        (true, true) => took * BESIDE_BACKLOG,
        (true, false) => took * BESIDE_WORK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_makes_way_for_work_and_more_for_a_backlog() {
        const MS: fn(u64) -> Duration = Duration::from_millis;
        assert_eq!(pause(MS(10), false, false), MS(0));
        assert_eq!(pause(MS(10), false, true), MS(0));
        assert_eq!(pause(MS(10), true, false), MS(20));
        assert_eq!(pause(MS(10), true, true), MS(70));
    }
}
