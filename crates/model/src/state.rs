//! What the database, the broker and the processes hold between two steps.

use crate::real::{Limits, Tuning, low_water, shares};

pub type Key = u8;
pub type Lane = u8;
/// Index of a row; its position (`outbox.message.id`) is one more.
pub type Row = u8;
/// A transaction id. Only their order matters, so they are renumbered after every step.
pub type Tx = u8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Keys of the messages that no transaction has begun to write yet.
    pub unborn: Vec<Key>,
    /// Transactions that have their id and no position yet.
    pub begun: Vec<Begun>,
    /// `outbox.message`, with what `outbox.waiting`, `outbox.dead`, the queue and the inbox hold of each.
    pub rows: Vec<Message>,
    /// `outbox.lane`.
    pub lanes: Vec<Mark>,
    pub next_tx: Tx,
    pub relays: Vec<Process>,
    /// Publishes still on their way to the broker, of each connection that is gone.
    pub wire: Vec<Vec<Row>>,
    pub scout: Scout,
    pub audit: Audit,
    /// Only without `AuditsAgain`: the only one is over.
    pub audited: bool,
    pub consumers: Vec<Consumer>,
    /// The destination takes nothing.
    pub outage: bool,
    /// `sent_at` cannot be written.
    pub forbidden: Option<Forbidden>,
    /// Faults that may still happen.
    pub left: Faults,
    /// Lanes locked by nobody alive; only without `LockDiesWithConnection`.
    pub orphaned: Vec<Lane>,
    /// A first delivery came before one of its key that stood before it.
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
    /// Those of its key that stood before it when a claim first read it, a bit each, and are not delivered yet. Two
    /// transactions that write one key at once have no order between them; what a claim could see has.
    pub ahead: Option<u8>,
    /// How many times the broker took it.
    pub copies: u8,
    /// Of those, in the queue and not with a consumer.
    pub ready: u8,
    /// Its key is in `inbox.message`, committed.
    pub in_inbox: bool,
    /// How many times the business write was committed.
    pub effects: u8,
    /// Somebody changed by hand what tells the relay of it, and no relay has settled or filed it since.
    pub by_hand: bool,
}

impl Message {
    pub fn is_pending(&self) -> bool {
        self.phase == Phase::Committed && !self.sent && !self.dead
    }

    /// A relay has settled it, or filed it.
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
    /// And so it is; with `failed_probes`.
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

/// A relay's process, with one worker. What it remembers dies with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub task: Relay,
    pub memory: Memory,
}

/// What it knows from one claim to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Memory {
    /// `Caution::limit`.
    pub allowed: Option<u8>,
    /// `Caution::suspects`, a bit a row.
    pub suspects: u16,
    pub circuit: Circuit,
}

/// What a process knows of the destination.
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
    /// The last held message that was chosen to probe.
    pub chosen: Option<Row>,
    pub none_held: bool,
    pub give_up: bool,
}

/// Which of the two clocks of an open circuit let one message through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Permits {
    Neither,
    /// One that was never tried.
    New,
    /// And any one as well.
    Both,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relay {
    Idle,
    /// Only without `ReadAfterLock`: what the messages looked like before the lock.
    Looked(Vec<Message>),
    /// The claim's transaction holds its lanes and has read nothing yet.
    Locked(Held),
    /// The claim was read; its waves go out.
    Working(Work),
}

/// What a claim's transaction holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    pub lanes: Vec<Lane>,
    pub marks: Vec<Mark>,
    pub own_tx: Tx,
    pub xmin: Tx,
    /// Positions drawn by then; the position of the last one.
    pub drawn: u8,
    pub before: Option<Vec<Message>>,
}

