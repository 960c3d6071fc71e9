//! The settle: src/outbox/settle.rs, with the real settlement.

use crate::{
    Machine, Safeguard,
    real::{Cause, Outcome, Position, Reason, Settlement, limits, outcome, settlement},
    state::{Due, Mark, Relay, State, Waiting, small},
};

impl Machine {
    /// One transaction, all or nothing. A COMMIT whose answer is lost equals either this step or a crash before it.
    pub(crate) fn settle(&self, state: &mut State, n: usize) {
        let Relay::Working(mut work) = std::mem::replace(&mut state.relays[n].task, Relay::Idle)
        else {
            return;
        };
        if self.settle_fails(state, n, &work) {
            return;
        }
        if !self.has(Safeguard::XminBeforeRead) {
            work.held.xmin = work.held.own_tx.min(state.xmin_without(work.held.own_tx));
        }
        if !self.has(Safeguard::DrawnBeforeTx) {
            work.held.drawn = small(state.rows.len() as i64);
        }
        let mut claim = self.claim_of(
            &work.held,
            self.candidates(&work),
            limits(work.limit.into()),
        );
        for (item, read) in claim.items.iter_mut().zip(&work.read) {
            item.record(read.decided.map_or(Outcome::Untouched, outcome));
        }
        let written = settlement::settlement(&claim, self.scenario.stride);
        let sent = claim.positions(|o| *o == Outcome::Sent).count();
        self.write(state, &written);
        self.marked(&mut state.relays[n].memory, &work, sent);
    }

    /// The statements of src/outbox/settle.rs in their order.
    pub(crate) fn write(&self, state: &mut State, written: &Settlement) {
        let row = |p: &Position| (p.id - 1) as usize;
        for sent in &written.sent {
            let row = &mut state.rows[row(&sent.position)];
            row.sent = true;
            row.put_in_order();
        }
        for position in &written.delete_waiting {
            state.rows[row(position)].waiting = None;
        }
        for wait in &written.wait {
            let row = &mut state.rows[row(&wait.position)];
            let before = row.waiting.is_some_and(|w| w.unmarkable);
            row.waiting = Some(Waiting {
                due: match wait.cause {
                    Cause::Retry | Cause::Scheduled => Due::Later,
                    Cause::Behind => Due::Behind,
                    Cause::Held => Due::Held {
                        failures: wait.held_for.map_or(0, |(_, n)| small(n.into())),
                    },
                },
                attempts: small(wait.attempts.into()),
                probe: false,
                unmarkable: wait.reason.map_or(before, |r| r == Reason::Unmarkable),
                was_held: wait.held_for.is_some(),
            });
            row.put_in_order();
        }
        for letter in &written.dead {
            let row = &mut state.rows[row(&letter.position)];
            row.dead = true;
            row.put_in_order();
        }
        for (_, key) in &written.release {
            self.release(state, small(*key), self.scenario.batch);
        }
        for (lane, mark) in &written.marks {
            state.lanes[usize::from(small((*lane).into()))] = Mark::of(*mark);
        }
    }
}
