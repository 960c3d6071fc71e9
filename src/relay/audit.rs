//! The audit's pace: the whole of `outbox.message`, again and again, in small steps that cost a fixed part of one core.
//!
//! Each relay audits everything once after its start, and once after each sign that somebody changed the tables, whatever
//! others do. Between them one relay goes on, and slower. What an audit finds is filed at once; what lies in a lane that
//! another one holds is kept, and filed as soon as the lane is free.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use outbox_core::message::{Lane, Position};
use tokio::time::Instant;

use super::shared::Shared;
use crate::{
    outbox::{
        OutboxError,
        audit::{self, Signs, Size, Table},
        session::Session,
    },
    telemetry::metrics,
};

/// A pause is so many times longer than the step before it: a twentieth of one core for the first audit and an urgent
/// one, a hundredth afterwards. Reading from a cold disk counts as well, so a table that is not in memory is left in peace.
const URGENT: u32 = 19;
const STEADY: u32 = 99;
/// Minimum time between the begins of two audits.
const BEGIN_EVERY: Duration = Duration::from_secs(5);
/// Maximum time between them when the server has counted no write: an idle relay need not read the same pages every 5 s.
/// The counter is no proof (see `sql/audit_size.sql`), so the audit never stops.
const BEGIN_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// What a step takes about; its pages are chosen so.
const STEP: Duration = Duration::from_millis(20);
const PAGES: (u32, u32) = (32, 4096);
const SIGNS_EVERY: Duration = Duration::from_secs(1);
const LEAD_EVERY: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_secs(1);
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Filed in one transaction.
const CHUNK: usize = 1000;
/// Known and not filed; with more, the walk waits.
const KNOWN: usize = 50_000;

pub(super) struct Audit {
    /// None was whole since the start, or since the last alarm: this relay owes one.
    urgent: bool,
    /// When it is asked again whether this relay goes on auditing.
    lead_at: Instant,
    walk: Option<Walk>,
    /// The last whole audit.
    last: Option<Whole>,
    next: Instant,
    pages: u32,
    signs: Option<Signs>,
    signs_at: Instant,
    known: Known,
    /// Filed and not said yet.
    unsaid: u64,
    say_at: Instant,
}

#[derive(Debug)]
struct Walk {
    began: Instant,
    table: Table,
    /// The next page.
    page: u32,
    size: Size,
    /// Counted before the first page was read.
    writes: i64,
}

/// A whole audit that has ended.
#[derive(Debug, Clone, Copy)]
struct Whole {
    began: Instant,
    /// Writes counted before it began: later ones may have been on pages that it had read already.
    writes: i64,
}

impl Whole {
    fn must_be_repeated(self, now: Instant, writes: i64) -> bool {
        writes != self.writes || now.duration_since(self.began) >= BEGIN_AT_LEAST_EVERY
    }
}

