//! Manual changes that hide messages, and the audit that finds these messages: src/outbox/audit.rs and
//! src/relay/audit.rs.

use crate::{
    Action, Machine, Safeguard,
    state::{Act, Audit, Due, Lane, Phase, Row, State, Waiting},
};

impl Machine {
    pub(crate) fn audit_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.scenario.acts.is_empty() {
            return;
        }
        if state.left.acts > 0 {
            for (row, message) in (0..).zip(&state.rows) {
                let act = match message.phase {
                    Phase::Committed if message.sent => Act::TakeBack,
                    Phase::Committed if message.dead => Act::DeleteDead,
                    Phase::Committed if message.waiting.is_some() => Act::DeleteWaiting,
                    Phase::RolledBack => Act::CopyBack,
                    Phase::Committed | Phase::Drawn | Phase::Open(_) => continue,
                };
                if self.scenario.acts.contains(&act) {
                    actions.push(Action::ByHand(act, row));
                }
            }
        }
        match &state.audit {
            Audit::Idle => {
                // A walk that finds nothing is not a step. Without `AuditsAgain`, though, the only walk may come too
                // early. Without `AuditsUnasked` no walk may happen at all: none of these acts leaves a sign (a changed
                // file, a sequence set back).
                let is_due = match self.removed {
                    Some(Safeguard::AuditsUnasked) => false,
                    Some(Safeguard::AuditsAgain) => !state.audited,
                    Some(_) | None => !self.stranded(state).is_empty(),
                };
                if is_due {
                    actions.push(Action::AuditWalk);
                }
            }
            Audit::Knows(rows) => {
                if rows.iter().any(|row| self.is_free(state, *row)) {
                    actions.push(Action::AuditHold);
                }
            }
            Audit::Holds(..) => actions.push(Action::AuditCheck),
            Audit::Files { .. } => actions.push(Action::AuditCommit),
        }
        if state.audit != Audit::Idle && state.left.crashes > 0 {
            actions.push(Action::CrashAudit);
        }
        if self.has(Safeguard::AuditReleases) && self.without_head(state).next().is_some() {
            actions.push(Action::AuditRelease);
        }
    }

    pub(crate) fn by_hand(&self, state: &mut State, act: Act, row: Row) {
        state.left.acts -= 1;
        let message = &mut state.rows[usize::from(row)];
        match act {
            // Later deliveries are not duplicates, because somebody wants the message again.
            Act::TakeBack => (message.sent, message.copies) = (false, 0),
            Act::DeleteWaiting => message.waiting = None,
            Act::DeleteDead => message.dead = false,
            Act::CopyBack => message.phase = Phase::Committed,
        }
        message.by_hand = true;
        // No message waits for a hidden one.
        for other in &mut state.rows {
            other.ahead = other.ahead.map(|bits| bits & !(1 << row));
        }
    }

    /// sql/audit_walk.sql: unsent messages at or below their lane's mark, without an entry in waiting or dead.
    pub(crate) fn stranded(&self, state: &State) -> Vec<Row> {
        (0..)
            .zip(&state.rows)
            .filter(|(row, m)| {
                let mark = state.lanes[usize::from(self.lane_of(m.key))];
                m.is_pending() && m.waiting.is_none() && *row < mark.low_water
            })
            .map(|(row, _)| row)
            .collect()
    }

    pub(crate) fn audit_walk(&self, state: &mut State) {
        state.audited |= !self.has(Safeguard::AuditsAgain);
        state.audit = known(self.stranded(state));
    }

    fn lane_of_row(&self, state: &State, row: Row) -> Lane {
        self.lane_of(state.rows[usize::from(row)].key)
    }

    fn is_free(&self, state: &State, row: Row) -> bool {
        !self.has(Safeguard::AuditLocksLane) || !state.is_locked(self.lane_of_row(state, row))
    }

    /// sql/audit_hold.sql.
    pub(crate) fn audit_hold(&self, state: &mut State) {
        let Audit::Knows(rows) = &state.audit else {
            return;
        };
        let free = rows.iter().filter(|row| self.is_free(state, **row));
        let mut lanes: Vec<Lane> = free.map(|row| self.lane_of_row(state, *row)).collect();
        lanes.dedup();
        state.audit = Audit::Holds(rows.clone(), lanes);
    }

    /// sql/audit_file.sql: in a new snapshot, the messages of the locked lanes that are still stranded.
    pub(crate) fn audit_check(&self, state: &mut State) {
        let Audit::Holds(rows, lanes) = &state.audit else {
            return;
        };
        let (mut rows, left): (Vec<Row>, Vec<Row>) = rows
            .iter()
            .partition(|row| lanes.contains(&self.lane_of_row(state, **row)));
        if self.has(Safeguard::AuditLooksAgain) {
            let stranded = self.stranded(state);
            rows.retain(|row| stranded.contains(row));
        }
        let lanes = if self.has(Safeguard::AuditLocksLane) {
            lanes.clone()
        } else {
            Vec::new()
        };
        state.audit = Audit::Files { rows, left, lanes };
    }

    pub(crate) fn audit_commit(&self, state: &mut State) {
        let Audit::Files { rows, left, .. } = std::mem::replace(&mut state.audit, Audit::Idle)
        else {
            return;
        };
        for row in rows {
            let message = &mut state.rows[usize::from(row)];
            // ON CONFLICT DO NOTHING.
            message.waiting.get_or_insert(Waiting {
                due: Due::Now,
                attempts: 0,
                probe: false,
                unmarkable: false,
                was_held: false,
            });
            message.put_in_order();
        }
        state.audit = known(left);
    }

    /// The audit loses its findings, and its transaction is rolled back.
    pub(crate) fn crash_audit(&self, state: &mut State) {
        state.left.crashes -= 1;
        state.audit = Audit::Idle;
    }

    /// Messages that are behind, and whose head is gone. Held messages do not count: their destination releases them.
    pub(crate) fn without_head(&self, state: &State) -> impl Iterator<Item = Row> {
        (0..)
            .zip(&state.rows)
            .filter(|(row, m)| {
                let rows = &state.rows[..usize::from(*row)];
                let behind = m.waiting.is_some_and(|w| w.due == Due::Behind);
                behind && !rows.iter().any(|b| b.key == m.key && b.waiting.is_some())
            })
            .map(|(row, _)| row)
    }

    /// sql/audit_release.sql: without a lock on the lane.
    pub(crate) fn audit_release(&self, state: &mut State) {
        let rows: Vec<Row> = self.without_head(state).collect();
        for row in rows {
            self.fall_due(state, row);
        }
    }
}

fn known(rows: Vec<Row>) -> Audit {
    if rows.is_empty() {
        Audit::Idle
    } else {
        Audit::Knows(rows)
    }
}
