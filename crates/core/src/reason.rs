//! Reason codes: stable words for metrics labels, `outbox.waiting`, `outbox.dead` and alerts. No I/O.

/// Why a message was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    // Reported by the broker.
    /// No queue is bound for its routing key (`basic.return` 312).
    Unroutable,
    /// `basic.nack`: a full queue with `reject-publish`, or a broker in trouble.
    Nacked,
    /// 404: the exchange does not exist.
    ExchangeMissing,
    /// 403: the user may not write to the exchange.
    AccessRefused,
    /// 406: for example, the body is above the broker's own limit.
    PreconditionFailed,
    /// Any other refusal of this one message.
    BrokerRefused,
    // Reported by the database.
    /// The message cannot be marked as sent, so it is not published: its row is locked, or a trigger or a privilege
    /// prevents the update.
    Unmarkable,
    /// The row cannot be read: it is damaged, or its encoding is none that the relay reads.
    Unreadable,
    // No answer: only counted, not stored.
    ConfirmTimeout,
    ConnectionLost,
    // Found in the row.
    PayloadTooLarge,
    RoutingKeyInvalid,
    RoutingKeyTooLong,
    ExchangeNotAllowed,
    ExchangeInvalid,
    TypeInvalid,
    ContentTypeInvalid,
    KeyInvalid,
    HeadersInvalid,
    HeadersTooLarge,
    HeaderReserved,
    NumberOutOfRange,
    /// The route's pattern needs a column that is NULL in this row.
    NoRoute,
    // Decided by a person.
    /// Given up with `outboxd waiting give-up`.
    GivenUp,
}

impl Reason {
    pub const ALL: &'static [Self] = &[
        Self::Unroutable,
        Self::Nacked,
        Self::ExchangeMissing,
        Self::AccessRefused,
        Self::PreconditionFailed,
        Self::BrokerRefused,
        Self::Unmarkable,
        Self::Unreadable,
        Self::ConfirmTimeout,
        Self::ConnectionLost,
        Self::PayloadTooLarge,
        Self::RoutingKeyInvalid,
        Self::RoutingKeyTooLong,
        Self::ExchangeNotAllowed,
        Self::ExchangeInvalid,
        Self::TypeInvalid,
        Self::ContentTypeInvalid,
        Self::KeyInvalid,
        Self::HeadersInvalid,
        Self::HeadersTooLarge,
        Self::HeaderReserved,
        Self::NumberOutOfRange,
        Self::NoRoute,
        Self::GivenUp,
    ];

    /// `None` for a word that is not a reason code of this version.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.as_str() == word)
    }

    #[inline]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unroutable => "unroutable",
            Self::Nacked => "nacked",
            Self::ExchangeMissing => "exchange_missing",
            Self::AccessRefused => "access_refused",
            Self::PreconditionFailed => "precondition_failed",
            Self::BrokerRefused => "broker_refused",
            Self::Unmarkable => "unmarkable",
            Self::Unreadable => "unreadable",
            Self::ConfirmTimeout => "confirm_timeout",
            Self::ConnectionLost => "connection_lost",
            Self::PayloadTooLarge => "payload_too_large",
            Self::RoutingKeyInvalid => "routing_key_invalid",
            Self::RoutingKeyTooLong => "routing_key_too_long",
            Self::ExchangeNotAllowed => "exchange_not_allowed",
            Self::ExchangeInvalid => "exchange_invalid",
            Self::TypeInvalid => "type_invalid",
            Self::ContentTypeInvalid => "content_type_invalid",
            Self::KeyInvalid => "key_invalid",
            Self::HeadersInvalid => "headers_invalid",
            Self::HeadersTooLarge => "headers_too_large",
            Self::HeaderReserved => "header_reserved",
            Self::NumberOutOfRange => "number_out_of_range",
            Self::NoRoute => "no_route",
            Self::GivenUp => "given_up",
        }
    }
}

/// The reason why a message must not be published. The refusal is permanent and concerns only this message.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub reason: Reason,
    /// Says what is wrong and what would be right. It contains no payload.
    pub detail: String,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_distinct_word() {
        let words: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        // ALL is written by hand; the discriminant of the last variant gives the number of variants.
        assert_eq!(Reason::GivenUp as usize + 1, Reason::ALL.len());
    }

    #[test]
    fn a_reason_is_found_by_its_word_and_no_other_word_is_one() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_word(reason.as_str()), Some(*reason));
        }
        assert_eq!(Reason::from_word("UNROUTABLE"), None);
        assert_eq!(Reason::from_word(""), None);
    }
}
