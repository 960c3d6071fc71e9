//! Everything that the tasks of a source use together.

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
    scheduling::Tuning,
};

use super::{
    connections::{ConnectionBudget, Priority},
    health::{Health, Obstacle, counts_until},
    hints::Hints,
    lanes::Lanes,
    outages::{Failing, Outages},
    silence::Silence,
    sleep::Sleep,
    tally::Tally,
    timed_out::TimedOut,
};
use crate::{
    config::{Relay, Source},
    outbox::{OutboxError, settle::Keep},
};

pub struct Context {
    pub source: Source,
    pub relay: Relay,
    pub keep: Keep,
    /// With `broker.declare`, every connection to the broker declares these exchanges.
    pub exchanges: Vec<String>,
    pub builder: EnvelopeBuilder,
    pub policy: RetryPolicy,
    pub tuning: Tuning,
    pub lanes: Lanes,
    pub hints: Hints,
    pub health: Arc<Health>,
    pub sleep: Sleep,
    pub connections: Arc<ConnectionBudget>,
    pub silence: Silence,
    pub timed_out: TimedOut,
    pub outages: Outages,
    pub tally: Tally,
    /// Name of this process in `pg_stat_activity`, `outbox.relay` and the broker's connection list.
    pub instance: String,
    pub circuits: Mutex<Circuits>,
    pub caution: Mutex<Caution>,
}

impl Context {
    pub fn circuits(&self) -> MutexGuard<'_, Circuits> {
        self.circuits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn caution(&self) -> MutexGuard<'_, Caution> {
        self.caution.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server refused a connection to a task that the relay does not need.
    pub fn refused(&self, priority: Priority, error: &OutboxError) {
        if self.connections.refused(priority) {
            tracing::warn!(source = self.health.source(), error = %error, "fewer connections than wanted: slower");
        }
    }

    /// An attempt of a task failed, and it is made again.
    pub fn failed(&self, failing: Failing, task: Priority, error: &str) {
        self.outages
            .failed(self.health.source(), failing, task, error);
    }

    /// The task has its connections.
    pub fn connected(&self, task: Priority) {
        self.outages.connected(self.health.source(), task);
    }

    /// The task works, or is not needed now.
    pub fn works(&self, task: Priority) {
        self.outages.works(self.health.source(), task);
    }

    /// These messages cannot be marked, and are tried again after `retry_in`. They are known before the failure is told:
    /// otherwise marks of other messages, which another worker makes at the same time, would end it.
    pub fn cannot_mark(
        &self,
        messages: impl IntoIterator<Item = Position>,
        why: &str,
        retry_in: Duration,
    ) {
        let until = counts_until(retry_in);
        self.caution().not_marked(messages, until.into_std());
        self.health.fails_until(Obstacle::Marks, why, until);
    }

    /// A settle failed, or a rehearsal shows that it would. `sent`: the messages that it would have marked. `filed`: the
    /// messages whose records it would have written.
    pub fn not_settled(
        &self,
        sent: impl IntoIterator<Item = Position>,
        filed: impl IntoIterator<Item = Position>,
    ) {
        let mut caution = self.caution();
        caution.failed(sent);
        caution.not_filed(filed);
    }
}

/// The longest pause after a first failure.
pub const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The relay uses a server within seconds of its return, and does not flood a server that is away with attempts.
pub fn reconnect_delay(failures: u32) -> Duration {
    backoff::delay(
        failures,
        FIRST_PAUSE,
        Duration::from_secs(3),
        &mut rand::rng(),
    )
}
