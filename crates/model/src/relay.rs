//! A worker of the relay: src/relay/worker.rs, with the real plan, decisions and settlement.

use crate::{
    Action, Machine, Safeguard,
    machine::Misreading,
    real::{Answer, answer, limits},
    state::{
        self, Candidate, Held, Hold, Lane, Memory, Phase, Process, Relay, Reply, Row, State, Work,
        small,
    },
};

impl Machine {
    pub(crate) fn relay_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, relay) in state.relays.iter().enumerate() {
            // Idle relays are interchangeable.
            let idle = relay.task == Relay::Idle;
            if n > 0 && idle && state.relays[n - 1] == *relay {
                continue;
            }
            match &relay.task {
                Relay::Idle if self.has(Safeguard::ReadAfterLock) => {
                    self.lock_actions(state, n, self.lanes_with_work(state), actions);
                }
                Relay::Idle => {
                    if !self.lanes_with_work(state).is_empty() {
                        actions.push(Action::Look(n));
                    }
                }
                Relay::Looked(rows) => {
                    let lanes = (0..).zip(&state.lanes).map(|(lane, _)| lane);
                    let worked = |lane: &Lane| {
                        !self.due(rows, *lane).is_empty() || !self.fresh(rows, *lane, 0).is_empty()
                    };
                    self.lock_actions(state, n, lanes.filter(worked).collect(), actions);
                }
                Relay::Locked(held) => {
                    self.read_actions(state, n, held, actions);
                    self.crash_actions(state, n, 0, actions);
                }
                Relay::Working(work) => self.work_actions(state, n, work, actions),
            }
        }
    }

    /// Any free lanes with work: the model leaves the schedule's choice open.
    fn lock_actions(
        &self,
        state: &State,
        n: usize,
        mut free: Vec<Lane>,
        actions: &mut Vec<Action>,
    ) {
        if self.has(Safeguard::LaneLock) {
            free.retain(|lane| !state.is_locked(*lane));
        }
        for chosen in subsets(&free) {
            if !chosen.is_empty() {
                actions.push(Action::Lock(n, chosen));
            }
        }
    }

    /// The read limits the due messages by their due time, which the model does not have. So any of them may be read.
    fn read_actions(&self, state: &State, n: usize, held: &Held, actions: &mut Vec<Action>) {
        let rows = held.before.as_ref().unwrap_or(&state.rows);
        let due: Vec<Row> = held
            .lanes
            .iter()
            .flat_map(|lane| self.due(rows, *lane))
            .collect();
        let messages = self.allowed(&state.relays[n].memory);
        let limit = messages.div_ceil(2).min(due.len());
        for chosen in subsets(&due) {
            if chosen.len() == limit && self.may_rehearse(state, n, held, &chosen) {
                actions.push(Action::Read(n, chosen));
            }
        }
    }

    fn work_actions(&self, state: &State, n: usize, work: &Work, actions: &mut Vec<Action>) {
        let unanswered = small((work.wave.len() - work.answered.len()) as i64);
        self.crash_actions(state, n, unanswered, actions);
        if state.left.crashes > 0 && work.hold == Hold::Open {
            actions.push(Action::Fence(n));
        }
        if work.over {
            if self.may_settle(state, work) {
                actions.push(Action::Settle(n));
            }
            return;
        }
        if state.left.losses > 0 {
            actions.extend((0..=unanswered).map(|sent| Action::Lose(n, sent)));
        }
        if unanswered == 0 {
            actions.push(Action::Confirmed {
                relay: n,
                ends: false,
            });
            actions.push(Action::Confirmed {
                relay: n,
                ends: true,
            });
        }
        let misreadings = self.misreadings(work);
        actions.extend(misreadings.into_iter().map(|how| Action::Misread(n, how)));
    }

    fn crash_actions(&self, state: &State, n: usize, unanswered: u8, actions: &mut Vec<Action>) {
        if state.left.crashes > 0 {
            actions.extend((0..=unanswered).map(|sent| Action::Crash(n, sent)));
        }
    }

    fn misreadings(&self, work: &Work) -> Vec<Misreading> {
        let returned: Vec<usize> = (0..work.answered.len())
            .filter(|i| work.answered[*i] == Reply::Return)
            .collect();
        let complete = work.answered.len() == work.wave.len();
        let crossed = |i: usize| {
            let others = (0..work.wave.len()).filter(move |j| *j != i);
            others.map(move |j| Misreading::Crossed(i, j))
        };
        match self.removed {
            Some(Safeguard::Confirms) if !work.wave.is_empty() => vec![Misreading::Unconfirmed],
            Some(Safeguard::ConfirmBarrier) if complete => returned
                .into_iter()
                .filter(|i| i + 1 < work.wave.len())
                .map(Misreading::TooLate)
                .collect(),
            Some(Safeguard::MatchById) if complete => {
                returned.into_iter().flat_map(crossed).collect()
            }
            _ => Vec::new(),
        }
    }

    pub(crate) fn look(&self, state: &mut State, n: usize) {
        state.relays[n].task = Relay::Looked(state.rows.clone());
    }

    /// sql/claim_lanes.sql. Its snapshot, and so its xmin, is older than the read's.
    pub(crate) fn lock(&self, state: &mut State, n: usize, lanes: Vec<Lane>) {
        let before = match &state.relays[n].task {
            Relay::Looked(rows) => Some(rows.clone()),
            Relay::Idle | Relay::Locked(_) | Relay::Working(_) => None,
        };
        state.relays[n].task = Relay::Locked(self.held(state, lanes, before));
    }

    pub(crate) fn read_claim(&self, state: &mut State, n: usize, due: &[Row]) {
        let Relay::Locked(held) = &state.relays[n].task else {
            return;
        };
        let mut held = held.clone();
        let before = held.before.take();
        let rows = before.as_ref().unwrap_or(&state.rows);
        let messages = self.allowed(&state.relays[n].memory);
        let read = self.read(rows, due, &held, limits(messages));
        let ahead: Vec<(Row, u8)> = read.iter().map(|c| (c.row, ahead(rows, c))).collect();
        for (row, ahead) in ahead {
            state.rows[usize::from(row)].ahead.get_or_insert(ahead);
        }
        let mut work = self.work(held, small(messages as i64), read);
        self.rehearse(state, n, &mut work);
        self.go_on(&mut state.relays[n].memory, &mut work, false);
        state.relays[n].task = Relay::Working(work);
    }

    pub(crate) fn work(&self, held: Held, limit: u8, read: Vec<Candidate>) -> Work {
        Work {
            held,
            hold: if self.has(Safeguard::OneTransaction) {
                Hold::Open
            } else {
                Hold::Released
            },
            limit,
            read,
            wave: Vec::new(),
            answered: Vec::new(),
            over: false,
        }
    }

    /// The confirm barrier: delivered = acked − returned.
    pub(crate) fn confirmed(&self, state: &mut State, n: usize, ends: bool) {
        let Process { task, memory } = &mut state.relays[n];
        let Relay::Working(work) = task else {
            return;
        };
        let answers = work.answered.iter().map(|reply| answer(*reply)).collect();
        self.decide(memory, work, answers);
        self.go_on(memory, work, ends);
    }

    pub(crate) fn misread(&self, state: &mut State, n: usize, how: Misreading) {
        let Relay::Working(work) = &mut state.relays[n].task else {
            return;
        };
        let mut answers: Vec<Answer> = work.answered.iter().map(|reply| answer(*reply)).collect();
        // The unanswered publishes continue without the relay.
        let unanswered = small((work.wave.len() - answers.len()) as i64);
        match how {
            Misreading::Unconfirmed => answers.resize(work.wave.len(), Answer::Delivered),
            Misreading::TooLate(i) => answers[i] = Answer::Delivered,
            Misreading::Crossed(i, j) => {
                answers[i] = Answer::Delivered;
                answers[j] = answer(Reply::Return);
            }
        }
        self.leave_on_the_wire(state, n, unanswered);
        let Process { task, memory } = &mut state.relays[n];
        let Relay::Working(work) = task else {
            return;
        };
        self.decide(memory, work, answers);
        self.go_on(memory, work, false);
    }

    /// Without a complete answer the wave has no outcomes, and the claim has no further wave.
    pub(crate) fn lose(&self, state: &mut State, n: usize, sent: u8) {
        state.left.losses -= 1;
        self.leave_on_the_wire(state, n, sent);
        let Process { task, memory } = &mut state.relays[n];
        let Relay::Working(work) = task else {
            return;
        };
        let unanswered = if self.has(Safeguard::UnknownStays) {
            Answer::Unknown
        } else {
            Answer::Delivered
        };
        let answers = vec![unanswered; work.wave.len()];
        self.decide(memory, work, answers);
        self.end_claim(work);
    }

    pub(crate) fn crash(&self, state: &mut State, n: usize, sent: u8) {
        state.left.crashes -= 1;
        self.leave_on_the_wire(state, n, sent);
        if !self.has(Safeguard::LockDiesWithConnection) {
            let held = match &state.relays[n].task {
                Relay::Locked(held) => Some(held),
                Relay::Working(work) if work.hold == Hold::Open => Some(&work.held),
                Relay::Idle | Relay::Looked(_) | Relay::Working(_) => None,
            };
            let lanes = held.map(|held| held.lanes.clone()).unwrap_or_default();
            state.orphaned.extend(lanes);
            state.orphaned.sort_unstable();
        }
        state.relays[n] = Process {
            task: Relay::Idle,
            memory: Memory::default(),
        };
    }

    fn leave_on_the_wire(&self, state: &mut State, n: usize, sent: u8) {
        let Relay::Working(work) = &state.relays[n].task else {
            return;
        };
        let unanswered = &work.wave[work.answered.len()..];
        let late = unanswered.iter().take(sent.into());
        let late = late.map(|i| work.read[usize::from(*i)].row);
        state.wire.push(late.collect());
    }

    /// `idle_in_transaction_session_timeout`: the claim is rolled back and its locks are released. The stalled relay
    /// continues to publish, and notices at its settle.
    pub(crate) fn fence(&self, state: &mut State, n: usize) {
        state.left.crashes -= 1;
        if let Relay::Working(work) = &mut state.relays[n].task {
            work.hold = Hold::Fenced;
        }
    }

    pub(crate) fn held(
        &self,
        state: &mut State,
        lanes: Vec<Lane>,
        before: Option<Vec<state::Message>>,
    ) -> Held {
        let xmin = state.xmin();
        let drawn = small(state.rows.len() as i64);
        let own_tx = state.assign_tx();
        Held {
            marks: lanes.iter().map(|l| state.lanes[usize::from(*l)]).collect(),
            lanes,
            own_tx,
            drawn,
            // Without the safeguard the mark ignores running transactions.
            xmin: if self.has(Safeguard::LowWaterXmin) {
                xmin
            } else {
                own_tx
            },
            before,
        }
    }
}

/// Bits of the earlier messages of the key in a snapshot; see `state::Message`.
fn ahead(rows: &[state::Message], candidate: &Candidate) -> u8 {
    (0..candidate.row)
        .filter(|r| {
            let earlier = &rows[usize::from(*r)];
            let in_order = !earlier.by_hand || earlier.waiting.is_some();
            earlier.key == candidate.key && earlier.phase == Phase::Committed && in_order
        })
        .fold(0, |bits, r| bits | 1 << r)
}

fn subsets<T: Copy>(of: &[T]) -> Vec<Vec<T>> {
    (0..1u32 << of.len())
        .map(|bits| {
            let chosen = of.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0);
            chosen.map(|(_, item)| *item).collect()
        })
        .collect()
}
