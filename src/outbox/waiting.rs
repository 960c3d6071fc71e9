//! Tries waiting messages now, or gives them up. Each step holds the lane of its messages, so that no claim has one of them:
//! a relay would file over the change, or publish what is dead. What a relay holds for long is left, and told.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use outbox_core::{
    message::{Lane, Position},
    scheduling::all_lanes,
};
use tokio_postgres::{Row, types::Type};
use uuid::Uuid;

use super::{
    OutboxError,
    filter::Filter,
    find,
    operation::{Operation, Record},
    pace::Pace,
    row::get,
    session::{Params, Query, Session},
    settle,
};

/// What a waiting message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its next try.
    Failing,
    /// Its destination.
    Held,
    /// An earlier message of its key.
    Behind,
    /// Its `available_at`.
    Scheduled,
    /// It was sent before, and waits to be sent again.
    Replay,
}

impl State {
    pub const ALL: [Self; 5] = [
        Self::Failing,
        Self::Held,
        Self::Behind,
        Self::Scheduled,
        Self::Replay,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Held => "held",
            Self::Behind => "behind",
            Self::Scheduled => "scheduled",
            Self::Replay => "replay",
        }
    }
}

/// What becomes of the messages.
#[derive(Debug, Clone, Copy)]
pub enum Act<'a> {
    /// Due at once, with the attempts that they have left. Of the held messages of a destination one probes it, and the relay
    /// releases the others if it succeeds; a message that was named by its id is tried itself.
    RetryNow,
    /// Dead, with the reason `given_up`.
    GiveUp { by: &'a str, why: &'a str },
}

const LOOK: Query = Query {
    action: "look for waiting messages",
    sql: include_str!("sql/waiting_look.sql"),
    types: &[
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::FLOAT8,
        Type::UUID_ARRAY,
        Type::TEXT,
        Type::TEXT_ARRAY,
        Type::TEXT,
        Type::TEXT_ARRAY,
        Type::INT2,
        Type::INT8,
        Type::INT8,
    ],
};
const LANES: Query = Query {
    action: "look for the lanes of messages",
    sql: "SELECT DISTINCT w.lane FROM outbox.waiting w WHERE w.message_id = ANY ($1) ORDER BY w.lane",
    types: &[Type::UUID_ARRAY],
};
const HOLD_NOW: Query = Query {
    action: "hold a lane",
    sql: "SELECT l.lane FROM ONLY outbox.lane l WHERE l.lane = $1 FOR UPDATE SKIP LOCKED",
    types: &[Type::INT2],
};
/// A relay passes over a lane that somebody waits for, so that this session nearly always gets it next.
const HOLD: Query = Query {
    action: "wait for a lane",
    sql: "SELECT l.lane FROM ONLY outbox.lane l WHERE l.lane = $1 FOR UPDATE",
    types: &[Type::INT2],
};
const MAKE_DUE: Query = Query {
    action: "make waiting messages due",
    sql: include_str!("sql/waiting_due.sql"),
    types: &[Type::INT2, Type::INT8_ARRAY],
};
const GIVE_UP: Query = Query {
    action: "give waiting messages up",
    sql: include_str!("sql/waiting_give_up.sql"),
    types: &[
        Type::INT2,
        Type::INT8_ARRAY,
        Type::UUID_ARRAY,
        Type::TEXT_ARRAY,
    ],
};

/// Records that one statement looks at, and most messages that one transaction changes.
const STEP: i64 = 1000;
/// Messages of a key that are released at once; these release the others when they are settled.
const RELEASED: usize = 1000;
/// Waits for lanes without a change between them, after which the rest is left.
const IN_VAIN: u32 = 2;
/// Most ids that a report names.
const NAMED: usize = 100;

/// The result of a command, or of its dry run.
#[derive(Debug, Default)]
pub struct Done {
    /// Due now, or dead.
    pub messages: i64,
    /// They were due already.
    pub already_due: i64,
    /// Held messages that follow when the probe of their destination succeeds.
    pub follow: i64,
    /// In a lane that a relay, or somebody else, held all the time; nothing was changed.
    pub claimed: i64,
    /// Some of these.
    pub claimed_ids: Vec<Uuid>,
    /// Messages named by their ids that cannot be tried now: what they wait for.
    pub unfit: BTreeMap<Uuid, String>,
    /// The message ids of the filter that were found.
    pub found: BTreeSet<Uuid>,
}