impl Audit {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            urgent: true,
            lead_at: now,
            walk: None,
            last: None,
            next: now,
            pages: PAGES.0,
            signs: None,
            signs_at: now,
            known: Known::default(),
            unsaid: 0,
            say_at: now,
        }
    }

    /// One bounded step. Returns when the next one is due.
    pub async fn step(
        &mut self,
        session: &Session,
        shared: &Shared,
    ) -> Result<Instant, OutboxError> {
        let source = shared.health.source();
        if Instant::now() >= self.signs_at {
            self.look(session).await?;
        }
        let noticed = shared.hints.take();
        if noticed.alarm {
            self.alarm();
        }
        if !noticed.moved.is_empty() {
            self.known.add(audit::find(session, &noticed.moved).await?);
        }
        let mut due = self.signs_at;
        if self.known.len() < KNOWN {
            due = due.min(self.go_on(session, shared).await?);
        }
        if self.known.is_due() {
            let filed = self.known.file(session).await?;
            metrics::stranded(source, filed, self.known.len());
            self.unsaid += filed;
        }
        if self.unsaid > 0 && Instant::now() >= self.say_at {
            tracing::error!(
                source,
                messages = self.unsaid,
                not_yet = self.known.len(),
                "unsent messages lay where no relay looks; they are filed, and sent: somebody changed the outbox by hand"
            );
            self.unsaid = 0;
            self.say_at = Instant::now() + SAY_EVERY;
        }
        if self.unsaid > 0 {
            due = due.min(self.say_at);
        }
        Ok(self.known.due().map_or(due, |at| due.min(at)))
    }

    pub async fn report(&self, session: &Session, shared: &Shared) -> Result<(), OutboxError> {
        audit::record(session, &shared.instance, false, self.known.len()).await
    }

    async fn look(&mut self, session: &Session) -> Result<(), OutboxError> {
        let seen = audit::signs(session).await?;
        let alarm = self
            .signs
            .as_ref()
            .is_some_and(|before| before.alarm(&seen));
        self.signs = Some(seen);
        self.signs_at = Instant::now() + SIGNS_EVERY;
        if alarm {
            tracing::warn!("tables or sequence of the outbox were changed; auditing all of it now");
            self.alarm();
        }
        Ok(())
    }

    /// From the beginning, whatever was walked: what changed may lie there.
    fn alarm(&mut self) {
        self.urgent = true;
        self.walk = None;
        self.last = None;
        self.next = Instant::now();
    }

    async fn go_on(&mut self, session: &Session, shared: &Shared) -> Result<Instant, OutboxError> {
        if self.walk.is_none() {
            if Instant::now() < self.next {
                return Ok(self.next);
            }
            // An alarm is answered by whoever saw it: a relay that leads may not have seen it, or may stand still.
            if !self.urgent && !self.leads(session, shared).await? {
                return Ok(self.lead_at);
            }
            let began = Instant::now();
            let size = audit::size(session).await?;
            let unchanged = |last: &Whole| !last.must_be_repeated(began, size.writes);
            if self.last.as_ref().is_some_and(unchanged) {
                self.next = began + BEGIN_EVERY;
                return Ok(self.next);
            }
            self.walk = Some(Walk {
                began,
                table: Table::Message,
                page: 0,
                size,
                writes: size.writes,
            });
        }
        let Some(walk) = &mut self.walk else {
            return Ok(self.next);
        };
        let asked = Instant::now();
        let to = walk.page.saturating_add(self.pages);
        match walk.table {
            Table::Message => {
                self.known.add(audit::walk(session, walk.page, to).await?);
            }
            Table::Waiting => {
                let released = audit::release(session, walk.page, to).await?;
                if released > 0 {
                    tracing::warn!(
                        source = shared.health.source(),
                        messages = released,
                        "messages waited for what is no more; they may go: somebody changed the outbox by hand"
                    );
                }
            }
        }
        walk.page = to;
        let took = asked.elapsed();
        let pause = pause(took, self.urgent);
        self.pages = pages(self.pages, took);
        if walk.is_past_the_end() {
            // It has grown meanwhile, perhaps by rows that were copied back.
            walk.size = audit::size(session).await?;
        }
        if walk.is_past_the_end() && !walk.next_table() {
            let last = Whole {
                began: walk.began,
                writes: walk.writes,
            };
            self.walk = None;
            self.urgent = false;
            self.last = Some(last);
            self.next = (last.began + BEGIN_EVERY).max(Instant::now() + pause);
            metrics::audited(shared.health.source());
            audit::record(session, &shared.instance, true, self.known.len()).await?;
            return Ok(self.next);
        }
        Ok(Instant::now() + pause)
    }

    async fn leads(&mut self, session: &Session, shared: &Shared) -> Result<bool, OutboxError> {
        if Instant::now() < self.lead_at {
            return Ok(false);
        }
        let leads = audit::leads(session, &shared.instance).await?;
        if !leads {
            self.lead_at = Instant::now() + LEAD_EVERY;
        }
        Ok(leads)
    }
}

impl Walk {
    fn is_past_the_end(&self) -> bool {
        self.page
            >= match self.table {
                Table::Message => self.size.message,
                Table::Waiting => self.size.waiting,
            }
    }

    /// `false` when this was the last.
    fn next_table(&mut self) -> bool {
        if self.table == Table::Waiting {
            return false;
        }
        self.table = Table::Waiting;
        self.page = 0;
        true
    }
}

