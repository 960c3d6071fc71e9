//! The audit's pace: it reads all of `outbox.message`, again and again, in small steps that use a fixed part of one core.
//!
//! Each relay audits everything once after its start, and once after each sign that somebody changed the tables. Otherwise
//! one of the relays goes on auditing, at a slower pace. The audit files what it finds at once. If another session holds the
//! lane of a message, the audit remembers the message, and files it as soon as the lane is free.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use outbox_core::message::{Lane, Position};
use tokio::time::Instant;

use super::context::Context;
use crate::{
    outbox::{
        OutboxError,
        audit::{self, Alarm, Filed, Signs, Size, Table},
        session::Session,
    },
    telemetry::metrics,
};

/// A pause lasts so many times as long as the step before it: the first audit and urgent ones use a twentieth of a core, all
/// others a hundredth. The time to read from a disk counts too, so a table that is not in memory is read slowly.
const URGENT: u32 = 19;
const STEADY: u32 = 99;
/// Minimum time between the beginnings of two audits.
const BEGIN_EVERY: Duration = Duration::from_secs(5);
/// Maximum time between them when the server has counted no write: an idle relay need not read the same pages every 5 s.
/// The counter is no proof (see `sql/audit_size.sql`), so the audit never stops.
const BEGIN_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// The duration that the number of pages of a step aims at.
const STEP: Duration = Duration::from_millis(20);
const PAGES: (u32, u32) = (32, 4096);
const SIGNS_EVERY: Duration = Duration::from_secs(1);
const LEAD_EVERY: Duration = Duration::from_secs(10);
/// How often the audit tries again to file messages of lanes that were held, and messages that were refused.
const RETRY_EVERY: Duration = Duration::from_secs(1);
const REFUSED_RETRY_EVERY: Duration = Duration::from_secs(10);
/// How often one filing divides refused chunks, to find the message that is to blame: enough for two.
const DIVISIONS: u32 = 20;
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Messages that one transaction files.
const CHUNK: usize = 1000;
/// With more messages that are known and not filed, the audit reads no further pages.
const KNOWN: usize = 50_000;

pub(super) struct Audit {
    /// No audit has ended since the start or the last alarm: this relay must do one.
    urgent: bool,
    /// When to ask again whether this relay goes on auditing.
    lead_at: Instant,
    walk: Option<Walk>,
    /// The last whole audit.
    last: Option<Whole>,
    next: Instant,
    pages: u32,
    signs: Option<Signs>,
    signs_at: Instant,
    known: Known,
    /// The last filing was refused.
    refused: bool,
    /// Filed and not logged yet.
    unlogged: u64,
    log_at: Instant,
}

