//! Consumers: delivery, the inbox's claim, the handler's commit, the ack.

use crate::{
    Action, Machine, Safeguard,
    state::{Consumer, Row, State},
};

impl Machine {
    pub(crate) fn consumer_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, consumer) in state.consumers.iter().enumerate() {
            // Consumers in the same state are interchangeable.
            if n > 0 && state.consumers[n - 1] == *consumer {
                continue;
            }
            match *consumer {
                Consumer::Idle => {
                    let ready = (0..).zip(&state.rows).filter(|(_, m)| m.ready > 0);
                    actions.extend(ready.map(|(row, _)| Action::Deliver(n, row)));
                }
                Consumer::Got { row, .. } => {
                    if !self.waits_for_a_claim(state, row) {
                        actions.push(Action::Claim(n));
                    }
                }
                Consumer::Claimed { .. } => actions.push(Action::CommitEffect(n)),
                Consumer::Committed { .. } => actions.push(Action::Ack(n)),
            }
            if state.left.consumers > 0 && *consumer != Consumer::Idle {
                actions.push(Action::CrashConsumer(n));
                actions.push(Action::LoseConsumer(n));
            }
        }
    }

    /// `INSERT … ON CONFLICT DO NOTHING` waits for a transaction that inserted the same key.
    fn waits_for_a_claim(&self, state: &State, row: Row) -> bool {
        let claimed = |c: &Consumer| matches!(c, Consumer::Claimed { row: r, .. } if *r == row);
        self.has(Safeguard::Inbox)
            && self.has(Safeguard::UniqueKey)
            && self.has(Safeguard::ClaimInTransaction)
            && state.consumers.iter().any(claimed)
    }

    /// The queue may deliver in any order, because redelivery changes the order.
    pub(crate) fn deliver(&self, state: &mut State, n: usize, row: Row) {
        state.rows[usize::from(row)].ready -= 1;
        let acked = !self.has(Safeguard::AckAfterCommit);
        state.consumers[n] = Consumer::Got { row, acked };
    }

    pub(crate) fn claim(&self, state: &mut State, n: usize) {
        let Consumer::Got { row, acked } = state.consumers[n] else {
            return;
        };
        let message = &mut state.rows[usize::from(row)];
        state.consumers[n] = if message.in_inbox && self.has(Safeguard::Inbox) {
            // A duplicate: the consumer only acknowledges it.
            Consumer::Committed { row, acked }
        } else {
            message.in_inbox |= !self.has(Safeguard::ClaimInTransaction);
            Consumer::Claimed { row, acked }
        };
    }

    pub(crate) fn commit_effect(&self, state: &mut State, n: usize) {
        let Consumer::Claimed { row, acked } = state.consumers[n] else {
            return;
        };
        let message = &mut state.rows[usize::from(row)];
        message.effects += 1;
        message.in_inbox = true;
        state.consumers[n] = Consumer::Committed { row, acked };
    }

    pub(crate) fn ack(&self, state: &mut State, n: usize) {
        state.consumers[n] = Consumer::Idle;
    }

    /// The transaction is rolled back, and unacknowledged messages are redelivered.
    pub(crate) fn crash_consumer(&self, state: &mut State, n: usize) {
        state.left.consumers -= 1;
        self.requeue(state, n);
        state.consumers[n] = Consumer::Idle;
    }

    /// The broker redelivers the message to another consumer while the handler is still running.
    pub(crate) fn lose_consumer(&self, state: &mut State, n: usize) {
        state.left.consumers -= 1;
        self.requeue(state, n);
        match &mut state.consumers[n] {
            Consumer::Got { acked, .. }
            | Consumer::Claimed { acked, .. }
            | Consumer::Committed { acked, .. } => *acked = true,
            Consumer::Idle => {}
        }
    }

    fn requeue(&self, state: &mut State, n: usize) {
        match state.consumers[n] {
            Consumer::Got { row, acked: false }
            | Consumer::Claimed { row, acked: false }
            | Consumer::Committed { row, acked: false } => {
                state.rows[usize::from(row)].ready += 1;
            }
            Consumer::Got { .. }
            | Consumer::Claimed { .. }
            | Consumer::Committed { .. }
            | Consumer::Idle => {}
        }
    }
}
