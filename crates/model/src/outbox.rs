//! PostgreSQL: producers, and the statements in src/outbox/sql.

use crate::{
    Action, Machine, Safeguard,
    real::Limits,
    state::{Begun, Candidate, Due, Held, Key, Lane, Message, Phase, Row, State, Waiting},
};

impl Machine {
    pub(crate) fn producer_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut keys = state.unwritten.clone();
        keys.dedup();
        actions.extend(keys.into_iter().map(Action::Begin));
        actions.extend((0..state.begun.len()).map(Action::Draw));
        for (row, message) in (0..).zip(&state.rows) {
            match message.phase {
                Phase::Drawn => actions.push(Action::AssignTx(row)),
                Phase::Open(_) => {
                    actions.push(Action::Commit(row));
                    if state.left.rollbacks > 0 {
                        actions.push(Action::RollBack(row));
                    }
                }
                Phase::Committed | Phase::RolledBack => {}
            }
            // With circuits all back-offs end together; see `round`.
            if !self.scenario.circuits && message.waiting.is_some_and(|w| w.due == Due::Later) {
                actions.push(Action::FallDue(row));
            }
        }
    }

    pub(crate) fn begin(&self, state: &mut State, key: Key) {
        let n = state.unwritten.iter().position(|k| *k == key);
        state.unwritten.remove(n.expect("an unwritten message"));
        if self.has(Safeguard::TxBeforeId) {
            let tx = state.assign_tx();
            state.begun.push(Begun { tx, key });
        } else {
            state.rows.push(row(key, Phase::Drawn));
        }
    }

    pub(crate) fn draw(&self, state: &mut State, n: usize) {
        let Begun { tx, key } = state.begun.remove(n);
        state.rows.push(row(key, Phase::Open(tx)));
    }

    pub(crate) fn assign_tx(&self, state: &mut State, row: Row) {
        let tx = state.assign_tx();
        state.rows[usize::from(row)].phase = Phase::Open(tx);
    }

    pub(crate) fn end(&self, state: &mut State, row: Row, commit: bool) {
        let phase = &mut state.rows[usize::from(row)].phase;
        if commit {
            *phase = Phase::Committed;
        } else {
            state.left.rollbacks -= 1;
            *phase = Phase::RolledBack;
        }
    }

    pub(crate) fn fall_due(&self, state: &mut State, row: Row) {
        if let Some(waiting) = &mut state.rows[usize::from(row)].waiting {
            waiting.due = Due::Now;
        }
    }

    pub(crate) fn shows(&self, message: &Message) -> bool {
        match message.phase {
            Phase::Committed => true,
            Phase::Open(_) => !self.has(Safeguard::CommittedRead),
            Phase::Drawn | Phase::RolledBack => false,
        }
    }

    /// sql/scout.sql: lanes with a message that can be published or filed now.
    pub(crate) fn lanes_with_work(&self, state: &State) -> Vec<Lane> {
        (0..)
            .zip(&state.lanes)
            .filter(|(lane, mark)| {
                !self.due(&state.rows, *lane).is_empty()
                    || !self.fresh(&state.rows, *lane, mark.low_water).is_empty()
            })
            .map(|(lane, _)| lane)
            .collect()
    }

    /// Waiting messages of a lane that are due.
    pub(crate) fn due(&self, rows: &[Message], lane: Lane) -> Vec<Row> {
        self.of_lane(rows, lane)
            .filter(|(_, m)| m.waiting.is_some_and(|w| w.due == Due::Now))
            .map(|(row, _)| row)
            .collect()
    }

    /// New messages of a lane above its mark, in the order of their positions.
    pub(crate) fn fresh(&self, rows: &[Message], lane: Lane, low_water: u8) -> Vec<Row> {
        self.of_lane(rows, lane)
            .filter(|(row, m)| {
                *row + 1 > low_water && !m.sent && m.waiting.is_none() && !m.dead && self.shows(m)
            })
            .map(|(row, _)| row)
            .collect()
    }

    pub(crate) fn of_lane<'r>(
        &self,
        rows: &'r [Message],
        lane: Lane,
    ) -> impl Iterator<Item = (Row, &'r Message)> {
        (0..)
            .zip(rows)
            .filter(move |(_, m)| self.lane_of(m.key) == lane)
    }

    /// sql/read.sql; `due`: the due messages within the limit.
    pub(crate) fn read(
        &self,
        rows: &[Message],
        due: &[Row],
        held: &Held,
        limits: Limits,
    ) -> Vec<Candidate> {
        let lanes = held.lanes.iter().zip(&held.marks);
        let fresh = lanes
            .zip(held.shares(limits))
            .flat_map(|((lane, mark), share)| {
                let mut fresh = self.fresh(rows, *lane, mark.low_water);
                fresh.truncate(share);
                fresh
            });
        due.iter()
            .copied()
            .chain(fresh)
            .take(limits.batch_size)
            .map(|row| {
                let waiting = rows[usize::from(row)].waiting;
                let says = |what: fn(&Waiting) -> bool| waiting.as_ref().is_some_and(what);
                Candidate {
                    row,
                    key: rows[usize::from(row)].key,
                    filed: waiting.is_some(),
                    attempts: waiting.map_or(0, |w| w.attempts),
                    after: self.after(rows, row),
                    probe: says(|w| w.probe),
                    unmarkable: says(|w| w.unmarkable),
                    was_held: says(|w| w.was_held),
                    refused: false,
                    decided: None,
                }
            })
            .collect()
    }

    /// The nearest earlier message of the same key that waits.
    fn after(&self, rows: &[Message], row: Row) -> Option<Row> {
        if !self.has(Safeguard::HeldBackKey) {
            return None;
        }
        let key = rows[usize::from(row)].key;
        (0..row).rev().find(|r| {
            let earlier = &rows[usize::from(*r)];
            let waits = earlier
                .waiting
                .is_some_and(|w| !w.was_held && !w.probe || self.has(Safeguard::HeldHoldsBack));
            earlier.key == key && waits
        })
    }

    /// sql/release.sql.
    pub(crate) fn release(&self, state: &mut State, key: Key, at_once: usize) {
        if !self.has(Safeguard::Release) {
            return;
        }
        state
            .rows
            .iter_mut()
            .filter(|m| m.key == key)
            .filter_map(|m| m.waiting.as_mut())
            .take(at_once)
            .filter(|w| w.due == Due::Behind)
            .for_each(|w| w.due = Due::Now);
    }
}

pub fn row(key: Key, phase: Phase) -> Message {
    Message {
        key,
        phase,
        sent: false,
        dead: false,
        waiting: None,
        ahead: None,
        copies: 0,
        ready: 0,
        in_inbox: false,
        effects: 0,
        by_hand: false,
    }
}
