//! The state of the database, the broker and the processes between two steps.

use crate::real::{Limits, Tuning, low_water, shares};

pub type Key = u8;
pub type Lane = u8;
/// Index of a row; its position (`outbox.message.id`) is one more.
pub type Row = u8;
/// A transaction id. Only the order of the ids matters, so they are renumbered after every step.
pub type Tx = u8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Keys of the messages that no transaction has begun to write.
    pub unwritten: Vec<Key>,
    /// Transactions that have an id and no position.
    pub begun: Vec<Begun>,
    /// `outbox.message`, with each message's state in `outbox.waiting`, `outbox.dead`, the queue and the inbox.
    pub rows: Vec<Message>,
    /// `outbox.lane`.
    pub lanes: Vec<Mark>,
    pub next_tx: Tx,
    pub relays: Vec<Process>,
    /// Publishes in flight of each dead connection.
    pub wire: Vec<Vec<Row>>,
    pub scout: Scout,
    pub audit: Audit,
    /// Only without `AuditsAgain`: the only audit is over.
    pub audited: bool,
    pub consumers: Vec<Consumer>,
    /// The destination refuses everything.
    pub outage: bool,
    /// `sent_at` cannot be written.
    pub forbidden: Option<Forbidden>,
    /// Faults that may still happen.
    pub left: Faults,
    /// Lanes that stay locked without a living relay; only without `LockDiesWithConnection`.
    pub orphaned: Vec<Lane>,
    /// A first delivery came before an earlier message of the same key.
    pub overtaken: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Begun {
    pub tx: Tx,
    pub key: Key,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    pub key: Key,
    pub phase: Phase,
    /// `sent_at` is set.
    pub sent: bool,
    pub dead: bool,
    pub waiting: Option<Waiting>,
    /// Undelivered earlier messages of its key that were visible when a claim first read it, one bit each. Two
    /// transactions that write one key at the same time have no order between them; only an earlier message that the
    /// claim could see has one.
    pub ahead: Option<u8>,
    /// Number of copies that the broker took.
    pub copies: u8,
    /// Number of these copies that are in the queue and not at a consumer.
    pub ready: u8,
    /// The key is in `inbox.message`, committed.
    pub in_inbox: bool,
    /// Number of committed business writes.
    pub effects: u8,
    /// Somebody changed the row manually, and no relay has settled or filed it since.
    pub by_hand: bool,
}

impl Message {
    pub fn is_pending(&self) -> bool {
        self.phase == Phase::Committed && !self.sent && !self.dead
    }

    /// A relay has settled or filed the message.
    pub fn put_in_order(&mut self) {
        self.by_hand = false;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Only without `TxBeforeId`: has a position and no transaction id.
    Drawn,
    Open(Tx),
    Committed,
    RolledBack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Waiting {
    pub due: Due,
    pub attempts: u8,
    /// `cause` is `probe`.
    pub probe: bool,
    /// `reason` is `unmarkable`.
    pub unmarkable: bool,
    /// `destination` is set: it was held.
    pub was_held: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Due {
    Now,
    Later,
    /// `due_at` is NULL.
    Behind,
    /// `due_at` is NULL, and the cause is `held`; with `failed_probes`.
    Held {
        failures: u8,
    },
}

/// A lane's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mark {
    pub low_water: u8,
    pub candidate: Option<(u8, Tx)>,
}

impl Mark {
    pub fn real(self) -> low_water::Mark {
        low_water::Mark {
            low_water: self.low_water.into(),
            candidate: self.candidate.map(|(position, tx)| low_water::Candidate {
                position: position.into(),
                tx: tx.into(),
            }),
        }
    }

    pub fn of(real: low_water::Mark) -> Self {
        Self {
            low_water: small(real.low_water),
            candidate: real.candidate.map(|c| (small(c.position), small(c.tx))),
        }
    }
}

pub fn small(n: i64) -> u8 {
    u8::try_from(n).expect("positions and transaction ids of a model are small")
}

/// A relay process with one worker. Its memory is lost when it dies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub task: Relay,
    pub memory: Memory,
}

/// Its memory between two claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Memory {
    /// `Caution::limit`.
    pub allowed: Option<u8>,
    /// `Caution::suspects`, one bit for each row.
    pub suspects: u16,
    pub circuit: Circuit,
}

