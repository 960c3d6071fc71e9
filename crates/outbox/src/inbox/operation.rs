//! An operation: its key, and the fingerprint that distinguishes it from another operation with the same key.

use sha2::{Digest, Sha256};

/// Longest key, in bytes; the schema refuses more.
const MAX_KEY: usize = 255;

/// One business operation that must be applied once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    key: String,
    fingerprint: [u8; 32],
    guard: Option<(String, i64)>,
}

/// The message has no usable key. Do not guess one: dead-letter the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    #[error("there is no idempotency key (a missing or empty message id?)")]
    NoKey,
    #[error("the idempotency key has {bytes} bytes; {MAX_KEY} are allowed")]
    KeyTooLong { bytes: usize },
    #[error("the idempotency key holds a control character")]
    ControlCharacter,
}

impl Operation {
    /// `key` is the message id, or a business key (`pay_123`) that stays the same if one fact is published twice. Type, content
    /// type and raw body make the fingerprint.
    pub fn new(
        key: impl Into<String>,
        type_: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Self, OperationError> {
        let key = key.into();
        if key.is_empty() {
            return Err(OperationError::NoKey);
        }
        if key.len() > MAX_KEY {
            return Err(OperationError::KeyTooLong { bytes: key.len() });
        }
        if key.contains(char::is_control) {
            return Err(OperationError::ControlCharacter);
        }
        Ok(Self {
            key,
            fingerprint: fingerprint(type_, content_type, body),
            guard: None,
        })
    }

    /// Turns the stale guard on: the inbox passes the operation over if a later position of the entity was applied before. Use it
    /// for handlers whose newest message makes older messages pointless, not for handlers that must see every message.
    #[must_use]
    pub fn guarded(mut self, entity: impl Into<String>, position: i64) -> Self {
        self.guard = Some((entity.into(), position));
        self
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    pub(super) fn guard(&self) -> (Option<&str>, Option<i64>) {
        match &self.guard {
            Some((entity, position)) => (Some(entity), Some(*position)),
            None => (None, None),
        }
    }
}

/// The parts carry their lengths, so `("ab", "c")` and `("a", "bc")` have different fingerprints.
pub(crate) fn fingerprint(type_: &str, content_type: &str, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [type_.as_bytes(), content_type.as_bytes(), body] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_tells_every_part_apart() {
        let base = fingerprint("ab", "c", b"d");
        assert_eq!(base, fingerprint("ab", "c", b"d"));
        for other in [
            ("a", "bc", &b"d"[..]),
            ("ab", "cd", b""),
            ("ab", "c", b"D"),
            ("", "abc", b"d"),
        ] {
            assert_ne!(base, fingerprint(other.0, other.1, other.2));
        }
    }

    #[test]
    fn a_missing_or_malformed_key_is_refused_and_not_guessed() {
        let key = |key: &str| Operation::new(key, "t", "c", b"").map(|o| o.key().to_owned());
        assert_eq!(key(""), Err(OperationError::NoKey));
        assert_eq!(
            key(&"k".repeat(256)),
            Err(OperationError::KeyTooLong { bytes: 256 })
        );
        let bytes = "é".repeat(128);
        assert_eq!(key(&bytes), Err(OperationError::KeyTooLong { bytes: 256 }));
        for text in ["a\nb", "a\r\nb", "\0", "a\u{7f}", "\u{85}"] {
            assert_eq!(key(text), Err(OperationError::ControlCharacter), "{text:?}");
        }
        assert_eq!(key(&"k".repeat(255)).unwrap().len(), 255);
    }
}
