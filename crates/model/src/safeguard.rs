//! The safeguards of the design; each can be removed.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safeguard {
    /// The mark moves only after `pg_snapshot_xmin` has reached the candidate's transaction. Without it, the mark
    /// passes transactions that are still open.
    LowWaterXmin,
    /// The candidate was drawn before its transaction id was assigned. Without it, the candidate is the last position
    /// drawn before the settle.
    DrawnBeforeTx,
    /// `pg_snapshot_xmin` is taken before the read. Without it, it is taken at the settle.
    XminBeforeRead,
    /// `tx` comes before `id`. Without it, a transaction draws its position first.
    TxBeforeId,
    /// `FOR UPDATE SKIP LOCKED` on the lane's row.
    LaneLock,
    /// The lane's lock ends with the connection. Without it, a killed relay keeps its lanes.
    LockDiesWithConnection,
    /// One transaction holds the lanes from the claim to the settle. Without it, the claim's transaction commits after
    /// the read, and another one settles.
    OneTransaction,
    /// A separate statement reads messages after the lock. Without it, the lock's snapshot is used.
    ReadAfterLock,
    /// The read shows only committed rows. Without it, it also shows the rows of open transactions.
    CommittedRead,
    /// A published message is delivered only after its confirm. Without it, the message is marked without a confirm.
    Confirms,
    /// Nothing is decided before all confirms of a wave have arrived. Without it, a return that comes with a later
    /// confirm is missed.
    ConfirmBarrier,
    /// A return is matched by message id. Without it, a return belongs to the confirm that it came with.
    MatchById,
    /// Messages without an answer stay pending after a lost connection. Without it, they count as delivered.
    UnknownStays,
    /// A message behind a waiting message of its key waits too.
    HeldBackKey,
    /// `relay.ordering = "strict"`: one message of a key at a time.
    StrictWaves,
    /// A settle releases the messages behind a settled one.
    Release,
    /// The whole inbox. Without it, a consumer applies every delivery.
    Inbox,
    /// The primary key of `inbox.message`. Without it, the inbox is a check followed by an insert.
    UniqueKey,
    /// The inbox's row is written in the handler's transaction. Without it, the row is committed first.
    ClaimInTransaction,
    /// A delivery is acknowledged after the commit. Without it, it is acknowledged before.
    AckAfterCommit,
    /// An audit needs no sign. Without it, an audit starts only after a file or the sequence was changed.
    AuditsUnasked,
    /// All of `outbox.message` is audited repeatedly. Without it, once.
    AuditsAgain,
    /// The audit files a message under the lock of its lane. Without it, it files beside a claim that holds the
    /// message.
    AuditLocksLane,
    /// The audit checks again under that lock. Without it, it files the messages that it remembered.
    AuditLooksAgain,
    /// The audit releases messages whose head is gone.
    AuditReleases,
    /// After a failed settle, a claim rehearses its marks before it publishes.
    Rehearsal,
    /// Later claims remember a failed settle.
    CautionKept,
    /// Later claims start with one message, because some failures show only at COMMIT.
    CautionBeginsWithOne,
    /// Messages that were published and not marked are rehearsed until they are settled, independently of marks in
    /// other lanes.
    SuspectsKept,
    /// A message that could not be marked is rehearsed at its next attempt, independently of other marks.
    UnmarkableKept,
    /// While a destination fails, its messages are held. Without it, each of them is retried.
    Circuit,
    /// A relay looks for messages that another relay held, or that it held before a restart.
    FindHeld,
    /// It looks even if the last failure concerned one message. Without it, it does not look then.
    FoundWhateverFailed,
    /// A held message blocks the later messages of its key.
    HeldHoldsBack,
    /// The first success releases the held messages.
    SuccessReleases,
}

impl Safeguard {
    pub const ALL: [Self; 35] = [
        Self::LowWaterXmin,
        Self::DrawnBeforeTx,
        Self::XminBeforeRead,
        Self::TxBeforeId,
        Self::LaneLock,
        Self::LockDiesWithConnection,
        Self::OneTransaction,
        Self::ReadAfterLock,
        Self::CommittedRead,
        Self::Confirms,
        Self::ConfirmBarrier,
        Self::MatchById,
        Self::UnknownStays,
        Self::HeldBackKey,
        Self::StrictWaves,
        Self::Release,
        Self::Inbox,
        Self::UniqueKey,
        Self::ClaimInTransaction,
        Self::AckAfterCommit,
        Self::AuditsUnasked,
        Self::AuditsAgain,
        Self::AuditLocksLane,
        Self::AuditLooksAgain,
        Self::AuditReleases,
        Self::Rehearsal,
        Self::CautionKept,
        Self::CautionBeginsWithOne,
        Self::SuspectsKept,
        Self::UnmarkableKept,
        Self::Circuit,
        Self::FindHeld,
        Self::FoundWhateverFailed,
        Self::HeldHoldsBack,
        Self::SuccessReleases,
    ];
}
