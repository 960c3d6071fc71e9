//! The broker's answer, and the outcome of the message. No I/O.
//!
//! | answer | outcome |
//! |---|---|
//! | acked and not returned | sent |
//! | returned; exchange missing; write refused; other refusal | retried; dead after `max_attempts` |
//! | nacked | retried without limit: a full queue is not the message's fault |
//! | cannot be marked | not published; retried without limit |
//! | precondition failed; the row cannot become an AMQP message | dead at once: no retry can succeed |
//! | no answer | untouched: the message stays pending, and no attempt is counted |

use std::time::Duration;

use rand::Rng;

use crate::{
    backoff::{self, RetryPolicy},
    circuit::Held,
    reason::{Reason, Refusal},
};

/// The answer for one message of a wave.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Acked and not returned.
    Delivered,
    /// Returned: no queue took the message.
    Unroutable {
        code: u16,
        text: String,
    },
    Nacked,
    /// Not published, because the message cannot be marked as sent.
    Unmarkable {
        text: String,
    },
    /// The broker refused this message and closed the channel.
    Refused {
        code: u16,
        text: String,
    },
    /// Refused before it was published.
    Rejected(Refusal),
    /// An earlier message of its key was not delivered.
    Behind,
    /// No complete answer: the message may or may not be in a queue.
    Unknown,
}

impl Answer {
    /// `None` if the message is delivered, or if the answer tells nothing about the message.
    #[inline]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Unroutable { .. } => Some(Reason::Unroutable),
            Self::Nacked => Some(Reason::Nacked),
            Self::Unmarkable { .. } => Some(Reason::Unmarkable),
            Self::Refused { code: 403, .. } => Some(Reason::AccessRefused),
            Self::Refused { code: 404, .. } => Some(Reason::ExchangeMissing),
            Self::Refused { code: 406, .. } => Some(Reason::PreconditionFailed),
            Self::Refused { .. } => Some(Reason::BrokerRefused),
            Self::Rejected(refusal) => Some(refusal.reason),
            Self::Delivered | Self::Behind | Self::Unknown => None,
        }
    }

    pub fn text(&self) -> String {
        match self {
            Self::Unroutable { code, text } | Self::Refused { code, text } => {
                format!("{code} {text}")
            }
            Self::Unmarkable { text } => text.clone(),
            Self::Nacked => {
                "basic.nack: the broker did not take the message (is a queue full?)".to_owned()
            }
            Self::Rejected(refusal) => refusal.detail.clone(),
            Self::Delivered | Self::Behind | Self::Unknown => String::new(),
        }
    }
}

/// What the settle writes for one message.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Sent,
    Retry {
        reason: Reason,
        attempts: u32,
        delay: Duration,
        error: String,
    },
    Dead {
        reason: Reason,
        attempts: u32,
        error: String,
    },
    /// Waits for an earlier message of its key.
    Behind,
    /// Waits until a probe chooses the message, or its destination works again.
    Held {
        held: Held,
        attempts: u32,
    },
    /// Nothing is written, and the message stays as it was.
    Untouched,
}

/// `attempts`: attempts counted before this one.
pub fn decide(answer: &Answer, attempts: u32, policy: &RetryPolicy, rng: &mut impl Rng) -> Outcome {
    let made = attempts.saturating_add(1);
    let mut retry = |reason, attempts| Outcome::Retry {
        reason,
        attempts,
        delay: backoff::delay(made, policy.backoff_initial, policy.backoff_max, rng),
        error: answer.text(),
    };
    let dead = |reason| Outcome::Dead {
        reason,
        attempts: made,
        error: answer.text(),
    };
    match answer {
        Answer::Delivered => Outcome::Sent,
        // Nacks and failed marks raise the count to half the limit at most, so a full queue or a lock cannot use up a
        // message's attempts.
        Answer::Nacked => retry(Reason::Nacked, half(attempts, policy)),
        Answer::Unmarkable { .. } => retry(Reason::Unmarkable, half(attempts, policy)),
        Answer::Refused { code: 406, .. } => dead(Reason::PreconditionFailed),
        Answer::Rejected(refusal) => dead(refusal.reason),
        Answer::Unroutable { .. } | Answer::Refused { .. } => {
            let reason = answer.reason().unwrap_or(Reason::BrokerRefused);
            if made >= policy.max_attempts {
                dead(reason)
            } else {
                retry(reason, made)
            }
        }
        Answer::Behind => Outcome::Behind,
        Answer::Unknown => Outcome::Untouched,
    }
}

