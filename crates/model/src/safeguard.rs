//! The safeguards of the design; each can be removed.

use crate::{
    invariant::Invariant,
    scenario::{self, Scenario},
};

/// Each safeguard, the invariant that it is for, and a small scenario in which that is broken without it.
macro_rules! safeguards {
    ($($(#[$doc:meta])* $name:ident: $invariant:ident in $scenario:ident;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Safeguard {
            $($(#[$doc])* $name,)*
        }

        impl Safeguard {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub fn guards(self) -> Invariant {
                match self {
                    $(Self::$name => Invariant::$invariant,)*
                }
            }

            pub fn shown_in(self) -> Scenario {
                match self {
                    $(Self::$name => scenario::$scenario(),)*
                }
            }
        }
    };
}

safeguards! {
    /// `pg_snapshot_xmin` must have reached the candidate's transaction before the mark moves. Without it, it moves
    /// past a transaction that is still open.
    LowWaterXmin: NoLoss in late_commits;
    /// The candidate was drawn before its transaction id was assigned. Without it, the last position drawn by the settle.
    DrawnBeforeTx: NoLoss in late_commits;
    /// `pg_snapshot_xmin` is taken before the read. Without it, at the settle.
    XminBeforeRead: NoLoss in late_commits;
    /// `tx` stands before `id`. Without it, a transaction draws its position first.
    TxBeforeId: NoLoss in late_commits;
    /// `FOR UPDATE SKIP LOCKED` on the lane's row.
    LaneLock: FewDuplicates in two_relays;
    /// The lane's lock dies with the connection. Without it, a killed relay keeps its lanes.
    LockDiesWithConnection: Progress in two_relays;
    /// One transaction holds the lanes from the claim to the settle. Without it, the claim's is committed after the
    /// read, and another one settles.
    OneTransaction: FewDuplicates in two_relays;
    /// Messages are read by a statement of its own, after the lock. Without it, in the lock's snapshot.
    ReadAfterLock: FewDuplicates in two_relays;
    /// The read shows committed rows only. Without it, the rows of open transactions too.
    CommittedRead: NoGhost in refusals;
    /// What was published is not delivered before its confirm. Without it, it is marked unconfirmed.
    Confirms: NoLoss in refusals;
    /// Nothing is decided before all confirms of a wave are in. Without it, a return that comes with a later confirm
    /// comes too late.
    ConfirmBarrier: NoLoss in refusals;
    /// A return is matched by message id. Without it, it belongs to the confirm that it came with.
    MatchById: NoLoss in refusals;
    /// What a lost connection left without an answer stays pending. Without it, it counts as delivered.
    UnknownStays: NoLoss in refusals;
    /// A message behind a waiting one of its key waits too.
    HeldBackKey: KeyOrder in refusals;
    /// `relay.ordering = "strict"`: one message of a key at a time.
    StrictWaves: KeyOrder in refusals;
    /// What stood behind a settled message is released.
    Release: Progress in refusals;
    /// The whole inbox: a consumer that applies whatever comes.
    Inbox: EffectOnce in end_to_end;
    /// The primary key of `inbox.message`. Without it, the inbox is a check and then an insert.
    UniqueKey: EffectOnce in end_to_end;
    /// The inbox's row is written in the handler's transaction. Without it, it is committed before.
    ClaimInTransaction: EffectOnce in end_to_end;
    /// A delivery is acknowledged after the commit. Without it, before.
    AckAfterCommit: EffectOnce in end_to_end;
    /// An audit needs no sign. Without it, one begins when a file or the sequence was changed.
    AuditsUnasked: Progress in hidden_rows;
    /// All of `outbox.message` is audited again and again. Without it, once.
    AuditsAgain: Progress in hidden_rows;
    /// The audit files a message under the lock of its lane. Without it, beside a claim that has the message in hand.
    AuditLocksLane: FiledOnce in hidden_rows;
    /// It looks again under that lock. Without it, it files what it knew.
    AuditLooksAgain: FiledOnce in hidden_rows;
    /// It lets go what stands behind nobody.
    AuditReleases: Progress in hidden_rows;
    /// After a settle that failed, a claim rehearses its marks before it publishes.
    Rehearsal: FewDuplicates in marks_that_fail;
    /// The claims after it know of it.
    CautionKept: FewDuplicates in marks_that_fail;
    /// And begin with one message, for what only the COMMIT shows.
    CautionBeginsWithOne: FewDuplicates in commits_that_fail;
    /// What was published in vain is rehearsed until it is settled, whatever other lanes mark.
    SuspectsKept: FewDuplicates in a_locked_row_beside_other_lanes;
    /// What could not be marked is rehearsed at its next attempt, whatever was marked meanwhile.
    UnmarkableKept: FewDuplicates in a_locked_row;
    /// While a destination fails, its messages are held. Without it, each is tried again.
    Circuit: FewProbes in an_outage;
    /// A relay looks for what another one held, or itself before it was started again.
    FindHeld: Progress in a_restart;
    /// Whatever failed last. Without it, not while one message alone has failed.
    FoundWhateverFailed: Progress in returns;
    /// A held message holds back what follows it in its key.
    HeldHoldsBack: KeyOrder in a_restart;
    /// The first success releases what is held.
    SuccessReleases: Progress in an_outage;
}
