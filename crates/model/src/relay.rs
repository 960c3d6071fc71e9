//! A worker of the relay: src/relay/worker.rs, with the real plan, decisions and settlement.

use std::time::Duration;

use outboxd::{
    config::Ordering,
    message::{Message, Position},
    outbox::{
        claim::{self, Claim, HeldLane, Limits},
        ctid::Ctid,
    },
    outcome::{self, Answer, Outcome, RetryPolicy},
    reason::Reason,
    relay::plan::Plan,
    settlement::{self, Cause, Settlement},
};
use uuid::Uuid;

use crate::{
    Action, Machine, Safeguard,
    machine::Misreading,
    state::{
        self, Candidate, Decided, Due, Held, Hold, Lane, Mark, Phase, Relay, Reply, Row, State,
        Waiting, Work, small,
    },
};

impl Machine {
    pub(crate) fn relay_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, relay) in state.relays.iter().enumerate() {
            // Relays that do nothing are one.
            if n > 0 && *relay == Relay::Idle && state.relays[n - 1] == Relay::Idle {
                continue;
            }
            match relay {
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

    /// Any lanes that have work and nobody holds: the board's choice is left open.
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

    /// `LIMIT` of the due ones by a due time that the model does not know: any of them.
    fn read_actions(&self, state: &State, n: usize, held: &Held, actions: &mut Vec<Action>) {
        let rows = held.before.as_ref().unwrap_or(&state.rows);
        let due: Vec<Row> = held
            .lanes
            .iter()
            .flat_map(|lane| self.due(rows, *lane))
            .collect();
        let limit = self.scenario.batch.div_ceil(2).min(due.len());
        for chosen in subsets(&due) {
            if chosen.len() == limit {
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
            actions.push(Action::Settle(n));
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
        state.relays[n] = Relay::Looked(state.rows.clone());
    }

    /// sql/claim_lanes.sql. Its snapshot, and so its xmin, is older than the read's.
    pub(crate) fn lock(&self, state: &mut State, n: usize, lanes: Vec<Lane>) {
        let before = match &state.relays[n] {
            Relay::Looked(rows) => Some(rows.clone()),
            Relay::Idle | Relay::Locked(_) | Relay::Working(_) => None,
        };
        state.relays[n] = Relay::Locked(self.held(state, lanes, before));
    }

    pub(crate) fn read_claim(&self, state: &mut State, n: usize, due: &[Row]) {
        let Relay::Locked(held) = &state.relays[n] else {
            return;
        };
        let mut held = held.clone();
        let before = held.before.take();
        let rows = before.as_ref().unwrap_or(&state.rows);
        let read = self.read(rows, due, &held, self.limits());
        let ahead: Vec<(Row, u8)> = read.iter().map(|c| (c.row, ahead(rows, c))).collect();
        for (row, ahead) in ahead {
            state.rows[usize::from(row)].ahead.get_or_insert(ahead);
        }
        let mut work = Work {
            held,
            hold: if self.has(Safeguard::OneTransaction) {
                Hold::Open
            } else {
                Hold::Released
            },
            read,
            wave: Vec::new(),
            answered: Vec::new(),
            over: false,
        };
        self.go_on(&mut work, false);
        state.relays[n] = Relay::Working(work);
    }

    /// The confirm barrier: delivered = acked − returned.
    pub(crate) fn confirmed(&self, state: &mut State, n: usize, ends: bool) {
        let Relay::Working(work) = &mut state.relays[n] else {
            return;
        };
        let answers = work.answered.iter().map(|reply| answer(*reply)).collect();
        self.decide(work, answers);
        self.go_on(work, ends);
    }

    pub(crate) fn misread(&self, state: &mut State, n: usize, how: Misreading) {
        let Relay::Working(work) = &mut state.relays[n] else {
            return;
        };
        let mut answers: Vec<Answer> = work.answered.iter().map(|reply| answer(*reply)).collect();
        // Whatever is not answered yet goes on without the relay.
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
        let Relay::Working(work) = &mut state.relays[n] else {
            return;
        };
        self.decide(work, answers);
        self.go_on(work, false);
    }

    /// No complete answer: nothing is decided about the wave, and there is no other.
    pub(crate) fn lose(&self, state: &mut State, n: usize, sent: u8) {
        state.left.losses -= 1;
        self.leave_on_the_wire(state, n, sent);
        let Relay::Working(work) = &mut state.relays[n] else {
            return;
        };
        let unanswered = if self.has(Safeguard::UnknownStays) {
            Answer::Unknown
        } else {
            Answer::Delivered
        };
        let answers = vec![unanswered; work.wave.len()];
        self.decide(work, answers);
        let (_, outcomes) = self.replay(work, true);
        finish(work, outcomes);
    }

    pub(crate) fn crash(&self, state: &mut State, n: usize, sent: u8) {
        state.left.crashes -= 1;
        self.leave_on_the_wire(state, n, sent);
        if !self.has(Safeguard::LockDiesWithConnection) {
            let held = match &state.relays[n] {
                Relay::Locked(held) => Some(held),
                Relay::Working(work) if work.hold == Hold::Open => Some(&work.held),
                Relay::Idle | Relay::Looked(_) | Relay::Working(_) => None,
            };
            let lanes = held.map(|held| held.lanes.clone()).unwrap_or_default();
            state.orphaned.extend(lanes);
            state.orphaned.sort_unstable();
        }
        state.relays[n] = Relay::Idle;
    }

    fn leave_on_the_wire(&self, state: &mut State, n: usize, sent: u8) {
        let Relay::Working(work) = &state.relays[n] else {
            return;
        };
        let unanswered = &work.wave[work.answered.len()..];
        let late = unanswered.iter().take(sent.into());
        let late = late.map(|i| work.read[usize::from(*i)].row);
        state.wire.push(late.collect());
    }

    /// `idle_in_transaction_session_timeout`: the claim is rolled back and its locks are free; the relay that stood
    /// still goes on publishing, and learns of it at its settle.
    pub(crate) fn fence(&self, state: &mut State, n: usize) {
        state.left.crashes -= 1;
        if let Relay::Working(work) = &mut state.relays[n] {
            work.hold = Hold::Fenced;
        }
    }

    fn decide(&self, work: &mut Work, answers: Vec<Answer>) {
        for (i, answer) in work.wave.iter().zip(answers) {
            let candidate = &mut work.read[usize::from(*i)];
            let outcome = outcome::decide(
                &answer,
                candidate.attempts.into(),
                &self.policy(),
                &mut rand::rng(),
            );
            candidate.decided = Some(decided(&outcome));
        }
        work.wave.clear();
        work.answered.clear();
    }

    /// The next wave, or the end of the claim.
    fn go_on(&self, work: &mut Work, ends: bool) {
        let (wave, outcomes) = self.replay(work, ends);
        if wave.is_empty() {
            finish(work, outcomes);
        } else {
            work.wave = wave;
        }
    }

    /// Asks the real plan, from its beginning, for the first wave that is not decided. With `ends` it is not asked for
    /// a further one.
    fn replay(&self, work: &Work, ends: bool) -> (Vec<u8>, Vec<Outcome>) {
        let candidates = self.candidates(work);
        let mut outcomes = vec![Outcome::Untouched; candidates.len()];
        let ordering = if self.has(Safeguard::StrictWaves) {
            Ordering::Strict
        } else {
            Ordering::Pipelined
        };
        let mut plan = Plan::new(&candidates, &mut outcomes, ordering);
        loop {
            let all = work.read.iter().filter(|c| c.decided.is_some()).count();
            let known = |i: &usize| work.read[*i].decided.map(real);
            let before = outcomes.clone();
            let wave = plan.next_wave(&candidates, &mut outcomes);
            if wave.is_empty() {
                return (Vec::new(), outcomes);
            }
            if !wave.iter().all(|i| work.read[*i].decided.is_some()) {
                if ends && all > 0 {
                    return (Vec::new(), before);
                }
                let wave = wave.into_iter().map(|i| small(i as i64)).collect();
                return (wave, outcomes);
            }
            for i in &wave {
                outcomes[*i] = known(i).unwrap_or(Outcome::Untouched);
            }
        }
    }

    fn candidates(&self, work: &Work) -> Vec<claim::Candidate> {
        work.read.iter().map(|c| self.candidate(c)).collect()
    }

    pub(crate) fn candidate(&self, c: &Candidate) -> claim::Candidate {
        claim::Candidate {
            message: Message {
                position: Position {
                    lane: self.lane_of(c.key).into(),
                    id: position(c.row),
                },
                message_id: Uuid::from_u128(c.row.into()),
                aggregate_type: String::new(),
                aggregate_id: None,
                event_type: String::new(),
                content_type: String::new(),
                headers: None,
                exchange: None,
                routing_key: None,
                created_at_us: 0,
                attempts: c.attempts.into(),
                replay: false,
                body_size: 0,
                body: None,
            },
            ctid: Ctid::default(),
            key_hash: Some(c.key.into()),
            filed: c.filed,
            scheduled: false,
            after: c.after.map(position),
        }
    }

    pub(crate) fn claim_of(
        &self,
        held: &Held,
        candidates: Vec<claim::Candidate>,
        limits: Limits,
    ) -> Claim {
        let lanes = held.lanes.iter().zip(&held.marks);
        Claim {
            lanes: lanes
                .zip(held.shares(limits))
                .map(|((lane, mark), share)| HeldLane {
                    lane: (*lane).into(),
                    mark: mark.real(),
                    share,
                })
                .collect(),
            candidates,
            orphans: Vec::new(),
            own_tx: held.own_tx.into(),
            xmin: held.xmin.into(),
            drawn: held.drawn.into(),
            now_us: 0,
            limits,
            cut_short: false,
        }
    }

    /// One transaction, all or nothing. A COMMIT whose answer is lost is one of the two: this, or a crash before it.
    pub(crate) fn settle(&self, state: &mut State, n: usize) {
        let Relay::Working(mut work) = std::mem::replace(&mut state.relays[n], Relay::Idle) else {
            return;
        };
        if work.hold == Hold::Fenced {
            return;
        }
        if !self.has(Safeguard::XminBeforeRead) {
            work.held.xmin = work.held.own_tx.min(state.xmin_without(work.held.own_tx));
        }
        if !self.has(Safeguard::DrawnBeforeTx) {
            work.held.drawn = small(state.rows.len() as i64);
        }
        let claim = self.claim_of(&work.held, self.candidates(&work), self.limits());
        let decided = work.read.iter().map(|c| c.decided);
        let outcomes: Vec<Outcome> = decided
            .map(|d| d.map_or(Outcome::Untouched, real))
            .collect();
        let written = settlement::settlement(&claim, &outcomes, 1);
        self.write(state, &written);
    }

    /// src/outbox/settle.rs, its statements in their order.
    pub(crate) fn write(&self, state: &mut State, written: &Settlement) {
        let row = |p: &Position| (p.id - 1) as usize;
        for sent in &written.sent {
            state.rows[row(&sent.position)].sent = true;
        }
        for position in &written.unfile {
            state.rows[row(position)].waiting = None;
        }
        for wait in &written.wait {
            state.rows[row(&wait.position)].waiting = Some(Waiting {
                due: match wait.cause {
                    Cause::Retry | Cause::Scheduled => Due::Later,
                    Cause::Behind => Due::Behind,
                },
                attempts: small(wait.attempts.into()),
            });
        }
        for death in &written.dead {
            state.rows[row(&death.position)].dead = true;
        }
        for (_, key) in &written.release {
            self.release(state, small(*key), self.scenario.batch);
        }
        for (lane, mark) in &written.marks {
            state.lanes[usize::from(small((*lane).into()))] = Mark::of(*mark);
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            fresh: self.scenario.batch,
            batch_size: self.scenario.batch,
            batch_bytes: u64::MAX,
            max_payload_bytes: u64::MAX,
        }
    }

    fn policy(&self) -> RetryPolicy {
        RetryPolicy {
            max_attempts: 2,
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(1),
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
            // A mark that does not ask who still runs.
            xmin: if self.has(Safeguard::LowWaterXmin) {
                xmin
            } else {
                own_tx
            },
            before,
        }
    }
}

fn position(row: Row) -> i64 {
    i64::from(row) + 1
}

/// Bits of what stands before a message in a snapshot, see `state::Message`.
fn ahead(rows: &[state::Message], candidate: &Candidate) -> u8 {
    (0..candidate.row)
        .filter(|r| {
            let earlier = &rows[usize::from(*r)];
            earlier.key == candidate.key && earlier.phase == Phase::Committed
        })
        .fold(0, |bits, r| bits | 1 << r)
}

fn finish(work: &mut Work, outcomes: Vec<Outcome>) {
    for (candidate, outcome) in work.read.iter_mut().zip(&outcomes) {
        candidate.decided = Some(decided(outcome));
    }
    work.over = true;
}

fn answer(reply: Reply) -> Answer {
    match reply {
        Reply::Ack => Answer::Delivered,
        Reply::Return => Answer::Unroutable {
            code: 312,
            text: String::new(),
        },
        Reply::Nack => Answer::Nacked,
    }
}

fn decided(outcome: &Outcome) -> Decided {
    match outcome {
        Outcome::Sent => Decided::Sent,
        Outcome::Retry { attempts, .. } => Decided::Retry {
            attempts: small((*attempts).into()),
        },
        Outcome::Dead { attempts, .. } => Decided::Dead {
            attempts: small((*attempts).into()),
        },
        Outcome::Behind => Decided::Behind,
        Outcome::Untouched => Decided::Untouched,
    }
}

fn real(decided: Decided) -> Outcome {
    match decided {
        Decided::Sent => Outcome::Sent,
        Decided::Retry { attempts } => Outcome::Retry {
            reason: Reason::Unroutable,
            attempts: attempts.into(),
            delay: Duration::ZERO,
            error: String::new(),
        },
        Decided::Dead { attempts } => Outcome::Dead {
            reason: Reason::Unroutable,
            attempts: attempts.into(),
            error: String::new(),
        },
        Decided::Behind => Outcome::Behind,
        Decided::Untouched => Outcome::Untouched,
    }
}

fn subsets<T: Copy>(of: &[T]) -> Vec<Vec<T>> {
    (0..1u32 << of.len())
        .map(|bits| {
            let chosen = of.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0);
            chosen.map(|(_, item)| *item).collect()
        })
        .collect()
}