fn pause(took: Duration, urgent: bool) -> Duration {
    took * if urgent { URGENT } else { STEADY }
}

/// So many that a step takes about what it should: twice as many, or half.
fn pages(pages: u32, took: Duration) -> u32 {
    let next = if took < STEP / 2 {
        pages.saturating_mul(2)
    } else if took > STEP * 2 {
        pages / 2
    } else {
        pages
    };
    next.clamp(PAGES.0, PAGES.1)
}

/// Stranded messages that are not filed yet.
#[derive(Debug, Default)]
struct Known {
    lanes: BTreeMap<Lane, BTreeSet<i64>>,
    /// Some lanes were held; when they are tried again.
    retry: Option<Instant>,
}

impl Known {
    fn add(&mut self, found: Vec<Position>) {
        for position in found {
            self.lanes
                .entry(position.lane)
                .or_default()
                .insert(position.id);
        }
    }

    fn len(&self) -> usize {
        self.lanes.values().map(BTreeSet::len).sum()
    }

    fn due(&self) -> Option<Instant> {
        let now = || self.retry.unwrap_or_else(Instant::now);
        (!self.lanes.is_empty()).then(now)
    }

    fn is_due(&self) -> bool {
        self.due().is_some_and(|at| Instant::now() >= at)
    }

    fn take(&mut self) -> Vec<Position> {
        std::mem::take(&mut self.lanes)
            .into_iter()
            .flat_map(|(lane, ids)| ids.into_iter().map(move |id| Position { lane, id }))
            .collect()
    }

    /// Files what can be filed now. Of the lanes that were held the last time as well, one is waited for.
    async fn file(&mut self, session: &Session) -> Result<u64, OutboxError> {
        let again = self.retry.take().is_some();
        let mut total = 0;
        let mut left = Vec::new();
        for chunk in self.take().chunks(CHUNK) {
            let done = audit::file(session, chunk).await?;
            total += done.filed;
            left.extend(done.left);
        }
        if again && let Some(lane) = left.first().map(|p| p.lane) {
            let (of_lane, others): (Vec<Position>, Vec<Position>) =
                left.into_iter().partition(|p| p.lane == lane);
            left = others;
            for chunk in of_lane.chunks(CHUNK) {
                let done = audit::file_lane(session, lane, chunk).await?;
                total += done.filed;
                left.extend(done.left);
            }
        }
        if !left.is_empty() {
            self.retry = Some(Instant::now() + RETRY_EVERY);
            self.add(left);
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn an_audit_takes_its_part_of_a_core_and_an_urgent_one_more() {
        assert_eq!(pause(MS(20), true), MS(380));
        assert_eq!(pause(MS(20), false), MS(1980));
    }

    #[test]
    fn a_step_takes_about_as_long_whatever_a_page_costs() {
        assert_eq!(pages(256, MS(1)), 512);
        assert_eq!(pages(256, MS(20)), 256);
        assert_eq!(pages(256, MS(90)), 128);
        assert_eq!(pages(PAGES.1, MS(1)), PAGES.1);
        assert_eq!(pages(PAGES.0, MS(900)), PAGES.0);
    }

    #[test]
    fn an_audit_is_repeated_after_a_write_and_after_a_minute() {
        let began = Instant::now();
        let last = Whole { began, writes: 7 };
        assert!(!last.must_be_repeated(began + BEGIN_EVERY, 7));
        assert!(last.must_be_repeated(began + BEGIN_EVERY, 8));
        // The server's counters were reset.
        assert!(last.must_be_repeated(began + BEGIN_EVERY, 0));
        assert!(last.must_be_repeated(began + BEGIN_AT_LEAST_EVERY, 7));
    }

    #[test]
    fn what_is_found_twice_is_known_once() {
        let at = |lane, id| Position { lane, id };
        let mut known = Known::default();
        assert!(known.due().is_none());
        known.add(vec![at(1, 5), at(2, 6)]);
        known.add(vec![at(1, 5), at(1, 4)]);
        assert_eq!(known.len(), 3);
        assert!(known.is_due());
        assert_eq!(known.take(), [at(1, 4), at(1, 5), at(2, 6)]);
        assert_eq!(known.len(), 0);
    }
}
