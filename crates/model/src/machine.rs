//! A scenario that runs, and its steps.

use std::sync::Arc;

use crate::{
    Safeguard, Scenario,
    state::{Act, Forbidden, Key, Lane, Reply, Row},
};

/// A scenario, with all safeguards or without one.
#[derive(Debug, Clone)]
pub struct Machine {
    pub scenario: Arc<Scenario>,
    pub removed: Option<Safeguard>,
}

/// One step. The first number is whose, an index into the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A producer's transaction takes its id.
    Begin(Key),
    /// It draws its position.
    Draw(usize),
    /// Only without `TxBeforeId`: it takes its id now.
    AssignTx(Row),
    Commit(Row),
    RollBack(Row),
    /// Only without `ReadAfterLock`.
    Look(usize),
    Lock(usize, Vec<Lane>),
    /// Reads, of the due ones these.
    Read(usize, Vec<Row>),
    /// The broker does something with the next publish of the wave.
    Broker(usize, Reply),
    /// All confirms of the wave are in. `ends`: the claim's time is over, no further wave.
    Confirmed {
        relay: usize,
        ends: bool,
    },
    /// Only without one of the confirm's safeguards: they are in, and are read like this.
    Misread(usize, Misreading),
    Settle(usize),
    /// The first so many of the wave's unanswered publishes are on their way already.
    Crash(usize, u8),
    Lose(usize, u8),
    Fence(usize),
    /// Of this dead connection.
    Late(usize),
    FallDue(Row),
    ScoutLook,
    ScoutLock,
    ScoutTidy,
    Deliver(usize, Row),
    Claim(usize),
    CommitEffect(usize),
    Ack(usize),
    CrashConsumer(usize),
    LoseConsumer(usize),
    /// Somebody changes a row.
    ByHand(Act, Row),
    AuditWalk,
    AuditHold,
    AuditCheck,
    AuditCommit,
    CrashAudit,
    /// Of what stands behind nobody.
    AuditRelease,
    /// Somebody makes marks impossible, and possible again.
    Forbid(Forbidden),
    Permit,
    /// The destination takes nothing, and works again.
    Fail,
    Recover,
    /// A back-off ends.
    Round,
    FindHeld(usize),
    /// Makes one held message due.
    Probe(usize),
    GiveUp(usize),
    ReleaseHeld(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misreading {
    /// Whatever was published was delivered.
    Unconfirmed,
    /// The return of this one came with a later confirm.
    TooLate(usize),
    /// The return of the first came with the confirm of the second.
    Crossed(usize, usize),
}

impl Action {
    /// What need not happen. Without these, every run comes to its end.
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::RollBack(_)
                | Self::Crash(..)
                | Self::Lose(..)
                | Self::Fence(_)
                | Self::CrashConsumer(_)
                | Self::LoseConsumer(_)
                | Self::ByHand(..)
                | Self::CrashAudit
                | Self::Forbid(_)
                | Self::Fail
                | Self::Broker(_, Reply::Return | Reply::Nack)
        )
    }
}

impl Machine {
    pub fn whole(scenario: Scenario) -> Self {
        Self {
            scenario: Arc::new(scenario),
            removed: None,
        }
    }

    pub fn has(&self, safeguard: Safeguard) -> bool {
        self.removed != Some(safeguard)
    }

    pub fn lane_of(&self, key: Key) -> Lane {
        self.scenario.lanes[usize::from(key)]
    }
}
