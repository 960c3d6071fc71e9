//! The violation that each missing safeguard causes, and the scenario that shows it.

use crate::{Invariant, Safeguard, Scenario, scenario};

impl Safeguard {
    /// The invariant that the safeguard protects.
    pub fn guards(self) -> Invariant {
        match self {
            Self::LowWaterXmin
            | Self::DrawnBeforeTx
            | Self::XminBeforeRead
            | Self::TxBeforeId
            | Self::Confirms
            | Self::ConfirmBarrier
            | Self::MatchById
            | Self::UnknownStays => Invariant::NoLoss,
            Self::LaneLock
            | Self::OneTransaction
            | Self::ReadAfterLock
            | Self::Rehearsal
            | Self::CautionKept
            | Self::CautionBeginsWithOne
            | Self::SuspectsKept
            | Self::UnmarkableKept => Invariant::FewDuplicates,
            Self::AuditLocksLane | Self::AuditLooksAgain => Invariant::FiledOnce,
            Self::Circuit => Invariant::FewProbes,
            Self::CommittedRead => Invariant::NoGhost,
            Self::HeldBackKey | Self::StrictWaves | Self::HeldHoldsBack => Invariant::KeyOrder,
            Self::LockDiesWithConnection
            | Self::Release
            | Self::AuditsUnasked
            | Self::AuditsAgain
            | Self::AuditReleases
            | Self::FindHeld
            | Self::FoundWhateverFailed
            | Self::SuccessReleases => Invariant::Progress,
            Self::Inbox | Self::UniqueKey | Self::ClaimInTransaction | Self::AckAfterCommit => {
                Invariant::EffectOnce
            }
        }
    }

    /// A small scenario in which the missing safeguard shows.
    pub fn shown_in(self) -> Scenario {
        match self {
            Self::LowWaterXmin | Self::DrawnBeforeTx | Self::XminBeforeRead | Self::TxBeforeId => {
                scenario::late_commits()
            }
            Self::LaneLock
            | Self::LockDiesWithConnection
            | Self::OneTransaction
            | Self::ReadAfterLock => scenario::two_relays(),
            Self::Inbox | Self::UniqueKey | Self::ClaimInTransaction | Self::AckAfterCommit => {
                scenario::end_to_end()
            }
            Self::CommittedRead
            | Self::Confirms
            | Self::ConfirmBarrier
            | Self::MatchById
            | Self::UnknownStays
            | Self::HeldBackKey
            | Self::StrictWaves
            | Self::Release => scenario::refusals(),
            Self::AuditsUnasked
            | Self::AuditsAgain
            | Self::AuditLocksLane
            | Self::AuditLooksAgain
            | Self::AuditReleases => scenario::hidden_rows(),
            Self::Rehearsal | Self::CautionKept => scenario::marks_that_fail(),
            Self::CautionBeginsWithOne => scenario::commits_that_fail(),
            Self::SuspectsKept => scenario::a_locked_row_beside_other_lanes(),
            Self::UnmarkableKept => scenario::a_locked_row(),
            Self::Circuit | Self::SuccessReleases => scenario::an_outage(),
            Self::FindHeld | Self::HeldHoldsBack => scenario::a_restart(),
            Self::FoundWhateverFailed => scenario::returns(),
        }
    }
}