fn half(attempts: u32, policy: &RetryPolicy) -> u32 {
    attempts.max(attempts.saturating_add(1).min(policy.max_attempts / 2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 20,
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(300),
    };

    fn decided(answer: &Answer, attempts: u32) -> Outcome {
        decide(answer, attempts, &POLICY, &mut rand::rng())
    }

    fn refused(code: u16) -> Answer {
        Answer::Refused {
            code,
            text: "why".to_owned(),
        }
    }

    fn answers() -> impl Strategy<Value = Answer> {
        prop_oneof![
            Just(Answer::Delivered),
            any::<(u16, String)>().prop_map(|(code, text)| Answer::Unroutable { code, text }),
            Just(Answer::Nacked),
            any::<(u16, String)>().prop_map(|(code, text)| Answer::Refused { code, text }),
            (0..Reason::ALL.len()).prop_map(|i| Answer::Rejected(Refusal {
                reason: Reason::ALL[i],
                detail: "why".to_owned()
            })),
            Just(Answer::Behind),
            Just(Answer::Unknown),
        ]
    }

    proptest! {
        #[test]
        fn only_a_delivered_message_is_sent(answer in answers(), attempts: u32) {
            prop_assert_eq!(decided(&answer, attempts) == Outcome::Sent, answer == Answer::Delivered);
        }

        #[test]
        fn attempts_grow_by_one_and_saturate(answer in answers(), attempts: u32) {
            let made = attempts.saturating_add(1);
            match decided(&answer, attempts) {
                Outcome::Retry { attempts: counted, reason: Reason::Nacked | Reason::Unmarkable, .. } =>
                    prop_assert_eq!(counted, attempts.max(made.min(POLICY.max_attempts / 2))),
                Outcome::Retry { attempts: counted, .. } => prop_assert!(counted == made && made < POLICY.max_attempts),
                Outcome::Dead { attempts: counted, .. } => prop_assert_eq!(counted, made),
                Outcome::Sent | Outcome::Behind | Outcome::Held { .. } | Outcome::Untouched => {}
            }
        }
    }

    #[test]
    fn a_nack_never_makes_a_message_dead() {
        for attempts in [0, 18, 19, 20, u32::MAX] {
            assert!(matches!(
                decided(&Answer::Nacked, attempts),
                Outcome::Retry {
                    reason: Reason::Nacked,
                    ..
                }
            ));
        }
    }

    #[test]
    fn a_temporary_refusal_is_tried_max_attempts_times() {
        let unroutable = Answer::Unroutable {
            code: 312,
            text: "NO_ROUTE".to_owned(),
        };
        for (answer, reason) in [
            (unroutable, Reason::Unroutable),
            (refused(404), Reason::ExchangeMissing),
            (refused(403), Reason::AccessRefused),
            (refused(541), Reason::BrokerRefused),
        ] {
            assert!(
                matches!(decided(&answer, 18), Outcome::Retry { reason: r, attempts: 19, .. } if r == reason)
            );
            assert!(
                matches!(decided(&answer, 19), Outcome::Dead { reason: r, attempts: 20, .. } if r == reason)
            );
        }
    }

    #[test]
    fn a_permanent_refusal_is_dead_at_once() {
        let dead = decided(&refused(406), 0);
        assert!(matches!(
            dead,
            Outcome::Dead {
                reason: Reason::PreconditionFailed,
                attempts: 1,
                ..
            }
        ));
        let rejected = Answer::Rejected(Refusal {
            reason: Reason::KeyInvalid,
            detail: "why".to_owned(),
        });
        let expected = Outcome::Dead {
            reason: Reason::KeyInvalid,
            attempts: 1,
            error: "why".to_owned(),
        };
        assert_eq!(decided(&rejected, 0), expected);
    }

    #[test]
    fn without_an_answer_nothing_is_decided() {
        assert_eq!(decided(&Answer::Unknown, 19), Outcome::Untouched);
    }

    #[test]
    fn a_full_queue_uses_up_half_of_the_attempts_at_most() {
        let counted = |attempts| match decided(&Answer::Nacked, attempts) {
            Outcome::Retry { attempts, .. } => attempts,
            other => panic!("{other:?}"),
        };
        assert_eq!([0, 1, 8, 9, 10, 15].map(counted), [1, 2, 9, 10, 10, 15]);
    }

    #[test]
    fn the_broker_s_text_is_kept() {
        assert_eq!(refused(404).text(), "404 why");
        assert!(Answer::Nacked.text().contains("basic.nack"));
        assert_eq!(Answer::Unknown.text(), "");
        let text = || "locked".to_owned();
        assert_eq!(Answer::Unmarkable { text: text() }.text(), text());
    }
}