struct Waiting {
    id: i64,
    message_id: Uuid,
    key_hash: Option<i64>,
    state: String,
    attempts: i32,
    destination: Option<i64>,
    is_due: bool,
    fits: bool,
    reason: Option<String>,
    last_error: Option<String>,
}

/// A command that runs.
struct Run<'a> {
    session: &'a Session,
    filter: &'a Filter,
    states: Vec<&'static str>,
    act: Act<'a>,
    /// Destinations that have their probe.
    probed: HashSet<i64>,
}

/// What one step would change, and what it leaves.
#[derive(Default)]
struct Chosen {
    messages: Vec<Waiting>,
    last: Option<i64>,
    done: Done,
    probes: Vec<i64>,
}

/// How long a step waits for its lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    LockTimeout,
}

/// Acts on every waiting message that fits, in bounded transactions, at the pace. `total` holds the committed ones, also after
/// an error.
pub async fn change(
    session: &Session,
    filter: &Filter,
    states: &[State],
    act: Act<'_>,
    operation: &Operation,
    pace: &mut Pace<'_>,
    total: &mut Done,
) -> Result<(), OutboxError> {
    let mut run = Run::new(session, filter, states, act);
    let mut record = Record::new(operation);
    let mut lanes: VecDeque<(Lane, i64)> = run.lanes().await?;
    // First what is free. A busy lane is held for as long as a claim lasts, and is waited for afterwards.
    let mut busy = VecDeque::new();
    let mut patience = Patience::None;
    let mut in_vain = 0;
    while let Some((lane, after)) = lanes.pop_front() {
        let before = total.messages;
        let stopped = run
            .work(lane, after, patience, &mut record, pace, total)
            .await?;
        if total.messages > before {
            in_vain = 0;
        }
        if let Some(after) = stopped {
            busy.push_back((lane, after));
            if patience == Patience::LockTimeout {
                in_vain += 1;
            }
        }
        // A relay may stand still with all its lanes, and each costs a whole time-out.
        if in_vain >= IN_VAIN {
            break;
        }
        if lanes.is_empty() {
            patience = Patience::LockTimeout;
            std::mem::swap(&mut lanes, &mut busy);
        }
    }
    for (lane, after) in lanes.into_iter().chain(busy) {
        run.leave(lane, after, total).await?;
    }
    record.finish(session).await
}

/// Counts what [`change`] would do, and changes nothing.
pub async fn count(
    session: &Session,
    filter: &Filter,
    states: &[State],
    act: Act<'_>,
) -> Result<Done, OutboxError> {
    let mut run = Run::new(session, filter, states, act);
    let mut total = Done::default();
    for (lane, mut after) in run.lanes().await? {
        loop {
            let chosen = run.choose(run.look(lane, after).await?, STEP);
            let Some(last) = chosen.last else { break };
            total.messages += i64::try_from(chosen.messages.len()).unwrap_or(i64::MAX);
            run.accept(chosen.done, &chosen.probes, &mut total);
            after = last;
        }
    }
    Ok(total)
}

impl<'a> Run<'a> {
    fn new(session: &'a Session, filter: &'a Filter, states: &[State], act: Act<'a>) -> Self {
        Self {
            session,
            filter,
            states: states.iter().map(|state| state.as_str()).collect(),
            act,
            probed: HashSet::new(),
        }
    }

    /// The lanes that can have such messages, each with the position before its first.
    async fn lanes(&self) -> Result<VecDeque<(Lane, i64)>, OutboxError> {
        let filter = self.filter;
        let lanes: Vec<Lane> = if !filter.message_ids.is_empty() {
            let rows = self.session.query(&LANES, &[&filter.message_ids]).await?;
            rows.iter()
                .map(|row| get(row, "lane"))
                .collect::<Result<_, _>>()?
        } else if let (Some(kind), Some(id)) = (&filter.aggregate_type, &filter.aggregate_id) {
            let lane = find::lane_of_key(self.session, kind, id).await?;
            lane.into_iter().collect()
        } else {
            all_lanes().collect()
        };
        // People can insert rows of any position.
        Ok(lanes.into_iter().map(|lane| (lane, i64::MIN)).collect())
    }