/// A process's state of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Circuit {
    #[default]
    Works,
    Failing(Row),
    Open(Open),
    Draining {
        window: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Open {
    pub failures: u8,
    pub probing: bool,
    pub permits: Permits,
    /// The last held message that was chosen as a probe.
    pub chosen: Option<Row>,
    pub none_held: bool,
    pub give_up: bool,
}

/// The clocks of an open circuit that let one message through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Permits {
    Neither,
    /// A message that was not tried before.
    New,
    /// Also any other message.
    Both,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relay {
    Idle,
    /// Only without `ReadAfterLock`: the messages before the lock.
    Looked(Vec<Message>),
    /// The claim's transaction holds its lanes, and has read nothing yet.
    Locked(Held),
    /// The claim has been read, and its waves are published.
    Working(Work),
}

/// The contents of a claim's transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    pub lanes: Vec<Lane>,
    pub marks: Vec<Mark>,
    pub own_tx: Tx,
    pub xmin: Tx,
    /// Number of positions drawn at that time, which is the last position.
    pub drawn: u8,
    pub before: Option<Vec<Message>>,
}

impl Held {
    /// Number of new messages to read from each lane.
    pub fn shares(&self, limits: Limits) -> Vec<usize> {
        let marks: Vec<i64> = self.marks.iter().map(|m| m.low_water.into()).collect();
        shares(&Tuning::MEASURED, &marks, limits.fresh)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Work {
    pub held: Held,
    pub hold: Hold,
    /// Maximum number of messages of the read.
    pub limit: u8,
    pub read: Vec<Candidate>,
    /// Candidates in flight, in the order of their publish.
    pub wave: Vec<u8>,
    /// The broker's answers so far, in the same order.
    pub answered: Vec<Reply>,
    /// No further wave.
    pub over: bool,
}

impl Work {
    /// The messages that its settle marks.
    pub fn sent(&self) -> impl Iterator<Item = Row> + '_ {
        let sent = |c: &&Candidate| c.decided == Some(Decided::Sent);
        self.read.iter().filter(sent).map(|c| c.row)
    }
}

/// State of the claim's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hold {
    Open,
    /// The server ended the transaction. The relay stalled and does not know it.
    Fenced,
    /// Only without `OneTransaction`: committed after the read; another transaction settles.
    Released,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Candidate {
    pub row: Row,
    pub key: Key,
    pub filed: bool,
    pub attempts: u8,
    /// `after_id`: the nearest earlier message of the same key that waits.
    pub after: Option<Row>,
    /// See `Waiting`.
    pub probe: bool,
    pub unmarkable: bool,
    pub was_held: bool,
    /// The rehearsal could not mark the message, so it has an outcome before the first wave.
    pub refused: bool,
    pub decided: Option<Decided>,
}

/// `outcome::Outcome`, without its texts and delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decided {
    Sent,
    Retry { attempts: u8, unmarkable: bool },
    Dead { attempts: u8 },
    Held { attempts: u8, failures: u8 },
    Behind,
    Untouched,
}

/// The broker's handling of one publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reply {
    /// In the queue, then an ack.
    Ack,
    /// In no queue: a return, then an ack.
    Return,
    /// In no queue.
    Nack,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scout {
    Idle,
    /// Last visible position above the mark, of each lane whose mark can move.
    Looked(Vec<(Lane, Option<u8>)>),
    Locked(Held, Vec<(Lane, Option<u8>)>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Consumer {
    Idle,
    Got {
        row: Row,
        acked: bool,
    },
    /// The transaction is open: claimed, and the business write is done.
    Claimed {
        row: Row,
        acked: bool,
    },
    Committed {
        row: Row,
        acked: bool,
    },
}

/// A manual change to one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `sent_at` is reset: the message will be sent again.
    TakeBack,
    /// Its row in `outbox.waiting` is deleted.
    DeleteWaiting,
    /// Its row in `outbox.dead` is deleted.
    DeleteDead,
    /// A position whose transaction was rolled back is written later: a row is copied back, or a sequence is restarted.
    CopyBack,
}

/// The audit of one relay.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Audit {
    Idle,
    /// Messages that the walk found stranded. They stay in memory until they are filed.
    Knows(Vec<Row>),
    /// The transaction has locked those of their lanes that were free.
    Holds(Vec<Row>, Vec<Lane>),
    /// Has inserted these rows and not committed.
    Files {
        rows: Vec<Row>,
        /// Another transaction held their lanes.
        left: Vec<Row>,
        lanes: Vec<Lane>,
    },
}

impl Audit {
    /// The lanes that it has locked.
    pub fn lanes(&self) -> &[Lane] {
        match self {
            Self::Idle | Self::Knows(_) => &[],
            Self::Holds(_, lanes) | Self::Files { lanes, .. } => lanes,
        }
    }
}

/// A manual change to `outbox.message`; until it is undone, `sent_at` cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forbidden {
    /// A revoked privilege or a trigger that raises an error: the mark fails.
    AtMark,
    /// Only the COMMIT fails.
    AtCommit,
    /// Another session holds the lock of this row.
    Row(Row),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A relay is killed, or stalls until the server ends its transaction.
    pub crashes: u8,
    /// A connection to the broker is lost with a wave in flight.
    pub losses: u8,
    /// Publishes that the broker refuses.
    pub refusals: u8,
    /// Transactions of producers that are rolled back.
    pub rollbacks: u8,
    /// A consumer is killed, or loses its connection while the handler continues.
    pub consumers: u8,
    /// Manual changes that hide messages from the relay.
    pub acts: u8,
    /// Manual changes that make marks impossible, and claims that fail because of them before they are undone.
    pub bans: u8,
    pub refused_marks: u8,
    /// Outages of the destination, and back-offs that end before it works again.
    pub outages: u8,
    pub rounds: u8,
}