impl Held {
    /// New messages to read of each lane.
    pub fn shares(&self, limits: Limits) -> Vec<usize> {
        let marks: Vec<i64> = self.marks.iter().map(|m| m.low_water.into()).collect();
        shares(&Tuning::MEASURED, &marks, limits.fresh)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Work {
    pub held: Held,
    pub hold: Hold,
    /// Messages that it could read.
    pub limit: u8,
    pub read: Vec<Candidate>,
    /// Candidates in flight, as they were published on the channel.
    pub wave: Vec<u8>,
    /// The broker's answers to the first of them.
    pub answered: Vec<Reply>,
    /// No further wave.
    pub over: bool,
}

impl Work {
    /// What its settle marks.
    pub fn sent(&self) -> impl Iterator<Item = Row> + '_ {
        let sent = |c: &&Candidate| c.decided == Some(Decided::Sent);
        self.read.iter().filter(sent).map(|c| c.row)
    }
}

/// What has become of the claim's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hold {
    Open,
    /// The server ended it, the relay stood still and does not know.
    Fenced,
    /// Only without `OneTransaction`: committed after the read, and another one settles.
    Released,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Candidate {
    pub row: Row,
    pub key: Key,
    pub filed: bool,
    pub attempts: u8,
    /// `after_id`: the nearest earlier message of its key that waits.
    pub after: Option<Row>,
    /// See `Waiting`.
    pub probe: bool,
    pub unmarkable: bool,
    pub was_held: bool,
    /// The rehearsal says that it cannot be marked: it was decided before the first wave.
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

/// What the broker does with one publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reply {
    /// In the queue, and acked.
    Ack,
    /// In no queue: a return, then an ack.
    Return,
    /// In no queue.
    Nack,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scout {
    Idle,
    /// Last visible position above the mark, of each lane that is untidy.
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
    /// The transaction is open: claimed, the business write done.
    Claimed {
        row: Row,
        acked: bool,
    },
    Committed {
        row: Row,
        acked: bool,
    },
}

/// What somebody does to one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `sent_at` is taken back: it is to be sent again.
    TakeBack,
    /// Its row in `outbox.waiting` is deleted.
    DeleteWaiting,
    /// Its row in `outbox.dead` is deleted.
    DeleteDead,
    /// A position whose transaction was rolled back is written after all: a row is copied back, a sequence restarted.
    CopyBack,
}

/// Of one relay: the one that has the audit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Audit {
    Idle,
    /// Stranded in the snapshot of the walk. Kept in memory until they are filed.
    Knows(Vec<Row>),
    /// Its transaction holds those of their lanes that were free.
    Holds(Vec<Row>, Vec<Lane>),
    /// Has inserted these, and not committed.
    Files {
        rows: Vec<Row>,
        /// Their lanes were held by somebody else.
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

/// What somebody did to `outbox.message`: until it is undone, `sent_at` cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forbidden {
    /// A revoked privilege, a trigger that raises: the mark shows it.
    AtMark,
    /// Only the COMMIT shows it.
    AtCommit,
    /// The lock of this row is held.
    Row(Row),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Faults {
    /// Of a relay: killed, or standing still until the server ends its transaction.
    pub crashes: u8,
    /// Of a connection to the broker, with a wave in flight.
    pub losses: u8,
    /// Publishes that the broker does not take.
    pub refusals: u8,
    /// Transactions of producers that are rolled back.
    pub rollbacks: u8,
    /// Of a consumer: killed, or its connection lost while the handler goes on.
    pub consumers: u8,
    /// Changes by hand that hide messages from the relay.
    pub acts: u8,
    /// Changes by hand that make marks impossible, and claims that find them so before they are taken back.
    pub bans: u8,
    pub refused_marks: u8,
    /// Of the destination, and back-offs that pass before it works again.
    pub outages: u8,
    pub rounds: u8,
}

impl Faults {
    /// Those after which a batch may be published again.
    pub fn repeating(self) -> u8 {
        self.crashes + self.losses
    }
}

impl State {
    /// Ids of the transactions that run.
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

    /// As it would be if `own` did not run.
    pub fn xmin_without(&self, own: Tx) -> Tx {
        let others = self.running().filter(|tx| *tx != own);
        others.min().unwrap_or(self.next_tx)
    }

    pub fn assign_tx(&mut self) -> Tx {
        self.next_tx += 1;
        self.next_tx - 1
    }

    /// Claims whose transaction is open.
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

    /// Two states that differ only in the names of relays and consumers, or in how far apart transaction ids are, are
    /// one.
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