    async fn look(&self, lane: Lane, after: i64) -> Result<Vec<Waiting>, OutboxError> {
        let seconds = self.filter.seconds();
        let page: Params<'_> = &[&self.states, &lane, &after, &STEP];
        let params = [&self.filter.params(&seconds), page].concat();
        let rows = self.session.query(&LOOK, &params).await?;
        rows.iter().map(waiting).collect()
    }

    /// Decides about the first of these messages, until `most` are chosen.
    fn choose(&self, looked: Vec<Waiting>, most: i64) -> Chosen {
        let mut chosen = Chosen::default();
        let is_named = !self.filter.message_ids.is_empty();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for message in looked {
            if chosen.messages.len() >= most {
                break;
            }
            chosen.last = Some(message.id);
            if !message.fits {
                continue;
            }
            if is_named {
                chosen.done.found.insert(message.message_id);
            }
            if matches!(self.act, Act::GiveUp { .. }) {
                chosen.messages.push(message);
                continue;
            }
            let held_for = match message.state.as_str() {
                "behind" | "scheduled" => {
                    chosen.done.unfit.insert(message.message_id, message.state);
                    continue;
                }
                "held" if !is_named => message.destination,
                _ => None,
            };
            if message.is_due {
                chosen.done.already_due += 1;
                continue;
            }
            if let Some(destination) = held_for {
                if self.probed.contains(&destination) || chosen.probes.contains(&destination) {
                    chosen.done.follow += 1;
                    continue;
                }
                chosen.probes.push(destination);
            }
            chosen.messages.push(message);
        }
        chosen
    }

    /// Adds what a step did besides its messages.
    fn accept(&mut self, done: Done, probes: &[i64], total: &mut Done) {
        self.probed.extend(probes);
        total.already_due += done.already_due;
        total.follow += done.follow;
        total.unfit.extend(done.unfit);
        total.found.extend(done.found);
    }

    /// Goes through a lane. Returns where it stopped, because somebody else holds the lane.
    async fn work(
        &mut self,
        lane: Lane,
        mut after: i64,
        patience: Patience,
        record: &mut Record<'_>,
        pace: &mut Pace<'_>,
        total: &mut Done,
    ) -> Result<Option<i64>, OutboxError> {
        loop {
            // Without a lock, so that no relay is kept from a lane that has nothing to change.
            let looked = self.choose(self.look(lane, after).await?, STEP);
            let Some(last) = looked.last else {
                return Ok(None);
            };
            if looked.messages.is_empty() {
                self.accept(looked.done, &looked.probes, total);
                after = last;
                continue;
            }
            let step = self.step(lane, after, patience, pace.most(STEP), record);
            let chosen = match self.session.commits(step).await {
                Ok(Some(chosen)) => chosen,
                Ok(None) => return Ok(Some(after)),
                Err(error) if is_lane_wait(&error) => return Ok(Some(after)),
                Err(error) => return Err(error),
            };
            let messages = i64::try_from(chosen.messages.len()).unwrap_or(i64::MAX);
            total.messages += messages;
            self.accept(chosen.done, &chosen.probes, total);
            let Some(last) = chosen.last else {
                return Ok(None);
            };
            after = last;
            pace.after(messages).await;
        }
    }

    /// Changes the next messages of a lane. `None`: somebody else holds the lane.
    async fn step(
        &self,
        lane: Lane,
        after: i64,
        patience: Patience,
        most: i64,
        record: &mut Record<'_>,
    ) -> Result<Option<Chosen>, OutboxError> {
        let hold = match patience {
            Patience::None => &HOLD_NOW,
            Patience::LockTimeout => &HOLD,
        };
        if self.session.query(hold, &[&lane]).await?.is_empty() {
            return Ok(None);
        }
        // After the lock, because the last holder may have settled the messages meanwhile.
        let chosen = self.choose(self.look(lane, after).await?, most);
        if chosen.messages.is_empty() {
            return Ok(Some(chosen));
        }
        match self.act {
            Act::RetryNow => self.make_due(lane, &chosen.messages).await?,
            Act::GiveUp { by, why } => self.give_up(lane, &chosen.messages, by, why).await?,
        }
        let ids: Vec<Uuid> = chosen.messages.iter().map(|m| m.message_id).collect();
        let affected = i64::try_from(ids.len()).unwrap_or(i64::MAX);
        record.add(self.session, affected, &ids).await?;
        Ok(Some(chosen))
    }

