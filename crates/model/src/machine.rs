//! A running scenario, and its steps.

use std::sync::Arc;

use crate::{
    Safeguard, Scenario,
    state::{Act, Forbidden, Key, Lane, Reply, Row},
};

/// A scenario, with all safeguards or without one of them.
#[derive(Debug, Clone)]
pub struct Machine {
    pub scenario: Arc<Scenario>,
    pub removed: Option<Safeguard>,
}

/// One step. The first number is the actor's index in the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A producer's transaction takes its id.
    Begin(Key),
    /// The transaction draws its position.
    Draw(usize),
    /// Only without `TxBeforeId`: the transaction takes its id now.
    AssignTx(Row),
    Commit(Row),
    RollBack(Row),
    /// Only without `ReadAfterLock`.
    Look(usize),
    Lock(usize, Vec<Lane>),
    /// Reads these of the due messages, and new ones.
    Read(usize, Vec<Row>),
    /// The broker handles the next publish of the wave.
    Broker(usize, Reply),
    /// All confirms of the wave have arrived. `ends`: the claim has no time for a further wave.
    Confirmed {
        relay: usize,
        ends: bool,
    },
    /// Only without one of the safeguards of the confirm: the confirms have arrived, and are misread like this.
    Misread(usize, Misreading),
    Settle(usize),
    /// The relay dies. This number of the wave's unanswered publishes is already in flight.
    Crash(usize, u8),
    Lose(usize, u8),
    Fence(usize),
    /// A publish of this dead connection arrives.
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
    /// Somebody changes a row manually.
    ByHand(Act, Row),
    AuditWalk,
    AuditHold,
    AuditCheck,
    AuditCommit,
    CrashAudit,
    /// Releases messages whose head is gone.
    AuditRelease,
    /// Somebody makes marks impossible, or possible again.
    Forbid(Forbidden),
    Permit,
    /// The destination starts to refuse everything, or works again.
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
    /// Every published message counts as delivered.
    Unconfirmed,
    /// The return of this message came with a later confirm.
    TooLate(usize),
    /// The return of the first message came with the confirm of the second.
    Crossed(usize, usize),
}

impl Action {
    /// Steps that need not happen. Without them every run ends.
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