#[derive(Debug)]
struct Walk {
    began: Instant,
    table: Table,
    /// Tables that are not read to their end, `table` included.
    tables: u8,
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
            refused: false,
            unlogged: 0,
            log_at: now,
        }
    }

    /// One bounded step. Returns when the next one is due.
    pub async fn step(
        &mut self,
        session: &Session,
        context: &Context,
    ) -> Result<Instant, OutboxError> {
        let source = context.health.source();
        if Instant::now() >= self.signs_at {
            self.look(session).await?;
        }
        let noticed = context.hints.take();
        if noticed.alarm {
            self.alarm();
        }
        if !noticed.moved.is_empty() {
            let found = audit::find(session, &noticed.moved).await;
            if found.is_err() {
                context.hints.moved(noticed.moved.into_iter());
            }
            self.known.add(found?);
        }
        let mut due = self.signs_at;
        if self.known.len() < KNOWN {
            due = due.min(self.go_on(session, context).await?);
        }
        let filing = self.file(session, source).await;
        if self.unlogged > 0 && Instant::now() >= self.log_at {
            tracing::error!(
                source,
                messages = self.unlogged,
                not_yet = self.known.len(),
                "unsent messages lay where no relay looks; they are filed, and sent: somebody changed the outbox by hand"
            );
            self.unlogged = 0;
            self.log_at = Instant::now() + LOG_EVERY;
        }
        if self.unlogged > 0 {
            due = due.min(self.log_at);
        }
        filing?;
        Ok(self.known.due().map_or(due, |at| due.min(at)))
    }

    /// Files what is known and due. A refusal does not stop the audit: it is logged when it begins and when it ends.
    async fn file(&mut self, session: &Session, source: &str) -> Result<(), OutboxError> {
        if !self.known.is_due() {
            return Ok(());
        }
        let filing = self.known.file(session).await;
        let filed = std::mem::take(&mut self.known.filed);
        metrics::stranded(source, filed, self.known.len());
        self.unlogged += filed;
        let refusal = filing?;
        let was_refused = std::mem::replace(&mut self.refused, refusal.is_some());
        match refusal {
            Some(error) if !was_refused => {
                let messages = self.known.len();
                tracing::error!(source, messages, error = %error, "stranded messages cannot be filed, so they are not sent");
            }
            None if was_refused => {
                tracing::info!(source, "stranded messages are not refused any more");
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    pub async fn report(&self, session: &Session, context: &Context) -> Result<(), OutboxError> {
        audit::record(session, &context.instance, false, self.known.len()).await
    }

    async fn look(&mut self, session: &Session) -> Result<(), OutboxError> {
        let seen = audit::signs(session).await?;
        let mut alarm = Alarm::default();
        if let Some(before) = &self.signs {
            alarm = before.alarm(&seen);
            if alarm.renewed && !alarm.restarted {
                alarm.restarted = audit::reused(session, before).await?;
            }
        }
        self.signs = Some(seen);
        self.signs_at = Instant::now() + SIGNS_EVERY;
        if alarm.changed {
            tracing::warn!("tables or sequence of the outbox were changed; auditing all of it now");
        }
        if alarm.restarted {
            tracing::error!(
                "positions of the outbox begin again: a consumer with a stale guard skips new events as `stale`, unless its \
                 entities are deleted as well: docs/operating/by-hand.md, \"Positions that begin again\""
            );
        }
        if alarm.clock {
            tracing::warn!("the clock of PostgreSQL was set back; auditing all due times now");
        }
        if alarm.is_any() {
            self.alarm();
        }
        Ok(())
    }

    /// Starts from the beginning: the change may be in pages that were read already.
    fn alarm(&mut self) {
        self.urgent = true;
        self.walk = None;
        self.last = None;
        self.next = Instant::now();
    }

    async fn go_on(
        &mut self,
        session: &Session,
        context: &Context,
    ) -> Result<Instant, OutboxError> {
        if self.walk.is_none() {
            if Instant::now() < self.next {
                return Ok(self.next);
            }
            // Each relay that saw an alarm audits: the one that goes on auditing may not have seen it, or may hang.
            if !self.urgent && !self.leads(session, context).await? {
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
                // The smaller table first: its faults are found in at most half of the audit.
                table: if size.waiting < size.message {
                    Table::Waiting
                } else {
                    Table::Message
                },
                tables: 2,
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
                let longest = context.policy.backoff_max;
                let released = audit::release(session, walk.page, to, longest).await?;
                audit::correct_times(session, walk.page, to).await?;
                if released > 0 {
                    tracing::warn!(
                        source = context.health.source(),
                        messages = released,
                        "messages waited for what is no more, as replays though they are unsent, or longer than any back-off; \
                         they may go: somebody changed the outbox by hand, or a clock was set back"
                    );
                }
            }
        }
        walk.page = to;
        let took = asked.elapsed();
        let pause = pause(took, self.urgent);
        self.pages = pages(self.pages, took);
        if walk.is_past_the_end() {
            // The table may have grown meanwhile, by rows that were copied back for example.
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
            metrics::audited(context.health.source());
            audit::record(session, &context.instance, true, self.known.len()).await?;
            return Ok(self.next);
        }
        Ok(Instant::now() + pause)
    }

    async fn leads(&mut self, session: &Session, context: &Context) -> Result<bool, OutboxError> {
        if Instant::now() < self.lead_at {
            return Ok(false);
        }
        let leads = audit::leads(session, &context.instance).await?;
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

    /// `false` when this was the last table.
    fn next_table(&mut self) -> bool {
        self.tables = self.tables.saturating_sub(1);
        self.table = match self.table {
            Table::Message => Table::Waiting,
            Table::Waiting => Table::Message,
        };
        self.page = 0;
        self.tables > 0
    }
}

fn pause(took: Duration, urgent: bool) -> Duration {
    took * if urgent { URGENT } else { STEADY }
}

/// The pages of the next step: twice as many after a short step, half as many after a long one.
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
    /// When to try again those that could not be filed.
    retry: Option<Instant>,
    /// Filed and not reported yet.
    filed: u64,
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

    fn all(&self) -> Vec<Position> {
        let of_lane = |(lane, ids): (&Lane, &BTreeSet<i64>)| {
            let lane = *lane;
            let at = move |id: &i64| Position { lane, id: *id };
            ids.iter().map(at).collect::<Vec<Position>>()
        };
        self.lanes.iter().flat_map(of_lane).collect()
    }

    /// What became of these messages. An error if they were refused; they stay known.
    fn done(&mut self, chunk: &[Position], done: &Filed) -> Result<(), OutboxError> {
        for position in chunk {
            if let Some(ids) = self.lanes.get_mut(&position.lane) {
                ids.remove(&position.id);
            }
        }
        self.lanes.retain(|_, ids| !ids.is_empty());
        self.add(done.left.clone());
        self.add(done.dropped.clone());
        self.filed += done.filed;
        done.proven()
    }

    /// Files what can be filed now, and returns the first refusal. A message stays known until it is filed.
    async fn file(&mut self, session: &Session) -> Result<Option<OutboxError>, OutboxError> {
        let again = self.retry.replace(Instant::now() + RETRY_EVERY).is_some();
        let all = self.all();
        let mut chunks: Vec<&[Position]> = all.chunks(CHUNK).rev().collect();
        let mut divisions = DIVISIONS;
        let mut refusal = None;
        let mut left = Vec::new();
        while let Some(chunk) = chunks.pop() {
            let error = match audit::file(session, chunk).await {
                Ok(done) => {
                    left.extend_from_slice(&done.left);
                    self.done(chunk, &done).err()
                }
                Err(error) if !error.is_statement_refused() => return Err(error),
                Err(error) if chunk.len() > 1 && divisions > 0 => {
                    divisions -= 1;
                    let (first, second) = chunk.split_at(chunk.len() / 2);
                    chunks.extend([second, first]);
                    tracing::debug!(error = %error, "stranded messages are refused together");
                    None
                }
                Err(error) => Some(error),
            };
            refusal = refusal.or(error);
        }
        // If lanes were held the last time too, it waits for one of them.
        if again && let Some(lane) = left.first().map(|p| p.lane) {
            left.retain(|p| p.lane == lane);
            for chunk in left.chunks(CHUNK) {
                let error = match audit::file_lane(session, lane, chunk).await {
                    Ok(done) => self.done(chunk, &done).err(),
                    Err(error) if error.is_statement_refused() => Some(error),
                    Err(error) => return Err(error),
                };
                refusal = refusal.or(error);
            }
        }
        if refusal.is_some() {
            self.retry = Some(Instant::now() + REFUSED_RETRY_EVERY);
        } else if self.lanes.is_empty() {
            self.retry = None;
        }
        Ok(refusal)
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
        assert_eq!(known.all(), [at(1, 4), at(1, 5), at(2, 6)]);
    }

    #[test]
    fn what_could_not_be_filed_stays_known() {
        let at = |id| Position { lane: 1, id };
        let mut known = Known::default();
        let chunk = [at(4), at(5), at(6)];
        known.add(vec![at(7)]);
        known.add(chunk.to_vec());
        let done = Filed {
            filed: 1,
            left: vec![at(5)],
            dropped: vec![at(6)],
        };
        let error = known.done(&chunk, &done).unwrap_err().to_string();
        assert_eq!(known.all(), [at(5), at(6), at(7)]);
        assert_eq!(known.filed, 1);
        assert!(
            error.contains("outbox.waiting") && error.contains("let it pass"),
            "{error}"
        );
        known.done(&known.all(), &Filed::default()).unwrap();
        assert_eq!((known.len(), known.lanes.len()), (0, 0));
    }
}
