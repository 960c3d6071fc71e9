//! Options of a consumer.

use std::time::Duration;

use outbox_core::{backoff, limits::SHORT};

/// The treatment of replayed messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayPolicy {
    /// Apply them unless the inbox knows them: to rebuild data, or to make up for a loss.
    Accept,
    /// Acknowledge them unseen: for consumers with external effects.
    Skip,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerOptions {
    pub queue: String,
    /// Most unacknowledged messages at the consumer, including those that wait for a retry.
    pub prefetch: u16,
    /// Number of handlers that run at the same time, each with a database connection.
    pub handlers: usize,
    pub handler_timeout: Duration,
    pub max_attempts: u32,
    /// Prepare the runner's own statements once for each connection. Set it to `false` behind a pooler that gives each
    /// transaction another session (PgBouncer in transaction mode before 1.21, or without `max_prepared_statements`).
    pub prepared_statements: bool,
    pub backoff_initial: Duration,
    pub backoff_max: Duration,
    pub replay: ReplayPolicy,
    /// Queue for messages that cannot be applied, with the headers `outbox-dead-reason`, `-attempts` and `-error`. Messages
    /// that the broker itself gives up arrive there without these headers, and with its own `x-death`.
    pub dead_letter_queue: String,
    /// Declare both queues (durable, quorum), `queue` with the other queue as its dead-letter queue. If `queue` exists with
    /// other arguments, the broker refuses the declaration (406, `PRECONDITION_FAILED`) and the runner consumes nothing:
    /// delete the queue once it is empty, or leave this off.
    ///
    /// If this is off, both queues must exist. Give `queue` a dead-letter exchange, as an argument or by a policy: from
    /// RabbitMQ 4.0 on, a quorum queue without a `delivery-limit` of its own has the limit 20, and drops a message above the
    /// limit if no exchange takes it.
    pub declare: bool,
    /// Declare `queue` with a single active consumer: one of several copies of the service consumes, and another copy takes
    /// over when the first is gone. This keeps the order of a key over all copies; the runner alone keeps it within one copy.
    /// It works only with `declare`; a queue that is declared elsewhere needs the argument `x-single-active-consumer: true`.
    pub single_active_consumer: bool,
    /// How long the inbox remembers operations.
    pub retention: Duration,
    /// The longest delay after which a message may come again: queue TTLs, outages, replays. Retention must be longer.
    pub redelivery_horizon: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct OptionsError {
    pub option: &'static str,
    pub problem: &'static str,
}

impl ConsumerOptions {
    pub fn new(queue: impl Into<String>) -> Self {
        let queue = queue.into();
        Self {
            dead_letter_queue: format!("{queue}.dead"),
            queue,
            prefetch: 200,
            handlers: 4,
            handler_timeout: Duration::from_secs(30),
            max_attempts: 10,
            prepared_statements: true,
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            replay: ReplayPolicy::Accept,
            declare: false,
            single_active_consumer: false,
            retention: Duration::from_secs(14 * 24 * 3600),
            redelivery_horizon: Duration::from_secs(7 * 24 * 3600),
        }
    }

    /// The wait after this many failures in a row.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        backoff::delay(
            failures,
            self.backoff_initial,
            self.backoff_max,
            &mut rand::rng(),
        )
    }

    pub fn check(&self) -> Result<(), OptionsError> {
        let bad = |option, problem| Err(OptionsError { option, problem });
        let name = |text: &str| !text.is_empty() && text.len() <= SHORT;
        if !name(&self.queue) {
            return bad("queue", "must have 1 to 255 bytes");
        }
        if !name(&self.dead_letter_queue) || self.dead_letter_queue == self.queue {
            return bad(
                "dead_letter_queue",
                "must have 1 to 255 bytes and be another queue",
            );
        }
        if self.single_active_consumer && !self.declare {
            return bad(
                "single_active_consumer",
                "is an argument of a queue that `declare` declares; declare it elsewhere with x-single-active-consumer",
            );
        }
        if self.prefetch == 0 {
            return bad(
                "prefetch",
                "must be at least 1: 0 is no limit, and memory has one",
            );
        }
        if self.handlers == 0 {
            return bad("handlers", "must be at least 1");
        }
        if self.max_attempts == 0 {
            return bad("max_attempts", "must be at least 1");
        }
        if self.handler_timeout.is_zero() {
            return bad("handler_timeout", "must be above zero");
        }
        if self.backoff_initial > self.backoff_max {
            return bad("backoff_max", "must be at least backoff_initial");
        }
        if self.retention <= self.redelivery_horizon {
            return bad(
                "retention",
                "must be longer than redelivery_horizon, or a late repetition is applied again",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_are_named() {
        let option = |change: fn(&mut ConsumerOptions)| {
            let mut options = ConsumerOptions::new("payments");
            change(&mut options);
            options.check().err().map(|e| e.option)
        };
        assert_eq!(option(|_| ()), None);
        assert_eq!(option(|o| o.queue.clear()), Some("queue"));
        assert_eq!(
            option(|o| o.dead_letter_queue = o.queue.clone()),
            Some("dead_letter_queue")
        );
        assert_eq!(
            option(|o| o.single_active_consumer = true),
            Some("single_active_consumer")
        );
        assert_eq!(option(|o| o.prefetch = 0), Some("prefetch"));
        assert_eq!(option(|o| o.handlers = 0), Some("handlers"));
        assert_eq!(option(|o| o.max_attempts = 0), Some("max_attempts"));
        assert_eq!(
            option(|o| o.handler_timeout = Duration::ZERO),
            Some("handler_timeout")
        );
        assert_eq!(
            option(|o| o.backoff_max = Duration::ZERO),
            Some("backoff_max")
        );
        assert_eq!(
            option(|o| o.retention = o.redelivery_horizon),
            Some("retention")
        );
    }
}