impl Faults {
    /// Faults that may each cause a batch of duplicates.
    pub fn repeating(self) -> u8 {
        self.crashes + self.losses
    }
}

impl State {
    /// Ids of the running transactions.
    fn running(&self) -> impl Iterator<Item = Tx> + '_ {
        let begun = self.begun.iter().map(|b| b.tx);
        let open = self.rows.iter().filter_map(|m| match m.phase {
            Phase::Open(tx) => Some(tx),
            Phase::Drawn | Phase::Committed | Phase::RolledBack => None,
        });
        let claims = self.claims().map(|held| held.own_tx);
        begun.chain(open).chain(claims)
    }

    /// `pg_snapshot_xmin(pg_current_snapshot())`.
    pub fn xmin(&self) -> Tx {
        self.running().min().unwrap_or(self.next_tx)
    }

    /// The xmin if `own` were not running.
    pub fn xmin_without(&self, own: Tx) -> Tx {
        let others = self.running().filter(|tx| *tx != own);
        others.min().unwrap_or(self.next_tx)
    }

    pub fn assign_tx(&mut self) -> Tx {
        self.next_tx += 1;
        self.next_tx - 1
    }

    /// Claims with an open transaction.
    fn claims(&self) -> impl Iterator<Item = &Held> {
        let scout = match &self.scout {
            Scout::Locked(held, _) => Some(held),
            Scout::Idle | Scout::Looked(_) => None,
        };
        let relays = self.relays.iter().filter_map(|relay| match &relay.task {
            Relay::Locked(held) => Some(held),
            Relay::Working(work) if work.hold == Hold::Open => Some(&work.held),
            Relay::Idle | Relay::Looked(_) | Relay::Working(_) => None,
        });
        relays.chain(scout)
    }

    pub fn is_locked(&self, lane: Lane) -> bool {
        self.orphaned.contains(&lane)
            || self.audit.lanes().contains(&lane)
            || self.claims().any(|held| held.lanes.contains(&lane))
    }

    /// Two states count as one if they differ only in the names of relays and consumers, or in the distances between
    /// transaction ids.
    pub fn canonical(mut self) -> Self {
        self.forget_what_was_ahead();
        self.wire.retain(|connection| !connection.is_empty());
        self.wire.sort_unstable();
        self.relays.sort_unstable();
        self.consumers.sort_unstable();
        let mut used: Vec<Tx> = Vec::with_capacity(8);
        self.each_tx(|tx| used.push(*tx));
        used.sort_unstable();
        used.dedup();
        self.each_tx(|tx| {
            let rank = used.partition_point(|other| other < tx);
            *tx = small(rank as i64) + 1;
        });
        self
    }

    fn forget_what_was_ahead(&mut self) {
        let waited_for = (0..).zip(&self.rows);
        let waited_for = waited_for.filter(|(_, m)| m.copies == 0 && !m.dead);
        let waited_for = waited_for.fold(0, |bits, (row, _): (Row, _)| bits | 1 << row);
        for message in &mut self.rows {
            let wanted = if message.copies == 0 { waited_for } else { 0 };
            message.ahead = message.ahead.map(|bits| bits & wanted);
        }
    }

    fn each_tx(&mut self, mut f: impl FnMut(&mut Tx)) {
        fn of_mark(mark: &mut Mark, f: &mut impl FnMut(&mut Tx)) {
            if let Some((_, tx)) = &mut mark.candidate {
                f(tx);
            }
        }
        fn of_held(held: &mut Held, f: &mut impl FnMut(&mut Tx)) {
            f(&mut held.own_tx);
            f(&mut held.xmin);
            held.marks.iter_mut().for_each(|mark| of_mark(mark, f));
        }
        f(&mut self.next_tx);
        self.begun.iter_mut().for_each(|b| f(&mut b.tx));
        for message in &mut self.rows {
            if let Phase::Open(tx) = &mut message.phase {
                f(tx);
            }
        }
        self.lanes.iter_mut().for_each(|mark| of_mark(mark, &mut f));
        for relay in &mut self.relays {
            match &mut relay.task {
                Relay::Locked(held) => of_held(held, &mut f),
                Relay::Working(work) => of_held(&mut work.held, &mut f),
                Relay::Idle | Relay::Looked(_) => {}
            }
        }
        if let Scout::Locked(held, _) = &mut self.scout {
            of_held(held, &mut f);
        }
    }
}
