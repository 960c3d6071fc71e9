//! What the design rests on, each removable.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safeguard {
    /// `pg_snapshot_xmin` must have reached the candidate's transaction before the mark moves. Without it, it moves
    /// past a transaction that is still open.
    LowWaterXmin,
    /// The candidate was drawn before its transaction id was assigned. Without it, the last position drawn by the settle.
    DrawnBeforeTx,
    /// `pg_snapshot_xmin` is taken before the read. Without it, at the settle.
    XminBeforeRead,
    /// `tx` stands before `id`. Without it, a transaction draws its position first.
    TxBeforeId,
    /// `FOR UPDATE SKIP LOCKED` on the lane's row.
    LaneLock,
    /// The lane's lock dies with the connection. Without it, a killed relay keeps its lanes.
    LockDiesWithConnection,
    /// One transaction holds the lanes from the claim to the settle. Without it, the claim's is committed after the
    /// read, and another one settles.
    OneTransaction,
    /// Messages are read by a statement of its own, after the lock. Without it, in the lock's snapshot.
    ReadAfterLock,
    /// The read shows committed rows only. Without it, the rows of open transactions too.
    CommittedRead,
    /// What was published is not delivered before its confirm. Without it, it is marked unconfirmed.
    Confirms,
    /// Nothing is decided before all confirms of a wave are in. Without it, a return that comes with a later confirm
    /// comes too late.
    ConfirmBarrier,
    /// A return is matched by message id. Without it, it belongs to the confirm that it came with.
    MatchById,
    /// What a lost connection left without an answer stays pending. Without it, it counts as delivered.
    UnknownStays,
    /// A message behind a waiting one of its key waits too.
    HeldBackKey,
    /// `relay.ordering = "strict"`: one message of a key at a time.
    StrictWaves,
    /// What stood behind a settled message is released.
    Release,
    /// The whole inbox: a consumer that applies whatever comes.
    Inbox,
    /// The primary key of `inbox.message`. Without it, the inbox is a check and then an insert.
    UniqueKey,
    /// The inbox's row is written in the handler's transaction. Without it, it is committed before.
    ClaimInTransaction,
    /// A delivery is acknowledged after the commit. Without it, before.
    AckAfterCommit,
    /// An audit needs no sign. Without it, one begins when a file or the sequence was changed.
    AuditsUnasked,
    /// All of `outbox.message` is audited again and again. Without it, once.
    AuditsAgain,
    /// The audit files a message under the lock of its lane. Without it, beside a claim that has the message in hand.
    AuditLocksLane,
    /// It looks again under that lock. Without it, it files what it knew.
    AuditLooksAgain,
    /// It lets go what stands behind nobody.
    AuditReleases,
    /// After a settle that failed, a claim rehearses its marks before it publishes.
    Rehearsal,
    /// The claims after it know of it.
    CautionKept,
    /// And begin with one message, for what only the COMMIT shows.
    CautionBeginsWithOne,
    /// What was published in vain is rehearsed until it is settled, whatever other lanes mark.
    SuspectsKept,
    /// What could not be marked is rehearsed at its next attempt, whatever was marked meanwhile.
    UnmarkableKept,
    /// While a destination fails, its messages are held. Without it, each is tried again.
    Circuit,
    /// A relay looks for what another one held, or itself before it was started again.
    FindHeld,
    /// Whatever failed last. Without it, not while one message alone has failed.
    FoundWhateverFailed,
    /// A held message holds back what follows it in its key.
    HeldHoldsBack,
    /// The first success releases what is held.
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
