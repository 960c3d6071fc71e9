//! How many messages a worker's next claim asks for.

use super::tuning::Tuning;

/// At most `relay.batch_size`. Where bodies are large, `relay.batch_bytes` ends a batch first. Reading more than fits is
/// wasted work: PostgreSQL decompresses a body even to report its length.
#[derive(Debug)]
pub struct BatchLimit {
    tuning: Tuning,
    configured: usize,
    now: usize,
    /// A read failed: one message at a time, until one was read.
    collapsed: bool,
}

impl BatchLimit {
    pub fn new(tuning: Tuning, configured: usize) -> Self {
        Self {
            tuning,
            configured,
            now: configured,
            collapsed: false,
        }
    }

    pub fn get(&self) -> usize {
        self.now
    }

    /// A read failed. The next claim reads one message.
    pub fn collapse(&mut self) {
        self.now = 1;
        self.collapsed = true;
    }

    pub fn is_collapsed(&self) -> bool {
        self.collapsed
    }

    /// A claim kept `kept` messages. `cut_short`: it had read more.
    pub fn learn(&mut self, kept: usize, cut_short: bool) {
        let next = if cut_short {
            kept + kept / self.tuning.batch_headroom_one_in + 1
        } else {
            self.now.saturating_mul(self.tuning.batch_growth)
        };
        self.now = next.min(self.configured);
        self.collapsed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(configured: usize) -> BatchLimit {
        BatchLimit::new(Tuning::MEASURED, configured)
    }

    #[test]
    fn it_follows_what_fits_and_returns_to_what_is_configured() {
        let mut limit = limit(500);
        assert_eq!(limit.get(), 500);
        limit.learn(12, true);
        assert_eq!(limit.get(), 16);
        limit.learn(16, false);
        assert_eq!(limit.get(), 32, "whether more fit is tried");
        limit.learn(1, true);
        assert_eq!(limit.get(), 2);
        for _ in 0..8 {
            limit.learn(2, false);
        }
        assert_eq!(limit.get(), 500);
    }

    #[test]
    fn it_never_exceeds_what_is_configured() {
        let mut limit = limit(1);
        limit.learn(1, true);
        assert_eq!(limit.get(), 1);
    }

    #[test]
    fn after_a_read_that_failed_one_message_until_one_was_read() {
        let mut limit = limit(500);
        limit.collapse();
        assert_eq!((limit.get(), limit.is_collapsed()), (1, true));
        limit.learn(1, false);
        assert_eq!((limit.get(), limit.is_collapsed()), (2, false));
    }
}