    async fn make_due(&self, lane: Lane, messages: &[Waiting]) -> Result<(), OutboxError> {
        let ids: Vec<i64> = messages.iter().map(|m| m.id).collect();
        let rows = self.session.query(&MAKE_DUE, &[&lane, &ids]).await?;
        let mut left: BTreeSet<i64> = ids.into_iter().collect();
        for row in &rows {
            if get(row, "written")? {
                left.remove(&get(row, "id")?);
            }
        }
        let left: Vec<Position> = left.iter().map(|id| Position { lane, id: *id }).collect();
        settle::proven(MAKE_DUE.action, "waiting", "UPDATEs", &left)
    }

    async fn give_up(
        &self,
        lane: Lane,
        messages: &[Waiting],
        by: &str,
        why: &str,
    ) -> Result<(), OutboxError> {
        let ids: Vec<i64> = messages.iter().map(|m| m.id).collect();
        let message_ids: Vec<Uuid> = messages.iter().map(|m| m.message_id).collect();
        let errors: Vec<String> = messages.iter().map(|m| last_words(m, by, why)).collect();
        let params: Params<'_> = &[&lane, &ids, &message_ids, &errors];
        let rows = self.session.query(&GIVE_UP, params).await?;
        let mut left: BTreeMap<i64, Uuid> = ids.iter().copied().zip(message_ids).collect();
        for row in &rows {
            let id: i64 = get(row, "id")?;
            let message_id: Uuid = get(row, "message_id")?;
            if get(row, "written")? && left.get(&id) == Some(&message_id) {
                left.remove(&id);
            }
        }
        let at = |id: &i64| Position { lane, id: *id };
        let left: Vec<Position> = left.keys().map(at).collect();
        settle::proven(GIVE_UP.action, "dead", "INSERTs and UPDATEs", &left)?;
        let positions: Vec<Position> = ids.iter().map(at).collect();
        settle::delete_waiting(self.session, &positions).await?;
        // The messages behind it go on, as after every settle.
        let keys: BTreeSet<(Lane, i64)> = messages
            .iter()
            .filter_map(|m| Some((lane, m.key_hash?)))
            .collect();
        let keys: Vec<(Lane, i64)> = keys.into_iter().collect();
        settle::release(self.session, &keys, RELEASED).await
    }

    /// Counts what is left of a lane.
    async fn leave(&self, lane: Lane, mut after: i64, total: &mut Done) -> Result<(), OutboxError> {
        loop {
            let chosen = self.choose(self.look(lane, after).await?, STEP);
            let Some(last) = chosen.last else {
                return Ok(());
            };
            total.found.extend(chosen.done.found);
            total.claimed += i64::try_from(chosen.messages.len()).unwrap_or(i64::MAX);
            let room = NAMED.saturating_sub(total.claimed_ids.len());
            let ids = chosen.messages.iter().map(|m| m.message_id);
            total.claimed_ids.extend(ids.take(room));
            after = last;
        }
    }
}

/// Somebody else held the lane until the wait for it ended.
fn is_lane_wait(error: &OutboxError) -> bool {
    matches!(error, OutboxError::Database { action, .. } if *action == HOLD.action)
        && error.passes()
}

fn waiting(row: &Row) -> Result<Waiting, OutboxError> {
    Ok(Waiting {
        id: get(row, "id")?,
        message_id: get(row, "message_id")?,
        key_hash: get(row, "key_hash")?,
        state: get(row, "state")?,
        attempts: get(row, "attempts")?,
        destination: get(row, "destination")?,
        is_due: get(row, "is_due")?,
        fits: get(row, "fits")?,
        reason: get(row, "reason")?,
        last_error: get(row, "last_error")?,
    })
}

/// The error of a message that was given up: who and why, and what had failed.
fn last_words(message: &Waiting, by: &str, why: &str) -> String {
    let failed = match (&message.reason, &message.last_error) {
        (Some(reason), Some(error)) => format!("{reason}: {error}"),
        (Some(reason), None) => reason.clone(),
        (None, _) => message.state.clone(),
    };
    let attempts = message.attempts;
    format!("given up by {by} ({why}) after {attempts} attempts; before: {failed}")
}
