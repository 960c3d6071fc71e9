//! RabbitMQ, and the connection to it.

use crate::{
    Action, Machine,
    state::{Relay, Reply, Row, State},
};

impl Machine {
    pub(crate) fn broker_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, relay) in state.relays.iter().enumerate() {
            let Relay::Working(work) = &relay.task else {
                continue;
            };
            if work.answered.len() == work.wave.len() {
                continue;
            }
            if self.scenario.circuits {
                // During an outage every publish is refused. The outage lasts no longer than the remaining faults.
                if !state.outage {
                    actions.push(Action::Broker(n, Reply::Ack));
                } else if state.left.refusals > 0 {
                    actions.push(Action::Broker(n, self.scenario.refusal));
                }
            } else {
                actions.push(Action::Broker(n, Reply::Ack));
                if state.left.refusals > 0 {
                    actions.push(Action::Broker(n, Reply::Return));
                    actions.push(Action::Broker(n, Reply::Nack));
                }
            }
        }
        actions.extend((0..state.wire.len()).map(Action::Late));
    }

    /// The broker handles the publishes of one channel in order.
    pub(crate) fn broker(&self, state: &mut State, relay: usize, reply: Reply) {
        let Relay::Working(work) = &mut state.relays[relay].task else {
            return;
        };
        let next = work.wave[work.answered.len()];
        let row = work.read[usize::from(next)].row;
        work.answered.push(reply);
        match reply {
            Reply::Ack => self.enqueue(state, row),
            Reply::Return | Reply::Nack => state.left.refusals -= 1,
        }
    }

    /// A publish that was in flight on a dead connection arrives.
    pub(crate) fn late(&self, state: &mut State, connection: usize) {
        let row = state.wire[connection].remove(0);
        self.enqueue(state, row);
    }

    fn enqueue(&self, state: &mut State, row: Row) {
        let message = &mut state.rows[usize::from(row)];
        if message.copies == 0 {
            state.overtaken |= message.ahead.is_some_and(|ahead| ahead != 0);
        }
        message.copies += 1;
        if !state.consumers.is_empty() {
            message.ready += 1;
        }
    }
}
