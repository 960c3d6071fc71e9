//! What the tasks of a source share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outbox_core::{
    backoff::{self, RetryPolicy},
    caution::Caution,
    circuit::Circuits,
    envelope::EnvelopeBuilder,
    message::Position,
};

use super::{
    board::Board,
    health::Health,
    hints::Hints,
    seats::{Rank, Seats},
    silence::Silence,
    sleep::Sleep,
    timed_out::TimedOut,
};
use crate::{
    config::{Relay, Source},
    outbox::{OutboxError, settle::Keep},
};

pub struct Shared {
    pub source: Source,
    pub relay: Relay,
    pub keep: Keep,
    /// To be declared at every connect, with `broker.declare`.
    pub exchanges: Vec<String>,
    pub builder: EnvelopeBuilder,
    pub policy: RetryPolicy,
    pub board: Board,
    pub hints: Hints,
    pub health: Health,
    pub sleep: Sleep,
    pub seats: Arc<Seats>,
    pub silence: Silence,
    pub timed_out: TimedOut,
    /// Name of this process in `pg_stat_activity`, `outbox.relay` and the broker's connection list.
    pub instance: String,
    pub circuits: Mutex<Circuits>,
    pub caution: Mutex<Caution>,
}

impl Shared {
    pub fn circuits(&self) -> MutexGuard<'_, Circuits> {
        self.circuits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn caution(&self) -> MutexGuard<'_, Caution> {
        self.caution.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has no connection for this task, which the relay can do without.
    pub fn refused(&self, rank: Rank, error: &OutboxError) {
        if self.seats.refuse(rank) {
            tracing::warn!(source = self.health.source(), error = %error, "fewer connections than wanted: slower");
        }
    }

    /// What was published could not be settled, or, with nothing published, a rehearsal says that it could not. `filed`: those
    /// that were to be filed.
    pub fn cannot_mark(
        &self,
        sent: impl IntoIterator<Item = Position>,
        filed: impl IntoIterator<Item = Position>,
        why: &str,
    ) {
        let mut caution = self.caution();
        caution.failed(sent);
        caution.not_filed(filed);
        drop(caution);
        self.health.cannot_mark(why);
    }
}

/// A server that is back is used within seconds, and one that is away is not stormed.
pub fn reconnect_delay(failures: u32) -> Duration {
    backoff::delay(
        failures,
        Duration::from_millis(200),
        Duration::from_secs(3),
        &mut rand::rng(),
    )
}
