//! How a consumer runs.

use std::time::Duration;

use rand::RngExt;

/// What becomes of messages that are published again on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayPolicy {
    /// Applied unless the inbox knows them: to rebuild, or to make up for a loss.
    Accept,
    /// Acknowledged unseen: for consumers with external effects.
    Skip,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerOptions {
    pub queue: String,
    /// Messages at the consumer that are not acknowledged yet; also those that wait for a retry.
    pub prefetch: u16,
    /// Handlers that run at the same time, each with a database connection.
    pub handlers: usize,
    pub handler_timeout: Duration,
    pub max_attempts: u32,
    /// Prepares its own statements once a connection. `false` behind a pooler that gives each transaction another session
    /// (PgBouncer in transaction mode before 1.21, or without `max_prepared_statements`).
    pub prepared_statements: bool,
    pub backoff_initial: Duration,
    pub backoff_max: Duration,
    pub replay: ReplayPolicy,
    /// Where messages go that cannot be applied; with `outbox-dead-reason`, `-attempts` and `-error` as headers. What
    /// the broker gives up by itself comes there without these, and with its own `x-death`.
    pub dead_letter_queue: String,
    /// Declares both queues (durable, quorum), and `queue` with the other one as its dead-letter queue. Where `queue` is
    /// there with other arguments, the broker refuses it (406, `PRECONDITION_FAILED`) and nothing is consumed: delete it
    /// once it is empty, or leave this off.
    ///
    /// Otherwise they must be there, and whoever declares `queue` should give it a dead-letter exchange, as an argument
    /// or by a policy: from RabbitMQ 4.0 on, a quorum queue has a `delivery-limit` of 20 where nothing else is said, and
    /// drops a message above it where no exchange takes it.
    pub declare: bool,
    /// How long the inbox remembers.
    pub retention: Duration,
    /// The longest that a message may come late: queue TTLs, outages, replays. Retention must be longer.
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
            retention: Duration::from_secs(14 * 24 * 3600),
            redelivery_horizon: Duration::from_secs(7 * 24 * 3600),
        }
    }

    /// How long to wait after so many failures in a row. Full jitter: what failed together does not come back
    /// together.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        self.ceiling(failures)
            .mul_f64(rand::rng().random_range(0.0..=1.0))
    }

    fn ceiling(&self, failures: u32) -> Duration {
        let doubled = self
            .backoff_initial
            .checked_mul(1 << failures.saturating_sub(1).min(31));
        doubled.unwrap_or(self.backoff_max).min(self.backoff_max)
    }

    pub fn check(&self) -> Result<(), OptionsError> {
        let bad = |option, problem| Err(OptionsError { option, problem });
        let name = |text: &str| !text.is_empty() && text.len() <= 255;
        if !name(&self.queue) {
            return bad("queue", "must have 1 to 255 bytes");
        }
        if !name(&self.dead_letter_queue) || self.dead_letter_queue == self.queue {
            return bad(
                "dead_letter_queue",
                "must have 1 to 255 bytes and be another queue",
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
    fn the_back_off_doubles_to_its_ceiling_and_never_overflows() {
        let mut options = ConsumerOptions::new("payments");
        options.backoff_initial = Duration::from_millis(100);
        options.backoff_max = Duration::from_secs(1);
        let ceilings: Vec<u128> = [0, 1, 2, 3, 4, 5, 40, u32::MAX]
            .map(|failures| options.ceiling(failures).as_millis())
            .into();
        assert_eq!(ceilings, [100, 100, 200, 400, 800, 1000, 1000, 1000]);
        options.backoff_initial = Duration::MAX;
        options.backoff_max = Duration::MAX;
        assert_eq!(options.ceiling(9), Duration::MAX);
        for failures in 0..9 {
            options.backoff_max = Duration::from_secs(1);
            assert!(options.backoff(failures) <= Duration::from_secs(1));
        }
    }

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
